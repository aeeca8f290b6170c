"""The one convention of all measures: what they take, in which dtype they compute, which axes they drop."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def compare(
    pairwise: Callable[[Array, Array], Array],
    pairs: Callable[[Array, Array], Array],
    a: Float[Array, "n d"] | Float[Array, " d"],
    b: Float[Array, "m d"] | Float[Array, " d"],
    paired: bool,
) -> Float[Array, "..."]:
    """`pairwise` on all pairs of rows, or `pairs` on row i with row i; a vector's axis is dropped from the result.

    Raises TypeError for what is no floating-point array, ValueError for shapes that don't fit.
    """
    a, b = wide("a", a), wide("b", b)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    shapes = f"got {a.shape} and {b.shape}"
    if a.ndim not in (1, 2) or b.ndim not in (1, 2):
        raise ValueError(f"a and b must be (n, d) and (m, d), or vectors (d,), {shapes}")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must have vectors of the same length d: (n, d) and (m, d), {shapes}")
    if not paired:
        # Through reshape and not squeeze: a matrix of one row keeps its axis.
        return pairwise(jnp.atleast_2d(a), jnp.atleast_2d(b)).reshape(a.shape[:-1] + b.shape[:-1])
    if a.shape != b.shape:
        raise ValueError(f"paired=True wants a and b of the same shape, (n, d) and (n, d), {shapes}")
    return pairs(a, b)


def wide(name: str, x: Any) -> Float[Array, "..."]:
    """`x` in float32, or in float64 if it is: half precision is too coarse for sums, and lossless to widen.

    Raises TypeError for what is no floating-point array.
    """
    x = floating(name, x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def floating(name: str, x: Any) -> Float[Array, "..."]:
    """`x` as a JAX array. Raises TypeError for what is no floating-point array."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array, got {type(x).__name__ if dtype is None else dtype}")
    return jnp.asarray(x)
