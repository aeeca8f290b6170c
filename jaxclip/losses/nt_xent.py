"""NT-Xent: SimCLR's loss, and with labels the supervised contrastive loss."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, ScalarLike

from jaxclip.losses.arguments import integers, temperature_scale, unit_rows
from jaxclip.losses.reductions import Reduction, reduce
from jaxclip.losses.streaming import (
    AxisName,
    Collective,
    global_indices,
    row_and_column_log_sum_exp,
    row_log_sum_exp,
)


def nt_xent(
    features: Float[Array, "n width"],
    temperature: ScalarLike = 0.07,
    labels: Integer[Array, " n"] | None = None,
    *,
    mask: Bool[Array, " n"] | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    collective: Collective = "ring",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Normalised temperature-scaled cross-entropy: every row is a query, and all other rows are its keys.

    ℓᵢ = mean over positives p of −log( exp(cos(zᵢ, zₚ)/τ) / Σ_{k≠i} exp(cos(zᵢ, zₖ)/τ) )

    Without `labels`, rows 2i and 2i + 1 are two views of one thing and each other's only positive (SimCLR, arXiv
    2002.05709, algorithm 1). With them, a row's positives are all other rows of its label: the supervised contrastive
    loss in its "out" form (arXiv 2004.11362, equation 2). (optax's `ntxent` agrees where a row has one positive; where
    it has more, optax leaves the other positives out of the denominator and averages over pairs.)

    A row without a positive (its label is unique, its other view is padded) has none to find: its loss is 0, and it
    doesn't count in the mean. It is still a key for others. Rows are normalised here.

    - `mask`: False for padded rows, which are neither query nor key
    - `reduction`: "mean" over the rows that have a positive, "sum", or "none": (n,)
    - `chunk_size`, `axis_name`, `collective`: as in `jaxclip.losses.streaming`. Inside `jax.shard_map` the batch is all
      devices' along `axis_name`, and so are mean and sum; labels may meet across devices, two views may not.

    Raises TypeError and ValueError for dtypes, shapes and settings that don't fit, while tracing.
    """
    mask, (z,) = unit_rows(mask, features=features)
    scale = temperature_scale(temperature, z.dtype)
    settings = {"chunk_size": chunk_size, "axis_name": axis_name, "collective": collective}
    if labels is None:
        if len(z) % 2:
            raise ValueError(f"features must be pairs of views, an even number of rows, got {z.shape}")
        losses, counted = _of_pairs(z, scale, mask, settings)
    else:
        losses, counted = _of_classes(z, integers("labels", labels, z.shape[:1]), scale, mask, settings)
    return reduce(losses, counted, reduction, axis_name)


def _of_pairs(z, scale, mask, settings):
    """The first views and the second views apart: then i's self and i's positive are both number i, and leaving them
    out takes three quarters of the products and no cancellation."""
    first, second = z[::2], z[1::2]
    masks = (None, None) if mask is None else (mask[::2], mask[1::2])
    own = global_indices(len(first), settings["axis_name"])
    across, back = row_and_column_log_sum_exp(
        first, second, scale, query_mask=masks[0], key_mask=masks[1], excluded=own, **settings
    )
    among_first = row_log_sum_exp(first, first, scale, key_mask=masks[0], excluded=own, **settings)
    among_second = row_log_sum_exp(second, second, scale, key_mask=masks[1], excluded=own, **settings)
    positives = scale * jnp.sum(first * second, axis=1)
    others = jnp.stack([jnp.logaddexp(across, among_first), jnp.logaddexp(back, among_second)], axis=1)
    losses = jax.nn.softplus(others - positives[:, None]).reshape(-1)
    counted = None if masks[0] is None or masks[1] is None else jnp.repeat(masks[0] & masks[1], 2)
    return losses, counted


def _of_classes(z, labels, scale, mask, settings):
    own = global_indices(len(z), settings["axis_name"])
    total = row_log_sum_exp(z, z, scale, key_mask=mask, excluded=own, **settings)
    # One column more, of ones, counts what the others sum.
    real = jnp.ones(len(z), z.dtype) if mask is None else mask.astype(z.dtype)
    rows = jnp.concatenate([z, real[:, None]], axis=1)
    sums = _class_sums(rows, labels, settings["axis_name"], settings["collective"]) - rows
    sums, count = sums[:, :-1], sums[:, -1]
    counted = (count > 0) & (real > 0)
    positives = scale * jnp.sum(z * sums, axis=1) / jnp.maximum(count, 1)
    return total - positives, counted


def _class_sums(
    rows: Float[Array, "n columns"], labels: Integer[Array, " n"], axis_name: AxisName | None, collective: Collective
) -> Float[Array, "n columns"]:
    """For each row the sum of all rows of its label, its own among them, in memory O(n · columns)."""

    def sums_of(keys: Array, key_labels: Array) -> Array:
        _, ids = jnp.unique(jnp.concatenate([labels, key_labels]), return_inverse=True, size=len(labels) + len(keys))
        return jax.ops.segment_sum(keys, ids[len(labels) :], len(ids))[ids[: len(labels)]]

    if axis_name is None:
        return sums_of(rows, labels)
    if collective == "gather":
        return sums_of(*(lax.all_gather(x, axis_name, tiled=True) for x in (rows, labels)))
    devices = lax.axis_size(axis_name)
    to_the_next = [(i, (i + 1) % devices) for i in range(devices)]

    def step(carried: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        sums, keys, key_labels = carried
        keys, key_labels = (lax.ppermute(x, axis_name, to_the_next) for x in (keys, key_labels))
        return (sums + sums_of(keys, key_labels), keys, key_labels), None

    (sums, _, _), _ = lax.scan(step, (sums_of(rows, labels), rows, labels), length=devices - 1)
    return sums
