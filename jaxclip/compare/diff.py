"""Two captures beside each other: the table, the verdict, and the diagnosis."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxclip.compare.capture import Capture
from jaxclip.compare.checkpoint import Checkpoint, is_here
from jaxclip.compare.diagnosis import Departure, Diagnosis, Side, diagnose, examine
from jaxclip.compare.inputs import Inputs
from jaxclip.compare.layout import canonical, common, split_fused
from jaxclip.compare.names import GRADIENTS, INPUTS, in_order, is_tensor
from jaxclip.compare.preprocessing import diagnose_pixels, diagnose_token_ids
from jaxclip.compare.rounding import AGREEMENT, UNITS, coarser, growth, precision_of, relative_rms

# Units of the last place that rounding may drive a tensor from what it should be, where no oracle says how far: of
# twelve to two dozen layers float32 makes 5 to 35, and half precision up to 6.
_UNJUDGED, _UNJUDGED_HALF = 32.0, 8.0
# Of gradients the oracle says nothing; transformers' and ours are up to 120 units of float32 apart.
_GRADIENT = 60.0


@dataclass(frozen=True)
class Row:
    """One tensor of both sides.

    - `shapes`: of A and of B, None where it has none
    - `maximum`: the largest difference; `relative_rms`: its root mean square in units of A's; `cosine`: of all of A and
      all of B. None where they could not be compared, NaN where one holds NaN
    - `rounding`: how far rounding takes it, in relative RMS; None where it was not compared
    - `note`: what had to be done to compare them, or why it could not be
    - `departs`: the sides, "A" or "B", whose tensor isn't what the oracle makes of the side's own tensors before it. It
      tells where a mistake is made, and shows it even where rounding drives the two further apart than the mistake
    """

    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    maximum: float | None = None
    relative_rms: float | None = None
    cosine: float | None = None
    rounding: float | None = None
    note: str = ""
    departs: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool | None:
        """None for a tensor that one side hasn't got."""
        if None in self.shapes:
            return None
        near = self.relative_rms is not None and self.relative_rms <= AGREEMENT * (self.rounding or 0.0)
        return near and len(self.departs) != 1


@dataclass(frozen=True)
class Diff:
    """What `diff` found.

    - `rows`: in order of execution
    - `precision`: in which the coarser side computes, and by which `agree` is judged
    - `judged_by`: the checkpoint whose oracle says how far rounding goes, or None
    - `diagnoses`: where sides depart from the specification, and why
    - `notes`: what the sides were given
    """

    rows: tuple[Row, ...]
    precision: str
    judged_by: str | None
    diagnoses: tuple[Diagnosis, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def first_divergence(self) -> Row | None:
        return next((row for row in self.rows if row.agrees is False), None)

    @property
    def agree(self) -> bool:
        """Whether all that both have is the same but for rounding."""
        return self.first_divergence is None

    @property
    def identical(self) -> bool:
        return all(row.maximum == 0 for row in self.rows if row.agrees is not None)


def diff(a: Capture, b: Capture, *, model: str | Checkpoint | None = None, notes: tuple[str, ...] = ()) -> Diff:
    """Compares two captures of the same model on the same inputs, tensor by tensor.

    `model` (a folder or Hub id) is the checkpoint of both. Its oracle says how far rounding drives each tensor, whether
    float32's or, where a side computes in it, a lower precision's; two sides agree where they are no further apart than
    four times that. And it finds the step at which a side departs from the specification, and which known mistake
    reproduces it. Without `model` the checkpoint is the one that a capture names, where it is on this machine; without
    any, tolerances are general ones and nothing is diagnosed.

    Raises ValueError when the captures have no tensor in common, or don't fit the model.
    """
    checkpoint = _checkpoint(a, b, model)
    given = _completed(a.inputs, b.inputs), _completed(b.inputs, a.inputs)
    exact = _exact(checkpoint, given)
    read = [_in_layout(side, like) for side, like in zip((a, b), exact or (a, a), strict=True)]
    sides = [
        Side({name: value for name, (value, _) in tensors.items() if is_tensor(name)}, own, precision_of(side))
        for tensors, own, side in zip(read, given, (a, b), strict=True)
    ]
    if not any(is_tensor(name) for name in read[0].keys() & read[1].keys()):
        raise ValueError("the two have no tensor in common: jaxclip.compare.names says what these are called")
    if checkpoint is None or exact is None:
        precision = coarser(*(side.precision for side in sides))
        return Diff(_rows(read, {}, precision, ({}, {})), precision, None, notes=notes)
    oracle = checkpoint.oracle
    examined = [examine(oracle, side) for side in sides]
    precision = coarser(*(side.precision for side, _ in examined))
    rounding = growth(oracle, given[0], exact[0], precision)
    found = Diff(_rows(read, rounding, precision, [steps for _, steps in examined]), precision, checkpoint.source)
    diagnoses: list[Diagnosis] = []
    if not found.agree:
        diagnoses = _of_inputs(checkpoint, a, b, {row.name for row in found.rows if row.agrees is False})
        for label, (side, steps) in zip("AB", examined, strict=True):
            diagnoses += diagnose(oracle, side, steps, label)
    return dataclasses.replace(found, diagnoses=tuple(diagnoses), notes=notes)


def _checkpoint(a: Capture, b: Capture, model: str | Checkpoint | None) -> Checkpoint | None:
    if isinstance(model, Checkpoint):
        return model
    here = [model] if model else [side.source for side in (a, b) if side.source and is_here(side.source)]
    return Checkpoint(here[0]) if here else None


def _completed(own: Inputs, other: Inputs) -> Inputs:
    """What a side didn't keep of its inputs is taken from the other."""
    if own.token_ids is None:
        texts = ("token_ids", "attention_mask", "position_ids")
        own = dataclasses.replace(own, **{name: getattr(other, name) for name in texts})
    return own if own.pixels is not None else dataclasses.replace(own, pixels=other.pixels)


def _exact(checkpoint: Checkpoint | None, given: tuple[Inputs, Inputs]) -> tuple[Mapping[str, np.ndarray], ...] | None:
    """What the oracle makes of each side's inputs."""
    if checkpoint is None:
        return None
    first, second = given
    same = all(
        one is other or np.array_equal(one, other) for one, other in zip(first.arrays(), second.arrays(), strict=True)
    )
    exact = checkpoint.trace(first)
    return exact, exact if same else checkpoint.trace(second)


def _in_layout(side: Capture, like: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str]]:
    """Each tensor in the other's order of axes, and what was done to it."""
    found = {name: canonical(value, like[name]) if name in like else (value, "") for name, value in side.items()}
    found |= split_fused(side, like)
    if "pixel_values" in side:
        pixels = side.inputs.tensors()["pixel_values"]
        found["pixel_values"] = pixels, "" if pixels.shape == side["pixel_values"].shape else "channels last"
    return found


