"""Files that commands write: asked for early, replaced as a whole."""

import os
from collections.abc import Iterable
from pathlib import Path

PICTURES = (".png", ".jpg", ".pdf", ".svg")


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raises before the long work what would go wrong after it: another suffix, no folder to write to, no matplotlib
    for a picture."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: name a file that ends with {', '.join(suffixes[:-1])} or {suffixes[-1]}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: the folder {path.parent} can't be written to")
    if path.suffix.lower() in PICTURES:
        from jaxclip.plotting import require_matplotlib

        require_matplotlib()


def check_spares(path: Path, *, files: Iterable[str | os.PathLike[str]] = (), folder: str | os.PathLike[str]) -> None:
    """Raises ValueError, before the work, when writing to the path would replace an input: one of some files, or what
    is in a folder of photos or a sub-folder (or is the one photo, where `folder` is a file)."""
    if not path.exists():
        return
    for file in (*files, folder):
        if os.path.exists(file) and path.samefile(file):
            raise ValueError(f"{path}: is an input, and would be overwritten: name another file to write to")
    # By its name and by where links lead to.
    places = (os.path.abspath(path), os.path.abspath(folder)), (os.path.realpath(path), os.path.realpath(folder))
    if any(Path(file).is_relative_to(parent) for file, parent in places):
        raise ValueError(f"{path}: is there already, among the photos of {folder}: name another file to write to")
