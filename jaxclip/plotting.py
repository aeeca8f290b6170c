"""Pictures of what was found: a heat map of similarities, a contact sheet of photos.

Matplotlib figures, made without pyplot: no display is needed and no state of the caller's is touched. `jaxclip[plot]`
has matplotlib. Names and texts may hold anything: what the font has no glyph for is drawn as a box.
"""

import importlib.util
import io
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps

from jaxclip.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
# In pixels, or of a font in points; beartype takes `float` alone at its word.
_Length: TypeAlias = int | float

# Pixels an inch: photos are drawn pixel by pixel at this resolution, and lengths below are in these pixels.
DPI = 150
# More of each would not be readable, or would be no picture any more; a note in the picture says so.
MOST_TEXTS, MOST_IMAGES, MOST_HITS, MOST_CLASSES, MOST_MAPS = 200, 60, 100, 60, 11

_MARGIN = 24
_GREY, _BLUE = "#666666", "#1f77b4"
_LIGHT, _PALE = "#b9d8f0", "#e3eef7"

# The numbers of a training log in their order; what else a line has comes behind them, but for the last.
_PANELS = {
    "loss": "loss",
    "logit_scale": "logit scale",
    "learning_rate": "learning rate",
    "grad_norm": "gradient's norm",
    "images_per_second": "images a second",
}
_SMOOTHED = ("loss", "grad_norm", "images_per_second")
_NO_PANELS = ("step", "seconds", "skipped", "diverged")


