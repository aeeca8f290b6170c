"""How far two implementations are apart."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxclip.plotting.page import DPI, GREY, drawable, font_of, require_matplotlib, shortened, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    heading = [shortened(drawable(title), 9, 1700, bold=True), *wrapped(drawable(verdict), 9, 1700, 2).split("\n")]
    figure.suptitle("\n".join(heading), fontproperties=font_of(9), parse_math=False)
    for axes, (name, points) in zip(figure.subplots(len(towers), squeeze=False)[:, 0], towers.items(), strict=True):
        places = range(len(points))
        allowed = [math.nan if y is None else y for _, _, y, _ in points]
        found = [math.nan if y is None else high if not math.isfinite(y) else max(y, low) for _, y, _, _ in points]
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.fill_between(places, low, allowed, color="#d9ead3", linewidth=0, label="rounding")
        axes.plot(places, found, color=GREY, linewidth=0.8)
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
            fontproperties=font_of(7.5),
        )
        axes.set_xlim(-1, len(points))
        axes.set_title(name, fontproperties=font_of(9, bold=True), loc="left")
        axes.set_ylabel("relative RMS", fontproperties=font_of(8))
        axes.set_xlabel("block", fontproperties=font_of(8))
        axes.tick_params(length=3)
        for label in axes.get_yticklabels():
            label.set_fontproperties(font_of(7.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(prop=font_of(7.5), frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, ncols=3)
    return figure
