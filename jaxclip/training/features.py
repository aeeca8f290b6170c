"""The features of a locked image tower, computed once and kept."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import numpy as np
from filelock import FileLock
from jaxtyping import Float32
from tqdm import tqdm

from jaxclip.atomic import write_atomically
from jaxclip.clip import Clip
from jaxclip.processing import ImageLike
from jaxclip.tasks.index import identity
from jaxclip.training.captions import Source

VECTORS, PROGRESS = "features.npy", "progress.json"

# Seconds between two notes of how far it is: what a kill loses, and the batch at work.
_SECONDS = 15.0


def cache_image_features(
    clip: Clip, source: Source, folder: str | os.PathLike, *, batch_size: int | None = None
) -> Float32[np.ndarray, "samples projection"]:
    """The vectors of a source's images, unit length, mapped from a file in `folder`: made when they aren't there yet.

    Row i is that of sample i, and of NaN where the image couldn't be read (`Batches` leaves such samples out). Photos
    are turned as their EXIF orientation says, as in `Batches`.

    They are made anew when the image tower's parameters, its dtype, the image processor or the images (their names,
    sizes and times of modification) are others: each combination has a sub-folder of its own. Whatever ends the work,
    the next call goes on from where it was, at most some 15 seconds of work before. Another process that makes the same
    is waited for.
    """
    key = _key(clip, source)
    folder = Path(folder) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    # Looked at before the lock: what is complete may lie where nothing can be written.
    if _done(folder / PROGRESS) < len(source):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if _done(folder / PROGRESS) < len(source):
                write_atomically(folder / "made_of.json", (json.dumps(key, indent=1) + "\n").encode())
                _compute(clip, source, folder, batch_size)
    return np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)


def _key(clip: Clip, source: Source) -> dict:
    model = identity(clip)
    return {
        "tower": model.fingerprints["vision"],
        "dtype": model.dtype,
        "preprocessing": {**clip.image_processor.to_hub(), "exif_rotation": True},
        "images": source.fingerprint(),
        "samples": len(source),
    }


def _done(progress: Path) -> int:
    """How many rows are made, or -1 where nothing is begun."""
    try:
        return json.loads(progress.read_bytes())["done"]
    except FileNotFoundError:
        return -1


def _compute(clip: Clip, source: Source, folder: Path, batch_size: int | None) -> None:
    path, done = folder / VECTORS, max(0, _done(folder / PROGRESS))
    shape = len(source), clip.model.tower("vision").config.projection_dim or 0
    # Rows are in the file before the note says so, and a kill in the middle of others changes none of those.
    rows = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float32, None if done else shape)

    def images() -> Iterator[ImageLike]:
        for index in range(done, len(source)):
            try:
                yield source[index].image
            except (OSError, ValueError):
                yield b""  # No image either, so that it is found among the errors, in its place.

    noted, start = monotonic(), done
    batches = clip.stream_images(images(), batch_size=batch_size, exif_rotation=True)
    with tqdm(desc="features", unit="photo", total=len(source), initial=done, disable=None) as bar:
        for batch in batches:
            rows[start + batch.indices] = batch.vectors
            rows[[start + failure.index for failure in batch.errors]] = np.nan
            done += len(batch) + len(batch.errors)
            bar.update(len(batch) + len(batch.errors))
            if monotonic() - noted >= _SECONDS or done == len(source):
                rows.flush()
                write_atomically(folder / PROGRESS, json.dumps({"done": done}).encode())
                noted = monotonic()
