"""The nearest items of each query, without the matrix of all similarities."""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxclip.similarity.arguments import floating, wide
from jaxclip.similarity.cosine import angular_distance, cosine_distance, cosine_similarity
from jaxclip.similarity.dot import dot_product
from jaxclip.similarity.euclidean import euclidean_distance, squared_euclidean_distance
from jaxclip.similarity.manhattan import manhattan_distance
from jaxclip.similarity.normalize import normalize
from jaxclip.similarity.scaling import held_finite, held_within, power_of_two

_SIMILARITIES = {"cosine": cosine_similarity, "dot_product": dot_product}
_DISTANCES = {
    "cosine_distance": cosine_distance,
    "angular": angular_distance,
    "euclidean": euclidean_distance,
    "squared_euclidean": squared_euclidean_distance,
    "manhattan": manhattan_distance,
}
# Scores at a time: 32 MiB of float32, twice while they are masked; products of this size are at their full speed.
_SCORES = 2**23
# Numbers of a block of items that is computed with (converted, compared) rather than only multiplied: 32 MiB.
_NUMBERS = 2**23


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopK:
    """The k best items of each query, best first.

    - `values`: their similarities, falling, or distances, rising
    - `indices`: their rows in `items`
    """

    values: Float[Array, "*n k"]
    indices: Int[Array, "*n k"]


class _Settings(NamedTuple):
    k: int
    metric: str
    block_size: int | None
    approx: bool
    recall_target: float
    sharding: NamedSharding | None


def top_k(
    queries: Float[Array, "n d"] | Float[Array, " d"],
    items: Float[Array, "m d"],
    k: int,
    metric: str = "cosine",
    *,
    block_size: int | None = None,
    approx: bool = False,
    recall_target: float = 0.95,
    sharding: NamedSharding | None = None,
) -> TopK:
    """The k items most similar to each query: exact, equal ones in the order of their indices.

    (n, d), (m, d) → (n, k); a query (d,) → (k,). `metric` is "cosine" (which normalises; items that are of unit length
    already are found faster by "dot_product"), "dot_product" (largest first), or "euclidean", "squared_euclidean",
    "manhattan", "angular", "cosine_distance" (smallest first). By another metric: search what it maps to Euclidean
    space (`CovarianceFactor.whiten`, `jaxclip.nn.metric.LearnedMetric`).

    Items go by in blocks of `block_size` (by default as many as keep n · block_size at 2²³), so that memory is
    O(n (block_size + k)) beyond the arguments. Values are within a few ulps of the metric's own function, and the
    indices exact for them as computed; non-finite vectors have no defined place. `values` are differentiable with
    respect to queries and items.

    Items sharded over a mesh along their first axis are searched where they lie, and each device's k best merged. That
    is read from a concrete array; inside a trace say so by `sharding`. Queries should then be on all devices.

    `approx=True` uses `jax.lax.approx_max_k` in each block (Chern et al., arXiv 2206.14286): on TPU each of the true
    best is found with at least the probability `recall_target`, elsewhere it is exact, and ties are in no order.

    Raises ValueError for shapes that don't fit, an unknown metric, k below 1 or above m, a block_size below 1, and
    TypeError for other than floating-point arrays.
    """
    queries, items = wide("queries", queries), floating("items", items)
    if queries.ndim not in (1, 2) or items.ndim != 2 or queries.shape[-1] != items.shape[1]:
        raise ValueError(f"queries must be (n, d) or (d,) and items (m, d), got {queries.shape} and {items.shape}")
    if metric not in _SIMILARITIES | _DISTANCES:
        raise ValueError(f"metric must be one of {', '.join(_SIMILARITIES | _DISTANCES)}, got {metric!r}")
    if not 1 <= k <= items.shape[0]:
        raise ValueError(f"k must be from 1 to the number of items, {items.shape[0]}, got {k}")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if sharding is None and not isinstance(items, Tracer):
        sharding = items.sharding if isinstance(items.sharding, NamedSharding) else None
    axes = () if sharding is None else _axes(sharding)
    if sharding is None or not axes:
        sharding = None
    elif items.shape[0] % (devices := prod(sharding.mesh.shape[axis] for axis in axes)):
        raise ValueError(
            f"items have {items.shape[0]} rows, which the {devices} devices of the mesh axes {axes} can't share equally"
        )
    settings = _Settings(k, metric, block_size, approx, recall_target, sharding)
    values, indices = _differentiable(settings, jnp.atleast_2d(queries), items)
    shape = (*queries.shape[:-1], k)
    return TopK(values.reshape(shape), indices.reshape(shape))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable(settings: _Settings, queries: Array, items: Array) -> tuple[Array, Array]:
    return _search(settings, queries, items)


@_differentiable.defjvp
def _differentiable_jvp(settings, primals, tangents):
    # Only the k rows that won have a derivative: the search itself isn't differentiated.
    queries, items = primals
    values, indices = _differentiable(settings, queries, items)
    compare = (_SIMILARITIES | _DISTANCES)[settings.metric]

    def of_the_best(queries: Array, items: Array) -> Array:
        repeated = jnp.repeat(queries, settings.k, axis=0)
        return compare(repeated, items[indices.reshape(-1)], paired=True).reshape(values.shape)

    tangent = jax.jvp(of_the_best, primals, tangents)[1]
    return (values, indices), (tangent, np.zeros(indices.shape, jax.dtypes.float0))


