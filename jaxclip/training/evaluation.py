"""Retrieval on held-out pairs: recall@k from texts to images and from images to texts."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Integer

from jaxclip.batching import padded
from jaxclip.clip import Clip
from jaxclip.processing import ImageLike
from jaxclip.similarity import dot_product, normalize
from jaxclip.training.captions import Source

CUTOFFS = (1, 5, 10)

# Scores computed at a time: 64 MiB.
_SCORES = 1 << 24


@dataclass(frozen=True)
class Retrieval:
    """Recall at each of `CUTOFFS`: the part of the queries that find what belongs to them among the first k.

    - `text_to_image`: a text finds its image
    - `image_to_text`: an image finds any of its texts
    - `images`, `texts`: how many there are
    - `skipped`: images that couldn't be read or have no text
    """

    text_to_image: dict[int, float]
    image_to_text: dict[int, float]
    images: int
    texts: int
    skipped: int = 0


def retrieval(
    image_features: Float[np.ndarray, "images width"] | Float[Array, "images width"],
    text_features: Float[np.ndarray, "texts width"] | Float[Array, "texts width"],
    image_of_text: Integer[np.ndarray, " texts"],
) -> Retrieval:
    """How well texts and images find one another by cosine, where text i belongs to image `image_of_text[i]`.

    Exact, and in blocks of queries. Items of equal score (in float32) come in random order, and each query counts with
    the probability that it then finds: with k − g places left below the g items that score higher, t that score as the
    best right one does, of which r are right, that is 1 − C(t − r, k − g) / C(t, k − g), or 0 without a place. So a
    model that gives everything one vector is at chance, and the order of the data makes no difference.

    Raises ValueError for features of different widths or that aren't finite, and for texts without an image or images
    without a text. The cut-offs, and any of an image's texts: as in CLIP, arXiv 2103.00020, table 13.
    """
    images, texts = (jnp.asarray(features, jnp.float32) for features in (image_features, text_features))
    owners = np.asarray(image_of_text)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1] or owners.shape != texts.shape[:1]:
        raise ValueError(
            "image_features must be (images, width), text_features (texts, width) and image_of_text (texts,), got "
            f"{images.shape}, {texts.shape} and {owners.shape}"
        )
    numbers = np.arange(len(images))
    outside, lonely = np.setdiff1d(owners, numbers), np.setdiff1d(numbers, owners)
    if len(outside) or len(lonely) or not len(images):
        raise ValueError(
            f"every text must belong to one of the {len(images)} images and every image have a text; got texts of "
            f"images {outside[:3].tolist()} and none of {lonely[:3].tolist()}"
        )
    for name, features in (("image_features", images), ("text_features", texts)):
        if not jnp.isfinite(features).all():
            raise ValueError(f"{name} must be finite: the model has diverged, or a cached row is of a damaged image")
    images, texts = normalize(images), normalize(texts)
    return Retrieval(
        text_to_image=_recall(texts, owners, images, numbers),
        image_to_text=_recall(images, numbers, texts, owners),
        images=len(images),
        texts=len(texts),
    )


def evaluate_retrieval(
    clip: Clip,
    source: Source,
    *,
    image_features: Float[np.ndarray, "samples projection"] | None = None,
    batch_size: int | None = None,
) -> Retrieval:
    """`retrieval` of a source's images and all their captions, with a handle's model.

    `image_features` are a locked tower's (`cache_image_features`), and spare encoding the images. Photos are turned as
    their EXIF orientation says. Samples that can't be read or have no caption are left out and counted. Raises
    ValueError when nothing is left, and as `retrieval` does.
    """
    captions: dict[int, tuple[str, ...]] = {}

    def images() -> Iterator[ImageLike]:
        for index in range(len(source)):
            try:
                sample = source[index]
            except (OSError, ValueError):
                yield b""  # No image either, so that it is found among the errors, in its place.
            else:
                captions[index] = sample.captions
                yield sample.image

    if image_features is None:
        vectors = np.full((len(source), clip.model.tower("vision").config.projection_dim or 0), np.nan, np.float32)
        for batch in clip.stream_images(images(), exif_rotation=True, batch_size=batch_size):
            vectors[batch.indices] = batch.vectors
    else:
        for _ in images():
            pass
        vectors = np.asarray(image_features)
    readable = np.isfinite(vectors.sum(axis=1))
    kept = [index for index, texts in captions.items() if texts and readable[index]]
    if not kept:
        raise ValueError(f"not one of {len(source)} samples has a caption and an image that can be read")
    texts = [caption for index in kept for caption in captions[index]]
    owners = np.repeat(np.arange(len(kept)), [len(captions[index]) for index in kept])
    encoded = np.concatenate([batch.vectors for batch in clip.stream_texts(texts, batch_size=batch_size)])
    found = retrieval(vectors[kept], encoded, owners)
    return Retrieval(**{**vars(found), "skipped": len(source) - len(kept)})


def _recall(
    queries: Float[Array, "n width"],
    query_labels: Integer[np.ndarray, " n"],
    items: Float[Array, "m width"],
    item_labels: Integer[np.ndarray, " m"],
) -> dict[int, float]:
    """An item is right for a query when their labels are equal."""
    block = max(1, min(len(queries), _SCORES // len(items)))
    labels = jnp.asarray(item_labels)
    counts = []
    for start in range(0, len(queries), block):
        some = slice(start, start + block)
        # One shape for all blocks, so that one program is compiled.
        rows, row_labels = padded(np.asarray(queries[some]), block), padded(query_labels[some], block)
        counts.append(np.stack(_counts(rows, row_labels, items, labels))[:, : len(queries) - start])
    higher, tied, right = np.concatenate(counts, axis=1)
    return {k: float(_found(k, higher, tied, right).mean()) for k in CUTOFFS}


@jax.jit
def _counts(
    queries: Float[Array, "n width"],
    query_labels: Integer[Array, " n"],
    items: Float[Array, "m width"],
    item_labels: Integer[Array, " m"],
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]:
    """For each query the items that score higher than its best right one, those that score the same, and how many of
    these are right."""
    scores = dot_product(queries, items)
    right = query_labels[:, None] == item_labels
    best = jnp.max(jnp.where(right, scores, -jnp.inf), axis=1, keepdims=True)
    tied = scores == best
    return (scores > best).sum(axis=1), tied.sum(axis=1), (tied & right).sum(axis=1)


def _found(
    k: int, higher: Int[np.ndarray, " n"], tied: Int[np.ndarray, " n"], right: Int[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    places = np.clip(k - higher, 0, tied)
    # C(tied − right, places) / C(tied, places): what is right misses all places, one after the other.
    missed = np.ones(len(tied))
    for i in range(int(right.max())):
        one = np.maximum(tied - places - i, 0) / np.maximum(tied - i, 1)
        missed *= np.where(i < right, one, 1.0)
    return 1 - missed
