"""What arithmetic of lower precision rounds, so that the oracle can show how its errors grow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Rounding = Callable[[np.ndarray], np.ndarray]


def _exact(x: np.ndarray) -> np.ndarray:
    return x


def _through(dtype: Any) -> Rounding:
    def rounded(x: np.ndarray) -> np.ndarray:
        # What float16 can't hold becomes infinite in the models that it stands for, too.
        with np.errstate(over="ignore"):
            return x.astype(dtype).astype(x.dtype)

    return rounded


def tensorfloat32(x: np.ndarray) -> np.ndarray:
    """float32 to 10 bits of mantissa, nearest, ties to even: what the tensor cores of NVIDIA's GPUs multiply."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    bits = bits + 0xFFF + (bits >> 13 & 1)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(x.dtype)


def cut_to_tensorfloat32(x: np.ndarray) -> np.ndarray:
    """The same digits with no rounding: what becomes of float32 that a kernel hands to the tensor cores as it is."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(x.dtype)


@dataclass(frozen=True)
class Precision:
    """How numbers are held and multiplied.

    - `dtype`: NumPy's, of every array and every sum
    - `operand`: what happens to both sides of a matrix product before it
    - `result`: what happens to every parameter, to every product and to every named intermediate
    """

    dtype: Any = np.float64
    operand: Rounding = _exact
    result: Rounding = _exact


PRECISIONS = {
    "float64": Precision(),
    "float32": Precision(np.float32),
    # Arrays are float32 and products aren't: JAX's default on Ampere and later GPUs, and on TPUs.
    "tensorfloat32": Precision(np.float32, operand=tensorfloat32),
    "tensorfloat32, cut off": Precision(np.float32, operand=cut_to_tensorfloat32),
    "bfloat16 products": Precision(np.float32, operand=_through(ml_dtypes.bfloat16)),
    "bfloat16": Precision(np.float32, _through(ml_dtypes.bfloat16), _through(ml_dtypes.bfloat16)),
    "float16": Precision(np.float32, _through(np.float16), _through(np.float16)),
}
"""By name; sums are float32 in all but the first, as accelerators have them."""
