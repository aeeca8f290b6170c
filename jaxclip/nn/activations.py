"""The MLPs' activations, under the names that checkpoints give them in `hidden_act`."""

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · σ(1.702 x): OpenAI's checkpoints are trained with it (GELU paper, arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


# The names are those of transformers' ACT2FN; "gelu" is the exact one, by the error function.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
