"""CLIP's loss: softmax over images and over texts."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Integer, ScalarLike

from jaxclip.losses.arguments import check_finite, marks, same_shape, same_width, scalar, unit_vectors
from jaxclip.losses.reductions import Reduction, check_reduction, reduce
from jaxclip.losses.streaming import AxisName, Collective, global_indices, row_and_column_log_sum_exp


def clip_loss(
    image_features: Float[Array, "n width"],
    text_features: Float[Array, "m width"],
    logit_scale: ScalarLike,
    targets: Float[Array, "n texts"] | Integer[Array, "n texts"] | Bool[Array, "n texts"] | None = None,
    *,
    mask: Bool[Array, " n"] | None = None,
    text_mask: Bool[Array, " m"] | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    collective: Collective = "ring",
) -> Float[Array, ""] | Float[Array, " n"]:
    """The mean of two cross-entropies: of finding each image's text among all texts, and each text's image.

    sᵢⱼ = exp(logit_scale) · cos(imageᵢ, textⱼ)
    ℓᵢ = ½ (log Σⱼ exp sᵢⱼ − sᵢᵢ) + ½ (log Σⱼ exp sⱼᵢ − sᵢᵢ)

    `logit_scale` is the **logarithm** of what multiplies the cosines, as checkpoints store it and `CLIP.logit_scale`
    holds it: ln(1/0.07) ≈ 2.659 at first. (open_clip's `ClipLoss` takes it exponentiated.) For a temperature pass
    `-jnp.log(temperature)`. Features are normalised here.

    `targets[i, j]` says how much text j belongs to image i, where that is not the diagonal: distributions, or 0/1 marks
    of several positives (repeated captions). Rows are normalised to sum 1 for images → texts and columns for
    texts → images; a row or column without any positive costs 0 and doesn't count in its direction's mean. With targets
    there may be more texts than images, or fewer.

    - `mask`: False for padded rows, which are neither query nor key; of images and texts alike unless `text_mask` is
      given for the texts
    - `reduction`: "mean" and "sum" are the mean of the two directions'; "none" gives (n,), the mean of image i's and
      text i's loss, and so needs as many texts as images
    - `chunk_size`, `axis_name`, `collective`: as in `jaxclip.losses.streaming`. Inside `jax.shard_map` the batch is all
      devices' along `axis_name`, and so are mean and sum; `targets` then has this device's images and all
      devices' texts, (n, devices · m), and every device gathers all texts to go with it, in the ring form too: its
      memory then does grow with the number of devices.

    Raises TypeError and ValueError for dtypes, shapes and settings that don't fit, while tracing. CLIP: arXiv
    2103.00020, figure 3; soft targets as `torch.nn.functional.cross_entropy` takes them.
    """
    text_mask = mask if text_mask is None else text_mask
    mask = marks("mask", mask, jnp.shape(image_features)[:1])
    text_mask = marks("text_mask", text_mask, jnp.shape(text_features)[:1])
    images = unit_vectors("image_features", image_features, "n, width", mask)
    texts = unit_vectors("text_features", text_features, "m, width", text_mask)
    same_width(image_features=images, text_features=texts)
    check_reduction(reduction)
    if targets is None or reduction == "none":
        same_shape(image_features=images, text_features=texts)
    scale = jnp.exp(scalar("logit_scale", logit_scale, images.dtype))
    settings = {"chunk_size": chunk_size, "axis_name": axis_name, "collective": collective}

    def log_sums(**excluded: Array) -> tuple[Array, Array]:
        return row_and_column_log_sum_exp(
            images, texts, scale, query_mask=mask, key_mask=text_mask, **excluded, **settings
        )

    if targets is None:
        positives = scale * jnp.sum(images * texts, axis=1)
        # log(eᵖ + eᵒ) − p, without cancellation where the loss is small.
        of_images, of_texts = (
            jax.nn.softplus(others - positives) for others in log_sums(excluded=global_indices(len(images), axis_name))
        )
        image_counted, text_counted = _both(mask, text_mask), _both(mask, text_mask)
    else:
        weights = _weights(targets, images, texts, mask, text_mask, axis_name)
        image_positives, image_counted = _positives(images, texts, scale, weights, axis_name)
        text_positives, text_counted = _positives_of_texts(images, texts, scale, weights, axis_name)
        image_log_sums, text_log_sums = log_sums()
        of_images, of_texts = image_log_sums - image_positives, text_log_sums - text_positives
    return (
        reduce(of_images, image_counted, reduction, axis_name) + reduce(of_texts, text_counted, reduction, axis_name)
    ) / 2


def clamp_logit_scale(logit_scale: Float[Array, ""], maximum: float = math.log(100)) -> Float[Array, ""]:
    """The logarithm of the logit scale, at most ln 100: "clipped to prevent scaling the logits by more than 100", which
    keeps training stable (CLIP, arXiv 2103.00020, section 2.5).

    For the parameter, after the optimiser's step. Not for inside a loss: where it clamps, its gradient is zero, and
    the scale would stay. (open_clip also keeps it from falling below 0.)
    """
    return jnp.minimum(logit_scale, maximum)


def _both(mask, other):
    if mask is None or other is None:
        return mask if other is None else other
    return mask & other


def _weights(targets, images, texts, mask, text_mask, axis_name):
    targets = jnp.asarray(targets)
    texts_of_all = len(texts) * (1 if axis_name is None else lax.axis_size(axis_name))
    if targets.shape != (len(images), texts_of_all):
        raise ValueError(f"targets must have shape {(len(images), texts_of_all)}, got {targets.shape}")
    if jnp.issubdtype(targets.dtype, jnp.complexfloating):
        raise TypeError(f"targets must be real, got {targets.dtype}")
    weights = targets.astype(images.dtype)
    if mask is not None:
        weights = jnp.where(mask[:, None], weights, 0)
    if text_mask is not None:
        everyones = text_mask if axis_name is None else lax.all_gather(text_mask, axis_name, tiled=True)
        weights = jnp.where(everyones[None, :], weights, 0)
    check_finite("targets", weights)
    checkify.debug_check(jnp.all(weights >= 0), "targets must not be negative")
    return weights


def _positives(images, texts, scale, weights, axis_name):
    """Each image's mean logit of its texts, and whether it has any: Σⱼ wᵢⱼ sᵢⱼ is imageᵢ · Σⱼ wᵢⱼ textⱼ, no (n, m)."""
    if axis_name is not None:
        texts = lax.all_gather(texts, axis_name, tiled=True)
    return _mean_logits(images, _product(weights, texts), scale, weights.sum(axis=1))


def _positives_of_texts(images, texts, scale, weights, axis_name):
    mixtures, totals = _product(weights.T, images), weights.sum(axis=0)
    if axis_name is not None:
        mixtures, totals = (lax.psum_scatter(x, axis_name, tiled=True) for x in (mixtures, totals))
    return _mean_logits(texts, mixtures, scale, totals)


def _mean_logits(vectors, mixtures, scale, totals):
    some = totals > 0
    return scale * jnp.sum(vectors * mixtures, axis=1) / jnp.where(some, totals, 1), some


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
