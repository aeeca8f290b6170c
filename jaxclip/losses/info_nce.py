"""InfoNCE: one positive a query."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from jaxclip.losses.arguments import marks, same_width, temperature_scale, unit_rows, unit_vectors
from jaxclip.losses.reductions import Reduction, reduce
from jaxclip.losses.streaming import AxisName, Collective, global_indices, row_log_sum_exp


def info_nce(
    queries: Float[Array, "n width"],
    keys: Float[Array, "n width"],
    negatives: Float[Array, "m width"] | Float[Array, "n m width"] | None = None,
    temperature: ScalarLike = 0.07,
    *,
    mask: Bool[Array, " n"] | None = None,
    negatives_mask: Bool[Array, " m"] | Bool[Array, "n m"] | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    collective: Collective = "ring",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Cross-entropy of finding, by cosine, each query's own key among its negatives.

    ℓᵢ = −log( exp(cos(qᵢ, kᵢ)/τ) / (exp(cos(qᵢ, kᵢ)/τ) + Σⱼ exp(cos(qᵢ, nᵢⱼ)/τ)) )

    The negatives nᵢⱼ are the other keys of the batch, kⱼ for j ≠ i; or, given `negatives`, those and no key: (m, width)
    for all queries, (n, m, width) for each its own. All vectors are normalised here. A query without negatives costs 0.

    - `mask`: False for padded rows, which are neither query nor key; `negatives_mask` likewise, in the shape of
      `negatives` without its width
    - `reduction`: "mean" over the rows that `mask` keeps, "sum", or "none": (n,), 0 in padded rows
    - `chunk_size`, `axis_name`, `collective`: as in `jaxclip.losses.streaming`. Inside `jax.shard_map` the batch is all
      devices' along `axis_name`, and so are mean and sum; `negatives` are taken as they are on each device (pass
      shared ones whole to all). `chunk_size` takes the other keys, or each query's negatives, so many at a time.

    Raises TypeError and ValueError for dtypes, shapes and settings that don't fit, while tracing. InfoNCE: arXiv
    1807.03748, equation 4; with cosine and temperature: arXiv 1911.05722, equation 1.
    """
    mask, (queries, keys) = unit_rows(mask, queries=queries, keys=keys)
    scale = temperature_scale(temperature, queries.dtype)
    positives = scale * jnp.sum(queries * keys, axis=1)
    settings = {"chunk_size": chunk_size, "collective": collective}
    if negatives is None:
        if negatives_mask is not None:
            raise ValueError("negatives_mask needs negatives; for padded rows of the batch there is mask")
        others = row_log_sum_exp(
            queries,
            keys,
            scale,
            key_mask=mask,
            excluded=global_indices(len(queries), axis_name),
            axis_name=axis_name,
            **settings,
        )
    else:
        others = _log_sum_exp_of_negatives(queries, negatives, mask, negatives_mask, scale, settings)
    # log(eᵖ + eᵒ) − p, without cancellation where the loss is small.
    return reduce(jax.nn.softplus(others - positives), mask, reduction, axis_name)


def _log_sum_exp_of_negatives(queries, negatives, mask, negatives_mask, scale, settings):
    if jnp.ndim(negatives) not in (2, 3):
        raise ValueError(f"negatives must have shape (m, width) or (n, m, width), got {jnp.shape(negatives)}")
    negatives_mask = marks("negatives_mask", negatives_mask, jnp.shape(negatives)[:-1])
    if jnp.ndim(negatives) == 2:
        negatives = unit_vectors("negatives", negatives, "m, width", negatives_mask)
        same_width(queries=queries, negatives=negatives)
        return row_log_sum_exp(queries, negatives, scale, key_mask=negatives_mask, **settings)
    n, m, _ = jnp.shape(negatives)
    if n != len(queries):
        raise ValueError(f"negatives must be {len(queries)} sets, one a query, got {jnp.shape(negatives)}")
    if mask is not None:
        of_padding = jnp.broadcast_to(mask[:, None], (n, m))
        negatives_mask = of_padding if negatives_mask is None else negatives_mask & of_padding
    negatives = unit_vectors("negatives", negatives, "n, m, width", negatives_mask)
    same_width(queries=queries, negatives=negatives)

    # One query at a time against its own set: the same primitive, and (n, m) logits are less than the negatives are.
    def one(query, own, own_mask):
        return row_log_sum_exp(query[None], own, scale, key_mask=own_mask, **settings)[0]

    return jax.vmap(one, in_axes=(0, 0, None if negatives_mask is None else 0))(queries, negatives, negatives_mask)
