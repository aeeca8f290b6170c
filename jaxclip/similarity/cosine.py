"""Measures of direction: they normalise what they are given."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclip.similarity.arguments import compare
from jaxclip.similarity.euclidean import distance_of_pairs, pairwise_distance
from jaxclip.similarity.normalize import normalize
from jaxclip.similarity.scaling import held_within, product


def cosine_similarity(
    a: Float[Array, "n d"] | Float[Array, " d"], b: Float[Array, "m d"] | Float[Array, " d"], *, paired: bool = False
) -> Float[Array, "..."]:
    """The cosine of the angle between vectors: a·b / (‖a‖ ‖b‖), from -1 to 1 whatever their lengths.

    (n, d), (m, d) → (n, m), all pairs; with `paired` (n, d), (n, d) → (n,). A vector (d,) has no axis in the result.
    float16 and bfloat16 are computed in and returned as float32, in which products are never rounded to fewer bits.

    Never outside [-1, 1]; a vector with itself gives 1 within three ulps (3.6e-7), and the error is under 4e-7.
    A zero vector has the cosine 0 with everything, itself included, and no gradient (torch's cosine_similarity has the
    same value). Norms of 1e30 and 1e-30 are as good as 1. No rows, no result: (0, m).
    Raises TypeError for other than floating-point arrays and ValueError for shapes that don't fit, while tracing.
    """
    return compare(_cosine_pairwise, _cosine_of_pairs, a, b, paired)


def cosine_distance(
    a: Float[Array, "n d"] | Float[Array, " d"], b: Float[Array, "m d"] | Float[Array, " d"], *, paired: bool = False
) -> Float[Array, "..."]:
    """1 - cosine: 0 for the same direction, 1 for orthogonal or zero vectors, 2 for opposite ones.

    Shapes, dtypes, errors and edges as `cosine_similarity`. The error is 4e-7 of 1 and not of the distance: between
    nearly parallel vectors `angular_distance` tells more. Not a metric (no triangle inequality).
    """
    return 1 - cosine_similarity(a, b, paired=paired)


def angular_distance(
    a: Float[Array, "n d"] | Float[Array, " d"], b: Float[Array, "m d"] | Float[Array, " d"], *, paired: bool = False
) -> Float[Array, "..."]:
    """The angle between vectors in radians, from 0 to π: arccos of the cosine, and a metric on directions.

    Computed as 2 arctan(‖â - b̂‖ / ‖â + b̂‖) (Kahan, "How futile are mindless assessments of roundoff", section 12),
    which is right within 2e-6 where arccos of a rounded cosine is off by 5e-4, and whose derivative exists at
    every angle but 0 and π, where it is taken as 0. A zero vector is at π/2 from everything, itself included, with no
    gradient. Shapes, dtypes and errors as `cosine_similarity`.
    """
    return compare(_angle_pairwise, _angle_of_pairs, a, b, paired)


@jax.jit
def _cosine_pairwise(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    return held_within(product(normalize(a), normalize(b)), -1, 1)


@jax.jit
def _cosine_of_pairs(a: Float[Array, "*n d"], b: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    return held_within(jnp.sum(normalize(a) * normalize(b), axis=-1), -1, 1)


@jax.jit
def _angle_pairwise(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    a, b = normalize(a), normalize(b)
    zero = ~(a.any(axis=-1)[:, None] & b.any(axis=-1))
    return _angle(pairwise_distance(a, b), pairwise_distance(a, -b), zero)


@jax.jit
def _angle_of_pairs(a: Float[Array, "*n d"], b: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    a, b = normalize(a), normalize(b)
    return _angle(distance_of_pairs(a, b), distance_of_pairs(a, -b), ~(a.any(axis=-1) & b.any(axis=-1)))


def _angle(difference: Float[Array, "..."], summed: Float[Array, "..."], zero: Array) -> Float[Array, "..."]:
    # Equal numbers have the angle π/2, and a derivative where two zeros have none.
    return 2 * jnp.arctan2(jnp.where(zero, 1.0, difference), jnp.where(zero, 1.0, summed))
