"""The quadratic part of every contrastive loss, in constant memory and over many devices.

A softmax contrastive loss of queries q and keys k is, row by row, a log-sum-exp over all keys less the positive's
logit, and SigLIP is a sum of softplus over all keys. The positives cost O(n · width): a paired product, and with soft
targets T

    Σⱼ Tᵢⱼ sᵢⱼ = scale · qᵢ · (T k)ᵢ

So what is quadratic is the reduction of sᵢⱼ = scale · qᵢ · kⱼ over j, and that is what is here:

| function | value | for |
|---|---|---|
| `row_log_sum_exp` | log Σⱼ exp sᵢⱼ | InfoNCE, NT-Xent, MoCo |
| `row_and_column_log_sum_exp` | that, and log Σᵢ exp sᵢⱼ, from one product | CLIP |
| `row_softplus_sum` | Σⱼ log(1 + exp(sᵢⱼ + bias)) | SigLIP |

With one positive a row, leave it out (`excluded`) and put it back with a softplus:

    positive = scale * jnp.sum(queries * keys, axis=1)
    loss = jax.nn.softplus(row_log_sum_exp(queries, keys, scale, excluded=global_indices(n)) - positive)

This is the cross-entropy, and unlike log-sum-exp less positive it doesn't cancel where the loss is small.

Three forms give the same numbers:

- dense: the whole (n, m) matrix in plain JAX, differentiable any number of times in both modes. Under `jax.jit` over
  sharded arrays the compiler partitions it.
- `chunk_size=c`: c keys at a time, forward and backward, so memory is O((n + m) · width + n · c). The backward pass
  computes the logits again instead of keeping them (as FlashAttention does, arXiv 2205.14135): reverse mode only.
- `axis_name=...`: inside `jax.shard_map`, queries and keys being this device's shards; the keys are those of all
  devices on the axis. "ring" passes the shards of keys round (as in arXiv 2310.01889), so that a device holds its own
  and one other's; their gradients travel with them and end at home. "gather" copies all keys to every device: fewer
  and larger messages. Both take `chunk_size`, without which a device computes its queries' logits against one shard
  (ring) or against all keys (gather) at once.

Vectors are taken as they come: normalise them first.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Integer, ScalarLike

AxisName = str | tuple[str, ...]
Collective = Literal["gather", "ring"]


def row_log_sum_exp(
    queries: Float[Array, "n width"],
    keys: Float[Array, "m width"],
    scale: ScalarLike,
    *,
    key_mask: Bool[Array, " m"] | None = None,
    excluded: Integer[Array, " n"] | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    collective: Collective = "ring",
) -> Float[Array, " n"]:
    """log Σⱼ exp(scale · qᵢ · kⱼ) over the keys that query i sees.

    `key_mask` is False for keys that nobody sees. `excluded[i]` is the index of one more key that query i doesn't see,
    or any number that is no index; over a mesh axis it counts through all devices' keys (`global_indices`). At least
    float32 for every input. A query that sees no key has the least finite float, and gradient zero. Raises ValueError
    for shapes and settings and TypeError for dtypes that don't fit, while tracing.
    """
    plan = _Plan(_precision(queries, keys), False, chunk_size, axis_name, collective)
    operands = _prepared(plan, queries, keys, (scale,), None, key_mask, excluded)
    return _partitioned(_dense_log_sum_exps if plan.dense else _streamed_log_sum_exps, plan, operands)[0]


def row_and_column_log_sum_exp(
    queries: Float[Array, "n width"],
    keys: Float[Array, "m width"],
    scale: ScalarLike,
    *,
    query_mask: Bool[Array, " n"] | None = None,
    key_mask: Bool[Array, " m"] | None = None,
    excluded: Integer[Array, " n"] | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    collective: Collective = "ring",
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """log Σⱼ exp sᵢⱼ for every query i and log Σᵢ exp sᵢⱼ for every key j, at the price of one.

    As `row_log_sum_exp` both ways: `key_mask` says which keys count in a row, `query_mask` which queries count in a
    column, and the pair (i, `excluded[i]`) counts in neither. Over a mesh axis the columns are those of this device's
    keys, over all devices' queries.
    """
    plan = _Plan(_precision(queries, keys), True, chunk_size, axis_name, collective)
    operands = _prepared(plan, queries, keys, (scale,), query_mask, key_mask, excluded)
    rows, columns = _partitioned(_dense_log_sum_exps if plan.dense else _streamed_log_sum_exps, plan, operands)
    return rows, columns


def row_softplus_sum(
    queries: Float[Array, "n width"],
    keys: Float[Array, "m width"],
    scale: ScalarLike,
    bias: ScalarLike = 0.0,
    *,
    key_mask: Bool[Array, " m"] | None = None,
    excluded: Integer[Array, " n"] | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    collective: Collective = "ring",
) -> Float[Array, " n"]:
    """Σⱼ log(1 + exp(scale · qᵢ · kⱼ + bias)) over the keys that query i sees: the negatives of SigLIP
    (arXiv 2303.15343, section 3.2). Arguments as `row_log_sum_exp`'s. A query that sees no key has 0."""
    plan = _Plan(_precision(queries, keys), False, chunk_size, axis_name, collective)
    operands = _prepared(plan, queries, keys, (scale, bias), key_mask, excluded)
    return _partitioned(_dense_softplus_sum if plan.dense else _streamed_softplus_sum, plan, operands)[0]