@partial(jax.jit, static_argnums=0)
def _search(settings: _Settings, queries: Array, items: Array) -> tuple[Array, Array]:
    if settings.metric == "cosine":
        queries = normalize(queries)
    if settings.sharding is None:
        scores, indices = _blockwise(settings, queries, items)
    else:
        axes = _axes(settings.sharding)
        scores, indices = jax.shard_map(
            partial(_on_each_device, settings, axes),
            mesh=settings.sharding.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(axes)),
            out_specs=PartitionSpec(),
            check_vma=False,  # The gathered candidates are the same everywhere, which JAX can't infer.
        )(queries, items)
    return (-scores if settings.metric in _DISTANCES else scores), indices


def _on_each_device(settings: _Settings, axes: tuple[str, ...], queries: Array, items: Array) -> tuple[Array, Array]:
    own = settings._replace(k=min(settings.k, items.shape[0]))
    scores, indices = _blockwise(own, queries, items)
    indices = indices + jax.lax.axis_index(axes) * items.shape[0]
    # In the order of the devices, hence of the indices, so that ties fall as on one.
    scores, indices = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (scores, indices))
    scores, columns = jax.lax.top_k(scores, settings.k)
    return scores, jnp.take_along_axis(indices, columns, axis=1)


def _blockwise(settings: _Settings, queries: Array, items: Array) -> tuple[Array, Array]:
    """The k highest scores so far, block after block."""
    (n, _), m, k = queries.shape, items.shape[0], settings.k
    size = min(m, settings.block_size or _block_size(settings.metric, queries, items))
    score = partial(_scores, settings.metric, queries)
    if settings.approx:
        best = partial(jax.lax.approx_max_k, k=k, recall_target=settings.recall_target, reduction_input_size_override=m)
    else:
        best = partial(_best, k=k)
    if size == m:
        scores, indices = best(score(items))
        return scores, indices.astype(jnp.int32)

    def step(block: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # The last block begins earlier instead of being shorter; what it has in common with the one before is masked.
        start = jnp.minimum(block * size, m - size)
        new = score(jax.lax.dynamic_slice_in_dim(items, start, size))
        new = jnp.where(start + jnp.arange(size) < block * size, -jnp.inf, new)
        if size > k:
            new, columns = best(new)
        else:
            columns = jnp.broadcast_to(jnp.arange(size), new.shape)
        # The ones so far come first: they have the lower indices, and of equals `top_k` takes the first.
        scores = jnp.concatenate([carry[0], new], axis=1)
        indices = jnp.concatenate([carry[1], (start + columns).astype(jnp.int32)], axis=1)
        scores, places = jax.lax.top_k(scores, k)
        return scores, jnp.take_along_axis(indices, places, axis=1)

    dtype = jnp.promote_types(queries.dtype, items.dtype)
    nothing = jnp.full((n, k), -jnp.inf, dtype), jnp.zeros((n, k), jnp.int32)
    return jax.lax.fori_loop(0, -(-m // size), step, nothing)


def _block_size(metric: str, queries: Array, items: Array) -> int:
    (n, d), m = queries.shape, items.shape[0]
    size = _SCORES // max(1, n)
    if metric not in _SIMILARITIES or items.dtype != queries.dtype:
        size = min(size // 4, _NUMBERS // max(1, d))
    return min(m, max(256, size))


def _scores(metric: str, queries: Array, items: Array) -> Float[Array, "n m"]:
    """Higher is better."""
    items = wide("items", items)
    if metric in _DISTANCES:
        return -_DISTANCES[metric](queries, items)
    scores = jnp.einsum("nd,md->nm", queries, items, precision="highest")
    if metric == "dot_product":
        return held_finite(scores)
    # Lengths apart from the product: the items are read and not written anew.
    scale = power_of_two(items)
    squares = jnp.sum((items / scale) ** 2, axis=-1)
    zero = squares < 0.25
    length = jnp.sqrt(jnp.where(zero, 1.0, squares)) * scale[:, 0]
    return held_within(jnp.where(zero, 0.0, scores / length), -1, 1)


def _best(scores: Float[Array, "n m"], *, k: int) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """`jax.lax.top_k`, which is slow over long rows on CPU, of only the groups of columns that can hold one.

    The k best are all in the k groups with the highest maxima: to any element outside, each of those has one that is
    better, or equal and, groups being runs of columns and equal maxima taken in order, further left.
    """
    n, m = scores.shape
    # About as many groups as columns in k of them, to make the two rows that remain to be searched shortest.
    size = 1 << max(0, ((m // k).bit_length() - 1) // 2)
    groups = m // size
    if size < 4:
        values, places = jax.lax.top_k(scores, k)
        return values, places
    grouped = scores[:, : groups * size].reshape(n, groups, size)
    chosen = jnp.sort(jax.lax.top_k(grouped.max(axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).reshape(n, k * size)
    columns = (chosen[:, :, None] * size + jnp.arange(size)).reshape(n, k * size)
    if groups * size < m:
        rest = jnp.broadcast_to(jnp.arange(groups * size, m), (n, m - groups * size))
        candidates = jnp.concatenate([candidates, scores[:, groups * size :]], axis=1)
        columns = jnp.concatenate([columns, rest], axis=1)
    values, places = jax.lax.top_k(candidates, k)
    return values, jnp.take_along_axis(columns, places, axis=1)


def _axes(sharding: NamedSharding) -> tuple[str, ...]:
    """The mesh axes that the items' rows are split over."""
    first: Any = sharding.spec[0] if len(sharding.spec) else None
    names = (first,) if isinstance(first, str) else tuple(first or ())
    return tuple(name for name in names if sharding.mesh.shape[name] > 1)
