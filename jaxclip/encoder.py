"""The encode functions of a model, compiled for a few shapes and spread over the devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Shaped

from jaxclip.batching import batch_sizes, by_length, padded, split, text_length
from jaxclip.nn import CLIP, TextTransformer

Modality = Literal["text", "image"]


@dataclass(frozen=True)
class Encoded:
    """Vectors that may still be on their way: the devices work on while the host goes on.

    `pieces` are row numbers with the batch that holds their vectors, padding after them.
    """

    rows: int
    width: int
    pieces: list[tuple[Int[np.ndarray, "_"], Float[Array, "_ projection"]]]

    def numpy(self) -> Float32[np.ndarray, "rows projection"]:
        """The vectors in the order of the inputs, once they are there."""
        vectors = np.empty((self.rows, self.width), np.float32)
        for rows, piece in self.pieces:
            vectors[rows] = np.asarray(piece)[: len(rows)]
        return vectors

    def array(self) -> Float[Array, "rows projection"]:
        """As a JAX array; without waiting where one batch on one device is all there is and has its order."""
        if len(self.pieces) == 1:
            (rows, piece), *_ = self.pieces
            if len(piece) == self.rows and len(piece.devices()) == 1 and (np.diff(rows) == 1).all():
                return piece
        # Put together on the host: on a device (by jnp.asarray even) each number of rows would be a program of its own.
        return jax.device_put(self.numpy())


class Encoder:
    """Encodes arrays of any number of rows by a handful of compiled programs, on all of `devices`.

    Rows go by in batches of a few fixed sizes, and texts cut to a few fixed lengths: attention is causal, so what
    stands after the token that a text is read off at changes nothing. A batch that the devices can share equally is
    split among them, each with the whole model; a smaller one runs on the first.

    `devices` are by default all that this process has. The model is an argument of every call, so that one which was
    trained or replaced in between is what counts.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        if devices is not None and not devices:
            raise ValueError("devices is empty: name at least one of jax.local_devices(), or leave it out")
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        # One device that nobody chose is JAX's default, where things are already.
        self._placing = devices is not None or len(self.devices) > 1
        self._copies: dict[Mesh, tuple[list[Array], CLIP]] = {}

    def batch_size(self, modality: Modality, wished: int | None = None) -> int:
        """Rows a batch: as wished, rounded up to what the devices can share equally; by default enough to keep them
        busy, few enough for their memory with the largest models. Raises ValueError below 1."""
        if wished is not None and wished < 1:
            raise ValueError(f"batch_size must be at least 1, got {wished}")
        share = len(self.devices)
        if wished is None:
            on_cpu = self.devices[0].platform == "cpu"
            wished = {"text": 64, "image": 32}[modality] if on_cpu else {"text": 256, "image": 64}[modality] * share
        return -(-wished // share) * share

    def _sizes(self, modality: Modality, wished: int | None) -> tuple[int, ...]:
        """What batches are padded to: sizes that all devices share, then those of the first alone."""
        share = len(self.devices)
        shared = tuple(share * size for size in batch_sizes(self.batch_size(modality, wished) // share))
        return shared if share == 1 else (*shared, *batch_sizes(share)[1:])

    def texts(
        self,
        model: CLIP,
        token_ids: Int[np.ndarray, "n tokens"],
        *,
        normalize: bool = True,
        batch_size: int | None = None,
    ) -> Encoded:
        """As `model.encode_text`, for rows that each have the token that the model reads a text off at. Padding after
        it may go beyond the model's positions; ValueError where the token itself does."""
        tower = model.tower("text")
        positions = tower.config.max_position_embeddings
        lengths = tower.pooled_position(token_ids) + 1 if len(token_ids) else np.zeros(0, int)
        if lengths.max(initial=0) > positions:
            raise ValueError(
                f"text {lengths.argmax()} is {lengths.max()} tokens long, but this model has {positions} positions: "
                "truncate it (the tokenizer does)"
            )
        pieces = []
        for rows, size in by_length(lengths, self._sizes("text", batch_size)):
            ids = token_ids[rows]
            # A tower that computes something else may look at what comes after.
            if type(tower).__call__ is TextTransformer.__call__:
                ids = _cut(ids, text_length(int(lengths[rows].max()), positions))
            pieces.append((rows, self._run(model, "text", padded(ids, size), normalize)))
        return self._encoded(model, "text", token_ids, pieces)

    def images(
        self,
        model: CLIP,
        pixels: Float[np.ndarray, "n height width channels"],
        *,
        normalize: bool = True,
        batch_size: int | None = None,
    ) -> Encoded:
        """As `model.encode_image`."""
        every, pieces = np.arange(len(pixels)), []
        for rows, size in split(len(pixels), self._sizes("image", batch_size)):
            pieces.append((every[rows], self._run(model, "image", padded(pixels[rows], size), normalize)))
        return self._encoded(model, "image", pixels, pieces)

    def _encoded(self, model: CLIP, modality: Modality, inputs: Shaped[np.ndarray, "n ..."], pieces: list) -> Encoded:
        tower = model.tower("text" if modality == "text" else "vision")
        width = pieces[0][1].shape[1] if pieces else tower.config.projection_dim or 0
        return Encoded(len(inputs), width, pieces)

    def _run(
        self, model: CLIP, modality: Modality, batch: Shaped[np.ndarray, "batch ..."], normalize: bool
    ) -> Float[Array, "batch projection"]:
        if not self._placing:
            return _encode(model, batch, modality=modality, normalize=normalize, mesh=None)
        shared = len(batch) % len(self.devices) == 0
        mesh = Mesh(np.array(self.devices if shared else self.devices[:1]), ("batch",))
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
        return _encode(self._copy(model, mesh), batch, modality=modality, normalize=normalize, mesh=mesh)

    def _copy(self, model: CLIP, mesh: Mesh) -> CLIP:
        """The model on every device of the mesh, made anew when a parameter is another array than it was."""
        leaves = jax.tree.leaves(model)
        copied, copy = self._copies.get(mesh, ([], None))
        if copy is None or len(copied) != len(leaves) or any(a is not b for a, b in zip(copied, leaves, strict=True)):
            copy = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
            self._copies[mesh] = leaves, copy
        return copy


@partial(jax.jit, static_argnames=("modality", "normalize", "mesh"))
def _encode(
    model: CLIP, batch: Shaped[Array, "batch ..."], *, modality: Modality, normalize: bool, mesh: Mesh | None
) -> Float[Array, "batch projection"]:
    def encode(model: CLIP, batch: Array) -> Array:
        return {"text": model.encode_text, "image": model.encode_image}[modality](batch, normalize=normalize)

    if mesh is None:
        return encode(model, batch)
    # Each device on its own rows: nothing for the partitioner to decide, and nothing for devices to exchange.
    specs = PartitionSpec(), PartitionSpec("batch")
    return jax.shard_map(encode, mesh=mesh, in_specs=specs, out_specs=specs[1])(model, batch)


def _cut(token_ids: Int[np.ndarray, "n tokens"], length: int) -> Int[np.ndarray, "n length"]:
    """The first `length` tokens, with zeros after them where there are fewer: the smallest id, at which no text is read
    off."""
    missing = max(0, length - token_ids.shape[1])
    return np.pad(token_ids[:, :length], ((0, 0), (0, missing)))
