"""The photos of a folder, and their vectors."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import compress, count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from jaxclip.clip import Clip
from jaxclip.processing import ImageLike
from jaxclip.tasks.manifest import is_index

Skipped = list[tuple[Path, str]]
Name = TypeVar("Name")


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
    """As `stream_named`, of files by their paths."""
    return stream_named(clip, ((path, path) for path in paths), skipped, batch_size=batch_size, total=total)


def stream_named(
    clip: Clip,
    images: Iterable[tuple[Name, ImageLike]],
    skipped: list[tuple[Name, str]],
    *,
    batch_size: int | None = None,
    total: int | None = None,
) -> Iterator[tuple[list[Name], Float32[np.ndarray, "n projection"]]]:
    """Batches of names with the unit vectors of their images, turned as their EXIF orientation says.

    What can't be read, or has a vector that isn't finite (in half precision, say), goes to `skipped`, with the reason.
    On a terminal a bar shows how many of `total` are done.
    """
    names: dict[int, Name] = {}  # Of images on their way, by their numbers in the stream.
    numbers = count()

    def regular() -> Iterator[ImageLike]:
        for name, image in images:
            # Opening a pipe would wait for whoever writes to it.
            if isinstance(image, os.PathLike) and os.path.exists(image) and not os.path.isfile(image):
                reason = f"{os.fspath(image)!r}: no regular file; leave out pipes, sockets and devices"
                skipped.append((name, reason))
            else:
                names[next(numbers)] = name
                yield image

    with tqdm(desc="photos", unit="photo", total=total, disable=None) as bar:
        before = len(skipped)
        for batch in clip.stream_images(regular(), exif_rotation=True, batch_size=batch_size):
            for failure in batch.errors:
                # A path is in its message; what has none is known by another number here than in the stream.
                reason = str(failure.error)
                if not isinstance(failure.input, os.PathLike):
                    reason = f"{_named(names[failure.index])}: {reason.removeprefix(f'image {failure.index}: ')}"
                skipped.append((names.pop(failure.index), reason))
            done = [names.pop(index) for index in batch.indices.tolist()]
            finite: np.ndarray = np.all(np.isfinite(batch.vectors), axis=1)
            skipped.extend(
                (name, f"{_named(name)}: its vector is not finite: try dtype float32")
                for name in compress(done, ~finite)
            )
            yield list(compress(done, finite)), batch.vectors[finite]
            bar.update(int(finite.sum()) + len(skipped) - before)
            before = len(skipped)


def _named(name: Any) -> str:
    return f"image {name}" if isinstance(name, int) else repr(str(name))
