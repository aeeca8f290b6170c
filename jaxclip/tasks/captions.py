"""Captions of a text file."""

import os
from collections.abc import Iterator
from pathlib import Path


def is_captions(path: str | os.PathLike) -> bool:
    """Whether a path is taken for a file of captions: a file whose name ends in `.txt`, in any case."""
    return Path(path).suffix.lower() == ".txt" and Path(path).is_file()


def captions_in(file: str | os.PathLike) -> Iterator[str]:
    """One caption a line, in UTF-8 with or without a byte order mark; blank lines are left out, repeated ones are not.

    Raises FileNotFoundError when there is no such file and ValueError, naming the line, for what is no UTF-8.
    """
    # By bytes: a text reader names a byte offset within its own buffer, which tells nobody where to look.
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                caption = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{os.fspath(file)}: line {number} is no UTF-8 text ({error}); save it so") from error
            if caption.strip():
                yield caption
