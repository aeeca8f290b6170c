"""Writing such that a crash at any instant leaves the old or the new."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """The file is there as a whole, or as it was before, when anything fails: on the disk, not only in its cache. An
    OSError names the file."""
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # As a full disk's.
            error.filename = str(path)
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if os.name == "posix":  # Elsewhere a folder can't be opened; the file system keeps the order itself.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
