"""Finding photos and captions by words or by a photo."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxclip.clip import Clip
from jaxclip.processing import ImageLike
from jaxclip.tasks.captions import captions_in, is_captions
from jaxclip.tasks.hits import Best, Hit
from jaxclip.tasks.index import Index, IndexChangedError
from jaxclip.tasks.manifest import is_index
from jaxclip.tasks.photos import Skipped, files_under, stream_photos

__all__ = ["Hit", "SearchResult", "search"]


@dataclass(frozen=True)
class SearchResult:
    """The best photos or captions, best first, and the files and folders that couldn't be read with the reason for
    each."""

    hits: list[Hit]
    skipped: Skipped


def search(
    clip: Clip,
    query: str | ImageLike,
    where: Index | str | os.PathLike,
    *,
    top: int = 10,
    batch_size: int | None = None,
) -> SearchResult:
    """Ranks photos or captions by their cosine with a query.

    - `query`: words, if it is a string; else an image: a `pathlib.Path`, a PIL image or an array
    - `where`: an `Index` or its folder; a folder of photos, searched with its sub-folders (hidden files aside); one
      photo; or a `.txt` file with a caption on each line, in UTF-8

    Photos are turned as their EXIF orientation says. A file that can't be read is skipped and named in the result; ties
    are in the order of the paths, lines or rows. Memory doesn't grow with the number of photos or captions. An index
    that an embed changes meanwhile is opened again. On a terminal a bar shows how far it is.

    Raises FileNotFoundError when there is no such file or folder, ImageError for a query that can't be read, and
    ValueError when `top` or `batch_size` is not at least 1, when another model made the index or its photos were
    preprocessed otherwise than the query image would be, and when the query's vector is not finite.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not isinstance(where, Index):
        where = Path(where)
        if not where.exists():
            raise FileNotFoundError(f"{where}: no such file or folder")
        if is_index(where):
            where = Index.open(where)
    if isinstance(where, Index):
        while True:
            where.check(clip)
            if not isinstance(query, str):
                where.check_preprocessing(clip)
            try:
                return SearchResult(where.search(_vector(clip, query), top), [])
            except IndexChangedError:
                where = Index.open(where.folder)
    wanted, best, skipped = _vector(clip, query), Best(top), []
    if is_captions(where):
        for batch in clip.stream_texts(captions_in(where), batch_size=batch_size):
            best.add(batch.inputs, batch.vectors @ wanted)
            skipped.extend((where, f"{str(where)!r}: {failure.error}") for failure in batch.errors)
    else:
        paths = files_under(where, on_error=lambda folder, reason: skipped.append((folder, reason)))
        for photos, vectors in stream_photos(clip, paths, skipped, batch_size=batch_size):
            best.add(photos, vectors @ wanted)
    return SearchResult(best.hits(), sorted(skipped))


def _vector(clip: Clip, query: str | ImageLike) -> Float32[np.ndarray, " projection"]:
    if isinstance(query, str):
        vector = np.asarray(clip.encode_text(query))
    else:
        upright = isinstance(query, os.PathLike)
        vector = np.asarray(clip.encode_pixels(clip.image_processor([query], exif_rotation=upright))[0])
    if not np.isfinite(vector).all():
        raise ValueError("the query's vector is not finite: try dtype float32")
    return vector
