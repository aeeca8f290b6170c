"""Losses of single pairs and triplets: no other rows of the batch are in them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Integer, ScalarLike

from jaxclip.losses.arguments import float_rows, integers, scalar, unit_rows
from jaxclip.losses.reductions import Reduction, reduce
from jaxclip.losses.streaming import AxisName
from jaxclip.similarity import cosine_distance

# A distance of `jaxclip.similarity`, or what is called like one: metric(a, b, paired=True).
PairedMetric = Callable[..., Array]


def cosine_embedding_loss(
    a: Float[Array, "n width"],
    b: Float[Array, "n width"],
    labels: Integer[Array, " n"],
    margin: ScalarLike = 0.0,
    *,
    mask: Bool[Array, " n"] | None = None,
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Draws together the pairs labelled 1, and pushes those labelled −1 apart until their cosine is at most `margin`.

    ℓᵢ = 1 − cos(aᵢ, bᵢ) where labelsᵢ = 1, max(0, cos(aᵢ, bᵢ) − margin) where −1

    Another label is an error under checkify; without it, the row costs 0. Vectors are normalised here.

    - `mask`: False for padded rows
    - `reduction`: "mean" over the rows that `mask` keeps, "sum", or "none": (n,)
    - `axis_name`: inside `jax.shard_map`, mean and sum are over the rows of all devices along it

    Raises TypeError and ValueError for dtypes, shapes and settings that don't fit, while tracing. As
    `torch.nn.CosineEmbeddingLoss`.
    """
    mask, (a, b) = unit_rows(mask, a=a, b=b)
    # Signed: compared with an unsigned integer, -1 would be its largest.
    labels = integers("labels", labels, a.shape[:1]).astype(jnp.int32)
    known = (jnp.abs(labels) == 1) if mask is None else (jnp.abs(labels) == 1) | ~mask
    checkify.debug_check(jnp.all(known), "labels must be 1 or -1")
    cosine = jnp.sum(a * b, axis=1)
    apart = jax.nn.relu(cosine - scalar("margin", margin, a.dtype))
    losses = jnp.where(labels == 1, 1 - cosine, jnp.where(labels == -1, apart, 0))
    return reduce(losses, mask, reduction, axis_name)


def triplet_loss(
    anchor: Float[Array, "n width"],
    positive: Float[Array, "n width"],
    negative: Float[Array, "n width"],
    margin: ScalarLike = 0.2,
    metric: PairedMetric = cosine_distance,
    *,
    mask: Bool[Array, " n"] | None = None,
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Wants the negative farther from the anchor than the positive is, by at least `margin`.

    ℓᵢ = max(0, d(anchorᵢ, positiveᵢ) − d(anchorᵢ, negativeᵢ) + margin)

    `metric` is a distance d of `jaxclip.similarity`, or a callable like one: `metric(a, b, paired=True)` gives (n,).
    The default looks at directions only. This is the one loss that leaves normalising to its metric: give
    `euclidean_distance` and lengths count (`torch.nn.TripletMarginLoss`, whose `eps` of 1e-6 is not here);
    `squared_euclidean_distance` of normalised vectors is FaceNet's loss, margin 0.2 (arXiv 1503.03832, equation 3), and
    twice the default's with half its margin.

    - `mask`: False for padded rows
    - `reduction`: "mean" over the rows that `mask` keeps, "sum", or "none": (n,)
    - `axis_name`: inside `jax.shard_map`, mean and sum are over the rows of all devices along it

    Raises TypeError and ValueError for dtypes, shapes and settings that don't fit, while tracing.
    """
    mask, (anchor, positive, negative) = float_rows(mask, anchor=anchor, positive=positive, negative=negative)
    near, far = metric(anchor, positive, paired=True), metric(anchor, negative, paired=True)
    return reduce(jax.nn.relu(near - far + scalar("margin", margin, near.dtype)), mask, reduction, axis_name)
