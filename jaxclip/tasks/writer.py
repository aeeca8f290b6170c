"""Changing an index such that whatever ends the process leaves a whole one."""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Bool, Float32

from jaxclip.tasks.blocks import RECORDS, ROWS, VECTORS, Block, Record
from jaxclip.tasks.manifest import NAME, Manifest, is_index

# Whatever is lost by a crash was computed in the last minute.
_SECONDS = 60

Piece = tuple[np.ndarray, list[Record]]
LOCK = ".lock"
_BLOCK = rf"\d{{6,}}({re.escape(VECTORS)}|{re.escape(RECORDS)})"
_OURS = re.compile(rf"{_BLOCK}|({_BLOCK}|{re.escape(NAME)})\.part")


class IndexInUseError(OSError):
    """Another process is writing to the index."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder if need be, and keeps it to this process. Raises IndexInUseError when another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise IndexInUseError(f"{folder}: another embed is working on this index; wait until it is done") from error
    try:
        yield
    finally:
        # What became no index shall leave nothing behind; some versions of filelock remove it themselves, some don't.
        if not is_index(folder):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()


@dataclass
class _Pending:
    """Rows that are to become the block `name`."""

    name: str
    pieces: list[Piece] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(records) for _, records in self.pieces)


class IndexWriter:
    """An index that is being changed, by one process that holds its lock.

    Blocks are never changed: new ones are written beside them, and count when the manifest, replaced at once, lists
    them. So what is on the disk is a whole index at any instant.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        self._pending = _Pending(_name(manifest.next_block))
        self._committed = time.monotonic()

    def blocks(self) -> list[Block]:
        return blocks_of(self.folder, self.manifest)

    def add(self, vectors: Float32[np.ndarray, "n width"], records: list[Record]) -> None:
        """More rows, which are part of the index from the next `commit` on: by itself at every full block of them, and
        every minute."""
        while records:
            room = ROWS - self._pending.rows
            # As one, so that Ctrl-C never finds a row without its record.
            self._pending.pieces.append((vectors[:room], records[:room]))
            vectors, records = vectors[room:], records[room:]
            if self._pending.rows == ROWS or time.monotonic() - self._committed > _SECONDS:
                self.commit()

    def commit(self) -> None:
        """Makes what was added part of the index.

        Interrupted anywhere, it may be called again: it then writes the same under the same name, or, where that
        name is in the manifest already, nothing.
        """
        pending = self._pending
        if pending.pieces and pending.name not in self.manifest.blocks:
            vectors, records = _joined(pending.pieces)
            Block.write(self.folder, pending.name, vectors, records)
            self._replace({**self.manifest.blocks, pending.name: len(records)}, self.manifest.next_block + 1)
        self._pending, self._committed = _Pending(_name(self.manifest.next_block)), time.monotonic()

    def compact(self, kept: Mapping[str, Bool[np.ndarray, " rows"]]) -> None:
        """Leaves out the rows of each block that `kept` says no to, and puts what isn't a full block (but one) together
        into full ones: nothing is written where there is nothing to do."""
        self.commit()
        whole = {block.name for block in self.blocks() if block.name not in kept or kept[block.name].all()}
        full = {name: rows for name, rows in self.manifest.blocks.items() if name in whole and rows == ROWS}
        others = [block for block in self.blocks() if block.name not in full]
        if len(others) <= 1 and whole == self.manifest.blocks.keys():
            return
        number = self.manifest.next_block
        for vectors, records in _regrouped(_chosen(block, kept.get(block.name)) for block in others):
            full[_name(number)] = Block.write(self.folder, _name(number), vectors, records).rows
            number += 1
        self._replace(full, number)
        self._pending = _Pending(_name(number))

    def discard_leftovers(self) -> None:
        """Removes what the manifest doesn't list: of blocks that became part of others, and of interrupted writes."""
        # From the disk: interrupted, this object may know less.
        live = Manifest.read(self.folder).blocks
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.stem not in live:
                path.unlink()

    def _replace(self, blocks: Mapping[str, int], next_block: int) -> None:
        manifest = replace(self.manifest, blocks=blocks, next_block=next_block)
        manifest.write(self.folder)
        self.manifest = manifest


def blocks_of(folder: Path, manifest: Manifest) -> list[Block]:
    return [Block(folder, name, rows, manifest.width) for name, rows in manifest.blocks.items()]


def _name(number: int) -> str:
    return f"{number:06d}"


def _chosen(block: Block, kept: Bool[np.ndarray, " rows"] | None) -> Piece:
    vectors, records = block.vectors(), block.records()
    return (vectors, records) if kept is None else (vectors[kept], list(compress(records, kept)))


def _joined(pieces: Sequence[Piece]) -> Piece:
    return np.concatenate([vectors for vectors, _ in pieces]), [record for _, records in pieces for record in records]


def _regrouped(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same rows in full blocks, and a last one with what is left."""
    waiting: list[Piece] = []
    for piece in pieces:
        vectors, records = _joined([*waiting, piece])
        while len(records) >= ROWS:
            yield vectors[:ROWS], records[:ROWS]
            vectors, records = vectors[ROWS:], records[ROWS:]
        waiting = [(vectors, records)]
    yield from (piece for piece in waiting if piece[1])
