"""Photos row by row, with what was found about them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxclip.plotting.page import (
    GREY,
    LIGHT,
    MARGIN,
    PALE,
    Picture,
    as_number,
    as_thumbnail,
    draw_image,
    drawable,
    file_name,
    new_page,
    require_matplotlib,
    shortened,
    text_width,
    wrapped,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More would be no picture any more; a note in it says so.
MOST_HITS = 100


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
    names = [file_name(image) for image in images] if names is None else names
    if not images or len(names) != len(images) or (scores is not None and len(scores) != len(images)):
        raise ValueError(
            f"a contact sheet needs at least one image, and a score and a name for each: got {len(images)} images, "
            f"{'no' if scores is None else len(scores)} scores and {len(names)} names"
        )
    note = f"Drawn: the first {MOST_HITS} of {len(images):,}." if len(images) > MOST_HITS else ""
    images = images[:MOST_HITS]
    side, gap, caption = 270, 24, 62
    columns = min(len(images), 10, math.ceil(math.sqrt(2 * len(images))))
    width = max(2 * MARGIN + columns * (side + gap) - gap, 640)

    thumbnails = [as_thumbnail(image, side, side) for image in images]
    rows = [thumbnails[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(len(thumbnail) for thumbnail in row) for row in rows]
    asked = as_thumbnail(query, 150, 150) if query is not None else None
    indent = MARGIN + (asked.shape[1] + 18 if asked is not None else 0)
    heading = wrapped(drawable(title), 12, width - indent - MARGIN, 3, bold=True)
    head = max(30 * (heading.count("\n") + 1) if heading else 0, len(asked) if asked is not None else 0)
    top = MARGIN + (head + 22 if head else 0)
    height = top + sum(heights) + len(rows) * (caption + gap) + (30 if note else 0)
    figure, page = new_page(width, height)

    if asked is not None:
        draw_image(page, asked, MARGIN, MARGIN)
    if heading:
        middle = MARGIN + head / 2
        write(page, indent, middle, heading, 12, bold=True, va="center", linespacing=1.25)
    for row, (line, tallest) in enumerate(zip(rows, heights, strict=True)):
        for column, thumbnail in enumerate(line):
            i, x, bottom = row * columns + column, MARGIN + column * (side + gap), top + tallest
            draw_image(page, thumbnail, x, bottom - len(thumbnail))
            write(page, x, bottom + 26, f"{i + 1}", 9, bold=True)
            if scores is not None:
                write(
                    page, x + text_width(f"{i + 1}", 9, bold=True) + 14, bottom + 26, as_number(float(scores[i]), 4), 9
                )
            write(page, x, bottom + 50, shortened(drawable(names[i]), 7.5, side), 7.5, color=GREY)
        top += tallest + caption + gap
    if note:
        write(page, MARGIN, height - MARGIN, note, 8, color=GREY)
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

    names = [file_name(image) for image in images] if names is None else names
    if not images or len(names) != len(images) or len(classes) != len(images):
        raise ValueError(
            f"at least one image, and classes and a name for each: got {len(images)} images, {len(classes)} rows of "
            f"classes and {len(names)} names"
        )
    note = f"Drawn: the first {MOST_HITS} of {len(images):,}." if len(images) > MOST_HITS else ""
    images = images[:MOST_HITS]
    side, gap, line = 270, 30, 32
    columns = min(len(images), 10, math.ceil(math.sqrt(2 * len(images))))
    width = max(2 * MARGIN + columns * (side + gap) - gap, 640 if title else 0)
    thumbnails = [as_thumbnail(image, side, side) for image in images]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [max(len(thumbnails[i]) for i in row) for row in rows]
    captions = [40 + line * max(len(classes[i]) for i in row) for row in rows]
    heading = wrapped(drawable(title), 12, width - 2 * MARGIN, 3, bold=True)
    head = 30 * (heading.count("\n") + 1) if heading else 0
    top = MARGIN + (head + 22 if head else 0)
    height = top + sum(heights) + sum(captions) + len(rows) * gap + (30 if note else 0)
    figure, page = new_page(width, height)

    if heading:
        write(page, MARGIN, MARGIN + head / 2, heading, 12, bold=True, va="center", linespacing=1.25)
    for row, tallest, caption in zip(rows, heights, captions, strict=True):
        for column, i in enumerate(row):
            x, bottom = MARGIN + column * (side + gap), top + tallest
            draw_image(page, thumbnails[i], x, bottom - len(thumbnails[i]))
            write(page, x, bottom + 24, shortened(drawable(names[i]), 7.5, side), 7.5, color=GREY)
            for place, (label, probability) in enumerate(classes[i]):
                y, number = bottom + 38 + place * line, as_number(probability)
                bar = max(1.0, side * probability)
                page.add_patch(Rectangle((x, y), bar, line - 4, color=PALE if place else LIGHT, linewidth=0))
                room = side - text_width(number, 8.5, bold=not place) - 22
                text = shortened(drawable(label), 8.5, room, at="end", bold=not place)
                write(page, x + 6, y + 21, text, 8.5, bold=not place)
                write(page, x + side - 6, y + 21, number, 8.5, bold=not place, ha="right")
        top += tallest + caption + gap
    if note:
        write(page, MARGIN, height - MARGIN, note, 8, color=GREY)
    return figure
