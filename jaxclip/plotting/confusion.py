"""Which classes are taken for which."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from jaxclip.plotting.page import (
    DPI,
    GREY,
    MARGIN,
    as_number,
    axes_at,
    drawable,
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
MOST_CLASSES = 60


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
    names = [shortened(drawable(labels[int(i)]), size, 330, at="end") for i in drawn]
    longest = math.ceil(max(text_width(name, size) for name in names))
    left = MARGIN + 34 + longest + 12
    width = max(left + n * cell + 84, math.ceil(text_width(note, 8)) + 2 * MARGIN, 640 if title else 0)
    heading = wrapped(drawable(title), 12, width - 2 * MARGIN, 3, bold=True)
    head = 30 * (heading.count("\n") + 1) + 16 if heading else 0
    top = MARGIN + head + 26
    height = top + n * cell + 12 + longest + 40 + MARGIN + (30 if note else 0)
    figure, page = new_page(width, height)
    if heading:
        write(page, MARGIN, MARGIN + (head - 16) / 2, heading, 12, bold=True, va="center", linespacing=1.25)
    axes = axes_at(figure, left, top, n * cell, n * cell)
    # By the root of the part: a mistake that is made once in fifty times is to be seen, too.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(n), names, fontproperties=font_of(size), parse_math=False)
    axes.set_xticks(range(n), names, fontproperties=font_of(size), rotation=90, parse_math=False)
    axes.tick_params(length=0, pad=5)
    axes.spines[:].set_color("#bbbbbb")
    for line in np.arange(n - 1) + 0.5:
        axes.axhline(line, color="#e4e4e4", linewidth=0.5)
        axes.axvline(line, color="#e4e4e4", linewidth=0.5)
    widest = f"{counts.max():,}"
    sizes = (s for s in (9, 8, 7, 6) if text_width(widest, s) <= 0.8 * cell and s * DPI / 72 <= 0.8 * cell)
    number_size = next(sizes, None)
    if number_size is not None:
        font = font_of(number_size)
        for i, j in np.argwhere(counts):
            color = "white" if shares[i, j] > 0.35 else "black"
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center_baseline", color=color, fontproperties=font)
    for i in np.flatnonzero(totals):
        part = as_number(counts[i, i] / totals[i])
        write(page, left + n * cell + 12, top + (i + 0.5) * cell, part, size, va="center_baseline", color=GREY)
    write(page, left + n * cell + 12, top - 12, "right", size, color=GREY)
    write(page, MARGIN + 10, top + n * cell / 2, "shown", 9, bold=True, va="center", ha="center", rotation=90)
    below = height - MARGIN - (30 if note else 0)
    write(page, left + n * cell / 2, below, "taken for", 9, bold=True, ha="center")
    if note:
        write(page, MARGIN, height - MARGIN, note, 8, color=GREY)
    return figure
