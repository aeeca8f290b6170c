"""A training run's curves."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxclip.plotting.page import BLUE, GREY, axes_at, font_of, new_page, require_matplotlib, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    figure, page = new_page(columns * (width + 130) + 30, rows * (height + gap) + 24)
    last = max(record["step"] for record in records)
    for place, name in enumerate(panels):
        left, top = 110 + place % columns * (width + 130), 72 + place // columns * (height + gap)
        write(page, left, top - 14, "evaluation" if name is None else _PANELS.get(name, name.replace("_", " ")), 9.5)
        axes = axes_at(figure, left, top, width, height)
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
            label.set_fontproperties(font_of(7.5))
        axes.tick_params(length=3, color=GREY)
        if place + columns >= len(panels):
            axes.set_xlabel("step", fontproperties=font_of(8))
    return figure


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
        axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
        values = _smoothed(values)
    axes.plot(steps, values, color=BLUE, linewidth=1.5, marker="." if len(steps) == 1 else "")
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
            prop=font_of(6.5),
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
