"""Where in an image is what is described: maps over its patches or over windows of it. Functions of arrays, for
`jax.jit` and `jax.vmap`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclip.nn import CLIP
from jaxclip.similarity import cosine_similarity


@jax.jit
def patch_similarities(
    model: CLIP,
    pixels: Float[Array, "batch height width channels"],
    embeddings: Float[Array, "classes projection"],
) -> Float[Array, "batch rows columns classes"]:
    """The cosine of each patch with each class, in one pass (`VisionTransformer.patch_features`)."""
    features = model.tower("vision").patch_features(pixels)
    flat = cosine_similarity(features.reshape(-1, features.shape[-1]), embeddings)
    return flat.reshape(*features.shape[:3], len(embeddings))


@partial(jax.jit, static_argnames="size")
def cut_windows(
    image: Float[Array, "height width channels"], corners: Int[Array, "windows 2"], *, size: int
) -> Float[Array, "windows size size channels"]:
    """The squares of `size` pixels whose upper left corners are given, as (row, column)."""
    shape = (size, size, image.shape[2])
    return jax.vmap(lambda corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape))(corners)


@jax.jit
def window_similarities(
    model: CLIP,
    windows: Float[Array, "windows size size channels"],
    embeddings: Float[Array, "classes projection"],
) -> Float[Array, "windows classes"]:
    """The cosine of each window, an image of its own, with each class."""
    return cosine_similarity(model.encode_image(windows), embeddings)


def window_corners(height: int, width: int, size: int, stride: int) -> Int[np.ndarray, "windows 2"]:
    """Upper left corners of windows that cover an image to its edges, row by row: at most `stride` pixels apart, and
    evenly."""
    rows, columns = (starts(edge, size, stride) for edge in (height, width))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def starts(length: int, size: int, stride: int) -> Int[np.ndarray, " n"]:
    """Where pieces of `size` begin that cover `length`, evenly and at most `stride` apart."""
    if not 1 <= size <= length or stride < 1:
        raise ValueError(f"pieces of {size}, at most {stride} apart, can't cover {length}")
    return np.round(np.linspace(0, length - size, -(-(length - size) // stride) + 1)).astype(np.int32)


def coverage(
    corners: Int[np.ndarray, "windows 2"], size: int, shape: tuple[int, int], grid: tuple[int, int]
) -> Float[np.ndarray, "rows columns windows"]:
    """What each window says of each cell of a grid over an image of `shape` (height, width), as weights that sum to 1
    over the windows: `einsum("rcw,wk->rck", coverage, similarities)` spreads their similarities over the cells.

    A window counts most for the cell in its middle, a 64th of that a quarter of its side from there, and nothing for
    those outside it: what a window shows is mostly in its middle, as it is cropped, and where windows lie close
    together the next one says more of the rest. Raises ValueError where a cell is in no window.
    """
    inside = []
    for axis in (0, 1):
        cells = (np.arange(grid[axis]) + 0.5) * (shape[axis] / grid[axis])
        middles = corners[:, axis] + size / 2
        # Half a pixel more, for cells that lie on the image's very edge.
        inside.append(np.maximum(0, 1 - np.abs(cells[:, None] - middles) / (size / 2 + 0.5)) ** 6)
    weights = inside[0][:, None] * inside[1][None]
    total = weights.sum(axis=-1, keepdims=True)
    if not total.all():
        raise ValueError(f"the windows leave out a part of the {grid[0]} × {grid[1]} cells")
    return (weights / total).astype(np.float32)


@partial(jax.jit, static_argnames="prompts")
def relevance(
    similarities: Float[Array, "*places classes"], scale: Float[Array, ""] | int | float, *, prompts: int
) -> Float[Array, "prompts *places"]:
    """The probability of each of the first `prompts` classes at each place, where all classes compete: their softmax
    of `scale` times the cosine."""
    probabilities = jax.nn.softmax(scale * similarities, axis=-1)
    return jnp.moveaxis(probabilities[..., :prompts], -1, 0)


@partial(jax.jit, static_argnames="prompts")
def agreed_relevance(
    similarities: Float[Array, "views *places classes"], scale: Float[Array, ""] | int | float, *, prompts: int
) -> Float[Array, "prompts *places"]:
    """The geometric mean of `relevance` by several views of the same places: high where all of them are."""
    logarithms = jax.nn.log_softmax(scale * similarities, axis=-1)[..., :prompts].mean(axis=0)
    return jnp.moveaxis(jnp.exp(logarithms), -1, 0)


def interpolated(
    cells: Float[np.ndarray, "*maps rows columns"], shape: tuple[int, int]
) -> Float[np.ndarray, "*maps height width"]:
    """A map on cells as one on pixels: linear between the cells' centres, constant beyond the outermost."""
    along = [_linear(cells.shape[axis], size) for axis, size in ((-2, shape[0]), (-1, shape[1]))]
    return np.einsum("yr,...rc->...yc", along[0], np.einsum("...rc,xc->...rx", cells, along[1]))


def _linear(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    at = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))).astype(np.float32)
