"""How parameters come to be: at random for a new model, or as bare shapes for a loader to fill.

The standard deviations are those of OpenAI's text transformer (CLIP paper, section 2.5, and `initialize_parameters` of
its code), used for both towers: what writes to the residual stream is scaled down by the depth, as in GPT-2.
"""

from typing import Any

import jax
from flax import nnx


class Abstract(nnx.Rngs):
    """In place of random numbers: `CLIP(config, rngs=Abstract())` has the shapes of its parameters and no values.

    Costs a small part of `nnx.eval_shape` on the same model, which traces every initialiser.
    """

    def __init__(self):
        super().__init__(0)


def normal(std: float, rngs: nnx.Rngs) -> Any:
    return _shape_only if isinstance(rngs, Abstract) else jax.nn.initializers.normal(std)


def constant(value: float, rngs: nnx.Rngs) -> Any:
    return _shape_only if isinstance(rngs, Abstract) else jax.nn.initializers.constant(value)


def _shape_only(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
