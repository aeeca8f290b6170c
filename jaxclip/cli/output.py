"""Files that commands write: asked for early, replaced as a whole."""

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def write_figure(path: Path, figure: "Figure") -> None:
    """The picture as a whole, or none when anything fails."""
    from jaxclip.tasks.manifest import write_atomically

    content = BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi="figure")
    write_atomically(path, content.getvalue())
