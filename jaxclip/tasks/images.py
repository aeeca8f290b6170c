"""Images from wherever they are: files, folders, memory, and the datasets of the `datasets` package."""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxclip.processing import ImageLike, is_single_image
from jaxclip.tasks.photos import files_under

Images: TypeAlias = ImageLike | Iterable[Any]
# What tells an image from others: its file's path, or its number among all that were given.
ImageName: TypeAlias = Path | int


def named_images(images: Images, skipped: list[tuple[ImageName, str]]) -> Iterator[tuple[ImageName, ImageLike]]:
    """Each image with its name. A folder stands for all files in it and its sub-folders, hidden ones aside; a dataset
    for its one column of images.

    Folders that can't be listed go to `skipped`. Raises FileNotFoundError when there is no such file or folder.
    """
    if is_dataset(images):
        yield from rows(images)
        return
    several: Iterable[Any] = [images] if is_single_image(images) else images  # pyright: ignore[reportAssignmentType]
    if isinstance(several, np.ndarray):
        several = list(several)
    for number, image in enumerate(several):
        if not isinstance(image, str | os.PathLike):
            yield number, image
            continue
        for path in files_under(image, on_error=lambda folder, reason: skipped.append((folder, reason))):
            yield path, path


def open_dataset(source: str, *, subset: str | None = None, split: str | None = None) -> Any:
    """One split of a dataset: of the Hub, or of a folder that `datasets` saved one to. Without `split` it is the only
    one, or the one named "test", or else "validation".

    Raises ImportError without the `datasets` package (`jaxclip[datasets]`), ValueError for no or another split, and
    what `datasets` itself raises.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ImportError(
            'datasets are read by the package of that name, which is not installed: pip install "jaxclip[datasets]"'
        )
    import datasets

    if os.path.isdir(source):
        if subset is not None:
            raise ValueError(f"{source}: a saved dataset has no subsets: leave out {subset!r}")
        opened = datasets.load_from_disk(source)
    else:
        opened = datasets.load_dataset(source, subset)
    if not isinstance(opened, dict):
        if split is not None:
            raise ValueError(f"{source}: is saved without splits: leave out {split!r}")
        return opened
    wanted = [split] if split is not None else [*(opened if len(opened) == 1 else ()), "test", "validation"]
    for name in wanted:
        if name in opened:
            return opened[name]
    raise ValueError(f"{source}: has the splits {', '.join(map(str, opened))}: name one of them")


def is_dataset(images: Any) -> bool:
    """Whether it is a `datasets.Dataset`; the package isn't imported to tell."""
    return hasattr(images, "cast_column") and hasattr(images, "features")


def rows(dataset: Any) -> Iterator[tuple[int, ImageLike]]:
    """The images of a dataset by their row numbers, as the files' contents: what is damaged is then found by whoever
    reads them, and the other rows go on. Raises ValueError unless one column has images."""
    from datasets import Image

    column = _column(dataset, Image)
    for number, row in enumerate(dataset.select_columns([column]).cast_column(column, Image(decode=False))):
        stored = row[column] or {}  # Nothing at all where a row has no image.
        if stored.get("bytes") is None and stored.get("path"):
            yield number, Path(stored["path"])
        else:
            yield number, stored.get("bytes") or b""


def row_labels(dataset: Any, column: str | None = None) -> tuple[list[str], np.ndarray]:
    """The classes of a dataset, and each row's number among them, -1 where it has none (as in test sets whose labels
    are kept back). `column` is by default the one that has classes. Raises ValueError where there isn't one."""
    from datasets import ClassLabel

    if column is None:
        column = _column(dataset, ClassLabel)
    kind = dataset.features.get(column)
    if not isinstance(kind, ClassLabel):
        raise ValueError(f"the dataset's column {column!r} is {kind}, and one with classes (ClassLabel) is needed")
    labels = [-1 if label is None else label for label in dataset[column]]
    return list(kind.names), np.array(labels, np.int64)


def _column(dataset: Any, kind: type) -> str:
    features = dataset.features or {}
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise ValueError(
            f"the dataset needs one column of {kind.__name__}, and has {len(found)} ({', '.join(found)}): "
            f"name it, or leave the others out by select_columns. Its columns: {listed}"
        )
    return found[0]
