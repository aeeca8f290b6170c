"""Contrastive batches of any size with the encoders' memory of a small one: GradCache (arXiv 2101.06983).

A contrastive loss needs all features of the batch at once, but no encoder's activations. So (section 3.2 of the paper):
encode microbatch by microbatch and keep only the features; take the loss and its gradient by the features; encode each
microbatch again, now with its activations, and pull its features' gradient back into the parameters, which add up. In
JAX that is a scan over rematerialised microbatches, and `jax.grad` does the rest:

    def loss(model, pixels, token_ids):
        images = microbatched(CLIP.encode_image, 64)(model, pixels)
        texts = microbatched(CLIP.encode_text, 256)(model, token_ids)
        return clip_loss(images, texts, model.logit_scale[...], chunk_size=1024)

    value, gradient = jax.jit(jax.value_and_grad(loss))(model, pixels, token_ids)

It costs one more forward pass. Under sharded `jax.jit` and in `jax.shard_map` every device encodes its own rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxclip.losses.streaming import varying_as


def microbatched(encode: Callable[..., Any], microbatch_size: int) -> Callable[..., Any]:
    """`encode(parameters, *batch)`, computed at most `microbatch_size` rows at a time, forward and backward.

    `batch` and what `encode` returns are arrays, or trees of them, with a row an example. Rows must be encoded
    independently of each other (no batch normalisation), and the same way twice: pass random keys as rows of the batch.
    Where the batch is no multiple, its last row is encoded more than once and counted once. Raises ValueError for a
    batch that is empty or of unequal lengths.
    """
    if microbatch_size < 1:
        raise ValueError(f"microbatch_size must be at least 1, got {microbatch_size}")

    def encode_in_microbatches(parameters: Any, *batch: Any) -> Any:
        lengths = {len(array) for array in jax.tree.leaves(batch)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"a batch's arrays must be of one length, at least 1, got {sorted(lengths)}")
        (count,) = lengths
        microbatches = -(-count // microbatch_size)
        if microbatches == 1:
            return encode(parameters, *batch)
        size = -(-count // microbatches)

        # A microbatch takes every so-manieth row, so that of a batch sharded over devices each has its share in all.
        def deal(array):
            if missing := size * microbatches - count:
                # Repeated rows, unlike zeros, are sure to have a finite gradient.
                array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), mode="edge")
            return array.reshape(size, microbatches, *array.shape[1:])

        dealt = jax.tree.map(deal, batch)
        # In shard_map: so that devices' gradients are summed once, and not once a microbatch.
        parameters = _varying_parameters(batch, parameters)

        @jax.checkpoint
        def encode_one(parameters, dealt, index):
            return encode(parameters, *jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, 1, False), dealt))

        def visit(nothing, index):
            return nothing, encode_one(parameters, dealt, index)

        _, features = lax.scan(visit, None, jnp.arange(microbatches))
        return jax.tree.map(lambda f: jnp.swapaxes(f, 0, 1).reshape(-1, *f.shape[2:])[:count], features)

    return encode_in_microbatches


def cached_value_and_grad(
    encoders: Sequence[Callable[[Any, Any], Any]], loss: Callable[..., Float[Array, ""]], microbatch_size: int
) -> Callable[..., tuple[Float[Array, ""], Any]]:
    """The step of GradCache: `step(parameters, *batches)` returns the value and the parameters' gradient of

        loss(parameters, encoders[0](parameters, batches[0]), encoders[1](parameters, batches[1]), …)

    with at most `microbatch_size` rows encoded at a time. For `jax.jit`; as `microbatched` otherwise. For CLIP

        step = cached_value_and_grad(
            (CLIP.encode_image, CLIP.encode_text),
            lambda model, images, texts: clip_loss(images, texts, model.logit_scale[...]),
            microbatch_size=64,
        )
        value, gradient = jax.jit(step)(model, pixels, token_ids)
    """
    encoders = [microbatched(encode, microbatch_size) for encode in encoders]

    def value(parameters: Any, *batches: Any) -> Float[Array, ""]:
        features = [encode(parameters, batch) for encode, batch in zip(encoders, batches, strict=True)]
        return loss(parameters, *features)

    return jax.value_and_grad(value)


def _varying_parameters(batch: Any, parameters: Any) -> Any:
    def has_gradient(leaf):
        return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)

    return jax.tree.map(lambda leaf: varying_as(batch, leaf) if has_gradient(leaf) else leaf, parameters)
