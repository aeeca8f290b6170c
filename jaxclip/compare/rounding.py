"""How far float arithmetic drives two right implementations apart: nothing is judged by a tolerance out of the air.

The oracle runs once in float64 and once in the precision in question; how far each tensor moves is what rounding does
to it. Two implementations add in different orders, so they may be `AGREEMENT` times as far apart.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike

from jaxclip.compare.inputs import Inputs
from jaxclip.compare.names import GRADIENTS, INPUTS
from jaxclip.reference import Oracle

# The most that right implementations (jaxclip, transformers; three families, ViT-B/32) are from the oracle, in units of
# what rounding does to the oracle: 2.7.
AGREEMENT = 4.0
# The same of one step, computed from the implementation's own tensors: 2.0 in float32, whose sums are added in another
# order, and 1.3 in half precision, where nearly all of it is one rounding of the result.
STEP_AGREEMENT = {
    "float64": 4.0,
    "float32": 4.0,
    "tensorfloat32": 2.5,
    "tensorfloat32, cut off": 2.5,
    "float16": 2.5,
    "bfloat16 products": 2.5,
    "bfloat16": 2.5,
}
# What counts as stored in half precision: where at least this share of the tensors has no bit beyond it.
_SHARE = 0.3
# The most that one rounding changes a number, relatively.
UNITS = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tensorfloat32": 2.0**-11,
    "float16": 2.0**-11,
    "tensorfloat32, cut off": 2.0**-10,
    "bfloat16 products": 2.0**-8,
    "bfloat16": 2.0**-8,
}
"""Of all precisions, the finest first."""

PRODUCTS = ("tensorfloat32", "tensorfloat32, cut off", "bfloat16 products")
"""Those that leave no trace in the arrays."""


def relative_rms(difference: ArrayLike, reference: ArrayLike) -> float:
    """The root mean square of a difference in units of the reference's; 0 where there is no difference."""
    sizes = [np.square(np.asarray(each, np.float64)) for each in (difference, reference)]
    size, scale = (float(np.sqrt(each.mean())) if each.size else 0.0 for each in sizes)
    return size / scale if scale else np.inf if size else 0.0


def precision_of(tensors: Mapping[str, np.ndarray]) -> str:
    """The precision in which a capture's tensors are stored, whatever their dtype: "bfloat16", "float16" or "float32".

    Half precision that was cast to float32 later still has no digits beyond it.
    """
    inner = [
        tensor for name, tensor in tensors.items()
        if tensor.dtype.kind in "fV" and tensor.size and name not in INPUTS and not name.startswith(GRADIENTS)
    ]  # fmt: skip
    for name, dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        with np.errstate(over="ignore"):
            rounded = sum(_is_stored_in(tensor, dtype) for tensor in inner)
        if rounded > _SHARE * len(inner):
            return name
    return "float32"


def _is_stored_in(tensor: np.ndarray, dtype: type) -> bool:
    values = np.asarray(tensor, np.float64).ravel()
    values = values[:: max(1, len(values) // 4096)]
    return bool((values.astype(dtype).astype(np.float64) == values).all())


def coarser(*precisions: str) -> str:
    return max(precisions, key=[*UNITS].index)


def growth(oracle: Oracle, inputs: Inputs, exact: Mapping[str, np.ndarray], precision: str) -> dict[str, float]:
    """How far, in relative RMS, each tensor moves from `exact` when the oracle computes in this precision."""
    rounded = Oracle(oracle.config, oracle.tensors, precision=precision)
    # Half precision overflows where the model's would.
    with np.errstate(all="ignore"):
        seen = rounded(*inputs.arrays())
    found = {name: relative_rms(seen[name] - value, value) for name, value in exact.items()}
    if "logits_per_image" in exact:
        for name, error in _of_few_numbers(oracle, exact, found).items():
            found[name] = max(found[name], error, least_rounding(name, precision))
    return found


def least_rounding(name: str, precision: str) -> float:
    """Of a tensor half a unit of the last place in relative RMS, which is that of its own rounding. The logits have one
    exponential in common, and the loss is one number."""
    return UNITS[precision] * (1.0 if name in ("logits_per_image", "loss") else 0.5)


def _of_few_numbers(oracle: Oracle, exact: Mapping[str, np.ndarray], found: Mapping[str, float]) -> dict[str, float]:
    """The logits and the loss are so few that they may be right by luck: what errors of the features' size do to them,
    in root mean square over some draws."""
    generator, errors = np.random.default_rng(0), []
    free = Oracle(oracle.config, oracle.tensors)
    for _ in range(16):
        moved = [
            exact[name] + generator.normal(size=exact[name].shape) * found[name] * exact[name].std()
            for name in ("image_embeds", "text_embeds")
        ]
        free.seen = {}
        free.joint(*moved)
        errors.append({name: relative_rms(value - exact[name], exact[name]) for name, value in free.seen.items()})
    return {name: float(np.sqrt(np.mean([error[name] ** 2 for error in errors]))) for name in errors[0]}
