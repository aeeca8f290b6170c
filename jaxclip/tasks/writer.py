"""Changing an index such that whatever ends the process leaves a whole one."""

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from time import monotonic

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float32

from jaxclip.tasks.blocks import RECORDS, ROWS, VECTORS, Block, Record
from jaxclip.tasks.manifest import NAME, Manifest

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
    """Makes the folder if need be, and keeps it to this process. Raises IndexInUseError when another one has it, and
    OSError where the file system has no locks.

    The lock's file stays: whoever removed it would leave two processes with a lock on a file each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise IndexInUseError(f"{folder}: another embed is working on this index; wait until it is done") from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        reason = "the file system has no locks, which keep two embeds apart: put the index elsewhere"
        raise OSError(errno.ENOLCK, reason, str(folder)) from error
    try:
        yield
    finally:
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

    `outdated` are the paths of rows that are to leave, with the name of the block of each: when a new row with the path
    is committed, or at the end.
    """

    def __init__(self, folder: Path, manifest: Manifest, outdated: Mapping[str, str]):
        self.folder, self.manifest = folder, manifest
        self._outdated = dict(outdated)
        self._pending = _Pending(_name(manifest.next_block))
        self._committed = monotonic()

    def add(self, vectors: Float32[np.ndarray, "n width"], records: list[Record]) -> None:
        """More rows, which are part of the index from the next `commit` on: by itself at every full block of them, and
        every minute."""
        while records:
            room = ROWS - self._pending.rows
            # As one, so that Ctrl-C never finds a row without its record.
            self._pending.pieces.append((vectors[:room], records[:room]))
            vectors, records = vectors[room:], records[room:]
            if self._pending.rows == ROWS or monotonic() - self._committed > _SECONDS:
                self.commit()

    def commit(self) -> None:
        """Makes what was added part of the index, in the place of outdated rows with the same paths.

        Interrupted anywhere, it may be called again: it then writes the same under the same names, or, where the first
        of them is in the manifest already, nothing.
        """
        pending = self._pending
        if pending.pieces and pending.name not in self.manifest.blocks:
            leaving = {record.path for _, records in pending.pieces for record in records} & self._outdated.keys()
            self._regroup({self._outdated[path] for path in leaving}, leaving, pending.pieces)
        self._pending, self._committed = _Pending(_name(self.manifest.next_block)), monotonic()

    def finish(self) -> None:
        """Commits, removes the outdated rows that are left, and puts small blocks together into full ones; writes
        nothing where there is nothing to do."""
        self.commit()
        holey = set(self._outdated.values())
        small = {name for name, rows in self.manifest.blocks.items() if rows < ROWS}
        if holey or len(small) > 1:
            self._regroup(holey | small, self._outdated.keys())

    def _regroup(self, names: Set[str], leaving: Set[str], first: Sequence[Piece] = ()) -> None:
        """Puts new rows and those of some blocks, but the `leaving` paths, into full blocks and a last one."""
        blocks = {name: rows for name, rows in self.manifest.blocks.items() if name not in names}
        old = [block for block in blocks_of(self.folder, self.manifest) if block.name in names]
        outdated, number = dict(self._outdated), self.manifest.next_block
        for vectors, records in _in_full(chain(first, (_without(block, leaving) for block in old))):
            block = Block.write(self.folder, _name(number), vectors, records)
            blocks[block.name] = block.rows
            outdated |= {record.path: block.name for record in records if record.path in outdated}
            number += 1
        manifest = replace(self.manifest, blocks=blocks, next_block=number)
        manifest.write(self.folder)
        self.manifest = manifest
        self._outdated = {path: name for path, name in outdated.items() if path not in leaving}
        if names:
            discard_leftovers(self.folder)


def discard_leftovers(folder: Path) -> None:
    """Removes what the manifest doesn't list: of blocks that became part of others, and of interrupted writes."""
    # What the disk says: who was interrupted may know less.
    live = Manifest.read(folder).blocks
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.stem not in live:
            path.unlink()


def blocks_of(folder: Path, manifest: Manifest) -> list[Block]:
    return [Block(folder, name, rows, manifest.width) for name, rows in manifest.blocks.items()]


def _name(number: int) -> str:
    return f"{number:06d}"


def _without(block: Block, leaving: Set[str]) -> Piece:
    records = block.records()
    staying = np.array([record.path not in leaving for record in records])
    return block.vectors()[staying], list(compress(records, staying))


def _joined(pieces: Sequence[Piece]) -> Piece:
    return np.concatenate([vectors for vectors, _ in pieces]), [record for _, records in pieces for record in records]


def _in_full(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same rows in full blocks, and a last one with what is left."""
    waiting: list[Piece] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(len(records) for _, records in waiting) >= ROWS:
            vectors, records = _joined(waiting)
            yield vectors[:ROWS], records[:ROWS]
            waiting = [(vectors[ROWS:], records[ROWS:])]
    if any(records for _, records in waiting):
        yield _joined(waiting)