def _rows(
    read: list[dict[str, tuple[np.ndarray, str]]],
    rounding: Mapping[str, float],
    precision: str,
    steps: Sequence[Mapping[str, Departure]],
) -> tuple[Row, ...]:
    names = [name for name in in_order({**read[0], **read[1]}) if not name.startswith(("texts.", "images."))]
    departs = {
        name: tuple(label for label, own in zip("AB", steps, strict=True) if name in own and own[name].is_real)
        for name in names
    }
    return tuple(dataclasses.replace(_row(name, read, rounding, precision), departs=departs[name]) for name in names)


def _row(
    name: str, read: list[dict[str, tuple[np.ndarray, str]]], rounding: Mapping[str, float], precision: str
) -> Row:
    found = [tensors.get(name) for tensors in read]
    shapes = tuple(None if each is None else each[0].shape for each in found)
    notes = [f"{label}: {each[1]}" for label, each in zip("AB", found, strict=True) if each and each[1]]
    if found[0] is None or found[1] is None:
        return Row(name, (shapes[0], shapes[1]), note="; ".join(notes))
    both = common(found[0][0], found[1][0], texts=name.startswith("text") or name in INPUTS)
    if both is None:
        return Row(name, (shapes[0], shapes[1]), note="; ".join([*notes, "shapes differ"]))
    a, b = (each.astype(np.float64) for each in both[:2])
    notes += [both[2]] if both[2] else []
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        notes.append(" and ".join(label for label, x in zip("AB", (a, b), strict=True) if not np.isfinite(x).all()))
        notes[-1] += " not finite"
    with np.errstate(invalid="ignore"):
        difference, lengths = b - a, np.linalg.norm(a) * np.linalg.norm(b)
        # A key bias has no gradient but for rounding: the queries' says how large gradients are.
        scale = read[0].get(name.replace("k_proj.bias", "q_proj.bias"), (a, ""))[0] if _is_gradient(name) else a
        return Row(
            name,
            (shapes[0], shapes[1]),
            maximum=float(np.abs(difference).max(initial=0.0)),
            relative_rms=relative_rms(difference, scale),
            cosine=float((a * b).sum() / lengths) if lengths else float(not np.any(a) and not np.any(b)),
            rounding=_rounding(name, rounding, precision),
            note="; ".join(notes),
        )


def _is_gradient(name: str) -> bool:
    return name.startswith(GRADIENTS)


def _rounding(name: str, rounding: Mapping[str, float], precision: str) -> float:
    if name in rounding:
        return rounding[name]
    if name in INPUTS:
        # Normalising pixels takes two or three operations; nothing rounds token ids.
        return 2 * UNITS[precision] if name == "pixel_values" else 0.0
    units = _UNJUDGED if precision == "float32" else _UNJUDGED_HALF
    return UNITS[precision] * (_GRADIENT if _is_gradient(name) else units)


def _of_inputs(checkpoint: Checkpoint, a: Capture, b: Capture, apart: set[str]) -> list[Diagnosis]:
    """Why token ids or pixels differ: by what the checkpoint makes of the strings and images, where a side kept these;
    else B's token ids by A's."""
    found, oracle = [], checkpoint.oracle
    both = a.inputs, b.inputs
    texts, images = (next((x for own in both if (x := getattr(own, name))), None) for name in ("texts", "images"))
    if "input_ids" in apart:
        right = both[0].token_ids
        if texts is not None:
            right = checkpoint.clip.tokenizer(list(texts))
        for label, own in zip("AB", both, strict=True):
            if right is not None and own.token_ids is not None and not np.array_equal(own.token_ids, right):
                found.append(diagnose_token_ids(own.token_ids, right, oracle.pooled_position(right), label))
    if "pixel_values" in apart and images is not None:
        processor = checkpoint.clip.image_processor
        right = processor(list(images))
        for label, own in zip("AB", both, strict=True):
            if own.pixels is not None and not np.array_equal(own.pixels, right):
                found.append(diagnose_pixels(own.pixels, right, images, processor, label))
    return found


def assert_close(a: Capture, b: Capture, *, model: str | None = None) -> None:
    """For tests: raises AssertionError, with the table's rows that differ, the verdict and the diagnosis, unless the
    two agree as `diff` has it. Arguments and other errors as `diff`'s."""
    from jaxclip.compare.report import described

    found = diff(a, b, model=model)
    if not found.agree:
        raise AssertionError(described(found, only_different=True))
