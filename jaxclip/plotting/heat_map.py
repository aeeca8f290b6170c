"""The heat map of the CLIP article."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxclip.plotting.page import (
    DPI,
    GREY,
    MARGIN,
    Picture,
    as_number,
    as_thumbnail,
    axes_at,
    draw_image,
    drawable,
    file_name,
    font_of,
    new_page,
    require_matplotlib,
    shortened,
    text_width,
    wrapped,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More would not be readable; a note in the picture says so.
MOST_TEXTS, MOST_IMAGES = 200, 60


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
    names = [file_name(image) for image in images] if names is None else names
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
    labels = [wrapped(drawable(text), label_size, 520, lines) for text in texts]
    names = [shortened(drawable(name), 7.5, 260) for name in names[:MOST_IMAGES]]
    left = MARGIN + 14 + math.ceil(max(text_width(line, label_size) for label in labels for line in label.split("\n")))
    below = 14 + math.ceil(max(text_width(name, 7.5) for name in names))
    above = MARGIN + across
    note = f"Drawn: {' and '.join(notes)}." if notes else ""
    low, high = float(values.min()), float(values.max())
    right = 170 if high > low else MARGIN  # For the scale.
    width = max(left + columns * across + right, math.ceil(text_width(note, 8)) + 2 * MARGIN)
    height = above + rows * down + below + MARGIN + (30 if note else 0)
    figure, page = new_page(width, height)

    for i, image in enumerate(images):
        thumbnail = as_thumbnail(image, across - 6, across - 6)
        height_of, width_of = thumbnail.shape[:2]
        draw_image(page, thumbnail, left + i * across + (across - width_of) // 2, above - 4 - height_of)
    axes = axes_at(figure, left, above, columns * across, rows * down)
    drawn = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(rows), labels, fontproperties=font_of(label_size), parse_math=False)
    axes.set_xticks(range(columns), names, fontproperties=font_of(7.5), rotation=90, parse_math=False)
    axes.tick_params(length=0, pad=5)
    axes.spines[:].set_visible(False)

    numbers = [[as_number(value) for value in row] for row in values]
    longest = max((number for row in numbers for number in row), key=len)
    sizes = (
        size for size in (9, 8, 7, 6) if text_width(longest, size) <= 0.86 * across and size * DPI / 72 <= 0.8 * down
    )
    if size := next(sizes, None):
        for i, row in enumerate(numbers):
            for j, number in enumerate(row):
                # Whichever has more contrast with the cell (WCAG 2: above and below a luminance of 0.18).
                red, green, blue, _ = drawn.to_rgba(values[i, j])
                luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
                color = "black" if luminance > 0.18 else "white"
                axes.text(j, i, number, ha="center", va="center_baseline", color=color, fontproperties=font_of(size))
    if high > low:
        # As high as the cells; with few of them as high as the photos above them, too.
        top, bar = (above, rows * down) if rows * down >= 200 else (MARGIN, above - MARGIN + rows * down)
        bar = min(bar, 900)
        scale = axes_at(figure, left + columns * across + 24, top, 22, bar)
        figure.colorbar(drawn, cax=scale)
        scale.set_ylabel("cosine similarity" if bar > 240 else "cosine\nsimilarity", fontproperties=font_of(8))
        scale.tick_params(length=3)
        for label in scale.get_yticklabels():
            label.set_fontproperties(font_of(7.5))
        scale.locator_params(nbins=max(2, bar // 90))
    if note:
        write(page, MARGIN, height - MARGIN, note, 8, color=GREY)
    return figure
