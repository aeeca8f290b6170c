"""An index's blocks: so many vectors, and what they belong to, in two files."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxclip.atomic import write_atomically
from jaxclip.tasks.manifest import damaged

# Rows of a full block: 8 MiB of 512 numbers each. The more, the faster the search and the more is lost by a crash.
ROWS = 4096
VECTORS, RECORDS = ".safetensors", ".jsonl"


@dataclass(frozen=True)
class Record:
    """A photo: its path within the root, with "/" between folders, its size in bytes and when it was modified, in ns
    since 1970."""

    path: str
    size: int
    modified: int


@dataclass(frozen=True)
class Block:
    """`rows` vectors of a folder: the tensor "vectors" (rows, width), float32 of unit length, in `NAME.safetensors`,
    and their photos, one JSON object a line, in `NAME.jsonl`."""

    folder: Path
    name: str
    rows: int
    width: int

    @classmethod
    def write(cls, folder: Path, name: str, vectors: Float32[np.ndarray, "rows width"], records: list[Record]):
        # Bytes of a name that are no UTF-8 are lone surrogates in Python, which JSON holds escaped (ASCII only).
        lines = [
            json.dumps({"path": record.path, "size": record.size, "modified_ns": record.modified}) for record in records
        ]
        write_atomically(folder / (name + VECTORS), save({"vectors": np.ascontiguousarray(vectors)}))
        write_atomically(folder / (name + RECORDS), ("\n".join(lines) + "\n").encode())
        return cls(folder, name, *vectors.shape)

    def check(self) -> None:
        """Reads no vector. Raises ValueError, naming the file, when one is missing or cut short, and OSError, as do all
        methods, when the system doesn't let one be read."""
        with self._vectors():
            pass
        path = self.folder / (self.name + RECORDS)
        with _reading(path):
            content = path.read_bytes()
            lines = content.count(b"\n")
            if lines != self.rows or not content.endswith(b"\n"):
                raise ValueError(f"it has {lines} whole lines, not {self.rows}")

    def vectors(self) -> Float32[np.ndarray, "rows width"]:
        """Read from the file. Raises ValueError when it has changed or gone."""
        with self._vectors() as file:
            return file.get_tensor("vectors")

    @contextlib.contextmanager
    def _vectors(self) -> Iterator[Any]:
        path = self.folder / (self.name + VECTORS)
        with _reading(path), safe_open(path, framework="numpy") as file:
            header = file.get_slice("vectors")
            found = header.get_dtype(), header.get_shape()
            if found != ("F32", [self.rows, self.width]):
                raise ValueError(f"it holds {found[0]} {found[1]}, not F32 {[self.rows, self.width]}")
            yield file

    def records(self, rows: Iterable[int] | None = None) -> list[Record]:
        """Of some rows, or of all, read from the file. Raises ValueError when it has changed or gone."""
        path = self.folder / (self.name + RECORDS)
        with _reading(path):
            lines = path.read_bytes().splitlines()
            contents = [json.loads(lines[row]) for row in (range(self.rows) if rows is None else rows)]
            return [Record(content["path"], content["size"], content["modified_ns"]) for content in contents]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file where it is gone or damaged. What else the system says of it (no permission, too many open files,
    a failing disk) tells nothing of the index, and stays what it is."""
    try:
        yield
    except FileNotFoundError as error:
        # safetensors says so of each file that it can't open: this tells the reason.
        with contextlib.suppress(FileNotFoundError), open(path, "rb"):
            pass
        raise damaged(path, error) from error
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, SafetensorError) as error:
        raise damaged(path, error) from error
