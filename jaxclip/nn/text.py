"""The text transformer: token ids in, one vector a text out (CLIP paper, section 2.4)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxclip.config import TextConfig
from jaxclip.nn.initialization import normal
from jaxclip.nn.precision import computation, parameter_dtype, products_at
from jaxclip.nn.tap import Tap, no_tap
from jaxclip.nn.transformer import Block, Linear, last_state_at, layer_norm, run_blocks, token_at


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextOutput:
    """What the text transformer computes.

    - `features`: the projection of `pooled` into the joint space, not normalised; None without a projection
    - `pooled`: the last hidden state at the token that stands for the text (`TextConfig.pooling`)
    - `last_hidden_state`: after the final LayerNorm
    - `hidden_states`: the embeddings and each block's output, without the final LayerNorm; `hidden_states[-2]` is the
      penultimate one, which diffusion models condition on
    """

    features: Float[Array, "batch projection"] | None
    pooled: Float[Array, "batch width"]
    last_hidden_state: Float[Array, "batch tokens width"]
    hidden_states: tuple[Float[Array, "batch tokens width"], ...]


class TextTransformer(nnx.Module):
    """A causal transformer over token ids; parameters and outputs as transformers' `CLIPTextModel`
    (`CLIPTextModelWithProjection` where `config.projection_dim` is a number)."""

    def __init__(self, config: TextConfig, *, dtype: Any = "float32", param_dtype: Any = "float32", rngs: nnx.Rngs):
        self.config = config
        self.dtype, self.precision = computation(dtype)
        width = config.hidden_size
        settings = {"dtype": dtype, "param_dtype": parameter_dtype(param_dtype), "rngs": rngs}
        embed = partial(nnx.Embed, features=width, **{**settings, "dtype": self.dtype})
        self.token_embedding = embed(config.vocab_size, embedding_init=normal(0.02, rngs))
        self.position_embedding = embed(config.max_position_embeddings, embedding_init=normal(0.01, rngs))
        self.blocks = nnx.List([Block(config, **settings) for _ in range(config.num_hidden_layers)])
        self.final_norm = layer_norm(config, **settings)
        self.projection = (
            Linear(width, config.projection_dim, use_bias=False, std=width**-0.5, **settings)
            if config.projection_dim is not None
            else nnx.data(None)
        )

    def __call__(
        self,
        token_ids: Int[Array, "batch tokens"],
        attention_mask: Int[Array, "batch tokens"] | Bool[Array, "batch tokens"] | None = None,
        position_ids: Int[Array, "#batch tokens"] | None = None,
        *,
        tap: Tap = no_tap,
        remat: bool = False,
    ) -> TextOutput:
        """`attention_mask` is 0 or False for tokens that nobody may look at (padding); attention is causal besides, so
        padding on the right needs none. Ids outside the vocabulary give NaN. A text longer than the position
        embeddings raises ValueError. A row without EOS is pooled at its first token, as in the reference."""
        if token_ids.ndim != 2:
            raise ValueError(f"token_ids must be of shape (batch, tokens), got {token_ids.shape}")
        tokens = token_ids.shape[1]
        if tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"token_ids are {tokens} long, but this model has {self.config.max_position_embeddings} positions: "
                "truncate them (the tokenizer does)"
            )
        with products_at(self.precision):
            position_ids = jnp.arange(tokens)[None] if position_ids is None else position_ids
            x = tap("embeddings", self.token_embedding(token_ids) + self.position_embedding(position_ids))
            mask = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
            if attention_mask is not None:
                mask = mask & attention_mask.astype(bool)[:, None, None, :]
            hidden_states = run_blocks(self.blocks, x, mask, tap=tap, remat=remat)
            last = tap("final_norm", self.final_norm(hidden_states[-1]))
            position = jnp.asarray(self.pooled_position(token_ids))
            if tap is no_tap:
                pooled = self.final_norm(last_state_at(position, self.blocks, hidden_states, mask, remat=remat))
            else:
                pooled = tap("pooled", token_at(position, last))
            features = None if self.projection is None else tap("projection", self.projection(pooled))
        return TextOutput(features, pooled, last, hidden_states)

    def pooled_position(
        self, token_ids: Int[Array, "batch tokens"] | Int[np.ndarray, "batch tokens"]
    ) -> Int[Array, " batch"] | Int[np.ndarray, " batch"]:
        """The token that stands for each text (`TextConfig.pooling`)."""
        if self.config.pooling == "largest_id":
            return token_ids.argmax(axis=1)
        return (token_ids == self.config.eos_token_id).argmax(axis=1)
