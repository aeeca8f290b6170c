"""The pre-norm transformer block that both towers are made of (CLIP paper, sections 2.4 and 2.5)."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

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


class Linear(nnx.Module):
    """x Wᵀ + b, with W (outputs, inputs) as checkpoints have it, at the precision that `dtype` means.

    `nnx.Linear`'s kernel is (inputs, outputs). On a CPU XLA multiplies the few dozen tokens of one image by such a one
    more slowly where the stride from row to row is a multiple of 4 KiB, as it is for most widths of CLIP.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        std: float,
        use_bias: bool = True,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.weight = nnx.Param(normal(std, rngs)(rngs.params(), (outputs, inputs), param_dtype))
        self.bias = nnx.Param(constant(0.0, rngs)(None, (outputs,), param_dtype)) if use_bias else nnx.data(None)
        self.dtype, self.precision = computation(dtype)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        x, weight = x.astype(self.dtype), self.weight[...].astype(self.dtype)
        # Sums in float32 are what units for half-precision products give; XLA's CPU asks for them by this alone.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        contracted = (((x.ndim - 1,), (1,)), ((), ()))
        y = jax.lax.dot_general(x, weight, contracted, precision=self.precision, preferred_element_type=wide)
        return (y if self.bias is None else y + self.bias[...].astype(wide)).astype(self.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention: softmax(q kᵀ / √head_width) v for each head (arXiv 1706.03762, section 3.2)."""

    def __init__(self, config: TowerConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        width, depth = config.hidden_size, config.num_hidden_layers
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = Linear(width, width, std=width**-0.5, **settings)
        self.key = Linear(width, width, std=width**-0.5, **settings)
        self.value = Linear(width, width, std=width**-0.5, **settings)
        self.out = Linear(width, width, std=(2 * width * depth) ** -0.5, **settings)
        self.heads = config.num_attention_heads
        self.precision = computation(dtype)[1]

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "#batch 1 #queries tokens"] | None = None,
        *,
        queries: Float[Array, "batch queries width"] | None = None,
        tap: Tap = no_tap,
    ) -> Float[Array, "batch queries width"]:
        """`queries` are the tokens that look at those of `x`: by default all of `x` themselves. `mask` is True where a
        query (second last axis) may look at a key (last axis)."""
        looking = x if queries is None else queries
        width = x.shape[-1]
        query, key, value = (
            tap(name, project(tokens)).reshape(*tokens.shape[:2], self.heads, width // self.heads)
            for name, project, tokens in (
                ("query", self.query, looking),
                ("key", self.key, x),
                ("value", self.value, x),
            )
        )
        wide = jnp.promote_types(query.dtype, jnp.float32)
        logits = (
            jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=self.precision, preferred_element_type=wide)
            * (width // self.heads) ** -0.5
        )
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(wide).min)
        weights = tap("weights", jax.nn.softmax(logits, axis=-1).astype(value.dtype))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=self.precision).reshape(looking.shape)
        return tap("out", self.out(mixed))


class MLP(nnx.Module):
    """Two linear layers with the checkpoint's activation between them."""

    def __init__(self, config: TowerConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        width, hidden, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.fc1 = Linear(width, hidden, std=(2 * width) ** -0.5, **settings)
        self.fc2 = Linear(hidden, width, std=(2 * width * depth) ** -0.5, **settings)
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

    def at(
        self,
        position: Int[Array, " batch"] | int,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "#batch 1 tokens tokens"] | None = None,
    ) -> Float[Array, "batch width"]:
        """What the block's output has at one position of each sequence, computed there alone: the other tokens are
        needed for their keys and values only."""
        if mask is not None:
            mask = jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
            mask = _kept_at(position, mask[:, 0])[:, None]
        normed = self.norm1(x)
        here = _kept_at(position, x) + self.attention(normed, mask, queries=_kept_at(position, normed))
        return (here + self.mlp(self.norm2(here)))[:, 0]


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


def last_state_at(
    position: Int[Array, " batch"] | int,
    blocks: Sequence[Any],
    hidden_states: Sequence[Float[Array, "batch tokens width"]],
    mask: Bool[Array, "#batch 1 tokens tokens"] | None = None,
    *,
    remat: bool = False,
) -> Float[Array, "batch width"]:
    """The last hidden state at one position of each sequence, after `run_blocks` with the same arguments and no tap.

    Computed anew, at that position alone, from what enters the last block: whoever uses nothing else of the last hidden
    state has nearly all of the last block removed by `jax.jit`, which drops what nobody reads but doesn't find by
    itself that only one row is read. A block that isn't made of the parts of this file may mix tokens where they don't,
    so there the row is taken from the hidden state.
    """
    if len(hidden_states) < 2 or not _mixes_tokens_in_attention_alone(blocks[-1]):
        return token_at(position, hidden_states[-1])
    # The position is static where it is an int, which an argument of jax.checkpoint would not be.
    at = partial(Block.at, position=position, mask=mask)
    if remat:
        return jax.checkpoint(lambda block, x: at(block, x=x))(blocks[-1], hidden_states[-2])
    return at(blocks[-1], x=hidden_states[-2])


def token_at(
    position: Int[Array, " batch"] | int, x: Float[Array, "batch tokens width"]
) -> Float[Array, "batch width"]:
    """One token of each sequence."""
    return _kept_at(position, x)[:, 0]


def _mixes_tokens_in_attention_alone(block: Any) -> bool:
    """Whether the block and its parts are exactly those of this file: a subclass may compute something else."""
    return (
        type(block) is Block
        and type(block.attention) is Attention
        and type(block.norm2) is nnx.LayerNorm
        and type(block.mlp) is MLP
    )


def _kept_at(
    position: Int[Array, " batch"] | int, x: Shaped[Array, "batch tokens *rest"]
) -> Shaped[Array, "batch 1 *rest"]:
    if isinstance(position, int):
        return x[:, position : position + 1]
    return jnp.take_along_axis(x, position.reshape(-1, *[1] * (x.ndim - 1)), axis=1)
