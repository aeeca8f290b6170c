"""The pre-norm transformer block that both towers are made of (CLIP paper, sections 2.4 and 2.5)."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxclip.config import TowerConfig
from jaxclip.nn.activations import ACTIVATIONS
from jaxclip.nn.initialization import constant, normal
from jaxclip.nn.precision import computation
from jaxclip.nn.tap import Tap, no_tap, scoped


def layer_norm(config: TowerConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the width, with the checkpoint's epsilon; its statistics are always float32 or wider."""
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        # E[x²] - E[x]² loses digits where |mean| is large, which the residual stream of a ViT has.
        use_fast_variance=False,
        dtype=computation(dtype)[0],
        param_dtype=param_dtype,
        scale_init=constant(1.0, rngs),
        bias_init=constant(0.0, rngs),
        rngs=rngs,
    )


def linear(
    inputs: int, outputs: int, *, std: float, use_bias: bool = True, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer whose product has the precision that `dtype` means, also where it is called on its own."""
    arrays, precision = computation(dtype)
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        dtype=arrays,
        param_dtype=param_dtype,
        precision=precision,
        kernel_init=normal(std, rngs),
        bias_init=constant(0.0, rngs),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head self-attention: softmax(q kᵀ / √head_width) v for each head (arXiv 1706.03762, section 3.2)."""

    def __init__(self, config: TowerConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        width, depth = config.hidden_size, config.num_hidden_layers
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = linear(width, width, std=width**-0.5, **settings)
        self.key = linear(width, width, std=width**-0.5, **settings)
        self.value = linear(width, width, std=width**-0.5, **settings)
        self.out = linear(width, width, std=(2 * width * depth) ** -0.5, **settings)
        self.heads = config.num_attention_heads
        self.precision = computation(dtype)[1]

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "#batch 1 tokens tokens"] | None = None,
        *,
        tap: Tap = no_tap,
    ) -> Float[Array, "batch tokens width"]:
        """`mask` is True where a query (second last axis) may look at a key (last axis)."""
        batch, tokens, width = x.shape
        query, key, value = (
            tap(name, project(x)).reshape(batch, tokens, self.heads, width // self.heads)
            for name, project in (("query", self.query), ("key", self.key), ("value", self.value))
        )
        wide = jnp.promote_types(query.dtype, jnp.float32)
        logits = (
            jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=self.precision, preferred_element_type=wide)
            * (width // self.heads) ** -0.5
        )
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(wide).min)
        weights = tap("weights", jax.nn.softmax(logits, axis=-1).astype(value.dtype))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=self.precision).reshape(x.shape)
        return tap("out", self.out(mixed))


class MLP(nnx.Module):
    """Two linear layers with the checkpoint's activation between them."""

    def __init__(self, config: TowerConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        width, hidden, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.fc1 = linear(width, hidden, std=(2 * width) ** -0.5, **settings)
        self.fc2 = linear(hidden, width, std=(2 * width * depth) ** -0.5, **settings)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(
        self, x: Float[Array, "batch tokens width"], *, tap: Tap = no_tap
    ) -> Float[Array, "batch tokens width"]:
        x = tap("fc1", self.fc1(x))
        x = tap("activation", self.activation(x))
        return tap("fc2", self.fc2(x))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TowerConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = layer_norm(config, **settings)
        self.attention = Attention(config, **settings)
        self.norm2 = layer_norm(config, **settings)
        self.mlp = MLP(config, **settings)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "#batch 1 tokens tokens"] | None = None,
        *,
        tap: Tap = no_tap,
    ) -> Float[Array, "batch tokens width"]:
        x = x + self.attention(tap("norm1", self.norm1(x)), mask, tap=scoped(tap, "attention"))
        return x + self.mlp(tap("norm2", self.norm2(x)), tap=scoped(tap, "mlp"))


def run_blocks(
    blocks: Iterable[Callable[..., Array]],
    x: Float[Array, "batch tokens width"],
    mask: Bool[Array, "#batch 1 tokens tokens"] | None = None,
    *,
    tap: Tap = no_tap,
    remat: bool = False,
) -> tuple[Float[Array, "batch tokens width"], ...]:
    """The input and each block's output: one hidden state more than there are blocks.

    With `remat` the backward pass recomputes each block from its input instead of keeping what is inside (memory for
    time, arXiv 1604.06174). What happens inside is then not to be seen: `remat` with a tap raises ValueError.
    """
    if remat and tap is not no_tap:
        raise ValueError("remat=True recomputes what is inside a block, so a tap can't see it: use one or the other")
    hidden_states = [x]
    for index, block in enumerate(blocks):
        if remat:
            x = jax.checkpoint(lambda block, x: block(x, mask))(block, x)
        else:
            x = tap(f"blocks.{index}", block(x, mask, tap=scoped(tap, f"blocks.{index}")))
        hidden_states.append(x)
    return tuple(hidden_states)
