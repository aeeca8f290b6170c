"""The vision transformer: pixels in, one vector an image out (arXiv 2010.11929; CLIP paper, section 2.4)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.config import VisionConfig
from jaxclip.nn.initialization import normal
from jaxclip.nn.positions import interpolate_positions
from jaxclip.nn.precision import computation, parameter_dtype, products_at
from jaxclip.nn.tap import Tap, no_tap
from jaxclip.nn.transformer import Block, Linear, last_state_at, layer_norm, run_blocks, token_at


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionOutput:
    """What the vision transformer computes. Token 0 is the class token, the patches follow row by row.

    - `features`: the projection of `pooled` into the joint space, not normalised; None without a projection
    - `pooled`: the class token of the last hidden state, after the post-LayerNorm
    - `last_hidden_state`: without the post-LayerNorm; `VisionTransformer.project` takes patch tokens of it into the
      joint space
    - `hidden_states`: what enters the first block and each block's output
    """

    features: Float[Array, "batch projection"] | None
    pooled: Float[Array, "batch width"]
    last_hidden_state: Float[Array, "batch tokens width"]
    hidden_states: tuple[Float[Array, "batch tokens width"], ...]


class PatchEmbedding(nnx.Module):
    """A linear map of each patch: the convolution with stride = kernel = patch of the paper, as one matrix product."""

    def __init__(self, config: VisionConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        patch = config.patch_size
        self.kernel = nnx.Param(
            normal(0.02, rngs)(rngs.params(), (patch, patch, config.num_channels, config.hidden_size), param_dtype)
        )
        self.dtype, self.precision = computation(dtype)

    def __call__(
        self, pixels: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns embedding"]:
        kernel = self.kernel[...].astype(self.dtype)
        patch, _, channels, _ = kernel.shape
        batch, rows, columns = pixels.shape[0], pixels.shape[1] // patch, pixels.shape[2] // patch
        patches = pixels[:, : rows * patch, : columns * patch].astype(self.dtype)
        patches = patches.reshape(batch, rows, patch, columns, patch, channels)
        return jnp.einsum("brpcqk,pqkw->brcw", patches, kernel, precision=self.precision)


class VisionTransformer(nnx.Module):
    """A transformer over image patches; parameters and outputs as transformers' `CLIPVisionModel`
    (`CLIPVisionModelWithProjection` where `config.projection_dim` is a number)."""

    def __init__(self, config: VisionConfig, *, dtype: Any = "float32", param_dtype: Any = "float32", rngs: nnx.Rngs):
        self.config = config
        self.dtype, self.precision = computation(dtype)
        width, positions = config.hidden_size, config.grid_size**2 + 1
        settings = {"dtype": dtype, "param_dtype": parameter_dtype(param_dtype), "rngs": rngs}
        self.class_embedding = nnx.Param(normal(width**-0.5, rngs)(rngs.params(), (width,), settings["param_dtype"]))
        self.patch_embedding = PatchEmbedding(config, **settings)
        self.position_embedding = nnx.Param(
            normal(width**-0.5, rngs)(rngs.params(), (positions, width), settings["param_dtype"])
        )
        self.pre_norm = layer_norm(config, **settings)
        self.blocks = nnx.List([Block(config, **settings) for _ in range(config.num_hidden_layers)])
        self.post_norm = layer_norm(config, **settings)
        self.projection = (
            Linear(width, config.projection_dim, use_bias=False, std=width**-0.5, **settings)
            if config.projection_dim is not None
            else nnx.data(None)
        )

    def __call__(
        self,
        pixels: Float[Array, "batch height width channels"],
        *,
        interpolate_positions: bool = False,
        tap: Tap = no_tap,
        remat: bool = False,
    ) -> VisionOutput:
        """`pixels` are normalised as the checkpoint's preprocessor says, channels last. Images of another size than
        the checkpoint's raise ValueError unless `interpolate_positions`, which fits the position embeddings to them
        (as the reference's `interpolate_pos_encoding=True`)."""
        self._check(pixels, interpolate_positions)
        with products_at(self.precision):
            hidden_states = run_blocks(self.blocks, self._embed(pixels, tap), tap=tap, remat=remat)
            if tap is no_tap:
                class_token = last_state_at(0, self.blocks, hidden_states, remat=remat)
            else:
                class_token = token_at(0, hidden_states[-1])
            pooled = tap("pooled", self.post_norm(class_token))
            features = None if self.projection is None else tap("projection", self.projection(pooled))
        return VisionOutput(features, pooled, hidden_states[-1], hidden_states)

    def patch_features(
        self, pixels: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns projection"]:
        """What each patch shows, in the joint space, not normalised; the positions are fitted to images of any size.

        The last block's values of each patch, through its output layer and then as the class token goes: with no
        attention, no residual stream and no MLP (MaskCLIP, arXiv 2112.01071, section 3.1). A patch token of the last
        hidden state itself holds little of its own patch: its map of similarities is nearly the inverse. Raises
        ValueError for images smaller than a patch, and without a projection.
        """
        self._check(pixels, interpolate=True)
        rows, columns = (edge // self.config.patch_size for edge in pixels.shape[1:3])
        *before, last = self.blocks
        with products_at(self.precision):
            x = run_blocks(before, self._embed(pixels))[-1][:, 1:]
            patches = last.attention.out(last.attention.value(last.norm1(x)))
        return self.project(patches.reshape(len(pixels), rows, columns, -1))

    def project(self, tokens: Float[Array, "*batch width"]) -> Float[Array, "*batch projection"]:
        """Takes tokens of the last hidden state (patches, say) the way the class token goes: through the post-LayerNorm
        and the projection. Not normalised. Raises ValueError without a projection."""
        if self.projection is None:
            raise ValueError("this vision tower has no projection into a joint space")
        with products_at(self.precision):
            return self.projection(self.post_norm(tokens))

    def _check(self, pixels: Array, interpolate: bool) -> None:
        if pixels.ndim != 4:
            raise ValueError(f"pixels must be of shape (batch, height, width, channels), got {pixels.shape}")
        height, width, channels = pixels.shape[1:]
        size, patch = self.config.image_size, self.config.patch_size
        if channels != self.config.num_channels:
            raise ValueError(
                f"pixels have shape {pixels.shape}: expected (batch, height, width, {self.config.num_channels}), "
                "channels last"
            )
        if interpolate and min(height, width) < patch:
            raise ValueError(f"pixels are {height} × {width}, smaller than one patch of {patch} × {patch}")
        if not interpolate and (height, width) != (size, size):
            raise ValueError(
                f"pixels are {height} × {width}, but this model was trained at {size} × {size}: resize them (the image "
                "processor does) or pass interpolate_positions=True"
            )

    def _embed(
        self, pixels: Float[Array, "batch height width channels"], tap: Tap = no_tap
    ) -> Float[Array, "batch tokens embedding"]:
        """What enters the first block."""
        patches = self.patch_embedding(pixels)
        batch, rows, columns, width = patches.shape
        class_token = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (batch, 1, width))
        tokens = jnp.concatenate([class_token, patches.reshape(batch, rows * columns, width)], axis=1)
        x = tap("embeddings", tokens + self._positions(rows, columns))
        return tap("pre_norm", self.pre_norm(x))

    def _positions(self, rows: int, columns: int) -> Float[Array, "tokens width"]:
        positions = self.position_embedding[...].astype(self.dtype)
        grid = self.config.grid_size
        if (rows, columns) == (grid, grid):
            return positions
        width = positions.shape[1]
        patches = interpolate_positions(positions[1:].reshape(grid, grid, width), rows, columns)
        return jnp.concatenate([positions[:1], patches.reshape(rows * columns, width)])