def global_indices(count: int, axis_name: AxisName | None = None) -> Int[Array, " count"]:
    """The indices of this device's rows among those of all devices on the axis, each having `count`; without an axis
    0, 1, …, count - 1."""
    indices = jnp.arange(count, dtype=jnp.int32)
    return indices if axis_name is None else indices + lax.axis_index(axis_name) * count


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is known while tracing. `columns`: are column sums wanted besides the rows'?"""

    precision: lax.Precision
    columns: bool
    chunk_size: int | None
    axis_name: AxisName | None
    collective: str

    def __post_init__(self):
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.collective not in ("gather", "ring"):
            raise ValueError(f"collective must be 'gather' or 'ring', got {self.collective!r}")

    @property
    def dense(self) -> bool:
        return self.chunk_size is None and self.axis_name is None

    def over(self, collective: str) -> bool:
        return self.axis_name is not None and self.collective == collective

    def product(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=self.precision)


def _precision(queries: Array, keys: Array) -> lax.Precision:
    for name, vectors in (("queries", queries), ("keys", keys)):
        if vectors.ndim != 2:
            raise ValueError(f"{name} must be of shape (number, width), got {vectors.shape}")
        if not jnp.issubdtype(vectors.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating-point, got {vectors.dtype}")
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries and keys must be of one width, got {queries.shape[1]} and {keys.shape[1]}")
    # Halves take the accelerators' fast path: widened to float32, their products are exact at the default precision too
    # (bfloat16 on TPU, TF32 on GPU), and are summed in float32.
    halves = jnp.promote_types(queries.dtype, keys.dtype).itemsize < 4
    return lax.Precision.DEFAULT if halves else lax.Precision.HIGHEST


def _prepared(plan: _Plan, queries: Array, keys: Array, scalars: tuple[Any, ...], *masks: Array | None) -> list[Any]:
    """Queries, keys, scalars and masks in one dtype and, inside shard_map, all of each device's own.

    The scale is the same on all devices. Making it a device's own outside the custom gradients has shard_map's
    transpose sum its gradient over the devices.
    """
    dtype = jnp.result_type(queries.dtype, keys.dtype, jnp.float32)
    operands = [queries.astype(dtype), keys.astype(dtype), *(jnp.asarray(scalar, dtype) for scalar in scalars), *masks]
    like = operands if plan.axis_name is None else [*operands, lax.axis_index(plan.axis_name)]
    return varying_as(like, operands)


def varying_as(like: Any, tree: Any) -> Any:
    """The same values, varying over every mesh axis that any of `like` varies over.

    shard_map types arrays by the axes over which they differ, and a scan's carry and custom gradients must keep theirs.
    JAX derives the type of a sum, and names of types change between its releases: hence an added nothing.
    """
    nothing = [jnp.any(lax.slice_in_dim(jnp.atleast_1d(array), 0, 0)) for array in jax.tree.leaves(like)]
    never = functools.reduce(jnp.logical_or, nothing)
    return jax.tree.map(lambda array: array | never if array.dtype == bool else array + never.astype(array.dtype), tree)


def _partitioned(function: Callable[..., Any], plan: _Plan, operands: list[Any]) -> Any:
    """`function(plan, *operands)`, left to the compiler to partition where the operands' types say how they are sharded
    (as on a mesh of `jax.make_mesh`): rows come out sharded as the queries, columns as the keys."""
    shardings = [jax.typeof(vectors).sharding for vectors in operands[:2]]
    mesh = next((sharding.mesh for sharding in shardings if sharding.mesh.explicit_axes), None)
    if mesh is None:
        return function(plan, *operands)
    results = tuple(NamedSharding(mesh, PartitionSpec(sharding.spec[0])) for sharding in shardings)
    return jax.sharding.auto_axes(
        functools.partial(function, plan),
        axes=mesh.explicit_axes,
        out_sharding=results if plan.columns else results[:1],
    )(*operands)


# Logits and their reductions


def _visible(logits: Array, first_key: Any, mask: Array | None, excluded: Array | None) -> Array:
    """The logits, -inf where `mask` is False and where `first_key` + column is the row's excluded key."""
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    if excluded is not None:
        indices = first_key + lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where(indices == excluded[:, None], -jnp.inf, logits)
    return logits


def _reductions(
    plan: _Plan, queries, keys, scale, query_mask, key_mask, excluded, first_key: Any = 0
) -> Iterator[tuple[int, Array]]:
    """An axis to reduce and the logits that count there: for the rows, and for the columns where they are wanted."""
    logits = scale * plan.product(queries, keys.T)
    yield 1, _visible(logits, first_key, None if key_mask is None else key_mask[None, :], excluded)
    if plan.columns:
        yield 0, _visible(logits, first_key, None if query_mask is None else query_mask[:, None], excluded)


def _softplus_logits(plan: _Plan, queries, keys, scale, bias, key_mask, excluded, first_key: Any = 0) -> Array:
    logits = scale * plan.product(queries, keys.T) + bias
    return _visible(logits, first_key, None if key_mask is None else key_mask[None, :], excluded)


def _largest(logits: Array, axis: int) -> Array:
    # Not below the least float, so that -inf less it is -inf and never NaN.
    return jnp.max(logits, axis=axis, initial=jnp.finfo(logits.dtype).min)


def _exponentials(logits: Array, largest: Array, axis: int) -> Array:
    return jnp.exp(logits - jnp.expand_dims(largest, axis))


def _logarithm(largest: Array, total: Array) -> Array:
    """log(exp(largest) · total); the least float where nothing was summed."""
    nothing = total == 0
    return jnp.where(nothing, jnp.finfo(total.dtype).min, largest + jnp.log(jnp.where(nothing, 1.0, total)))


# Dense


def _dense_log_sum_exps(plan: _Plan, *operands):
    results = []
    for axis, logits in _reductions(plan, *operands):
        largest = lax.stop_gradient(_largest(logits, axis))
        results.append(_logarithm(largest, jnp.sum(_exponentials(logits, largest, axis), axis=axis)))
    return tuple(results)


def _dense_softplus_sum(plan: _Plan, *operands):
    return (jnp.sum(jax.nn.softplus(_softplus_logits(plan, *operands)), axis=1),)


# Chunked and sharded: the same sums, some keys at a time


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed_log_sum_exps(plan: _Plan, queries, keys, scale, query_mask, key_mask, excluded):
    return _log_sum_exps_forward(plan, queries, keys, scale, query_mask, key_mask, excluded)[0]


def _log_sum_exps_forward(plan: _Plan, queries, keys, scale, query_mask, key_mask, excluded):
    def visit(rows, first_key, block, columns):
        keys, key_mask = block
        sums = []
        for (axis, logits), (largest, total) in zip(
            _reductions(plan, queries, keys, scale, query_mask, key_mask, excluded, first_key),
            [rows, *columns],
            strict=True,
        ):
            # A running log-sum-exp: what was summed so far is rescaled when the largest logit grows.
            grown = jnp.maximum(largest, _largest(logits, axis))
            total = total * jnp.exp(largest - grown) + jnp.sum(_exponentials(logits, grown, axis), axis=axis)
            sums.append((grown, total))
        return sums[0], sums[1:]

    def nothing(count):
        return jnp.full(count, jnp.finfo(queries.dtype).min), jnp.zeros(count, queries.dtype)

    block = _gathered(plan, (keys, key_mask))
    rows, columns = _over_keys(
        plan, visit, nothing(len(queries)), block, [nothing(len(block[0]))] if plan.columns else []
    )
    if plan.over("gather"):
        columns = [_summed_at_home(plan, *column, len(keys)) for column in columns]
    sums = [rows, *columns]
    return tuple(_logarithm(*part) for part in sums), (queries, keys, scale, query_mask, key_mask, excluded, sums)


def _log_sum_exps_backward(plan: _Plan, residuals, cotangents):
    queries, keys, scale, query_mask, key_mask, excluded, sums = residuals
    # The softmax as exp(logit - largest) / total keeps digits that exp(logit - log-sum-exp) loses: the log-sum-exp is
    # rounded to an ulp of the logits' size.
    rows, *columns = (
        (largest, cotangent / jnp.where(total == 0, 1.0, total))
        for (largest, total), cotangent in zip(sums, cotangents, strict=True)
    )

    def logits_gradient(first_key, block):
        keys, key_mask, columns = block
        parts = [
            _exponentials(logits, largest, axis) * jnp.expand_dims(weight, axis)
            for (axis, logits), (largest, weight) in zip(
                _reductions(plan, queries, keys, scale, query_mask, key_mask, excluded, first_key),
                [rows, *columns],
                strict=True,
            )
        ]
        return sum(parts[1:], parts[0])

    gradients = _product_backward(plan, logits_gradient, queries, (keys, key_mask, columns), scale)
    return *gradients[:3], None, None, None


_streamed_log_sum_exps.defvjp(_log_sum_exps_forward, _log_sum_exps_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed_softplus_sum(plan: _Plan, queries, keys, scale, bias, key_mask, excluded):
    return _softplus_sum_forward(plan, queries, keys, scale, bias, key_mask, excluded)[0]


def _softplus_sum_forward(plan: _Plan, queries, keys, scale, bias, key_mask, excluded):
    def visit(total, first_key, block, nothing):
        logits = _softplus_logits(plan, queries, block[0], scale, bias, block[1], excluded, first_key)
        return total + jnp.sum(jax.nn.softplus(logits), axis=1), nothing

    total, _ = _over_keys(plan, visit, jnp.zeros(len(queries), queries.dtype), _gathered(plan, (keys, key_mask)), None)
    return (total,), (queries, keys, scale, bias, key_mask, excluded)


def _softplus_sum_backward(plan: _Plan, residuals, cotangents):
    queries, keys, scale, bias, key_mask, excluded = residuals

    def logits_gradient(first_key, block):
        logits = _softplus_logits(plan, queries, block[0], scale, bias, block[1], excluded, first_key)
        return jax.nn.sigmoid(logits) * cotangents[0][:, None]

    return *_product_backward(plan, logits_gradient, queries, (keys, key_mask), scale), None, None


_streamed_softplus_sum.defvjp(_softplus_sum_forward, _softplus_sum_backward)


def _product_backward(plan: _Plan, logits_gradient: Callable[[Any, Any], Array], queries, block, scale):
    """The gradients of queries, keys, scale and bias, from `logits_gradient(first_key, block)`. `block` has the keys
    first, and what belongs to them."""

    def visit(gradients, first_key, block, keys_gradient):
        queries_gradient, bias_gradient = gradients
        gradient = logits_gradient(first_key, block)
        return (
            queries_gradient + plan.product(gradient, block[0]),
            bias_gradient + jnp.sum(gradient, axis=1),
        ), keys_gradient + plan.product(gradient.T, queries)

    block = _gathered(plan, block)
    none = jnp.zeros_like(queries), jnp.zeros(len(queries), queries.dtype)
    (queries_gradient, bias_gradient), keys_gradient = _over_keys(plan, visit, none, block, jnp.zeros_like(block[0]))
    if plan.over("gather"):
        keys_gradient = lax.psum_scatter(keys_gradient, plan.axis_name, tiled=True)
    # Σᵢⱼ gᵢⱼ qᵢ · kⱼ, without another pass over the logits.
    scale_gradient = jnp.sum(queries * queries_gradient)
    return scale * queries_gradient, scale * keys_gradient, scale_gradient, jnp.sum(bias_gradient)


def _over_keys(plan: _Plan, visit: Callable[..., tuple[Any, Any]], carry: Any, fixed: Any, moving: Any):
    """Visits all keys, in chunks and round the ring: `carry, chunk of moving = visit(carry, first_key, chunk of fixed,
    chunk of moving)`. Returns the carry and `moving`.

    `fixed` and `moving` are trees of arrays with a row a key; the first of `fixed` are the keys, the second their mask.
    `moving` goes with the keys from device to device and ends at home.
    """
    count = len(fixed[0])
    chunks = -(-count // (plan.chunk_size or max(count, 1)))
    # Chunks of one size, as equal as can be: less than one row of padding a chunk.
    size = -(-count // max(chunks, 1))
    padding = chunks * size - count
    if padding and fixed[1] is None:
        fixed = (fixed[0], jnp.ones(count, bool), *fixed[2:])

    def split(array):
        padded = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1)) if padding else array
        return padded.reshape(chunks, size, *array.shape[1:])

    def visit_shard(carry, fixed, moving, shard):
        def visit_chunk(carry, chunk):
            index, fixed, moving = chunk
            return visit(carry, shard * count + index * size, fixed, moving)

        return lax.scan(visit_chunk, carry, (jnp.arange(chunks), fixed, moving))

    carry, fixed, moving = varying_as(fixed[0], (carry, *jax.tree.map(split, (fixed, moving))))
    if plan.over("ring"):
        devices, own = lax.axis_size(plan.axis_name), lax.axis_index(plan.axis_name)
        ring = [(device, (device + 1) % devices) for device in range(devices)]

        def turn(state, step):
            carry, fixed, moving = state
            carry, moving = visit_shard(carry, fixed, moving, (own - step) % devices)
            fixed, moving = jax.tree.map(lambda array: lax.ppermute(array, plan.axis_name, ring), (fixed, moving))
            return (carry, fixed, moving), None

        (carry, _, moving), _ = lax.scan(turn, (carry, fixed, moving), jnp.arange(devices))
    else:
        carry, moving = visit_shard(carry, fixed, moving, 0)
    return carry, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], moving)


def _gathered(plan: _Plan, tree: Any) -> Any:
    """All devices' rows, in the gather form; else what was given."""
    if not plan.over("gather"):
        return tree
    return jax.tree.map(lambda array: lax.all_gather(array, plan.axis_name, tiled=True), tree)


def _summed_at_home(plan: _Plan, largest: Array, total: Array, count: int) -> tuple[Array, Array]:
    """Of sums over this device's queries for all devices' keys, the sums over all queries for this device's keys."""
    overall = lax.pmax(largest, plan.axis_name)
    total = lax.psum_scatter(total * jnp.exp(largest - overall), plan.axis_name, tiled=True)
    return lax.dynamic_slice_in_dim(overall, lax.axis_index(plan.axis_name) * count, count), total
