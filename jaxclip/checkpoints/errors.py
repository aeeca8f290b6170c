"""The one error of everything that reads a checkpoint."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: one message that names the files, all that is wrong and the mend."""


def quoted(names: Iterable[object]) -> str:
    """Return `names` quoted and separated by commas; what a hostile file holds is escaped."""
    return ", ".join(repr(name) for name in names)
