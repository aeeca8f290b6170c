"""Momentum contrast (MoCo, arXiv 1911.05722): keys of earlier batches as negatives, from a slowly moving encoder."""

import dataclasses
import numbers
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jaxclip.losses.arguments import marks, unit_vectors
from jaxclip.losses.info_nce import info_nce
from jaxclip.losses.reductions import Reduction
from jaxclip.losses.streaming import AxisName

Parameters = TypeVar("Parameters")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyQueue:
    """The last `size` keys, the oldest of which make room for new ones. A pytree: a part of the training state.

    - `keys`: unit length; zeros where none has come yet
    - `position`: where the next key goes
    - `count`: how many keys are in it, at most `size`

    `KeyQueue.empty(65536, 128)` is the paper's. All methods are pure.
    """

    keys: Float[Array, "size width"]
    position: Int[Array, ""]
    count: Int[Array, ""]

    @classmethod
    def empty(cls, size: int, width: int, dtype: Any = jnp.float32) -> "KeyQueue":
        """Without keys. (The official code begins with random ones, which are negatives until they are overwritten;
        here `mask` leaves them out.) Raises ValueError unless size and width are positive."""
        if size < 1 or width < 1:
            raise ValueError(f"size and width must be positive, got {size} and {width}")
        return cls(jnp.zeros((size, width), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    @property
    def mask(self) -> Bool[Array, " size"]:
        """True where there is a key."""
        return jnp.arange(len(self.keys)) < self.count

    def enqueue(self, keys: Float[Array, "n width"], mask: Bool[Array, " n"] | None = None) -> "KeyQueue":
        """With these keys, normalised and without their gradient, in the places of the oldest; going on at the
        beginning where the end is reached. Any number of keys: of more than `size`, the last stay. `mask` is False for
        padded rows, which take no place.

        Inside `jax.shard_map` give every device's queue the keys of all (`jax.lax.all_gather`), as the official code
        does. Raises TypeError and ValueError for dtypes and shapes that don't fit, while tracing.
        """
        size, width = self.keys.shape
        mask = marks("mask", mask, jnp.shape(keys)[:1])
        keys = jax.lax.stop_gradient(unit_vectors("keys", keys, "n, width", mask))
        if keys.shape[1] != width:
            raise ValueError(f"keys must have shape (n, {width}), as the queue's, got {keys.shape}")
        real = jnp.ones(len(keys), jnp.int32) if mask is None else mask.astype(jnp.int32)
        number, new = jnp.cumsum(real) - 1, jnp.sum(real)
        kept = (real > 0) & (number >= new - size)
        # No place beyond the end: the scatter drops those.
        places = jnp.where(kept, (self.position + number) % size, size)
        return dataclasses.replace(
            self,
            keys=self.keys.at[places].set(keys.astype(self.keys.dtype), mode="drop"),
            position=((self.position + new) % size).astype(jnp.int32),
            count=jnp.minimum(self.count + new, size).astype(jnp.int32),
        )


def moco_loss(
    queries: Float[Array, "n width"],
    keys: Float[Array, "n width"],
    queue: KeyQueue,
    temperature: ScalarLike = 0.07,
    *,
    mask: Bool[Array, " n"] | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """`info_nce` of queries and their keys against the keys in the queue, with a gradient for queries (and
    temperature) only (arXiv 1911.05722, algorithm 1). Enqueue this batch's keys afterwards.

        loss = moco_loss(queries, keys, queue)
        queue = queue.enqueue(keys)
        key_encoder = momentum_update(key_encoder, query_encoder)

    Arguments and errors as `info_nce`'s; with `axis_name`, every device's queue is whole.
    """
    keys, queue = jax.lax.stop_gradient((keys, queue))
    return info_nce(
        queries,
        keys,
        queue.keys,
        temperature,
        mask=mask,
        negatives_mask=queue.mask,
        reduction=reduction,
        chunk_size=chunk_size,
        axis_name=axis_name,
    )


def momentum_update(key_encoder: Parameters, query_encoder: Parameters, momentum: ScalarLike = 0.999) -> Parameters:
    """momentum · key_encoder + (1 − momentum) · query_encoder, leaf by leaf (arXiv 1911.05722, equation 2).

    Any pytree of parameters, an NNX module too. Leaves that are no floats (step counts, random keys) are taken from the
    query encoder. Keep the key encoder in float32: at momentum 0.999 a step is less than half an ulp of bfloat16, and
    would be lost. Raises ValueError for another structure or shape, TypeError for another dtype, and ValueError for a
    Python momentum outside [0, 1].
    """
    if isinstance(momentum, numbers.Real) and not 0 <= float(momentum) <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    structures = [jax.tree.structure(encoder) for encoder in (key_encoder, query_encoder)]
    if structures[0] != structures[1]:
        raise ValueError(f"expected two encoders of one structure, got {structures[0]} and {structures[1]}")

    def moved(path: Any, key: Any, query: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if jnp.shape(key) != jnp.shape(query):
            raise ValueError(f"{name}: expected one shape, got {jnp.shape(key)} and {jnp.shape(query)}")
        if jnp.result_type(key) != jnp.result_type(query):
            raise TypeError(f"{name}: expected one dtype, got {jnp.result_type(key)} and {jnp.result_type(query)}")
        if not jnp.issubdtype(jnp.result_type(key), jnp.floating):
            return query
        wide = jnp.promote_types(jnp.result_type(key), jnp.float32)
        share = jnp.asarray(momentum, wide)
        return (share * jnp.asarray(key, wide) + (1 - share) * jnp.asarray(query, wide)).astype(jnp.result_type(key))

    return jax.tree_util.tree_map_with_path(moved, key_encoder, query_encoder)