def require_matplotlib() -> None:
    """Raises ImportError, with the mend, where matplotlib is missing; takes no time where it isn't."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('pictures are drawn by matplotlib, which is not installed: pip install "jaxclip[plot]"')


def similarity_heat_map(
    values: Float[np.ndarray, "texts images"],
    texts: Sequence[str],
    images: Sequence[Picture],
    *,
    names: Sequence[str] | None = None,
) -> "Figure":
    """The heat map of the CLIP article, labelled: texts down, images across, and the number in every cell that has
    room for it.

    `images` are paths, Pillow images or uint8 arrays; photos are turned as their EXIF orientation says. Below stand
    their `names`, by default the files'. Of more than 200 texts and 60 images the first are drawn, and a note says so.
    Raises ValueError when `values` is empty or has not a row for each text and a column for each image, or when there
    are not as many names.
    """
    require_matplotlib()
    values = np.asarray(values, np.float64)
    names = [_name(image) for image in images] if names is None else names
    if values.shape != (len(texts), len(images)) or not values.size:
        raise ValueError(
            f"values must have a row for each text and a column for each image, at least one of both: got "
            f"{values.shape} for {len(texts)} texts and {len(images)} images"
        )
    if len(names) != len(images):
        raise ValueError(f"names must have one for each image, got {len(names)} for {len(images)} images")
    notes = [
        f"the first {most:,} of {n:,} {what}"
        for n, most, what in ((len(texts), MOST_TEXTS, "texts"), (len(images), MOST_IMAGES, "images"))
        if n > most
    ]
    values, texts, images = values[:MOST_TEXTS, :MOST_IMAGES], texts[:MOST_TEXTS], images[:MOST_IMAGES]
    rows, columns = values.shape

    # The whole of a small matrix fits a page's width; the cells of a large one shrink until a label just fits.
    across, down = round(min(120, max(45, 1800 / columns))), round(min(84, max(26, 1500 / rows)))
    label_size = 8.5 if down >= 30 else 7.5
    lines = 3 if down >= 75 else 2 if down >= 50 else 1
    labels = [_wrapped(_drawable(text), label_size, 520, lines) for text in texts]
    names = [_shortened(_drawable(name), 7.5, 260) for name in names[:MOST_IMAGES]]
    left = _MARGIN + 14 + math.ceil(max(_width(line, label_size) for label in labels for line in label.split("\n")))
    below = 14 + math.ceil(max(_width(name, 7.5) for name in names))
    above = _MARGIN + across
    note = f"Drawn: {' and '.join(notes)}." if notes else ""
    low, high = float(values.min()), float(values.max())
    right = 170 if high > low else _MARGIN  # For the scale.
    width = max(left + columns * across + right, math.ceil(_width(note, 8)) + 2 * _MARGIN)
    height = above + rows * down + below + _MARGIN + (30 if note else 0)
    figure, page = _page(width, height)

    for i, image in enumerate(images):
        thumbnail = _thumbnail(image, across - 6, across - 6)
        height_of, width_of = thumbnail.shape[:2]
        _draw(page, thumbnail, left + i * across + (across - width_of) // 2, above - 4 - height_of)
    axes = _axes(figure, left, above, columns * across, rows * down)
    drawn = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(rows), labels, fontproperties=_font(label_size), parse_math=False)
    axes.set_xticks(range(columns), names, fontproperties=_font(7.5), rotation=90, parse_math=False)
    axes.tick_params(length=0, pad=5)
    axes.spines[:].set_visible(False)

    numbers = [[_number(value) for value in row] for row in values]
    longest = max((number for row in numbers for number in row), key=len)
    sizes = (size for size in (9, 8, 7, 6) if _width(longest, size) <= 0.86 * across and size * DPI / 72 <= 0.8 * down)
    if size := next(sizes, None):
        for i, row in enumerate(numbers):
            for j, number in enumerate(row):
                # Whichever has more contrast with the cell (WCAG 2: above and below a luminance of 0.18).
                red, green, blue, _ = drawn.to_rgba(values[i, j])
                luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
                color = "black" if luminance > 0.18 else "white"
                axes.text(j, i, number, ha="center", va="center_baseline", color=color, fontproperties=_font(size))
    if high > low:
        # As high as the cells; with few of them as high as the photos above them, too.
        top, bar = (above, rows * down) if rows * down >= 200 else (_MARGIN, above - _MARGIN + rows * down)
        bar = min(bar, 900)
        scale = _axes(figure, left + columns * across + 24, top, 22, bar)
        figure.colorbar(drawn, cax=scale)
        scale.set_ylabel("cosine similarity" if bar > 240 else "cosine\nsimilarity", fontproperties=_font(8))
        scale.tick_params(length=3)
        for label in scale.get_yticklabels():
            label.set_fontproperties(_font(7.5))
        scale.locator_params(nbins=max(2, bar // 90))
    if note:
        _text(page, _MARGIN, height - _MARGIN, note, 8, color=_GREY)
    return figure


def contact_sheet(
    images: Sequence[Picture],
    scores: Sequence[float] | Float[np.ndarray, " images"] | None = None,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    query: Picture | None = None,
) -> "Figure":
    """Photos in the order given, row by row, each with its rank, its score and its name (by default the file's).

    `title` stands above, next to `query`, the image that was searched for. `images` are paths, Pillow images or uint8
    arrays; photos are turned as their EXIF orientation says, and one that can't be read leaves a grey field with a
    cross. Of more than 100 the first are drawn, and a note says so. Raises ValueError without images, or when there are
    not as many `scores` or `names`.
    """
    require_matplotlib()
    names = [_name(image) for image in images] if names is None else names
    if not images or len(names) != len(images) or (scores is not None and len(scores) != len(images)):
        raise ValueError(
            f"a contact sheet needs at least one image, and a score and a name for each: got {len(images)} images, "
            f"{'no' if scores is None else len(scores)} scores and {len(names)} names"
        )
    note = f"Drawn: the first {MOST_HITS} of {len(images):,}." if len(images) > MOST_HITS else ""
    images = images[:MOST_HITS]
    side, gap, caption = 270, 24, 62
    columns = min(len(images), 10, math.ceil(math.sqrt(2 * len(images))))
    width = max(2 * _MARGIN + columns * (side + gap) - gap, 640)

    thumbnails = [_thumbnail(image, side, side) for image in images]
    rows = [thumbnails[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(len(thumbnail) for thumbnail in row) for row in rows]
    asked = _thumbnail(query, 150, 150) if query is not None else None
    indent = _MARGIN + (asked.shape[1] + 18 if asked is not None else 0)
    heading = _wrapped(_drawable(title), 12, width - indent - _MARGIN, 3, bold=True)
    head = max(30 * (heading.count("\n") + 1) if heading else 0, len(asked) if asked is not None else 0)
    top = _MARGIN + (head + 22 if head else 0)
    height = top + sum(heights) + len(rows) * (caption + gap) + (30 if note else 0)
    figure, page = _page(width, height)

    if asked is not None:
        _draw(page, asked, _MARGIN, _MARGIN)
    if heading:
        middle = _MARGIN + head / 2
        _text(page, indent, middle, heading, 12, bold=True, va="center", linespacing=1.25)
    for row, (line, tallest) in enumerate(zip(rows, heights, strict=True)):
        for column, thumbnail in enumerate(line):
            i, x, bottom = row * columns + column, _MARGIN + column * (side + gap), top + tallest
            _draw(page, thumbnail, x, bottom - len(thumbnail))
            _text(page, x, bottom + 26, f"{i + 1}", 9, bold=True)
            if scores is not None:
                _text(page, x + _width(f"{i + 1}", 9, bold=True) + 14, bottom + 26, _number(float(scores[i]), 4), 9)
            _text(page, x, bottom + 50, _shortened(_drawable(names[i]), 7.5, side), 7.5, color=_GREY)
        top += tallest + caption + gap
    if note:
        _text(page, _MARGIN, height - _MARGIN, note, 8, color=_GREY)
    return figure


def classified_photos(
    images: Sequence[Picture],
    classes: Sequence[Sequence[tuple[str, float]]],
    *,
    names: Sequence[str] | None = None,
    title: str = "",
) -> "Figure":
    """Photos in the order given, row by row, each with its name (by default the file's) and its most probable classes:
    labels with probabilities, which are bars, too.

    Of more than 100 photos the first are drawn, and a note says so. Raises ValueError without images, or when there are
    not as many `classes` or `names`.
    """
    require_matplotlib()
    from matplotlib.patches import Rectangle

    names = [_name(image) for image in images] if names is None else names
    if not images or len(names) != len(images) or len(classes) != len(images):
        raise ValueError(
            f"at least one image, and classes and a name for each: got {len(images)} images, {len(classes)} rows of "
            f"classes and {len(names)} names"
        )
    note = f"Drawn: the first {MOST_HITS} of {len(images):,}." if len(images) > MOST_HITS else ""
    images = images[:MOST_HITS]
    side, gap, line = 270, 30, 32
    columns = min(len(images), 10, math.ceil(math.sqrt(2 * len(images))))
    width = max(2 * _MARGIN + columns * (side + gap) - gap, 640 if title else 0)
    thumbnails = [_thumbnail(image, side, side) for image in images]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [max(len(thumbnails[i]) for i in row) for row in rows]
    captions = [40 + line * max(len(classes[i]) for i in row) for row in rows]
    heading = _wrapped(_drawable(title), 12, width - 2 * _MARGIN, 3, bold=True)
    head = 30 * (heading.count("\n") + 1) if heading else 0
    top = _MARGIN + (head + 22 if head else 0)
    height = top + sum(heights) + sum(captions) + len(rows) * gap + (30 if note else 0)
    figure, page = _page(width, height)

    if heading:
        _text(page, _MARGIN, _MARGIN + head / 2, heading, 12, bold=True, va="center", linespacing=1.25)
    for row, tallest, caption in zip(rows, heights, captions, strict=True):
        for column, i in enumerate(row):
            x, bottom = _MARGIN + column * (side + gap), top + tallest
            _draw(page, thumbnails[i], x, bottom - len(thumbnails[i]))
            _text(page, x, bottom + 24, _shortened(_drawable(names[i]), 7.5, side), 7.5, color=_GREY)
            for place, (label, probability) in enumerate(classes[i]):
                y, number = bottom + 38 + place * line, _number(probability)
                bar = max(1.0, side * probability)
                page.add_patch(Rectangle((x, y), bar, line - 4, color=_PALE if place else _LIGHT, linewidth=0))
                room = side - _width(number, 8.5, bold=not place) - 22
                text = _shortened(_drawable(label), 8.5, room, at="end", bold=not place)
                _text(page, x + 6, y + 21, text, 8.5, bold=not place)
                _text(page, x + side - 6, y + 21, number, 8.5, bold=not place, ha="right")
        top += tallest + caption + gap
    if note:
        _text(page, _MARGIN, height - _MARGIN, note, 8, color=_GREY)
    return figure


def detected(
    image: Picture,
    relevance: Float[np.ndarray, "prompts rows columns"],
    boxes: Mapping[str, Sequence[tuple[float, float, float, float, float]]],
    *,
    size: tuple[int, int],
) -> "Figure":
    """A photo with what was found in it, outlined in a colour for each prompt, and for each prompt a heat map of how
    relevant each place is, from 0 to 1, on the photo in grey.

    `relevance` is on any grid over the image, in the order of the prompts, which are the keys of `boxes`: (x0, y0, x1,
    y1, score) in pixels of an image of `size` (width, height). Of more than 11 prompts the first have a heat map, and
    a note says so. Raises ValueError when there are not as many maps as prompts, or none.
    """
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if not boxes or len(relevance) != len(boxes):
        raise ValueError(f"a map for each prompt, and at least one: got {len(relevance)} maps of {len(boxes)} prompts")
    note = f"Heat maps: the first {MOST_MAPS} of {len(boxes):,} prompts." if len(boxes) > MOST_MAPS else ""
    side, gap, line = 560, 28, 34
    photo = _thumbnail(image, side, side)
    height, width = photo.shape[:2]
    panels = 1 + min(len(boxes), MOST_MAPS)
    columns = min(panels, 4 if width < height else 3)
    rows = math.ceil(panels / columns)
    cell = max(width, 240)
    legend = line * len(boxes) + 10
    scale = 56
    page_width = 2 * _MARGIN + columns * (cell + gap) - gap
    page_height = 2 * _MARGIN + rows * (height + line + gap) - gap + scale + legend + (30 if note else 0)
    figure, page = _page(page_width, page_height)
    colors = [colormaps["tab10"](number % 10) for number in range(len(boxes))]
    grey = (photo @ np.asarray([0.299, 0.587, 0.114]))[..., None] / 255
    hot = colormaps["inferno"]

    def place(number: int) -> tuple[int, int]:
        return _MARGIN + number % columns * (cell + gap), _MARGIN + line + number // columns * (height + line + gap)

    for number in range(panels):
        x, y = place(number)
        if number == 0:
            _text(page, x, y - 10, _shortened(_drawable(_name(image)) or "image", 9, cell), 9, bold=True)
            _draw(page, photo, x, y)
            drawn = list(zip(boxes.values(), colors, strict=True))
        else:
            label = list(boxes)[number - 1]
            cells = Image.fromarray(np.asarray(relevance[number - 1], np.float32))
            values = np.clip(np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR)), 0, 1)
            mixed = 0.25 * grey + 0.75 * hot(values)[..., :3]
            _text(page, x, y - 10, _shortened(_drawable(label), 9, cell, at="end"), 9, color=colors[number - 1])
            _draw(page, np.round(255 * mixed).astype(np.uint8), x, y)
            drawn = [(boxes[label], to_rgb("white"))]
        for found, color in drawn:
            for x0, y0, x1, y1, score in found:
                corners = x + x0 / size[0] * width, y + y0 / size[1] * height
                _outline(page, *corners, (x1 - x0) / size[0] * width, (y1 - y0) / size[1] * height, color)
                if number:
                    _text(page, corners[0] + 5, corners[1] + 19, _number(score), 7.5, bold=True, color="white")
    top = page_height - _MARGIN - legend - scale - (30 if note else 0) + gap
    _gradient(page, hot, _MARGIN, top, 260, 16)
    for value in (0, 0.5, 1):
        _text(page, _MARGIN + 260 * value, top + 36, f"{value:g}", 7.5, ha="center", color=_GREY)
    _text(page, _MARGIN + 284, top + 15, "relevance", 8, color=_GREY)
    for number, ((label, found), color) in enumerate(zip(boxes.items(), colors, strict=True)):
        y = top + scale + 14 + number * line
        _outline(page, _MARGIN, y - 16, 26, 18, color)
        count = "not found" if not found else f"{len(found)} found, the best {_number(found[0][4])}"
        text = _shortened(f"{_drawable(label)}: {count}", 9, page_width - 2 * _MARGIN - 40, at="middle")
        _text(page, _MARGIN + 40, y, text, 9)
    if note:
        _text(page, _MARGIN, page_height - _MARGIN, note, 8, color=_GREY)
    return figure


def _outline(page: "Axes", x: _Length, y: _Length, width: _Length, height: _Length, color: Any) -> None:
    """A frame that is seen on dark and on light."""
    from matplotlib.patches import Rectangle

    for thickness, shade in ((3.2, "black"), (1.8, color)):
        page.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=shade, linewidth=thickness))


def _gradient(page: "Axes", colors: Any, x: int, y: int, width: int, height: int) -> None:
    ramp = np.broadcast_to(colors(np.linspace(0, 1, width))[None, :, :3], (height, width, 3))
    _draw(page, np.round(255 * ramp).astype(np.uint8), x, y)


def confusion_matrix(
    confusion: Int[np.ndarray, "classes classes"], labels: Sequence[str], *, title: str = ""
) -> "Figure":
    """How many images of each class (down) were put into each (across): the darker, the larger the part of the class;
    beside each row the part that is right.

    Classes without images that none was put into are left out. Of more than 60 classes those with the most mistakes are
    drawn, in their order, and a note says so. Raises ValueError without an image, or when there are not as many labels.
    """
    require_matplotlib()
    confusion = np.asarray(confusion)
    if confusion.shape != (len(labels), len(labels)) or not confusion.sum():
        raise ValueError(
            f"confusion must have a row and a column for each label, and count at least one image: got "
            f"{confusion.shape} for {len(labels)} labels and {confusion.sum()} images"
        )
    mistakes = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
    there = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    drawn = np.sort(there[np.argsort(-mistakes[there], kind="stable")[:MOST_CLASSES]])
    n, left_out = len(drawn), len(there) - len(drawn)
    note = f"Drawn: of {len(there):,} classes the {n} with the most mistakes." if left_out else ""
    totals = confusion.sum(axis=1)[drawn]
    counts = confusion[np.ix_(drawn, drawn)]
    shares = counts / np.maximum(totals, 1)[:, None]

    cell = round(min(64, max(22, 1300 / n)))
    size = 8.5 if cell >= 36 else 7.5 if cell >= 26 else 6.5
    names = [_shortened(_drawable(labels[int(i)]), size, 330, at="end") for i in drawn]
    longest = math.ceil(max(_width(name, size) for name in names))
    left = _MARGIN + 34 + longest + 12
    width = max(left + n * cell + 84, math.ceil(_width(note, 8)) + 2 * _MARGIN, 640 if title else 0)
    heading = _wrapped(_drawable(title), 12, width - 2 * _MARGIN, 3, bold=True)
    head = 30 * (heading.count("\n") + 1) + 16 if heading else 0
    top = _MARGIN + head + 26
    height = top + n * cell + 12 + longest + 40 + _MARGIN + (30 if note else 0)
    figure, page = _page(width, height)
    if heading:
        _text(page, _MARGIN, _MARGIN + (head - 16) / 2, heading, 12, bold=True, va="center", linespacing=1.25)
    axes = _axes(figure, left, top, n * cell, n * cell)
    # By the root of the part: a mistake that is made once in fifty times is to be seen, too.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(n), names, fontproperties=_font(size), parse_math=False)
    axes.set_xticks(range(n), names, fontproperties=_font(size), rotation=90, parse_math=False)
    axes.tick_params(length=0, pad=5)
    axes.spines[:].set_color("#bbbbbb")
    for line in np.arange(n - 1) + 0.5:
        axes.axhline(line, color="#e4e4e4", linewidth=0.5)
        axes.axvline(line, color="#e4e4e4", linewidth=0.5)
    widest = f"{counts.max():,}"
    sizes = (s for s in (9, 8, 7, 6) if _width(widest, s) <= 0.8 * cell and s * DPI / 72 <= 0.8 * cell)
    number_size = next(sizes, None)
    if number_size is not None:
        font = _font(number_size)
        for i, j in np.argwhere(counts):
            color = "white" if shares[i, j] > 0.35 else "black"
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center_baseline", color=color, fontproperties=font)
    for i in np.flatnonzero(totals):
        part = _number(counts[i, i] / totals[i])
        _text(page, left + n * cell + 12, top + (i + 0.5) * cell, part, size, va="center_baseline", color=_GREY)
    _text(page, left + n * cell + 12, top - 12, "right", size, color=_GREY)
    _text(page, _MARGIN + 10, top + n * cell / 2, "shown", 9, bold=True, va="center", ha="center", rotation=90)
    below = height - _MARGIN - (30 if note else 0)
    _text(page, left + n * cell / 2, below, "taken for", 9, bold=True, ha="center")
    if note:
        _text(page, _MARGIN, height - _MARGIN, note, 8, color=_GREY)
    return figure


def training_curves(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """What a training log's lines (`jaxclip.training.read_log`) say by step: a panel for each number that a line has,
    faint as it is and over it smoothed, and one for the evaluations. A red line is where the run diverged.

    Raises ValueError when no line has a number.
    """
    require_matplotlib()
    steps = [record for record in records if "loss" in record]
    evaluations = [(record["step"], record["evaluation"]) for record in records if record.get("evaluation")]
    own = [name for record in steps for name in record if name not in _PANELS and name not in _NO_PANELS]
    # Of one number alone (SimCLR has no logit scale) or a learning rate that wasn't said there is nothing to draw.
    names = [name for name in (*_PANELS, *dict.fromkeys(own)) if any(record.get(name) is not None for record in steps)]
    panels: list[str | None] = [*names[:1], *([None] if evaluations else []), *names[1:]]
    if not panels:
        raise ValueError("the log has no line with a loss or an evaluation yet")
    width, height, gap = 720, 330, 112
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, page = _page(columns * (width + 130) + 30, rows * (height + gap) + 24)
    last = max(record["step"] for record in records)
    for place, name in enumerate(panels):
        left, top = 110 + place % columns * (width + 130), 72 + place // columns * (height + gap)
        _text(page, left, top - 14, "evaluation" if name is None else _PANELS.get(name, name.replace("_", " ")), 9.5)
        axes = _axes(figure, left, top, width, height)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e8e8e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(0, 1.02 * max(last, 1))
        if name is None:
            _draw_evaluations(axes, evaluations)
        else:
            _draw_curve(axes, name, steps)
        for record in steps:
            if record.get("diverged"):
                axes.axvline(record["step"], color="#d62728", linewidth=1.2)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_fontproperties(_font(7.5))
        axes.tick_params(length=3, color=_GREY)
        if place + columns >= len(panels):
            axes.set_xlabel("step", fontproperties=_font(8))
    return figure


def error_growth(
    towers: Mapping[str, Sequence[tuple[str, float | None, float | None, bool | None]]], title: str, verdict: str
) -> "Figure":
    """How far two implementations are apart from tensor to tensor, in order of execution: a panel for each tower.

    A point is a label (below the axis, "" for none), the relative error, what rounding may do (both None where nothing
    was compared) and whether that is all. Errors of 0 are drawn at the bottom. Raises ValueError without points.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    known = [y for points in towers.values() for _, *ys, _ in points for y in ys if y and math.isfinite(y)]
    if not known:
        raise ValueError("there is nothing to draw: no tensor of a tower has an error or a tolerance")
    low, high = min(known) / 3, max(known) * 3
    figure = Figure(figsize=(12, 0.9 + 3.4 * len(towers)), dpi=DPI, facecolor="white", layout="constrained")
    heading = [_shortened(_drawable(title), 9, 1700, bold=True), *_wrapped(_drawable(verdict), 9, 1700, 2).split("\n")]
    figure.suptitle("\n".join(heading), fontproperties=_font(9), parse_math=False)
    for axes, (name, points) in zip(figure.subplots(len(towers), squeeze=False)[:, 0], towers.items(), strict=True):
        places = range(len(points))
        allowed = [math.nan if y is None else y for _, _, y, _ in points]
        found = [math.nan if y is None else high if not math.isfinite(y) else max(y, low) for _, y, _, _ in points]
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.fill_between(places, low, allowed, color="#d9ead3", linewidth=0, label="rounding")
        axes.plot(places, found, color=_GREY, linewidth=0.8)
        for agrees, color, label in ((True, "#2e7d32", "agree"), (False, "#c62828", "apart")):
            own = [place for place in places if points[place][3] is agrees and not math.isnan(found[place])]
            if own:
                # Not cut in two at the bottom.
                axes.plot(
                    own, [found[place] for place in own], ".", color=color, markersize=5, label=label, clip_on=False
                )
        first = next((place for place in places if points[place][3] is False), None)
        if first is not None:
            axes.axvline(first, color="#c62828", linewidth=0.8, linestyle="--")
        axes.set_xticks(
            [place for place in places if points[place][0]],
            [points[place][0] for place in places if points[place][0]],
            fontproperties=_font(7.5),
        )
        axes.set_xlim(-1, len(points))
        axes.set_title(name, fontproperties=_font(9, bold=True), loc="left")
        axes.set_ylabel("relative RMS", fontproperties=_font(8))
        axes.set_xlabel("block", fontproperties=_font(8))
        axes.tick_params(length=3)
        for label in axes.get_yticklabels():
            label.set_fontproperties(_font(7.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(prop=_font(7.5), frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, ncols=3)
    return figure


def write_figure(path: Path, figure: "Figure") -> None:
    """The picture as a whole, or none when anything fails; the suffix says which kind."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi="figure")
    write_atomically(path, content.getvalue())


def _draw_curve(axes: "Axes", name: str, records: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    steps, values = (np.asarray(column, np.float64) for column in zip(*points, strict=True))
    if name == "grad_norm" and 0 < values.min() < values.max() / 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    if name in _SMOOTHED:
        axes.plot(steps, values, color=_BLUE, alpha=0.25, linewidth=0.8)
        values = _smoothed(values)
    axes.plot(steps, values, color=_BLUE, linewidth=1.5, marker="." if len(steps) == 1 else "")
    if name == "images_per_second":
        axes.set_ylim(bottom=0)
    if name == "learning_rate":
        axes.yaxis.set_major_formatter("{x:.3g}")


def _draw_evaluations(axes: "Axes", evaluations: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
    """Names that are alike up to an "@" have one color, and dashes by their order."""
    names = list(dict.fromkeys(name for _, values in evaluations for name in values))
    groups = list(dict.fromkeys(name.partition("@")[0] for name in names))
    for name in names:
        group = name.partition("@")[0]
        alike = [other for other in names if other.partition("@")[0] == group]
        points = [(step, values[name]) for step, values in evaluations if values.get(name) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=f"C{groups.index(group) % 10}",
                linestyle=("-", "--", ":", "-.")[alike.index(name) % 4],
                linewidth=1.5,
                marker="o",
                markersize=2.5,
                label=name.replace("_", " "),
            )
    if axes.has_data():
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        # Above, to the right of the title: off the curves.
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=len(groups),
            frameon=False,
            borderaxespad=0.2,
            prop=_font(6.5),
            labelspacing=0.2,
        )


def _smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The mean of what came before, in which the last 25th part of the curve weighs most."""
    keep = 1 - 1 / max(1.0, len(values) / 25)
    smooth, total, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        smooth[i] = total / weight
    return smooth


def _page(width: int, height: int) -> "tuple[Figure, Axes]":
    """A white figure, and axes over all of it in pixels from its upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    page = _axes(figure, 0, 0, width, height)
    page.set_axis_off()
    page.set_xlim(0, width)
    page.set_ylim(height, 0)
    page.set_autoscale_on(False)
    return figure, page


def _axes(figure: "Figure", left: _Length, top: _Length, width: _Length, height: _Length) -> "Axes":
    """In pixels from the figure's upper left corner."""
    full_width, full_height = figure.get_size_inches() * DPI
    below = full_height - top - height
    return figure.add_axes((left / full_width, below / full_height, width / full_width, height / full_height))


def _draw(page: "Axes", pixels: UInt8[np.ndarray, "height width 3"], x: int, y: int) -> None:
    """The image, pixel by pixel, with its upper left corner at x, y."""
    height, width = pixels.shape[:2]
    page.imshow(pixels, extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest")


def _thumbnail(image: Picture, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """The image as large as fits; a grey field in place of one that can't be read."""
    try:
        opened = _opened(image, 2 * max(width, height))
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError and more.
        return np.asarray(_unreadable(width, height))
    scale = min(width / opened.width, height / opened.height)
    size = max(1, round(scale * opened.width)), max(1, round(scale * opened.height))
    return np.asarray(opened.resize(size, Image.Resampling.LANCZOS))


def _opened(image: Picture, enough: int) -> Image.Image:
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


def _name(image: Picture) -> str:
    return Path(image).name if isinstance(image, str | os.PathLike) else ""


def _number(value: float, digits: int = 2) -> str:
    """With a true minus sign, and none before zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _text(
    page: "Axes", x: _Length, y: _Length, text: str, size: _Length, *, bold: bool = False, va: str = "baseline", **how
):
    # Not as mathematics, which a dollar sign in a file's name would begin.
    page.text(x, y, text, fontproperties=_font(size, bold=bold), va=va, parse_math=False, **how)


def _font_file(bold: bool = False) -> str:
    """DejaVu Sans comes with matplotlib: the same picture whatever fonts and settings a machine has."""
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf")


def _font(size: _Length, *, bold: bool = False) -> "FontProperties":
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


def _width(text: str, size: _Length, *, bold: bool = False) -> float:
    """Of drawable text, in pixels."""
    return _renderer().get_text_width_height_descent(text, _font(size, bold=bold), ismath=False)[0]


def _drawable(text: str) -> str:
    """On one line, with a box for each character that the font can't draw."""
    joined = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", text))
    # Joiners and variation selectors are invisible beside the glyphs that they would change.
    seen = (c for c in joined if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    glyphs = _glyphs() & _glyphs(bold=True)
    return "".join(c if c.isprintable() and ord(c) in glyphs else "\N{WHITE SQUARE}" for c in seen)


def _shortened(
    text: str, size: _Length, width: _Length, *, at: Literal["middle", "end"] = "middle", bold: bool = False
) -> str:
    """With "…" for what doesn't fit the width: a name's beginning and end tell it from others."""
    if _width(text, size, bold=bold) <= width:
        return text
    fitting, too_long = 0, len(text)
    while too_long - fitting > 1:
        kept = (fitting + too_long) // 2
        fits = _width(_ellipsis(text, kept, at), size, bold=bold) <= width
        fitting, too_long = (kept, too_long) if fits else (fitting, kept)
    return _ellipsis(text, fitting, at)


def _ellipsis(text: str, kept: int, at: Literal["middle", "end"]) -> str:
    tail = kept // 2 if at == "middle" else 0
    return f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"


def _wrapped(text: str, size: _Length, width: _Length, lines: int, *, bold: bool = False) -> str:
    """In at most so many lines, about equally long, and broken between words where that is possible."""
    widest = _broken(text, size, width, lines, bold)
    if len(widest) > 1 and "…" not in "".join(widest):
        for share in (0.6, 0.7, 0.8, 0.9):
            narrow = _broken(text, size, share * width, len(widest), bold)
            if "…" not in "".join(narrow):
                return "\n".join(narrow)
    return "\n".join(widest)


def _broken(text: str, size: _Length, width: _Length, lines: int, bold: bool) -> list[str]:
    """With as many words on each line as fit."""
    done: list[str] = []
    rest = text.strip()
    while rest and len(done) < lines - 1 and _width(rest, size, bold=bold) > width:
        words = rest.split(" ")
        fitting = 1
        while fitting < len(words) and _width(" ".join(words[: fitting + 1]), size, bold=bold) <= width:
            fitting += 1
        done.append(_shortened(" ".join(words[:fitting]), size, width, at="end", bold=bold))
        rest = " ".join(words[fitting:])
    return [*done, _shortened(rest, size, width, at="end", bold=bold)] if rest else done
