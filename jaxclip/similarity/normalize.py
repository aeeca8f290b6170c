"""Vectors of unit length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclip.similarity.arguments import wide
from jaxclip.similarity.scaling import power_of_two


@jax.jit
def normalize(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Each vector (last axis) divided by its length: x̂ = x / ‖x‖.

    float16 and bfloat16 are computed in and returned as float32. Norms from 1e-37 to 1e38 are all the same to it; a
    vector whose components are all below the smallest normal number (1.2e-38) is a zero vector, which stays zero, with
    a gradient of zero, as in `torch.nn.functional.normalize`. The gradient (I - x̂ x̂ᵀ) / ‖x‖ is finite wherever it can
    be represented, at 1e-30 as at 1e30. Lengths are 1 within two ulps. Raises TypeError for other than floating-point
    arrays, ValueError for a scalar.
    """
    x = wide("x", x)
    if x.ndim == 0:
        raise ValueError("x must have an axis to normalize over, (..., d), got a scalar")
    scaled = x / power_of_two(x)
    squares = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    # After scaling a sum is either above 0.4 or of a zero vector, whose square root has no derivative.
    zero = squares < 0.25
    return jnp.where(zero, 0.0, scaled) / jnp.sqrt(jnp.where(zero, 1.0, squares))
