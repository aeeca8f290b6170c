"""What is learned: from a model and a batch to a loss.

A batch is a dict of arrays whose rows are examples:

| name | shape | for |
|---|---|---|
| `pixels` | (n, height, width, channels) | CLIP, SigLIP; SimCLR and MoCo with `augment` |
| `views` | (n, 2, height, width, channels) | SimCLR and MoCo: two augmentations of each image |
| `image_features` | (n, projection) | CLIP, SigLIP, in the place of `pixels`: a locked tower's, computed once |
| `token_ids` | (n, tokens) | CLIP, SigLIP |
| `attention_mask` | (n, tokens) | CLIP, SigLIP, if the text tower shall have one |
| `caption_ids` | (n,) integers | CLIP: rows that share one belong together, each image with each text |

Under `jax.jit` over a mesh the batch is the whole one of all devices, and so are the negatives: no axis names are
needed. Write another objective by deriving from `Objective`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxclip.losses import KeyQueue, clip_loss, moco_loss, momentum_update, nt_xent, siglip_loss
from jaxclip.losses.gradient_caching import microbatched
from jaxclip.nn import CLIP

Batch = Mapping[str, Array]
Metrics = dict[str, Any]
Augment = Callable[[Key[Array, ""], Float[Array, "height width channels"]], Float[Array, "height width channels"]]


class Objective:
    """A pure function of a model and a batch, and what it needs besides.

    `unused` names the parts of the model that it doesn't train, which `TrainState.create` freezes: without a gradient
    they would still decay.
    """

    unused: ClassVar[tuple[str, ...]] = ()

    def init(self, model: CLIP) -> tuple[Any, Any]:
        """`head`, parameters to learn with the model's, and `extras`, other arrays to carry along; None for none."""
        return None, None

    def __call__(
        self,
        model: CLIP,
        head: Any,
        batch: Batch,
        extras: Any,
        key: Key[Array, ""],
        *,
        microbatch: int | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, ""], Metrics, Any]:
        """The loss, scalars to log, and the extras of the next step. `microbatch` encodes at most so many rows at a
        time (gradient caching), `remat` recomputes each block in the backward pass; neither changes the numbers."""
        raise NotImplementedError

    def after_update(self, model: CLIP, extras: Any) -> Any:
        """The extras, once the optimizer has moved the model."""
        return extras


@dataclass(frozen=True)
class CLIPObjective(Objective):
    """Image i finds text i among all texts, and text i image i (arXiv 2103.00020, figure 3). With `caption_ids`, rows
    of one id share the probability. `chunk_size`: the loss's memory, see `jaxclip.losses`."""

    chunk_size: int | None = None

    def __call__(self, model, head, batch, extras, key, *, microbatch=None, remat=False):
        images, texts = _image_and_text_features(model, batch, microbatch, remat)
        ids = batch.get("caption_ids")
        targets = None if ids is None else ids[:, None] == ids[None, :]
        return clip_loss(images, texts, _logit_scale(model), targets, chunk_size=self.chunk_size), {}, extras


@dataclass(frozen=True)
class SigLIPObjective(Objective):
    """Each pair by itself: do they belong together? (arXiv 2303.15343, algorithm 1.) The bias that it learns is the
    state's head, and begins at `logit_bias`. The paper begins with a scale of 10:
    `CLIPConfig(logit_scale_init_value=math.log(10))`. `caption_ids` are not looked at, as in the paper."""

    logit_bias: float = -10.0
    chunk_size: int | None = None

    def init(self, model):
        return {"logit_bias": jnp.asarray(self.logit_bias, jnp.float32)}, None

    def __call__(self, model, head, batch, extras, key, *, microbatch=None, remat=False):
        images, texts = _image_and_text_features(model, batch, microbatch, remat)
        bias = head["logit_bias"]
        loss = siglip_loss(images, texts, _logit_scale(model), bias, chunk_size=self.chunk_size)
        return loss, {"logit_bias": bias}, extras


