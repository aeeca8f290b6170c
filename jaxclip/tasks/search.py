"""Finding photos by describing them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from jaxclip.clip import Clip
from jaxclip.processing import ImageError


@dataclass(frozen=True)
class Hit:
    """A photo and the cosine of its vector and the query's, from -1 to 1."""

    path: Path
    score: float


@dataclass(frozen=True)
class SearchResult:
    """The best photos, best first, and the files that couldn't be read with the reason for each."""

    hits: list[Hit]
    skipped: list[tuple[Path, str]]


def search(clip: Clip, query: str, photos: str | os.PathLike, *, top: int = 10, batch_size: int = 16) -> SearchResult:
    """Ranks the photos of a folder (and its sub-folders; hidden files aside), or one file, by how well they fit a
    description.

    Photos are turned as their EXIF orientation says. A file that can't be read is skipped and named in the result;
    ties are in the order of the paths. On a terminal a progress bar shows how far it is. Raises FileNotFoundError when
    there is no such file or folder and ValueError when `top` or `batch_size` is not at least 1.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    paths = list(_files_under(Path(photos)))
    wanted = np.asarray(clip.encode_text(query))
    scores: dict[Path, float] = {}
    skipped: list[tuple[Path, str]] = []
    for batch, pixels in _batches(clip, paths, min(batch_size, len(paths)), skipped):
        vectors = np.asarray(clip.encode_pixels(pixels))[: len(batch)]
        scores |= zip(batch, (vectors @ wanted).tolist(), strict=True)
    ranked = sorted(scores, key=lambda path: -scores[path])
    return SearchResult([Hit(path, scores[path]) for path in ranked[:top]], skipped)


def _files_under(photos: Path) -> Iterator[Path]:
    """The file itself, or all files of the folder but hidden ones, in the order of their names."""
    if not photos.exists():
        raise FileNotFoundError(f"{photos}: no such file or folder")
    if photos.is_file():
        yield photos
    for folder, subfolders, names in os.walk(photos):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _batches(
    clip: Clip, paths: Sequence[Path], batch_size: int, skipped: list[tuple[Path, str]]
) -> Iterator[tuple[list[Path], Float32[np.ndarray, "batch height width 3"]]]:
    """Pixels of the files that can be read, with their paths; the others go to `skipped`.

    Every batch has the same shape, so that one compiled program serves all: the last is filled up with zeros.
    """
    batch: list[Path] = []
    rows: list[np.ndarray] = []
    for index, path in enumerate(tqdm(paths, desc="photos", unit="photo", disable=None)):
        try:
            if not path.is_file() and path.exists():
                raise ImageError(f"{str(path)!r}: no regular file; leave out pipes, sockets and devices")
            rows.append(clip.image_processor(path, exif_rotation=True)[0])
            batch.append(path)
        except ImageError as error:
            skipped.append((path, str(error)))
        if len(batch) == batch_size or (batch and index == len(paths) - 1):
            pixels = np.zeros((batch_size, *rows[0].shape), np.float32)
            pixels[: len(rows)] = rows
            yield batch, pixels
            batch, rows = [], []
