"""The vectors of images whose classes are known: of a folder with a sub-folder for each class, or a dataset's."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from jaxclip.clip import Clip
from jaxclip.processing import ImageLike
from jaxclip.tasks.dataset_index import embed_rows
from jaxclip.tasks.images import ImageName, is_dataset, row_labels, rows
from jaxclip.tasks.index import embed_folder
from jaxclip.tasks.manifest import is_index
from jaxclip.tasks.photos import files_under, stream_named


@dataclass(frozen=True)
class LabelledVectors:
    """Images as vectors, with what they show.

    - `vectors`: unit length
    - `targets`: the number of each one's class among `classes`
    - `classes`: the sub-folders' names in their order, or the dataset's classes
    - `skipped`: files by their paths, or rows by their numbers, that couldn't be read or have no class, with the reason
    - `images_per_second`: of those that were encoded now, decoding included; None where all were known
    """

    vectors: Float32[np.ndarray, "images projection"]
    targets: Int64[np.ndarray, " images"]
    classes: list[str]
    skipped: list[tuple[ImageName, str]]
    images_per_second: float | None


def labelled_vectors(
    clip: Clip,
    data: Any,
    *,
    index: str | os.PathLike | None = None,
    label_column: str | None = None,
    batch_size: int | None = None,
) -> LabelledVectors:
    """Encodes labelled images: of a folder with one sub-folder for each class (files beside these are no part of it),
    or a `datasets.Dataset` with a column of images and one of classes (`label_column` where it has more).

    With `index`, a folder, the vectors are kept there as `jaxclip.embed_folder` keeps them: an interrupted run goes on
    where it was, and later ones encode only images that are new or changed. Photos are turned as their EXIF orientation
    says.

    Raises FileNotFoundError and NotADirectoryError where there is no such folder, ValueError where there are no classes
    or no image of one can be read, and with an index as `embed_folder` does.
    """
    start = time.perf_counter()
    if is_dataset(data):
        labelled, encoded = _rows(clip, data, index, label_column, batch_size)
    else:
        labelled, encoded = _folder(clip, Path(data), index, batch_size)
    seconds = time.perf_counter() - start
    vectors, targets, classes, skipped = labelled
    if not len(targets):
        where = "the dataset" if is_dataset(data) else os.fspath(data)
        raise ValueError(f"{where}: no image of a class could be read{''.join(f'; {why}' for _, why in skipped[:3])}")
    return LabelledVectors(vectors, targets, classes, skipped, encoded / seconds if encoded else None)


def class_names(data: Any, label_column: str | None = None) -> list[str]:
    """The classes of what `labelled_vectors` takes, without reading an image; of a dataset those that have rows."""
    if is_dataset(data):
        names, labels = row_labels(data, label_column)
        return [names[number] for number in np.unique(labels[labels >= 0]).tolist()]
    return _sub_folders(Path(data))


_Labelled = tuple[np.ndarray, np.ndarray, list[str], list[tuple[ImageName, str]]]


def _folder(clip: Clip, root: Path, index: str | os.PathLike | None, batch_size: int | None) -> tuple[_Labelled, int]:
    classes = _sub_folders(root)
    skipped: list[tuple[ImageName, str]] = []
    if index is None:
        paths = files_under(root, on_error=lambda folder, reason: skipped.append((folder, reason)))
        inside = [path for path in paths if path.parent != root]
        found, vectors = _collected(clip, ((path, path) for path in inside), skipped, batch_size, len(inside))
        encoded = len(found)
    else:
        result = embed_folder(clip, root, index, batch_size=batch_size)
        found, vectors = result.index.paths, np.concatenate([*result.index.vectors()])
        encoded = result.added + result.changed
        skipped += [(path, reason) for path, reason in result.skipped if path.parent != root or path.is_dir()]
    numbers, start = {name: number for number, name in enumerate(classes)}, os.path.abspath(root)
    targets = np.array([numbers.get(os.path.relpath(path, start).split(os.sep)[0], -1) for path in found], np.int64)
    inside = targets >= 0
    return (vectors[inside], targets[inside], classes, skipped), encoded


def _sub_folders(root: Path) -> list[str]:
    if not root.is_dir():
        kind = NotADirectoryError if root.exists() else FileNotFoundError
        raise kind(f"{root}: no {'' if root.exists() else 'such '}folder; name one with a sub-folder for each class")
    with os.scandir(root) as entries:
        folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not (classes := sorted(entry.name for entry in folders if not is_index(entry.path))):
        raise ValueError(f"{root}: has no sub-folders, and each is to be a class")
    return classes


def _rows(
    clip: Clip, dataset: Any, index: str | os.PathLike | None, label_column: str | None, batch_size: int | None
) -> tuple[_Labelled, int]:
    classes, labels = row_labels(dataset, label_column)
    skipped: list[tuple[ImageName, str]] = [
        (row, f"image {row}: has no class") for row in np.flatnonzero(labels < 0).tolist()
    ]
    images = ((row, image) for row, image in rows(dataset) if labels[row] >= 0)
    if index is None:
        found, vectors = _collected(clip, images, skipped, batch_size, len(dataset))
        encoded = len(found)
    else:
        info = dataset.info
        name = "/".join(str(part) for part in (info.builder_name, info.config_name, dataset.split) if part)
        kept, encoded = embed_rows(clip, images, index, name=name or "dataset", skipped=skipped, batch_size=batch_size)
        found, vectors = [int(path.name) for path in kept.paths], np.concatenate([*kept.vectors()])
    return (vectors, labels[np.array(found, np.int64)], classes, skipped), encoded


def _collected(
    clip: Clip, images: Iterable[tuple[Any, ImageLike]], skipped: list, batch_size: int | None, total: int
) -> tuple[list[Any], Float32[np.ndarray, "images projection"]]:
    found, batches = [], [np.empty((0, clip.model.tower("vision").config.projection_dim or 0), np.float32)]
    for names, vectors in stream_named(clip, images, skipped, batch_size=batch_size, total=total):
        found += names
        batches.append(vectors)
    return found, np.concatenate(batches)
