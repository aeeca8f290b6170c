"""The joint model: two towers and a temperature (CLIP paper, figure 3)."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxclip.config import CLIPConfig
from jaxclip.nn.initialization import constant
from jaxclip.nn.precision import parameter_dtype
from jaxclip.nn.tap import Tap, no_tap, scoped
from jaxclip.nn.text import TextOutput, TextTransformer
from jaxclip.nn.vision import VisionOutput, VisionTransformer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CLIPOutput:
    """What the joint model computes for a batch of texts and one of images.

    - `logits_per_image`: exp(logit_scale) · cosine, images down and texts across; `logits_per_text` is its transpose
    - `text_features`, `image_features`: unit length
    - `text`, `vision`: all that the towers computed
    """

    logits_per_image: Float[Array, "images texts"]
    logits_per_text: Float[Array, "texts images"]
    text_features: Float[Array, "texts projection"]
    image_features: Float[Array, "images projection"]
    text: TextOutput
    vision: VisionOutput


class CLIP(nnx.Module):
    """CLIP: `text` and `vision` towers (None where the config has none) and the logarithm of the logit scale.

    `dtype` is the computation's (float32, tensorfloat32, bfloat16, float16), `param_dtype` the parameters'; features
    and logits are float32 whichever they are. A plain pytree: `jax.jit`, `jax.grad`, `jax.vmap`, optax and orbax take
    it as it is. Arrays in, arrays out; strings and photos are the business of `jaxclip.load`.
    """

    def __init__(self, config: CLIPConfig, *, dtype: Any = "float32", param_dtype: Any = "float32", rngs: nnx.Rngs):
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        # nnx.data(None), unlike None, may be given a module later.
        self.text = TextTransformer(config.text, **settings) if config.text else nnx.data(None)
        self.vision = VisionTransformer(config.vision, **settings) if config.vision else nnx.data(None)
        self.logit_scale = (
            nnx.Param(constant(config.logit_scale_init_value, rngs)(None, (), parameter_dtype(param_dtype)))
            if config.text and config.vision
            else nnx.data(None)
        )

    def encode_text(
        self,
        token_ids: Int[Array, "batch tokens"],
        attention_mask: Int[Array, "batch tokens"] | Bool[Array, "batch tokens"] | None = None,
        position_ids: Int[Array, "#batch tokens"] | None = None,
        *,
        normalize: bool = True,
        tap: Tap = no_tap,
        remat: bool = False,
    ) -> Float[Array, "batch projection"]:
        """Texts in the joint space, unit length unless `normalize=False` (transformers' `get_text_features`).
        Arguments as `TextTransformer`'s. Raises ValueError without a text tower or a projection."""
        output = self.tower("text")(token_ids, attention_mask, position_ids, tap=scoped(tap, "text"), remat=remat)
        features = _joint_features(output, "text")
        return tap("text_features", _unit_length(features)) if normalize else features

    def encode_image(
        self,
        pixels: Float[Array, "batch height width channels"],
        *,
        normalize: bool = True,
        interpolate_positions: bool = False,
        tap: Tap = no_tap,
        remat: bool = False,
    ) -> Float[Array, "batch projection"]:
        """Images in the joint space, unit length unless `normalize=False` (transformers' `get_image_features`).
        Arguments as `VisionTransformer`'s. Raises ValueError without a vision tower or a projection."""
        output = self.tower("vision")(
            pixels, interpolate_positions=interpolate_positions, tap=scoped(tap, "vision"), remat=remat
        )
        features = _joint_features(output, "vision")
        return tap("image_features", _unit_length(features)) if normalize else features

    def __call__(
        self,
        token_ids: Int[Array, "texts tokens"],
        pixels: Float[Array, "images height width channels"],
        attention_mask: Int[Array, "texts tokens"] | Bool[Array, "texts tokens"] | None = None,
        position_ids: Int[Array, "#texts tokens"] | None = None,
        *,
        interpolate_positions: bool = False,
        tap: Tap = no_tap,
        remat: bool = False,
    ) -> CLIPOutput:
        """Both towers and the similarities between all texts and all images, as transformers' `CLIPModel`. Raises
        ValueError when a tower isn't there."""
        text_tower, vision_tower = self.tower("text"), self.tower("vision")
        text = text_tower(token_ids, attention_mask, position_ids, tap=scoped(tap, "text"), remat=remat)
        vision = vision_tower(
            pixels, interpolate_positions=interpolate_positions, tap=scoped(tap, "vision"), remat=remat
        )
        text_features = tap("text_features", _unit_length(_joint_features(text, "text")))
        image_features = tap("image_features", _unit_length(_joint_features(vision, "vision")))
        assert self.logit_scale is not None  # With both towers it is there.
        scale = jnp.exp(self.logit_scale[...].astype(image_features.dtype))
        cosines = jnp.matmul(image_features, text_features.T, precision="highest")
        logits_per_image = tap("logits_per_image", scale * cosines)
        return CLIPOutput(logits_per_image, logits_per_image.T, text_features, image_features, text, vision)

    def tower(self, name: Literal["text", "vision"]) -> Any:
        """`text` or `vision`. Raises ValueError when the model hasn't got it."""
        tower = getattr(self, name)
        if tower is None:
            raise ValueError(f"this model has no {name} tower: its checkpoint doesn't hold one, or it wasn't loaded")
        return tower


def _joint_features(output: TextOutput | VisionOutput, tower: str) -> Float[Array, "batch projection"]:
    """The tower's features, at least float32."""
    if output.features is None:
        raise ValueError(
            f"this {tower} tower has no projection into a joint space: call model.{tower}(...) for what it computes"
        )
    return output.features.astype(jnp.promote_types(output.features.dtype, jnp.float32))


def _unit_length(features: Float[Array, "batch projection"]) -> Float[Array, "batch projection"]:
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
