"""What a comparison found, in words, as JSON and as a page."""

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jaxclip.compare.diagnosis import Diagnosis
from jaxclip.compare.diff import Diff, Row
from jaxclip.compare.names import INPUTS, block_of, is_tensor
from jaxclip.compare.rounding import AGREEMENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("tensor", "shape", "max abs", "relative RMS", "cosine", "rounding", "")


def cells(row: Row) -> tuple[str, ...]:
    """A line of the table."""
    a, b = row.shapes
    shape = "×".join(map(str, a or b or ())) or "scalar"
    if a is not None and b is not None and a != b:
        shape += f" | {'×'.join(map(str, b)) or 'scalar'}"
    cosine = "" if row.cosine is None else f"{row.cosine:.8f}"
    notes = [row.note] if row.note else []
    if a is None or b is None:
        notes.append(f"only in {'B' if a is None else 'A'}")
    if row.departs:
        notes.append(f"{' and '.join(row.departs)} departs here")
    numbers = (_number(row.maximum), _number(row.relative_rms), cosine, _number(row.rounding))
    return (row.name, shape, *numbers, "; ".join(notes))


def verdict(diff: Diff) -> str:
    """One line: equal, equal but for rounding, or where the two first part."""
    compared = [row for row in diff.rows if row.agrees is not None]
    row = diff.first_divergence
    if row is None:
        if diff.identical:
            return f"Equal: all {len(compared)} tensors, bit for bit."
        worst = max(compared, key=lambda row: _share(row))
        how = (
            "Equal within the rounding of float32"
            if diff.precision == "float32"
            else f"Equal as {diff.precision} would be"
        )
        measure = "does to the oracle" if diff.judged_by else "may do, without a model to judge by"
        return (
            f"{how}: all {len(compared)} tensors; the furthest apart is {worst.name}, {_share(worst):.2g} times what "
            f"rounding {measure} (up to {AGREEMENT:g} times is rounding)."
        )
    if row.maximum is None:
        (a, b) = row.shapes
        return f"First divergence at {row.name}: shape {_shape(a)} in A and {_shape(b)} in B."
    if row.name in INPUTS and row.name != "pixel_values":
        return f"First divergence at {row.name}: what goes in differs."
    rounding = f"rounding in {diff.precision} explains {_number(row.rounding)}"
    if (row.relative_rms or 0) <= AGREEMENT * (row.rounding or 0):
        return (
            f"First divergence at {row.name}: the two are no further apart than rounding, but {row.departs[0]} isn't "
            "what follows from its own tensors before it."
        )
    return f"First divergence at {row.name}: relative RMS {_number(row.relative_rms)}, where {rounding}."


def explained(diff: Diff) -> list[str]:
    """A paragraph for each cause, and what could not be looked for."""
    told = [_of_diagnosis(diagnosis) for diagnosis in diff.diagnoses]
    first = diff.first_divergence
    if first is not None and diff.judged_by is None:
        told.append("Why, the oracle can tell: give it the checkpoint (--model MODEL, or model=).")
    elif first is not None and first.name == "pixel_values" and not any(d.name == first.name for d in diff.diagnoses):
        told.append("Why the pixels differ can be told when a side keeps the images that went in (images.0, ...).")
    elif first is not None and not told:
        told.append(
            "Every step of both sides follows the specification: rounding has grown further than it does in the oracle."
        )
    for label, index in (("A", 0), ("B", 1)):
        lacking = [row.name for row in diff.rows if row.shapes[index] is None]
        if lacking:
            told.append(f"{label} lacks {_several(lacking)}.")
    return told


def _of_diagnosis(diagnosis: Diagnosis) -> str:
    told = f"{diagnosis.side} departs from the specification at {diagnosis.name}"
    rounding = f"rounding explains {_number(diagnosis.rounding)}"
    without = "of another shape, or not finite"
    if math.isfinite(diagnosis.without):
        without = f"{_number(diagnosis.without)} from it; {rounding}"
    if not diagnosis.causes:
        return f"{told} ({without}): none of the known mistakes reproduces it."
    tie = "one of these, which this data can't tell apart: " if len(diagnosis.causes) > 1 else ""
    told += f": {tie}{'; '.join(diagnosis.causes)}. With that the oracle reproduces {diagnosis.side} to "
    told += f"{_number(diagnosis.residual)}; without, it is {without}."
    others = [name for name in diagnosis.explains if name != diagnosis.name]
    return told + (f" It explains {_places(others)} as well." if others else "")


def _places(names: Sequence[str]) -> str:
    """Of many blocks, which; else the names."""
    blocks: dict[str, set[int]] = {}
    rest = []
    for name in names:
        block = block_of(name)
        if block:
            blocks.setdefault(block[0].removesuffix("_model"), set()).add(block[1])
        else:
            rest.append(name)
    told = [f"{_numbers(numbers)} of the {tower} tower" for tower, numbers in blocks.items()]
    return ", ".join([*told, *([_several(rest)] if rest else [])])


