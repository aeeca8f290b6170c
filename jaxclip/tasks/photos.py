"""The photos of a folder, and their vectors."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from jaxclip.clip import Clip
from jaxclip.tasks.manifest import is_index

Skipped = list[tuple[Path, str]]


def files_under(
    folder: str | os.PathLike, *, on_error: Callable[[Path, str], Any] = lambda folder, reason: None
) -> Iterator[Path]:
    """All files of a folder and its sub-folders but hidden ones, or the file itself, in a stable order: sorted by name,
    a folder's files before its sub-folders.

    Linked folders come last, and no folder comes twice, whatever links lead to it. Folders that are an index of
    jaxclip's are left out. `on_error(folder, reason)` is told of folders that can't be listed; the others go on.
    Raises FileNotFoundError when there is no such file or folder.
    """
    start = Path(folder)
    if not start.exists():
        raise FileNotFoundError(f"{start}: no such file or folder")
    if not start.is_dir():
        yield start
        return

    def tell(error: OSError) -> None:
        path = Path(error.filename)
        on_error(path, f"{str(path)!r}: can't be listed ({error.strerror}); make the folder readable")

    seen, waiting = set(), deque([start])
    while waiting:
        for parent, subfolders, names in os.walk(waiting.popleft(), onerror=tell):
            real = os.path.realpath(parent)
            if real in seen or is_index(parent):
                subfolders.clear()
                continue
            seen.add(real)
            folders = [Path(parent, name) for name in sorted(subfolders) if not name.startswith(".")]
            # Links after the folders themselves: a photo goes by the same path whether or not one leads there.
            waiting.extend(path for path in folders if path.is_symlink())
            subfolders[:] = [path.name for path in folders if not path.is_symlink()]
            yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def stream_photos(
    clip: Clip, paths: Iterable[Path], skipped: Skipped, *, batch_size: int | None = None, total: int | None = None
) -> Iterator[tuple[list[Path], Float32[np.ndarray, "n projection"]]]:
    """Batches of paths with the unit vectors of their photos, turned as their EXIF orientation says.

    What can't be read, or has a vector that isn't finite (in half precision, say), goes to `skipped`, with the reason.
    On a terminal a bar shows how many of `total` are done.
    """

    def regular() -> Iterator[Path]:
        for path in paths:
            # Opening a pipe would wait for whoever writes to it.
            if os.path.exists(path) and not os.path.isfile(path):
                skipped.append((path, f"{str(path)!r}: no regular file; leave out pipes, sockets and devices"))
            else:
                yield path

    with tqdm(desc="photos", unit="photo", total=total, disable=None) as bar:
        before = len(skipped)
        for batch in clip.stream_images(regular(), exif_rotation=True, batch_size=batch_size):
            skipped.extend((failure.input, str(failure.error)) for failure in batch.errors)
            finite: np.ndarray = np.all(np.isfinite(batch.vectors), axis=1)
            skipped.extend(
                (path, f"{str(path)!r}: its vector is not finite: try dtype float32")
                for path in compress(batch.inputs, ~finite)
            )
            yield list(compress(batch.inputs, finite)), batch.vectors[finite]
            bar.update(int(finite.sum()) + len(skipped) - before)
            before = len(skipped)
