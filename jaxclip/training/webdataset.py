"""Image-text pairs in WebDataset's tar shards, read by number."""

import contextlib
import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64, Shaped

from jaxclip.training.captions import Sample, captions_of

_IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "json")
# Part of the name of a kept index: another one when what is kept changes.
_VERSION = 1


class WebDataset:
    """The samples of tar shards, in the order of the shards' names and within them as they lie.

    `shards` is a pattern with braces and wildcards (`"data/{000..012}.tar"`, `"data/*.tar"`), a folder of `.tar` files,
    or a list of paths. Members that follow one another with the same name up to the first dot are one sample, as
    WebDataset has it: `.jpg`, `.jpeg`, `.png` or `.webp`, with `.txt`, one caption a line, or else `.json`, whose
    "captions" ("caption", "text") is a string or a list of them.

    The headers of a shard are read once, and where its samples lie is kept in the user's cache folder
    (`jaxclip/shards` in $XDG_CACHE_HOME or ~/.cache), until the shard changes; where nothing can be written there, they
    are read each time. A sample that lacks its image or its text raises ValueError when it is asked for.

    Raises FileNotFoundError for shards that aren't there, and ValueError for what is no uncompressed tar, and for a
    shard in which no sample has image and text.
    """

    def __init__(self, shards: str | os.PathLike | Iterable[str | os.PathLike]):
        self.shards = _found(shards)
        self._parts = [_index(path) for path in self.shards]
        self._ends = np.array(list(accumulate(len(part.keys) for part in self._parts)), np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"no sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        path, part = self.shards[shard], self._parts[shard]
        row = index - int(self._ends[shard]) + len(part.keys)
        key = bytes(part.keys[row]).decode("utf-8", "surrogateescape")
        name = f"{path.name}/{key}"
        image, text, record = part.places[row]
        if image[1] < 0 or (text[1] < 0 and record[1] < 0):
            lacking = "image (.jpg, .jpeg, .png, .webp)" if image[1] < 0 else "text (.txt, .json)"
            raise ValueError(f"{name}: the sample has no {lacking}")
        with open(path, "rb") as file:
            content = _read(file, image)
            try:
                if text[1] >= 0:
                    captions = _read(file, text).decode("utf-8-sig").splitlines()
                    captions = [caption.strip() for caption in captions if caption.strip()]
                else:
                    captions = captions_of(json.loads(_read(file, record)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name}: no captions there ({error})") from error
        return Sample(name, content, tuple(captions))

    def __repr__(self) -> str:
        return f"WebDataset({len(self.shards)} shards, {len(self)} samples)"

    def fingerprint(self) -> str:
        """Of the shards' names, sizes and times of modification."""
        states = [(path.name, *_state(path)) for path in self.shards]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()


@dataclass(frozen=True)
class _Part:
    """A shard's samples: their keys, and (offset, size) in bytes of each one's image, .txt and .json, (-1, -1) for what
    it lacks."""

    keys: Shaped[np.ndarray, " samples"]
    places: Int64[np.ndarray, "samples 3 2"]


def _found(shards: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    if not isinstance(shards, str | os.PathLike):
        paths = [Path(shard) for shard in shards]
    elif os.path.isdir(shards):
        paths = sorted(Path(shards).glob("*.tar"))
    else:
        paths = []
        for pattern in expand_braces(os.fspath(shards)):
            # A pattern may match nothing; a name must be there.
            paths += map(Path, sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern])
    if not paths:
        raise FileNotFoundError(f"{shards}: no .tar there")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no such shard, and {len(missing) - 1} more of {len(paths)} are missing")
    return paths


def expand_braces(pattern: str) -> list[str]:
    """`{000..012}` and `{a,b}` written out, as a shell does; numbers keep their leading zeros."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, names = found.groups()
    if names is None:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    else:
        choices = names.split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return list(chain.from_iterable(expand_braces(before + choice + after) for choice in choices))


def _index(path: Path) -> _Part:
    """From the cache, or of the headers and into the cache."""
    name = hashlib.sha256(json.dumps([_VERSION, os.path.abspath(path), *_state(path)]).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxclip" / "shards"
    kept = folder / f"{name}.npz"
    # What is damaged is made anew.
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile),
        np.load(kept, allow_pickle=False) as file,
    ):
        return _Part(file["keys"], file["places"])
    part = _indexed(path)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        # Under a name of this process: several may index the same shard.
        beside = folder / f"{name}.{os.getpid()}.npz"
        np.savez(beside, keys=part.keys, places=part.places)
        os.replace(beside, kept)
    return part


def _indexed(path: Path) -> _Part:
    keys: list[bytes] = []
    places: list[list[tuple[int, int]]] = []
    for key, extension, place in _members(path):
        name = key.encode("utf-8", "surrogateescape")
        if not keys or keys[-1] != name:
            keys.append(name)
            places.append([(-1, -1)] * 3)
        places[-1][0 if extension in _IMAGES else 1 + _TEXTS.index(extension)] = place
    table = np.array(places, np.int64).reshape(-1, 3, 2)
    if not ((table[:, 0, 1] >= 0) & (table[:, 1:, 1] >= 0).any(axis=1)).any():
        raise ValueError(
            f"{path}: not one sample has an image ({', '.join(_IMAGES)}) and a text ({', '.join(_TEXTS)}), of "
            f"{len(keys)}"
        )
    return _Part(np.array(keys, np.bytes_), table)


def _members(path: Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Key, extension, offset and size of all members that are images or texts."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                key, _, extension = file.partition(".")
                if key and member.isreg() and extension.lower() in (*_IMAGES, *_TEXTS):
                    yield f"{folder}/{key}" if folder else key, extension.lower(), (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: no uncompressed tar, or damaged ({error}); unpack .tar.gz to .tar") from error


def _read(file, place: Int64[np.ndarray, "2"]) -> bytes:
    offset, size = map(int, place)
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{file.name}: cut short, {len(content)} of {size} bytes at {offset}; fetch it again")
    return content


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
