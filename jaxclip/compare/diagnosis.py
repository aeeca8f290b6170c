"""Why a side is not what the specification says: the first step that departs from it, and the mistake that reproduces
it.

Each tensor is recomputed from the side's own tensors before it, so that a mistake shows where it is made and nowhere
else. Where the oracle can't reproduce the side, it tries again with each known mistake.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxclip.compare.inputs import Inputs
from jaxclip.compare.mistakes import Mistake, mistakes
from jaxclip.compare.names import block_of, in_order
from jaxclip.compare.retrace import JOINT, OUTPUTS, TEXT_HEAD, VISION_HEAD, retrace, segment_of, segments
from jaxclip.compare.rounding import PRODUCTS, STEP_AGREEMENT, UNITS, least_rounding, relative_rms
from jaxclip.reference import Oracle
from jaxclip.reference.model import Tap

# A mistake is named when it comes this many times closer than the specification, and another one besides when it comes
# about as close.
_CLOSER, _AS_CLOSE = 3.0, 1.5
# Texts or images that mistakes are tried on: those that differ most.
_ROWS = 2
# Draws of rounding errors for tensors of few numbers.
_DRAWS = 8
_ENDS = ("text_embeds", "image_embeds")
# Independent mistakes that are looked for.
_MOST = 4


@dataclass(frozen=True)
class Side:
    """What a side computed, in the specification's layout, from its own inputs, and in which precision."""

    tensors: Mapping[str, np.ndarray]
    inputs: Inputs
    precision: str


@dataclass(frozen=True)
class Diagnosis:
    """A step of a side that departs from the specification.

    - `side`: "A" or "B"; `name`: the first tensor that isn't what follows from those before it
    - `causes`: the known mistake that reproduces it; several when the data can't tell them apart; none when none does
    - `residual`: how far the side is from the oracle with the cause (the first of several), in relative RMS;
      `without`: from the oracle without it (infinite for another shape); `rounding`: how far rounding takes it
    - `explains`: the tensors that follow with the cause and don't without it
    """

    side: str
    name: str
    causes: tuple[str, ...]
    residual: float | None
    without: float
    rounding: float
    explains: tuple[str, ...]


@dataclass(frozen=True)
class Departure:
    """How far a tensor is from what follows from those before it, and how far rounding takes it (relative RMS)."""

    residual: float
    rounding: float
    precision: str

    @property
    def is_real(self) -> bool:
        return self.residual > STEP_AGREEMENT[self.precision] * self.rounding


def examine(oracle: Oracle, side: Side) -> tuple[Side, dict[str, Departure]]:
    """How far each tensor of a side is from what follows from those before it.

    Float32 arrays may have been multiplied in lower precision, which is no mistake: where the first departure is just
    that, the side is given back with this precision, and judged by it.
    """
    found = departures(_right(oracle), side)
    name = next(iter(in_order(name for name, departure in found.items() if departure.is_real)), None)
    if name is None or side.precision != "float32":
        return side, found
    for precision in PRODUCTS:
        seen = _retraced(_right(oracle), side, segment_of(name), name, precision)
        if name in seen and _CLOSER * distance(seen[name], side.tensors[name]) < found[name].residual:
            side = dataclasses.replace(side, precision=precision)
            return side, departures(_right(oracle), side)
    return side, found


def diagnose(oracle: Oracle, side: Side, found: Mapping[str, Departure], label: str) -> list[Diagnosis]:
    """All steps of a side that depart from the specification independently of each other, in order of execution.
    `side` and `found` are those of `examine`."""
    remaining = in_order(name for name, departure in found.items() if departure.is_real)
    diagnoses = []
    while remaining and len(diagnoses) < _MOST:
        name = remaining[0]
        alike = _reproducing(oracle, side, name)
        if alike:
            mistake, residual = alike[0]
            corrected = departures(_made(oracle, mistake), side)
            explains = [other for other in remaining if other in corrected and not corrected[other].is_real]
        else:
            # What is wrong with it may be wrong with its like in all layers.
            residual, explains = None, [other for other in remaining if _kind(other) == _kind(name)]
        explains = tuple(dict.fromkeys([name, *explains]))
        causes, departure = tuple(mistake.cause for mistake, _ in alike), found[name]
        diagnoses.append(Diagnosis(label, name, causes, residual, departure.residual, departure.rounding, explains))
        remaining = [other for other in remaining if other not in explains]
    return diagnoses


Make = Callable[[str, Tap], Oracle]


def _right(oracle: Oracle) -> Make:
    return lambda precision, tap: Oracle(oracle.config, oracle.tensors, precision=precision, tap=tap)


def _made(oracle: Oracle, mistake: Mistake) -> Make:
    return lambda precision, tap: mistake.oracle(oracle, precision, tap)