def _numbers(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return f"block {ordered[0]}"
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"blocks {ordered[0]} to {ordered[-1]}"
    return f"blocks {', '.join(map(str, ordered))}"


def _several(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} tensors ({', '.join(names[:3])}, ...)"


def described(diff: Diff, *, only_different: bool = False) -> str:
    """The table, the verdict and the diagnosis as plain text; of the table only the rows that differ, if asked."""
    rows = [cells(row) for row in diff.rows if not only_different or row.agrees is False]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [
        "  ".join([cell.ljust(width) if index in (0, 1, 6) else cell.rjust(width) for index, (cell, width) in enumerate(
            zip(line, widths, strict=True))]).rstrip()
        for line in (COLUMNS, *rows)
    ]  # fmt: skip
    return "\n".join([*lines, "", *diff.notes, verdict(diff), *explained(diff)])


def to_json(diff: Diff) -> dict[str, Any]:
    """For programs; what isn't finite is null."""
    first = diff.first_divergence
    return {
        "agree": diff.agree,
        "identical": diff.identical,
        "precision": diff.precision,
        "judged_by": diff.judged_by,
        "first_divergence": first.name if first else None,
        "verdict": verdict(diff),
        "diagnoses": [
            {
                "side": each.side,
                "name": each.name,
                "causes": list(each.causes),
                "residual": _finite(each.residual),
                "without": _finite(each.without),
                "rounding": _finite(each.rounding),
                "explains": list(each.explains),
            }
            for each in diff.diagnoses
        ],
        "tensors": [
            {
                "name": row.name,
                "shape_a": row.shapes[0] and list(row.shapes[0]),
                "shape_b": row.shapes[1] and list(row.shapes[1]),
                "max_abs": _finite(row.maximum),
                "relative_rms": _finite(row.relative_rms),
                "cosine": _finite(row.cosine),
                "rounding": _finite(row.rounding),
                "agrees": row.agrees,
                "departs": list(row.departs),
                "note": row.note,
            }
            for row in diff.rows
        ],
        "notes": list(diff.notes),
    }


def figure(diff: Diff, a: str, b: str) -> "Figure":
    """How the error grows from layer to layer, a panel for each tower."""
    from jaxclip.plotting import error_growth

    towers = {"text": ("text",), "vision": ("vision", "visual", "image")}
    panels = {
        f"{tower} tower": [_point(row) for row in diff.rows if row.name.startswith(starts) and is_tensor(row.name)]
        for tower, starts in towers.items()
    }
    return error_growth(
        {name: points for name, points in panels.items() if points}, f"{a}  against  {b}", verdict(diff)
    )


def _point(row: Row) -> tuple[str, float | None, float | None, bool | None]:
    allowed = None if row.rounding is None else AGREEMENT * row.rounding
    return _tick(row.name), row.relative_rms, allowed, row.agrees


def _tick(name: str) -> str:
    block = block_of(name)
    if block:
        return str(block[1]) if block[2] == "" else ""
    return {"text_embeds": "features", "image_embeds": "features"}.get(
        name, "embeddings" if "embeddings" in name else ""
    )


def page(diff: Diff, a: str, b: str) -> str:
    """The whole report as one HTML file."""
    drawing = io.StringIO()
    figure(diff, a, b).savefig(drawing, format="svg")
    picture = drawing.getvalue()[drawing.getvalue().index("<svg") :]
    rows = "\n".join(
        f'<tr class="{_class(row)}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>"
        for row in diff.rows
    )
    return _PAGE.format(
        title=html.escape(f"{a} against {b}"),
        verdict=html.escape(verdict(diff)),
        told="".join(f"<p>{html.escape(line)}</p>" for line in (*diff.notes, *explained(diff))),
        picture=re.sub(r' (?:width|height)="[^"]*pt"', "", picture, count=2),  # The page says how large it is.
        head="".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS),
        rows=rows,
        state="same" if diff.agree else "apart",
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h1 {{ font-size: 1.2rem; overflow-wrap: anywhere }}
.verdict {{ padding: .7rem 1rem; border-left: .4rem solid; background: #f6f6f6 }}
.verdict.same {{ border-color: #2e7d32 }} .verdict.apart {{ border-color: #c62828 }}
svg {{ width: 100%; height: auto }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }}
td, th {{ padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }}
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2), td:last-child {{ text-align: left }}
td:last-child {{ white-space: normal }}
tr.apart {{ background: #fdecea }} tr.one {{ color: #888 }}
</style>
<h1>{title}</h1>
<p class="verdict {state}">{verdict}</p>
{told}
{picture}
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table>
</html>
"""


def _class(row: Row) -> str:
    return {True: "same", False: "apart", None: "one"}[row.agrees]


def _share(row: Row) -> float:
    """The distance in units of what rounding does."""
    return (row.relative_rms or 0.0) / row.rounding if row.rounding else 0.0


def _shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape or ()))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
