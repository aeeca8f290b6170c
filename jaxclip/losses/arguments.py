"""What every loss asks of its arguments. Shapes, dtypes and Python numbers raise while tracing; values are checks under
`jax.experimental.checkify`, which cost nothing without it."""

import math
import numbers
from typing import Any

import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Integer

from jaxclip.similarity import normalize


def float_vectors(
    name: str, vectors: Any, shape: str, mask: Bool[Array, "..."] | None = None
) -> Float[Array, "*batch width"]:
    """The argument `name`, of as many axes as `shape` names, at least float32.

    Rows that `mask` drops become zeros: what a padded row holds, a NaN too, reaches neither value nor gradient. Raises
    TypeError unless the dtype is a float, ValueError for another number of axes.
    """
    vectors = jnp.asarray(vectors)
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating-point, got {vectors.dtype}")
    if vectors.ndim != len(shape.split(", ")):
        raise ValueError(f"{name} must have shape ({shape}), got {vectors.shape}")
    vectors = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    if mask is not None:
        vectors = jnp.where(mask[..., None], vectors, 0)
    check_finite(name, vectors)
    return vectors


def unit_vectors(
    name: str, vectors: Any, shape: str, mask: Bool[Array, "..."] | None = None
) -> Float[Array, "*batch width"]:
    """`float_vectors` in unit length (a zero vector stays one)."""
    return normalize(float_vectors(name, vectors, shape, mask))


def float_rows(mask: Any, **vectors: Any) -> tuple[Bool[Array, " n"] | None, list[Float[Array, "n width"]]]:
    """The mask of the rows, and the named `float_vectors`, which are of one shape: row i of each belongs together."""
    mask = marks("mask", mask, jnp.shape(next(iter(vectors.values())))[:1])
    rows = {name: float_vectors(name, given, "n, width", mask) for name, given in vectors.items()}
    same_shape(**rows)
    return mask, list(rows.values())


def unit_rows(mask: Any, **vectors: Any) -> tuple[Bool[Array, " n"] | None, list[Float[Array, "n width"]]]:
    """`float_rows` in unit length (a zero vector stays one)."""
    mask, rows = float_rows(mask, **vectors)
    return mask, [normalize(row) for row in rows]


def same_shape(**arrays: Array) -> None:
    """Raises ValueError, naming them, unless all have one shape."""
    if len({array.shape for array in arrays.values()}) > 1:
        given = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"expected one shape for all, got {given}")


def same_width(**arrays: Array) -> None:
    """Raises ValueError, naming them, unless all have as long a last axis."""
    if len({array.shape[-1] for array in arrays.values()}) > 1:
        given = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"expected vectors of one width, got {given}")


def marks(name: str, mask: Any, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
    """The mask `name`. Raises TypeError unless it is boolean, ValueError for another shape."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {mask.shape}")
    return mask


def integers(name: str, values: Any, shape: tuple[int, ...]) -> Integer[Array, "..."]:
    """The integers `name`. Raises TypeError unless that is what they are, ValueError for another shape."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}")
    return values


def scalar(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    """The number `name`, a Python number or an array of no axes. Raises TypeError and ValueError for others."""
    if isinstance(value, numbers.Real) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    array = jnp.asarray(value)
    if not isinstance(value, numbers.Real) and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a number or a floating-point array, got {array.dtype}")
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}")
    array = array.astype(dtype)
    check_finite(name, array)
    return array


def temperature_scale(temperature: Any, dtype: Any) -> Float[Array, ""]:
    """1 / temperature. Raises ValueError unless a Python temperature is positive."""
    if isinstance(temperature, numbers.Real) and not float(temperature) > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    temperature = scalar("temperature", temperature, dtype)
    checkify.debug_check(temperature > 0, "temperature must be positive, got {temperature}", temperature=temperature)
    return 1 / temperature


def check_finite(name: str, values: Array) -> None:
    """Under checkify, an error that says how many of the values are not finite."""
    wrong = jnp.sum(~jnp.isfinite(values))
    checkify.debug_check(wrong == 0, f"{name} must be finite, got {{wrong}} values that are not", wrong=wrong)
