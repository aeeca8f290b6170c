"""Euclidean distance: a matrix product where that is safe, differences where it isn't."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclip.similarity.arguments import compare
from jaxclip.similarity.blocks import over_blocks
from jaxclip.similarity.scaling import held_finite, power_of_two, product

# Pairs with ‖a - b‖² under this part of ‖a‖² + ‖b‖² are computed from their differences. The expansion's error is a few
# ulps of ‖a‖² + ‖b‖², hence up to 32 times as many of ‖a - b‖²: 1.4e-5 was the worst of random 512-vectors. With a
# larger part, embeddings that all point one way (at 1/32 a cosine above 0.97 is near) would lose the product's speed.
_NEAR = 1 / 32


def euclidean_distance(
    a: Float[Array, "n d"] | Float[Array, " d"], b: Float[Array, "m d"] | Float[Array, " d"], *, paired: bool = False
) -> Float[Array, "..."]:
    """The length of the difference, ‖a - b‖, of vectors as they are: **not normalised**.

    (n, d), (m, d) → (n, m), all pairs; with `paired` (n, d), (n, d) → (n,). A vector (d,) has no axis in the result.
    float16 and bfloat16 are computed in and returned as float32, in which products are never rounded to fewer bits.

    Pairs far apart come from one matrix product, ‖a‖² + ‖b‖² - 2 a·b, in which near ones would cancel: those (‖a - b‖²
    under a 32nd of ‖a‖² + ‖b‖²) are computed from a - b itself, in blocks. The relative error is under 1e-5 just beyond
    that border and falls to 1e-6 on both sides of it; a vector is at exactly 0 from itself. Many near pairs cost time,
    never memory.

    Norms of 1e30 and 1e-30 may meet in one call. The gradient at distance 0, where there is none, is 0. A distance
    beyond the largest float is that number. Raises TypeError for other than floating-point arrays and ValueError for
    shapes that don't fit, while tracing. scipy.spatial.distance.cdist is the convention.
    """
    return compare(pairwise_distance, distance_of_pairs, a, b, paired)


def squared_euclidean_distance(
    a: Float[Array, "n d"] | Float[Array, " d"], b: Float[Array, "m d"] | Float[Array, " d"], *, paired: bool = False
) -> Float[Array, "..."]:
    """‖a - b‖², of vectors as they are: **not normalised**. On unit vectors it is 2 - 2 cosine, with its ranking.

    As `euclidean_distance`, twice its relative error, and smooth: the gradient is 2 (a - b) everywhere. A square beyond
    the largest float (norms of 1e30) is that number, below the smallest it is 0; the gradient is not affected.
    """
    return compare(partial(_pairwise, squared=True), partial(_pairs, squared=True), a, b, paired)


def pairwise_distance(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """`euclidean_distance` of arguments that are known to be right."""
    return _pairwise(a, b, squared=False)


def distance_of_pairs(a: Float[Array, "*n d"], b: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """`euclidean_distance(..., paired=True)` of arguments that are known to be right."""
    return _pairs(a, b, squared=False)


@partial(jax.jit, static_argnames="squared")
def _pairs(a: Float[Array, "*n d"], b: Float[Array, "*n d"], *, squared: bool) -> Float[Array, "*n"]:
    difference = a - b
    return _squared_length(difference) if squared else _length(difference)


@jax.custom_jvp
def _squared_length(x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    # Scaled, for the squares that together are a float and alone would be flushed to zero.
    scale = power_of_two(x)
    squares = jnp.sum((x / scale) ** 2, axis=-1)
    return held_finite(squares * scale[..., 0] * scale[..., 0])


@_squared_length.defjvp
def _squared_length_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _squared_length(x), 2 * jnp.sum(x * dx, axis=-1)


def _length(x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    scale = power_of_two(x)
    scaled = x / scale
    squares = jnp.sum(scaled * scaled, axis=-1)
    zero = squares < 0.25
    return held_finite(jnp.where(zero, 0.0, scale[..., 0] * jnp.sqrt(jnp.where(zero, 1.0, squares))))


@partial(jax.jit, static_argnames="squared")
def _pairwise(a: Float[Array, "n d"], b: Float[Array, "m d"], *, squared: bool) -> Float[Array, "n m"]:
    return _values(squared, a, b)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values(squared: bool, a: Float[Array, "n d"], b: Float[Array, "m d"]) -> tuple[Array, Array]:
    """The distances, and where the vectors are so near that differences are needed."""
    scale_a, scale_b = power_of_two(a), power_of_two(b)
    scaled_a, scaled_b = a / scale_a, b / scale_b
    # Each pair in units of its larger vector: all ratios are powers of two, so nothing is rounded by it.
    scale = jnp.maximum(scale_a, scale_b.T)
    ratio_a, ratio_b = scale_a / scale, scale_b.T / scale
    ends = (
        ratio_a**2 * jnp.sum(scaled_a * scaled_a, axis=-1)[:, None]
        + ratio_b**2 * jnp.sum(scaled_b * scaled_b, axis=-1)[None, :]
    )
    expansion = ends - 2 * ratio_a * ratio_b * product(scaled_a, scaled_b)
    near = ~(expansion >= _NEAR * ends)
    far_value = expansion * scale * scale if squared else scale * jnp.sqrt(jnp.where(near, 1.0, expansion))
    measure = _squared_length if squared else _length
    exact = over_blocks(lambda a, b: measure(a[:, None] - b[None]), (a,), (b,), wanted=near)
    return held_finite(jnp.where(near, exact, far_value)), near


@_values.defjvp
def _values_jvp(squared, primals, tangents):
    """d‖a - b‖² = 2 (a - b)·(da - db) and d‖a - b‖ = (a - b)·(da - db) / ‖a - b‖, from the matrices' products where
    the pairs are far apart, from the differences where they are near.

    Not by differentiating the expansion: its intermediate scales overflow where the gradient doesn't.
    """
    (a, b), (da, db) = primals, tangents
    value, near = _values(squared, a, b)
    if squared:
        weight = jnp.full_like(value, 2)
    else:
        apart = value >= jnp.finfo(value.dtype).smallest_normal
        weight = jnp.where(apart, 1 / jnp.where(apart, value, 1.0), 0.0)
    far = (
        jnp.sum(a * da, axis=-1)[:, None] + jnp.sum(b * db, axis=-1)[None, :] - product(da, b) - product(a, db)
    ) * jnp.where(near, 0.0, weight)

    def differences(a, da, b, db, weight):
        return jnp.sum((a[:, None] - b[None]) * (da[:, None] - db[None]), axis=-1) * weight

    close = over_blocks(differences, (a, da), (b, db), (jnp.where(near, weight, 0.0),), wanted=near)
    return (value, near), (far + close, jnp.zeros(near.shape, jax.dtypes.float0))
