"""Manhattan distance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclip.similarity.arguments import compare
from jaxclip.similarity.blocks import over_blocks
from jaxclip.similarity.scaling import held_finite


def manhattan_distance(
    a: Float[Array, "n d"] | Float[Array, " d"], b: Float[Array, "m d"] | Float[Array, " d"], *, paired: bool = False
) -> Float[Array, "..."]:
    """The sum of the components' differences, Σ |aᵢ - bᵢ| (L1), of vectors as they are: **not normalised**.

    (n, d), (m, d) → (n, m), all pairs, in blocks: no (n, m, d) array is made, forward or backward. With `paired`
    (n, d), (n, d) → (n,). A vector (d,) has no axis in the result. float16 and bfloat16 are computed in and returned as
    float32.

    Right to a few ulps at all scales, and exactly 0 from a vector to itself. A sum beyond the largest float is that
    number. The gradient is the sign of the difference, 0 where there is none. Raises TypeError for other than
    floating-point arrays and ValueError for shapes that don't fit, while tracing. As scipy's `cityblock`.
    """
    return compare(_pairwise, _pairs, a, b, paired)


@jax.jit
def _pairwise(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    return over_blocks(lambda a, b: _pairs(a[:, None], b[None]), (a,), (b,))


@jax.jit
def _pairs(a: Float[Array, "*n d"], b: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    difference = a - b
    # Not jnp.abs, whose derivative at 0 is 1.
    return held_finite(jnp.sum(difference * jax.lax.stop_gradient(jnp.sign(difference)), axis=-1))
