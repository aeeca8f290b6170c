"""What a computation's dtype means for its matrix products."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

_DTYPES = {
    "float64": ("float64", "highest"),
    "float32": ("float32", "highest"),
    "tensorfloat32": ("float32", "tensorfloat32"),
    "bfloat16": ("bfloat16", "default"),
    "float16": ("float16", "default"),
}


def computation(dtype: Any) -> tuple[Any, str]:
    """The arrays' dtype and the products' precision for `dtype`, one of float32, tensorfloat32, bfloat16, float16
    and float64 (a name, or what NumPy and JAX take for one).

    On TPU and on Ampere and later GPUs, JAX multiplies float32 matrices at a lower precision by default. Here float32
    means float32: the lower ones have names of their own. float64 wants `jax.enable_x64`. Raises ValueError for others.
    """
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    arrays, products = _DTYPES[name]
    if jax.dtypes.canonicalize_dtype(arrays) != jnp.dtype(arrays):
        raise ValueError("dtype float64 needs 64-bit JAX: jax.config.update('jax_enable_x64', True)")
    return jnp.dtype(arrays), products


def parameter_dtype(dtype: Any) -> Any:
    """The dtype of parameters: float32, bfloat16, float16 or float64 (a name, or what NumPy and JAX take for one).
    float64 wants `jax.enable_x64`. Raises ValueError for others."""
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name == "tensorfloat32" or name not in _DTYPES:
        raise ValueError(f"param_dtype must be float32, bfloat16, float16 or float64, got {dtype!r}")
    return computation(name)[0]


def products_at(precision: str) -> contextlib.AbstractContextManager[Any]:
    """Within it, matrix products that say nothing of their own are traced at this precision: those of blocks that a
    subclass puts in the place of ours."""
    return jax.default_matmul_precision(precision)
