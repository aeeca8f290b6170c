"""Image-text pairs in a folder: captions in one file, or in a text file beside each image."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from jaxclip.tasks.captions import captions_in
from jaxclip.tasks.photos import files_under

# What captioned data call their columns: Flickr8k's and Kaggle's tables, Hugging Face's imagefolder, COCO's files.
_IMAGE_NAMES = ("image", "file", "file_name")
_CAPTION_NAMES = ("captions", "caption", "text")
_FILES = ("captions.jsonl", "captions.csv")


@dataclass(frozen=True)
class Sample:
    """An image and what is said of it.

    - `id`: its name in the data
    - `image`: where it is, or the file's contents
    - `captions`: none of them blank; there may be none at all
    """

    id: str
    image: Path | bytes
    captions: tuple[str, ...]


@runtime_checkable
class Source(Protocol):
    """Image-text pairs by number, from several threads at a time.

    `source[i]` raises OSError or ValueError for a sample that can't be read; the others can. `fingerprint` is the same
    for the same images in the same order, whatever their captions.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def fingerprint(self) -> str: ...


class CaptionedFolder:
    """A folder of images with captions, in the order of the file that lists them, or of the images' names.

    `path` is a `.jsonl` or `.csv` file, or a folder with `captions.jsonl` or `captions.csv`, or else one in which every
    image has a `.txt` of its name beside it, with one caption a line.

    - `.jsonl`: an object a line, with "image" ("file", "file_name"), a path relative to the file's folder, and
      "captions" ("caption", "text"), a string or a list of them
    - `.csv`: a header with the same names, and one caption a row
    - `split`: only lines whose "split" is this one

    Several lines of one image are one sample with all their captions. Blank captions are left out.

    Raises FileNotFoundError when there is no such file or folder, or when images that the file lists are missing, and
    ValueError, naming the file and line, for what can't be read so, for captions without images and images without
    captions, and where there are no samples at all.
    """

    def __init__(self, path: str | os.PathLike, *, split: str | None = None):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        found = [path] if path.is_file() else [path / name for name in _FILES if (path / name).is_file()]
        if len(found) > 1:
            raise ValueError(f"{path}: has both {' and '.join(_FILES)}; name the file to be used")
        self.folder = path if path.is_dir() else path.parent
        # None: read beside the image, when it is asked for.
        self._captions: list[tuple[str, ...]] | None = None
        if found:
            listed = _listed(found[0], split)
            self._images, self._captions = list(listed), [tuple(captions) for captions in listed.values()]
            missing = [name for name in self._images if not (self.folder / name).is_file()]
            if missing:
                raise FileNotFoundError(f"{found[0]}: {len(missing)} of its images are missing, {_first(missing)}")
        elif split is not None:
            raise ValueError(f"{path}: text files beside images have no split; name the folder of {split!r}")
        else:
            self._images = _with_text_beside(self.folder)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        name = self._images[index]
        path = self.folder / name
        captions = tuple(captions_in(path.with_suffix(".txt"))) if self._captions is None else self._captions[index]
        return Sample(name, path, captions)

    def __repr__(self) -> str:
        return f"CaptionedFolder({str(self.folder)!r}, {len(self)} images)"

    def fingerprint(self) -> str:
        """Of the images' names, sizes and times of modification."""
        return _fingerprint(self.folder, self._images)


class Photos:
    """The images of a folder and its sub-folders, without captions: what SimCLR and MoCo need.

    Raises FileNotFoundError when there is no such folder and ValueError when no image is in it.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._images = [path.relative_to(folder).as_posix() for path in files_under(folder) if is_image_name(path.name)]
        if not self._images:
            raise ValueError(f"{folder}: no image there")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._images[index], self.folder / self._images[index], ())

    def fingerprint(self) -> str:
        """Of the images' names, sizes and times of modification."""
        return _fingerprint(self.folder, self._images)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as that of an image that Pillow opens."""
    Image.init()
    return Image.EXTENSION.get(Path(name).suffix.lower()) in Image.OPEN


def caption_list(value: Any) -> list[str]:
    """A string, or a list of strings, without the blank ones. Raises ValueError for anything else."""
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"captions must be a string or a list of strings, got {value!r}")
    return [caption.strip() for caption in captions if caption.strip()]


def captions_of(record: Mapping[str, Any]) -> list[str]:
    """What a JSON object says under "captions", "caption" or "text". Raises ValueError where it has none of them."""
    return caption_list(record[_name(record, _CAPTION_NAMES)])


def _name(record: Iterable[str], names: tuple[str, ...]) -> str:
    for name in names:
        if name in record:
            return name
    raise ValueError(f"it has {', '.join(map(repr, record)) or 'nothing'}, but none of {', '.join(map(repr, names))}")


def _listed(file: Path, split: str | None) -> dict[str, list[str]]:
    """Image → captions, in the order in which the images first come."""
    listed: dict[str, list[str]] = {}
    splits = set()
    try:
        for number, record in _records(file):
            try:
                splits.add(record.get("split"))
                if split is not None and record.get("split") != split:
                    continue
                image = record[_name(record, _IMAGE_NAMES)]
                if not isinstance(image, str) or not image.strip():
                    raise ValueError(f"captions without an image ({image!r})")
                listed.setdefault(image, []).extend(captions_of(record))
            except ValueError as error:
                raise ValueError(f"{file}: line {number}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no UTF-8 text ({error}); save it so") from error
    except csv.Error as error:
        raise ValueError(f"{file}: no CSV ({error})") from error
    if split is not None and split not in splits:
        raise ValueError(f"{file}: no line of the split {split!r}; it has {sorted(map(str, splits))}")
    if not listed:
        raise ValueError(f"{file}: no captions in it")
    return listed


def _records(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbered lines; a byte order mark is no part of the first."""
    with open(file, encoding="utf-8-sig", newline="" if file.suffix == ".csv" else None) as lines:
        if file.suffix == ".csv":
            rows = csv.DictReader(lines)
            for row in rows:
                # What a short row lacks is None, and what a long one has too much has the name None.
                if None in row or None in row.values():
                    names = rows.fieldnames or ()
                    raise ValueError(
                        f"{file}: line {rows.line_num}: not {len(names)} columns; quote commas in captions"
                    )
                yield rows.line_num, row
        elif file.suffix == ".jsonl":
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{file}: line {number}: not JSON ({error})") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{file}: line {number}: a JSON {type(record).__name__}, not an object")
                yield number, record
        else:
            raise ValueError(f"{file}: neither .jsonl nor .csv")


def _with_text_beside(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in files_under(folder)]
    images = {os.path.splitext(name)[0]: name for name in names if is_image_name(name)}
    texts = {os.path.splitext(name)[0]: name for name in names if name.endswith(".txt")}
    if not images or not texts:
        lacking = "image" if not images else f"{' or '.join(_FILES)} and no .txt beside an image"
        raise ValueError(f"{folder}: no {lacking} there")
    if sum(map(is_image_name, names)) > len(images):
        raise ValueError(f"{folder}: several images have one name but for its end, so one .txt; rename them")
    for what, lonely in (
        ("captions are without an image of their name", [texts[stem] for stem in texts.keys() - images.keys()]),
        ("images are without a .txt of their name", [images[stem] for stem in images.keys() - texts.keys()]),
    ):
        if lonely:
            raise ValueError(f"{folder}: {len(lonely)} {what}, {_first(lonely)}")
    return list(images.values())


def _fingerprint(folder: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        status = (folder / name).stat()
        digest.update(f"{name}\n{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _first(names: list[str]) -> str:
    return f"the first is {min(names)!r}"
