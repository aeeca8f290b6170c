"""An index's blocks: so many vectors, and what they belong to, in two files."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxclip.tasks.manifest import damaged, write_atomically

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
        """Raises ValueError, naming the file, when one is missing or cut short; reads no vector."""
        path = self.folder / (self.name + VECTORS)
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.get_slice("vectors")
                found = header.get_dtype(), header.get_shape()
            if found != ("F32", [self.rows, self.width]):
                raise ValueError(f"it holds {found[0]} {found[1]}, not F32 {[self.rows, self.width]}")
            path = self.folder / (self.name + RECORDS)
            content = path.read_bytes()
            lines = content.count(b"\n")
            if lines != self.rows or not content.endswith(b"\n"):
                raise ValueError(f"it has {lines} whole lines, not {self.rows}")
        except (OSError, ValueError, SafetensorError) as error:
            raise damaged(path, error) from error

    def vectors(self) -> Float32[np.ndarray, "rows width"]:
        """Read from the file. Raises ValueError when it has changed or gone."""
        path = self.folder / (self.name + VECTORS)
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor("vectors")
        except (OSError, SafetensorError) as error:
            raise damaged(path, error) from error

    @cached_property
    def lines(self) -> list[bytes]:
        path = self.folder / (self.name + RECORDS)
        try:
            return path.read_bytes().splitlines()
        except OSError as error:
            raise damaged(path, error) from error

    def record(self, row: int) -> Record:
        try:
            content = json.loads(self.lines[row])
            return Record(content["path"], content["size"], content["modified_ns"])
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise damaged(self.folder / (self.name + RECORDS), error) from error

    def records(self) -> list[Record]:
        return [self.record(row) for row in range(self.rows)]