def departures(make: Make, side: Side, *, segment: str | None = None, until: str | None = None) -> dict[str, Departure]:
    """Of each tensor of the side that the oracle computes too (in a segment, up to a tensor)."""
    exact = retrace(lambda tap: make("float64", tap), side.tensors, side.inputs, segment=segment, until=until)
    rounded = _rounded(make, side, segment, until, seed=0)
    moved = {name: [distance(rounded[name], value)] for name, value in exact.items() if name in rounded}
    # The logits and the loss are so few numbers that one draw may come out right by luck; and a loss is often computed
    # from the features, not from these logits.
    ends = {name: side.tensors[name] for name in _ENDS if name in side.tensors}
    for seed in range(1, _DRAWS) if JOINT in (segment, None) and len(ends) >= 2 else ():
        for name, value in _rounded(make, dataclasses.replace(side, tensors=ends), JOINT, until, seed).items():
            if name in moved:
                moved[name].append(distance(value, exact[name]))
    return {
        name: Departure(
            distance(value, side.tensors[name]),
            max(least_rounding(name, side.precision), float(np.sqrt(np.mean(np.square(moved.get(name, [0.0])))))),
            side.precision,
        )
        for name, value in exact.items()
        if name in side.tensors
    }


def _rounded(make: Make, side: Side, segment: str | None, until: str | None, seed: int) -> dict[str, np.ndarray]:
    """In the side's precision, from tensors that are off by up to a unit of the last place: a compiler may go on with
    more digits of a tensor than it gives out."""
    generator, unit = np.random.default_rng(seed), UNITS[side.precision]
    moved = {n: np.asarray(v * (1 + unit * generator.uniform(-1, 1, v.shape))) for n, v in side.tensors.items()}
    return retrace(lambda tap: make(side.precision, tap), moved, side.inputs, segment=segment, until=until)


def _retraced(make: Make, side: Side, segment: str, until: str, precision: str = "float64") -> dict[str, np.ndarray]:
    return retrace(lambda tap: make(precision, tap), side.tensors, side.inputs, segment=segment, until=until)


def distance(computed: np.ndarray, given: np.ndarray) -> float:
    if computed.ndim == 4 and given.shape == (len(computed), *computed.shape[2:]):
        computed = computed.mean(axis=1)  # Attention weights averaged over heads are all that PyTorch's module gives.
    if computed.shape != given.shape:
        return np.inf
    error = relative_rms(given.astype(np.float64) - computed, given)
    return error if np.isfinite(error) else np.inf


def _kind(name: str) -> str:
    block = block_of(name)
    return f"{block[0]} {block[2]}" if block else name


def _reproducing(oracle: Oracle, side: Side, name: str) -> list[tuple[Mistake, float]]:
    """The mistakes that reproduce a tensor from those before it, the closest first, with what remains."""
    segment = segment_of(name)
    few = _few_rows(oracle, side, name)
    without = departures(_right(oracle), few, segment=segment, until=name)[name].residual
    found = []
    for mistake in mistakes(oracle, _from_the_last_output(oracle, side, segment)):
        make = _made(oracle, mistake)
        seen = _retraced(make, few, segment, name)
        if name not in seen or _CLOSER * distance(seen[name], few.tensors[name]) > without:
            continue
        departure = departures(make, few, segment=segment, until=name)[name]
        if not departure.is_real:
            found.append((mistake, departure.residual))
    closest = min((residual for _, residual in found), default=0.0)
    found = [each for each in found if each[1] <= _AS_CLOSE * closest]
    # Several may reproduce this tensor, and one of them the rest of its part as well.
    whole = [each for each in found if not any(
        departure.is_real for departure in departures(_made(oracle, each[0]), side, segment=segment).values()
    )]  # fmt: skip
    return sorted(whole or found, key=lambda each: each[1])


def _from_the_last_output(oracle: Oracle, side: Side, segment: str) -> list[str]:
    """The parts that lie between what the side holds and the tensors of this one."""
    order = segments(oracle.config, side.inputs)
    found, open_ends = [], [segment]
    while open_ends:
        last = open_ends.pop()
        found.append(last)
        before = [VISION_HEAD, TEXT_HEAD] if last == JOINT else order[: order.index(last)][-1:]
        open_ends += [
            part for part in before
            if OUTPUTS.get(part, part) not in side.tensors and part in order and part != JOINT and not (
                last.endswith("embeddings")
            )
        ]  # fmt: skip
    return found


def _few_rows(oracle: Oracle, side: Side, name: str) -> Side:
    """The side with those texts or images alone that differ most at a tensor of a tower."""
    segment = segment_of(name)
    if segment in (JOINT, TEXT_HEAD, VISION_HEAD) or segment.endswith("embeddings"):
        return side
    given = side.tensors[name]
    seen = _retraced(_right(oracle), side, segment, name).get(name)
    worst = np.arange(len(given))
    if seen is not None and seen.shape == given.shape:
        worst = np.argsort(-np.square(given - seen).reshape(len(given), -1).sum(axis=1))
    rows = np.sort(worst[:_ROWS])
    tower = ("text",) if name.startswith("text") else ("vis", "image")
    tensors = {other: value[rows] for other, value in side.tensors.items() if other.startswith(tower)}
    return dataclasses.replace(side, tensors=tensors, inputs=side.inputs.of_rows(rows, texts=tower == ("text",)))
