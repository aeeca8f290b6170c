"""What is described, and where: maps of relevance and boxes."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from PIL import Image, ImageOps
from tqdm import tqdm

from jaxclip.batching import batch_sizes, padded, split
from jaxclip.clip import Clip
from jaxclip.processing import ImageError, ImageLike, open_image
from jaxclip.tasks.boxes import Box, Number, find_boxes, fuse_windows
from jaxclip.tasks.relevance import (
    agreed_relevance,
    coverage,
    cut_windows,
    interpolated,
    patch_similarities,
    relevance,
    window_corners,
    window_similarities,
)
from jaxclip.tasks.zero_shot import Classes, Labels, classes_of, scale_of

# What prompts compete with: what is around things, in photos of any kind.
BACKGROUND = (
    "the sky",
    "clouds",
    "water",
    "the sea",
    "sand",
    "snow",
    "the ground",
    "dirt",
    "rocks",
    "mountains",
    "grass",
    "leaves",
    "trees",
    "a road",
    "pavement",
    "a floor",
    "a carpet",
    "a wall",
    "a ceiling",
    "a building",
    "a fence",
    "cloth",
    "wood",
    "metal",
    "a shadow",
    "darkness",
    "a light",
    "a blurred background",
    "a plain background",
    "a texture",
)

# A photo's long side counts for at most so many of its short ones; longer strips are squeezed.
_LONGEST = 16
_RESOLUTION = {"dense": 2.0, "windows": 4.0}
# A patch sees little of a thing; a window that shows it whole is one that is more likely it than not.
THRESHOLDS = {"dense": 0.2, "windows": 0.5}


@dataclass(frozen=True)
class Prompts:
    """What is looked for.

    - `labels`: what the prompts are called
    - `embeddings`: theirs, and after them those of the background; unit length
    """

    labels: list[str]
    embeddings: Float32[np.ndarray, "classes projection"]


@dataclass(frozen=True)
class Detection:
    """Where in an image is what was described.

    - `image`: the file, or None
    - `size`: (width, height) in pixels, turned as EXIF says
    - `prompts`: what the descriptions are called
    - `cells`: from 0 to 1, how relevant each cell of the grid that the model saw is to each prompt
    - `boxes`: of each prompt, best first; in pixels of the image
    """

    image: Path | None
    size: tuple[int, int]
    prompts: list[str]
    cells: Float32[np.ndarray, "prompts rows columns"]
    boxes: dict[str, list[Box]]

    @cached_property
    def relevance(self) -> Float32[np.ndarray, "prompts height width"]:
        """The same for each pixel of the image: `cells`, interpolated."""
        return interpolated(self.cells, (self.size[1], self.size[0]))


def detect(
    clip: Clip,
    image: ImageLike,
    prompts: Labels | Classes | Prompts,
    *,
    method: str = "dense",
    background: Labels | Classes | None = BACKGROUND,
    templates: Sequence[str] = ("{}",),
    threshold: Number | None = None,
    resolution: Number | None = None,
    logit_scale: Number | None = None,
) -> Detection:
    """Finds in one image what is described.

    - `image`: a path, a file's contents, a PIL image or an array (height, width, channels)
    - `prompts`: descriptions, or ready-made embeddings, as the labels of `classify`; or what `prompts_of` made of them
    - `method`: "dense" is one pass of the image at each size, with `VisionTransformer.patch_features` for each patch;
      the sizes have to agree on what is relevant (`agreed_relevance`), and boxes are around what stands out in the map
      (`find_boxes`). "windows" puts many windows of several sizes through the whole encoder and spreads their
      similarities over what they cover; what is relevant by each size is averaged, and boxes are made of the windows
      themselves (`fuse_windows`). It takes many times as long
    - `background`: what the prompts compete with besides each other, prompts or embeddings as well: a place is relevant
      to a prompt where it is nearer to it than to these. None, and a model that has no text tower, for nothing else
    - `threshold`: what the score of a box must reach, from 0 to 1: for dense the highest relevance in it, 0.2 by
      default; for windows that of the best one, 0.5 by default
    - `resolution`: the largest of the sizes at which the image is seen, its short side in sides of what the model was
      trained on: 2 for dense; 4 for windows, the smallest of which are then a quarter of the image's short side. More
      finds smaller things
    - `logit_scale`: the logarithm of what cosines are multiplied by, the model's own by default

    Raises ImageError for an image that can't be read, ValueError for prompts as `classify`, for one prompt with nothing
    to compete with, and for a threshold, method or resolution that isn't one.
    """
    if method not in _RESOLUTION:
        raise ValueError(f"method must be one of {', '.join(_RESOLUTION)}, got {method!r}")
    threshold = THRESHOLDS[method] if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be from 0 to 1, got {threshold}")
    resolution = _RESOLUTION[method] if resolution is None else resolution
    if not 1 <= resolution < math.inf:
        raise ValueError(f"resolution must be a number from 1, got {resolution}")
    scale = scale_of(clip, logit_scale)
    asked = prompts if isinstance(prompts, Prompts) else prompts_of(clip, prompts, background, templates)
    opened = _opened(image)
    size = opened.size if isinstance(opened, Image.Image) else (opened.shape[1], opened.shape[0])
    if 0 in size:
        raise ImageError(f"the image has no pixels ({size[0]} × {size[1]}); leave it out")
    if method == "dense":
        similarities = _by_patches(clip, opened, size, asked.embeddings, resolution)
        cells = np.asarray(agreed_relevance(similarities, scale, prompts=len(asked.labels)))
        boxes = [find_boxes(found, size, threshold=threshold) for found in cells]
    else:
        levels = _by_windows(clip, opened, size, asked.embeddings, resolution)
        cells, boxes = _seen_in_windows(levels, size, scale, len(asked.labels), resolution, threshold)
    found = dict(zip(asked.labels, boxes, strict=True))
    return Detection(Path(image) if isinstance(image, str | os.PathLike) else None, size, asked.labels, cells, found)


def prompts_of(
    clip: Clip,
    prompts: Labels | Classes,
    background: Labels | Classes | None = BACKGROUND,
    templates: Sequence[str] = ("{}",),
) -> Prompts:
    """The embeddings of prompts and background as `detect` takes them, to be made once for many images."""
    asked = classes_of(clip, prompts, templates)
    if len(set(asked.labels)) < len(asked.labels):
        raise ValueError(f"a prompt is there twice: {', '.join(asked.labels)}")
    if background is BACKGROUND and clip.model.config.text is None:
        background = None
    if background is None:
        if len(asked.labels) < 2:
            raise ValueError("one prompt has nothing to compete with: pass another one, or a background")
        return Prompts(asked.labels, asked.embeddings)
    around = classes_of(clip, background, templates).embeddings
    # What is asked for does not compete with itself.
    same = (around @ asked.embeddings.T).max(axis=1) > 1 - 1e-5
    return Prompts(asked.labels, np.concatenate([asked.embeddings, around[~same]]))


def _opened(image: ImageLike) -> Image.Image | np.ndarray:
    if isinstance(image, str | os.PathLike | bytes):
        return open_image(image, exif_rotation=True)
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3):
        raise ImageError(f"an image is an array (height, width, channels), got the shape {pixels.shape}")
    return pixels


def _canvas(clip: Clip, image: Image.Image | np.ndarray, shape: tuple[int, int]) -> Float[Array, "height width 3"]:
    """The pixels that the model wants, of the whole image at another size."""
    size = {"height": shape[0], "width": shape[1]}
    processor = dataclasses.replace(clip.image_processor, do_resize=True, size=size, do_center_crop=False)
    return jnp.asarray(processor(image)[0])


def _fitted(size: tuple[int, int], short: Number, unit: int) -> tuple[int, int]:
    """(height, width) in proportion to `size` (width, height), the short side nearest to `short`, in whole units."""
    width, height = size
    factor = max(1, round(short / unit)) / min(width, height)
    longest = _LONGEST * max(1, round(short / unit))
    return min(longest, max(1, round(height * factor))) * unit, min(longest, max(1, round(width * factor))) * unit


def _factors(resolution: Number, largest_step: Number) -> Float[np.ndarray, " sizes"]:
    """From 1 to `resolution`, each the same number of times the one before."""
    # Rounding makes the logarithm of a power a bit more than its exponent.
    return np.geomspace(1, resolution, 1 + math.ceil(math.log(resolution, largest_step) - 1e-9))


def _by_patches(
    clip: Clip,
    image: Image.Image | np.ndarray,
    size: tuple[int, int],
    embeddings: Float[np.ndarray, "classes projection"],
    resolution: Number,
) -> Float[np.ndarray, "sizes rows columns classes"]:
    """At each size, on the grid of the largest; in overlapping square tiles, of the image's short side where that is at
    most twice what the model was trained on."""
    config = clip.model.tower("vision").config
    patch = config.patch_size
    shapes = [
        _fitted(size, factor * config.grid_size * patch, patch) for factor in _factors(resolution, largest_step=2)
    ]
    grids = [(height // patch, width // patch) for height, width in shapes]
    tiles = [min(*grid, 2 * config.grid_size) for grid in grids]
    corners = [window_corners(*grid, tile, -(-tile * 3 // 4)) for grid, tile in zip(grids, tiles, strict=True)]
    found = []
    with tqdm(desc="tiles", unit="tile", total=sum(map(len, corners)), disable=None, delay=2, leave=False) as bar:
        for shape, grid, tile, places in zip(shapes, grids, tiles, corners, strict=True):
            pixels = _canvas(clip, image, shape)
            total, count = np.zeros((len(embeddings), *grid), np.float32), np.zeros(grid, np.float32)
            for y, x in places.tolist():
                seen = pixels[y * patch : (y + tile) * patch, x * patch : (x + tile) * patch]
                similarities = np.asarray(patch_similarities(clip.model, seen[None], embeddings))[0]
                total[:, y : y + tile, x : x + tile] += np.moveaxis(similarities, -1, 0)
                count[y : y + tile, x : x + tile] += 1
                bar.update()
            found.append(interpolated(total / count, grids[-1]))
    return np.moveaxis(np.stack(found), 1, -1)


@dataclass(frozen=True)
class _Level:
    """The windows over the image at one size.

    - `shape`: (height, width) of the image, in pixels
    - `corners`: the windows' upper left ones, as (row, column)
    - `side`: of the windows
    - `similarities`: the cosine of each with each class
    """

    shape: tuple[int, int]
    corners: Int[np.ndarray, "windows 2"]
    side: int
    similarities: Float[np.ndarray, "windows classes"]

    def edges(self, size: tuple[int, int]) -> Float[np.ndarray, "windows 4"]:
        """(x0, y0, x1, y1) of each, in pixels of an image of `size` (width, height)."""
        y, x = (self.corners * (np.asarray([size[1], size[0]]) / self.shape)).T
        height, width = self.side * size[1] / self.shape[0], self.side * size[0] / self.shape[1]
        # The last ones end with the image, whatever rounding says.
        return np.minimum(np.stack([x, y, x + width, y + height], axis=1), [*size, *size])


def _by_windows(
    clip: Clip,
    image: Image.Image | np.ndarray,
    size: tuple[int, int],
    embeddings: Float[np.ndarray, "classes projection"],
    resolution: Number,
) -> list[_Level]:
    """By windows of the model's own size, a quarter of it apart, over the image at each size."""
    side = clip.model.tower("vision").config.image_size
    sizes = batch_sizes(clip.encoder.batch_size("image"))
    shapes = [_fitted(size, factor * side, 1) for factor in _factors(resolution, largest_step=math.sqrt(2))]
    corners = [window_corners(*shape, side, side // 4) for shape in shapes]
    levels = []
    with tqdm(desc="windows", unit="window", total=sum(map(len, corners)), disable=None, delay=2, leave=False) as bar:
        for shape, places in zip(shapes, corners, strict=True):
            pixels = _canvas(clip, image, shape)
            found = []
            for rows, batch in split(len(places), sizes):
                windows = cut_windows(pixels, padded(places[rows], batch), size=side)
                kept = len(places[rows])
                found.append(np.asarray(window_similarities(clip.model, windows, embeddings))[:kept])
                bar.update(kept)
            levels.append(_Level(shape, places, side, np.concatenate(found)))
    return levels


def _seen_in_windows(
    levels: list[_Level],
    size: tuple[int, int],
    scale: Number,
    prompts: int,
    resolution: Number,
    threshold: Number,
) -> tuple[Float32[np.ndarray, "prompts rows columns"], list[list[Box]]]:
    """The mean of what is relevant by the windows of each size, on four cells to the side of the smallest window; and
    boxes around what the windows show."""
    grid = _fitted(size, 4 * math.ceil(resolution), 1)
    maps, scores = [], []
    for level in levels:
        near = coverage(level.corners, level.side, level.shape, grid)
        spread = np.einsum("rcw,wk->rck", near, level.similarities)
        maps.append(np.asarray(relevance(spread, scale, prompts=prompts)))
        scores.append(np.asarray(relevance(level.similarities, scale, prompts=prompts)))
    edges = np.concatenate([level.edges(size) for level in levels])
    boxes = [fuse_windows(edges, of_prompt, threshold=threshold) for of_prompt in np.concatenate(scores, axis=1)]
    return np.asarray(np.mean(maps, axis=0), np.float32), boxes
