"""A photo with what was found in it, and where."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxclip.plotting.page import (
    GREY,
    MARGIN,
    Length,
    Picture,
    as_number,
    as_thumbnail,
    draw_image,
    drawable,
    file_name,
    new_page,
    require_matplotlib,
    shortened,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beside the photo itself, four rows of three; a note says so.
MOST_MAPS = 11


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
    photo = as_thumbnail(image, side, side)
    height, width = photo.shape[:2]
    panels = 1 + min(len(boxes), MOST_MAPS)
    columns = min(panels, 4 if width < height else 3)
    rows = math.ceil(panels / columns)
    cell = max(width, 240)
    legend = line * len(boxes) + 10
    scale = 56
    page_width = 2 * MARGIN + columns * (cell + gap) - gap
    page_height = 2 * MARGIN + rows * (height + line + gap) - gap + scale + legend + (30 if note else 0)
    figure, page = new_page(page_width, page_height)
    colors = [colormaps["tab10"](number % 10) for number in range(len(boxes))]
    grey = (photo @ np.asarray([0.299, 0.587, 0.114]))[..., None] / 255
    hot = colormaps["inferno"]

    def place(number: int) -> tuple[int, int]:
        return MARGIN + number % columns * (cell + gap), MARGIN + line + number // columns * (height + line + gap)

    for number in range(panels):
        x, y = place(number)
        if number == 0:
            write(page, x, y - 10, shortened(drawable(file_name(image)) or "image", 9, cell), 9, bold=True)
            draw_image(page, photo, x, y)
            drawn = list(zip(boxes.values(), colors, strict=True))
        else:
            label = list(boxes)[number - 1]
            cells = Image.fromarray(np.asarray(relevance[number - 1], np.float32))
            values = np.clip(np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR)), 0, 1)
            mixed = 0.25 * grey + 0.75 * hot(values)[..., :3]
            write(page, x, y - 10, shortened(drawable(label), 9, cell, at="end"), 9, color=colors[number - 1])
            draw_image(page, np.round(255 * mixed).astype(np.uint8), x, y)
            drawn = [(boxes[label], to_rgb("white"))]
        for found, color in drawn:
            for x0, y0, x1, y1, score in found:
                corners = x + x0 / size[0] * width, y + y0 / size[1] * height
                _outline(page, *corners, (x1 - x0) / size[0] * width, (y1 - y0) / size[1] * height, color)
                if number:
                    write(page, corners[0] + 5, corners[1] + 19, as_number(score), 7.5, bold=True, color="white")
    top = page_height - MARGIN - legend - scale - (30 if note else 0) + gap
    _gradient(page, hot, MARGIN, top, 260, 16)
    for value in (0, 0.5, 1):
        write(page, MARGIN + 260 * value, top + 36, f"{value:g}", 7.5, ha="center", color=GREY)
    write(page, MARGIN + 284, top + 15, "relevance", 8, color=GREY)
    for number, ((label, found), color) in enumerate(zip(boxes.items(), colors, strict=True)):
        y = top + scale + 14 + number * line
        _outline(page, MARGIN, y - 16, 26, 18, color)
        count = "not found" if not found else f"{len(found)} found, the best {as_number(found[0][4])}"
        text = shortened(f"{drawable(label)}: {count}", 9, page_width - 2 * MARGIN - 40, at="middle")
        write(page, MARGIN + 40, y, text, 9)
    if note:
        write(page, MARGIN, page_height - MARGIN, note, 8, color=GREY)
    return figure


def _outline(page: "Axes", x: Length, y: Length, width: Length, height: Length, color: Any) -> None:
    """A frame that is seen on dark and on light."""
    from matplotlib.patches import Rectangle

    for thickness, shade in ((3.2, "black"), (1.8, color)):
        page.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=shade, linewidth=thickness))


def _gradient(page: "Axes", colors: Any, x: int, y: int, width: int, height: int) -> None:
    ramp = np.broadcast_to(colors(np.linspace(0, 1, width))[None, :, :3], (height, width, 3))
    draw_image(page, np.round(255 * ramp).astype(np.uint8), x, y)
