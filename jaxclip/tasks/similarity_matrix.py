"""All similarities between some texts and some photos."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxclip.clip import Clip
from jaxclip.tasks.photos import Skipped, files_under, stream_photos


@dataclass(frozen=True)
class SimilarityMatrix:
    """Cosines from -1 to 1.

    - `texts`, `images`: what the rows and the columns stand for
    - `values`: (texts, images)
    - `skipped`: files and folders that couldn't be read, with the reason for each
    """

    texts: list[str]
    images: list[Path]
    values: Float32[np.ndarray, "texts images"]
    skipped: Skipped


def similarity_matrix(
    clip: Clip, texts: Sequence[str], images: str | os.PathLike | Sequence[str | os.PathLike]
) -> SimilarityMatrix:
    """The cosine of every text with every photo of a folder, of a file, or of many files.

    Photos are turned as their EXIF orientation says; those that can't be read are skipped and named in the result.
    Raises FileNotFoundError when there is no such folder or file, and TypeError for one string alone.
    """
    if isinstance(texts, str):
        raise TypeError("similarity_matrix takes an iterable of strings: put a single one in a list")
    skipped: Skipped = []
    if isinstance(images, str | os.PathLike):
        paths = files_under(images, on_error=lambda folder, reason: skipped.append((folder, reason)))
    else:
        paths = map(Path, images)
    text_vectors = np.asarray(clip.encode_text(list(texts)))
    found, columns = [], []
    for photos, vectors in stream_photos(clip, paths, skipped):
        found += photos
        columns.append(text_vectors @ vectors.T)
    values = np.concatenate(columns, axis=1) if columns else np.zeros((len(texts), 0), np.float32)
    return SimilarityMatrix(list(texts), found, values, sorted(skipped))