@dataclass(frozen=True)
class SimCLRObjective(Objective):
    """Two views of an image find each other among all views (arXiv 2002.05709, algorithm 1), in the joint space: the
    tower's projection is in the place of the paper's head.

    The views are the batch's `views`, or drawn here: `augment(key, image)` of each of `pixels`.
    """

    temperature: float = 0.07
    augment: Augment | None = None
    chunk_size: int | None = None
    unused: ClassVar[tuple[str, ...]] = ("text", "logit_scale")

    def __call__(self, model, head, batch, extras, key, *, microbatch=None, remat=False):
        views = _two_views(batch, self.augment, key)
        # Row 2i and row 2i + 1 are the views of image i, as `nt_xent` wants them.
        pixels = views.reshape(-1, *views.shape[2:])
        features = _encoded(lambda model, *rows: model.encode_image(*rows, remat=remat), microbatch)(model, pixels)
        return nt_xent(features, self.temperature, chunk_size=self.chunk_size), {}, extras


@dataclass(frozen=True)
class MoCoObjective(Objective):
    """An image's first view finds its second among a queue of earlier images' (arXiv 1911.05722, algorithm 1). The
    second is encoded by a key encoder, which follows the image tower slowly: after each update of the model it becomes
    momentum · itself + (1 − momentum) · the tower. Views as `SimCLRObjective`'s.
    """

    queue_size: int = 65536
    momentum: float = 0.999
    temperature: float = 0.07
    augment: Augment | None = None
    chunk_size: int | None = None
    unused: ClassVar[tuple[str, ...]] = ("text", "logit_scale")

    def init(self, model):
        width = model.tower("vision").config.projection_dim
        return None, {"key_encoder": model.vision, "queue": KeyQueue.empty(self.queue_size, width)}

    def __call__(self, model, head, batch, extras, key, *, microbatch=None, remat=False):
        views, queue = _two_views(batch, self.augment, key), extras["queue"]

        def features(encoder, pixels):
            return encoder(pixels, remat=remat).features

        encode = _encoded(features, microbatch)
        queries, keys = encode(model.vision, views[:, 0]), encode(extras["key_encoder"], views[:, 1])
        loss = moco_loss(queries, keys, queue, self.temperature, chunk_size=self.chunk_size)
        return loss, {"queue": queue.count}, {**extras, "queue": queue.enqueue(keys)}

    def after_update(self, model, extras):
        return {**extras, "key_encoder": momentum_update(extras["key_encoder"], model.vision, self.momentum)}


def _encoded(encode: Callable[..., Array], microbatch: int | None) -> Callable[..., Array]:
    return encode if microbatch is None else microbatched(encode, microbatch)


def _image_and_text_features(
    model: CLIP, batch: Batch, microbatch: int | None, remat: bool
) -> tuple[Float[Array, "n projection"], Float[Array, "n projection"]]:
    texts = [batch[name] for name in ("token_ids", "attention_mask") if name in batch]
    text_features = _encoded(lambda model, *rows: model.encode_text(*rows, remat=remat), microbatch)(model, *texts)
    if "image_features" in batch:
        return batch["image_features"], text_features
    encode_image = _encoded(lambda model, *rows: model.encode_image(*rows, remat=remat), microbatch)
    return encode_image(model, batch["pixels"]), text_features


def _logit_scale(model: CLIP) -> Float[Array, ""]:
    if model.logit_scale is None:
        raise ValueError("this model has no logit scale, since it hasn't both towers")
    return model.logit_scale[...]


def _two_views(batch: Batch, augment: Augment | None, key: Key[Array, ""]) -> Float[Array, "n 2 height width channels"]:
    if augment is None:
        if "views" not in batch:
            raise ValueError(f"without `augment` the batch must have `views`, got {', '.join(sorted(batch))}")
        return batch["views"]
    pixels = batch["pixels"]
    keys = jax.random.split(key, (len(pixels), 2))
    return jax.vmap(lambda keys, image: jax.vmap(augment, (0, None))(keys, image))(keys, pixels)
