"""The dot product, which doesn't normalise."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclip.similarity.arguments import compare
from jaxclip.similarity.scaling import held_finite, power_of_two, product


def dot_product(
    a: Float[Array, "n d"] | Float[Array, " d"], b: Float[Array, "m d"] | Float[Array, " d"], *, paired: bool = False
) -> Float[Array, "..."]:
    """a·b, of vectors as they are: **not normalised**, so long vectors win. On unit vectors it is the cosine.

    (n, d), (m, d) → (n, m), all pairs; with `paired` (n, d), (n, d) → (n,). A vector (d,) has no axis in the result.
    float16 and bfloat16 are computed in and returned as float32, in which products are never rounded to fewer bits.

    The error is a few ulps of ‖a‖ ‖b‖. Where a product is beyond the largest float (norms of 1e30) the result is that
    number with its sign, and below the smallest it is 0; gradients (b and a) are not affected. Raises TypeError for
    other than floating-point arrays and ValueError for shapes that don't fit, while tracing.
    """
    return compare(_pairwise, _pairs, a, b, paired)


@jax.custom_jvp
@jax.jit
def _pairwise(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    scale_a, scale_b = power_of_two(a), power_of_two(b)
    return _times(product(a / scale_a, b / scale_b), scale_a, scale_b.T)


@_pairwise.defjvp
def _pairwise_jvp(primals, tangents):
    # Of the unscaled product: the scales' own product may be beyond a float where the gradient isn't.
    (a, b), (da, db) = primals, tangents
    return _pairwise(a, b), product(da, b) + product(a, db)


@jax.custom_jvp
@jax.jit
def _pairs(a: Float[Array, "*n d"], b: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    scale_a, scale_b = power_of_two(a), power_of_two(b)
    return _times(jnp.sum((a / scale_a) * (b / scale_b), axis=-1), scale_a[..., 0], scale_b[..., 0])


@_pairs.defjvp
def _pairs_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    return _pairs(a, b), jnp.sum(da * b + a * db, axis=-1)


def _times(x: Float[Array, "..."], scale_a: Float[Array, "..."], scale_b: Float[Array, "..."]) -> Float[Array, "..."]:
    # The larger scale meets the product of the smaller one and x: no overflow on the way to a representable result.
    return held_finite(x * jnp.minimum(scale_a, scale_b) * jnp.maximum(scale_a, scale_b))
