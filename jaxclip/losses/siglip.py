"""SigLIP's loss: a sigmoid for every pair."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from jaxclip.losses.arguments import scalar, unit_rows
from jaxclip.losses.reductions import Reduction, reduce
from jaxclip.losses.streaming import AxisName, Collective, global_indices, row_softplus_sum


def siglip_loss(
    image_features: Float[Array, "n width"],
    text_features: Float[Array, "n width"],
    logit_scale: ScalarLike,
    logit_bias: ScalarLike,
    *,
    mask: Bool[Array, " n"] | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    collective: Collective = "ring",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Every image with every text: does this pair belong together, yes or no?

    sᵢⱼ = exp(logit_scale) · cos(imageᵢ, textⱼ) + logit_bias
    ℓᵢ = log(1 + exp(−sᵢᵢ)) + Σ_{j≠i} log(1 + exp(sᵢⱼ))

    `logit_scale` is a **logarithm**, as in `clip_loss` (open_clip's `SigLipLoss` takes it exponentiated); the paper
    begins at ln 10, and at −10 with `logit_bias`, which is added as it is. Features are normalised here.

    - `mask`: False for padded rows, which are neither image nor text
    - `reduction`: "mean" is the sum over all pairs by the number of images, as in the paper; "sum"; "none": (n,)
    - `chunk_size`, `axis_name`, `collective`: as in `jaxclip.losses.streaming`. Inside `jax.shard_map` the batch is all
      devices' along `axis_name`, and so are mean and sum.

    Raises TypeError and ValueError for dtypes, shapes and settings that don't fit, while tracing. SigLIP: arXiv
    2303.15343, algorithm 1.
    """
    mask, (images, texts) = unit_rows(mask, image_features=image_features, text_features=text_features)
    scale = jnp.exp(scalar("logit_scale", logit_scale, images.dtype))
    bias = scalar("logit_bias", logit_bias, images.dtype)
    positives = jax.nn.softplus(-(scale * jnp.sum(images * texts, axis=1) + bias))
    negatives = row_softplus_sum(
        images,
        texts,
        scale,
        bias,
        key_mask=mask,
        excluded=global_indices(len(images), axis_name),
        chunk_size=chunk_size,
        axis_name=axis_name,
        collective=collective,
    )
    return reduce(positives + negatives, mask, reduction, axis_name)
