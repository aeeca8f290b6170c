"""What all pictures are made of: a page in pixels, images, and texts that fit."""

import importlib.util
import io
import os
import unicodedata
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxclip.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
# In pixels, or of a font in points; beartype takes `float` alone at its word.
Length: TypeAlias = int | float

# Pixels an inch: photos are drawn pixel by pixel at this resolution, and lengths below are in these pixels.
DPI = 150

MARGIN = 24
GREY, BLUE = "#666666", "#1f77b4"
LIGHT, PALE = "#b9d8f0", "#e3eef7"


def require_matplotlib() -> None:
    """Raises ImportError, with the mend, where matplotlib is missing; takes no time where it isn't."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('pictures are drawn by matplotlib, which is not installed: pip install "jaxclip[plot]"')


def write_figure(path: Path, figure: "Figure") -> None:
    """The picture as a whole, or none when anything fails; the suffix says which kind."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi="figure")
    write_atomically(path, content.getvalue())


def new_page(width: int, height: int) -> "tuple[Figure, Axes]":
    """A white figure, and axes over all of it in pixels from its upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    page = axes_at(figure, 0, 0, width, height)
    page.set_axis_off()
    page.set_xlim(0, width)
    page.set_ylim(height, 0)
    page.set_autoscale_on(False)
    return figure, page


def axes_at(figure: "Figure", left: Length, top: Length, width: Length, height: Length) -> "Axes":
    """In pixels from the figure's upper left corner."""
    full_width, full_height = figure.get_size_inches() * DPI
    below = full_height - top - height
    return figure.add_axes((left / full_width, below / full_height, width / full_width, height / full_height))


def draw_image(page: "Axes", pixels: UInt8[np.ndarray, "height width 3"], x: int, y: int) -> None:
    """The image, pixel by pixel, with its upper left corner at x, y."""
    height, width = pixels.shape[:2]
    page.imshow(pixels, extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest")


def as_thumbnail(image: Picture, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """The image as large as fits; a grey field in place of one that can't be read."""
    try:
        opened = open_picture(image, 2 * max(width, height))
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError and more.
        return np.asarray(_unreadable(width, height))
    scale = min(width / opened.width, height / opened.height)
    size = max(1, round(scale * opened.width)), max(1, round(scale * opened.height))
    return np.asarray(opened.resize(size, Image.Resampling.LANCZOS))


def open_picture(image: Picture, enough: int) -> Image.Image:
    """In RGB, upright, on white where it is transparent; a JPEG file decoded no larger than `enough` asks for."""
    if isinstance(image, np.ndarray):
        opened = Image.fromarray(image)
    elif isinstance(image, Image.Image):
        opened = image
    else:
        with Image.open(image) as opened:
            opened.draft("RGB", (enough, enough))
            opened.load()
    opened = ImageOps.exif_transpose(opened)
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        # Deep grey: from its darkest to its brightest, where Pillow would cut at 255.
        grey = np.asarray(opened, np.float64)
        grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-9)
        opened = Image.fromarray((255 * grey).astype(np.uint8))
    if opened.has_transparency_data:
        opened = opened.convert("RGBA")
        opened = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened)
    return opened.convert("RGB")


def _unreadable(width: int, height: int) -> Image.Image:
    """A grey field with a cross."""
    from PIL import ImageDraw

    field = Image.new("RGB", (width, height), "#e4e4e4")
    pen = ImageDraw.Draw(field)
    pen.line((0, 0, width, height), fill="#b0b0b0", width=2)
    pen.line((0, height, width, 0), fill="#b0b0b0", width=2)
    return field


def file_name(image: Picture) -> str:
    return Path(image).name if isinstance(image, str | os.PathLike) else ""


def as_number(value: float, digits: int = 2) -> str:
    """With a true minus sign, and none before zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def write(
    page: "Axes", x: Length, y: Length, text: str, size: Length, *, bold: bool = False, va: str = "baseline", **how
):
    # Not as mathematics, which a dollar sign in a file's name would begin.
    page.text(x, y, text, fontproperties=font_of(size, bold=bold), va=va, parse_math=False, **how)


def _font_file(bold: bool = False) -> str:
    """DejaVu Sans comes with matplotlib: the same picture whatever fonts and settings a machine has."""
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf")


def font_of(size: Length, *, bold: bool = False) -> "FontProperties":
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=_font_file(bold), size=size)


@cache
def _glyphs(bold: bool = False) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(_font_file(bold)).get_charmap())


@cache
def _renderer() -> "RendererAgg":
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, DPI)


def text_width(text: str, size: Length, *, bold: bool = False) -> float:
    """Of drawable text, in pixels."""
    return _renderer().get_text_width_height_descent(text, font_of(size, bold=bold), ismath=False)[0]


def drawable(text: str) -> str:
    """On one line, with a box for each character that the font can't draw."""
    joined = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", text))
    # Joiners and variation selectors are invisible beside the glyphs that they would change.
    seen = (c for c in joined if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    glyphs = _glyphs() & _glyphs(bold=True)
    return "".join(c if c.isprintable() and ord(c) in glyphs else "\N{WHITE SQUARE}" for c in seen)


def shortened(
    text: str, size: Length, width: Length, *, at: Literal["middle", "end"] = "middle", bold: bool = False
) -> str:
    """With "…" for what doesn't fit the width: a name's beginning and end tell it from others."""
    if text_width(text, size, bold=bold) <= width:
        return text
    fitting, too_long = 0, len(text)
    while too_long - fitting > 1:
        kept = (fitting + too_long) // 2
        fits = text_width(_ellipsis(text, kept, at), size, bold=bold) <= width
        fitting, too_long = (kept, too_long) if fits else (fitting, kept)
    return _ellipsis(text, fitting, at)


def _ellipsis(text: str, kept: int, at: Literal["middle", "end"]) -> str:
    tail = kept // 2 if at == "middle" else 0
    return f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"


def wrapped(text: str, size: Length, width: Length, lines: int, *, bold: bool = False) -> str:
    """In at most so many lines, about equally long, and broken between words where that is possible."""
    widest = _broken(text, size, width, lines, bold)
    if len(widest) > 1 and "…" not in "".join(widest):
        for share in (0.6, 0.7, 0.8, 0.9):
            narrow = _broken(text, size, share * width, len(widest), bold)
            if "…" not in "".join(narrow):
                return "\n".join(narrow)
    return "\n".join(widest)


def _broken(text: str, size: Length, width: Length, lines: int, bold: bool) -> list[str]:
    """With as many words on each line as fit."""
    done: list[str] = []
    rest = text.strip()
    while rest and len(done) < lines - 1 and text_width(rest, size, bold=bold) > width:
        words = rest.split(" ")
        fitting = 1
        while fitting < len(words) and text_width(" ".join(words[: fitting + 1]), size, bold=bold) <= width:
            fitting += 1
        done.append(shortened(" ".join(words[:fitting]), size, width, at="end", bold=bold))
        rest = " ".join(words[fitting:])
    return [*done, shortened(rest, size, width, at="end", bold=bold)] if rest else done
