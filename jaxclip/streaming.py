"""Any number of inputs, batch by batch, in constant memory."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from jaxclip.batching import ahead, groups, one_behind
from jaxclip.encoder import Encoded, Encoder
from jaxclip.nn import CLIP
from jaxclip.processing import ImageError, ImageLike, ImageProcessor

# Batches of texts that are sorted by length together: enough that nearly all are of one length.
_WINDOW = 16


@dataclass(frozen=True)
class Failure:
    """An input that could not be encoded: its number in the stream, itself, and what is wrong with it."""

    index: int
    input: Any
    error: Exception


@dataclass(frozen=True)
class EncodedBatch:
    """Some consecutive inputs of a stream.

    - `inputs`: those that could be encoded, in their order
    - `vectors`: (n, projection), float32, a row for each of them
    - `indices`: (n,), their numbers in the stream, from 0
    - `errors`: the others, with the reason for each
    """

    inputs: list[Any]
    vectors: Float32[np.ndarray, "n projection"]
    indices: Int64[np.ndarray, " n"]
    errors: list[Failure]

    def __len__(self) -> int:
        return len(self.inputs)


def stream_texts(
    encoder: Encoder,
    model: CLIP,
    tokenize: Callable[[list[str]], np.ndarray],
    texts: Iterable[str],
    *,
    normalize: bool,
    batch_size: int,
) -> Iterator[EncodedBatch]:
    """Batches of `batch_size` texts, sorted by length within some batches that are read ahead. What `tokenize` raises
    ValueError for is an error of that text alone."""
    for window in groups(enumerate(texts), _WINDOW * batch_size):
        token_ids, failures = _tokenized(window, tokenize)
        encoded = encoder.texts(model, token_ids, normalize=normalize, batch_size=batch_size)
        vectors, done = encoded.numpy(), 0
        for batch in groups(window, batch_size):
            kept = [(index, text) for index, text in batch if index not in failures]
            errors = [failures[index] for index, _ in batch if index in failures]
            yield _batch(kept, vectors[done : done + len(kept)], errors)
            done += len(kept)


def _tokenized(
    window: list[tuple[int, Any]], tokenize: Callable[[list[str]], np.ndarray]
) -> tuple[np.ndarray, dict[int, Failure]]:
    """Token ids of the texts that have some, and the failures of the others by their numbers."""
    failures = {
        index: Failure(index, text, TypeError(f"text {index} is no string but a {type(text).__name__}"))
        for index, text in window
        if not isinstance(text, str)
    }
    good = [(index, text) for index, text in window if index not in failures]
    try:
        return tokenize([text for _, text in good]), failures
    except ValueError:
        for index, text in good:
            try:
                tokenize([text])
            except ValueError as error:
                told = ValueError(str(error).replace("text 0 ", f"text {index} ", 1))
                failures[index] = Failure(index, text, told)
    return tokenize([text for index, text in good if index not in failures]), failures


def stream_images(
    encoder: Encoder,
    model: CLIP,
    processor: ImageProcessor,
    images: Iterable[ImageLike],
    *,
    normalize: bool,
    batch_size: int,
    exif_rotation: bool,
) -> Iterator[EncodedBatch]:
    """Batches of `batch_size` images, decoded by threads two batches ahead of the model."""

    def read(numbered: tuple[int, ImageLike]) -> Float32[np.ndarray, "height width channels"]:
        index, image = numbered
        try:
            return processor(image, exif_rotation=exif_rotation)[0]
        except ImageError as error:
            if isinstance(image, str | os.PathLike):
                raise
            raise ImageError(f"image {index}: {str(error).removeprefix('image 0: ')}") from error

    def started() -> Iterator[tuple[Encoded, list[tuple[int, ImageLike]], list[Failure]]]:
        shape = None
        for group in groups(ahead(read, enumerate(images), waiting=2 * batch_size), batch_size):
            kept, batch, errors = [], [], []
            for (index, image), pixels in group:
                if not isinstance(pixels, Exception) and pixels.shape != (shape := shape or pixels.shape):
                    pixels = ImageError(
                        f"image {index} comes out as {pixels.shape}, others as {shape}: crop to one size"
                    )
                if isinstance(pixels, Exception):
                    errors.append(Failure(index, image, pixels))
                else:
                    kept.append((index, image))
                    batch.append(pixels)
            rows = np.stack(batch) if batch else np.empty((0, *(shape or (1, 1, 3))), np.float32)
            yield encoder.images(model, rows, normalize=normalize, batch_size=batch_size), kept, errors

    # The model works on a batch while the next one is read: it is waited for only then.
    for encoded, kept, errors in one_behind(started()):
        yield _batch(kept, encoded.numpy(), errors)


def _batch(
    kept: list[tuple[int, Any]], vectors: Float32[np.ndarray, "n projection"], errors: list[Failure]
) -> EncodedBatch:
    indices = np.array([index for index, _ in kept], np.int64)
    return EncodedBatch([item for _, item in kept], vectors, indices, errors)
