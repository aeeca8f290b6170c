"""Preprocessing with one mistake each, by plain NumPy and Pillow, and what is to be found.

It shares nothing with `jaxclip.compare.preprocessing`, which is under test.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from jaxclip.compare.inputs import example_images
from jaxclip.processing import ImageProcessor

OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CALLED = {OPENAI: "OpenAI's CLIP's", IMAGENET: "ImageNet's", HALF: "0.5 and 0.5"}
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def resized(how: Image.Resampling) -> Callable:
    return lambda image, height, width: np.asarray(Image.fromarray(image).resize((width, height), how))


@dataclass(frozen=True)
class Preprocessing:
    """What a `preprocessor_config.json` says, and `resize` on: what a port makes of it."""

    size: int
    crop: int
    statistics: tuple = OPENAI
    filter: Image.Resampling = BICUBIC
    resize: Callable | None = None
    offset: Callable[[int], int] = lambda extra: extra // 2
    scale: float = 1 / 255
    channels: tuple[int, ...] = (0, 1, 2)
    stretch: bool = False

    def processor(self) -> ImageProcessor:
        mean, std = self.statistics
        crop = {"height": self.crop, "width": self.crop}
        return ImageProcessor(
            size={"shortest_edge": self.size}, crop_size=crop, image_mean=mean, image_std=std, resample=self.filter
        )

    def __call__(self, images) -> np.ndarray:
        made = []
        for image in images:
            height, width = image.shape[:2]
            sides = (int(self.size * edge / min(height, width)) for edge in (height, width))
            shape = (self.size, self.size) if self.stretch else tuple(sides)
            pixels = (self.resize or resized(self.filter))(image[..., self.channels], *shape)
            top, left = (self.offset(edge - self.crop) for edge in pixels.shape[:2])
            made.append(pixels[top : top + self.crop, left : left + self.crop] * self.scale)
        mean, std = map(np.asarray, self.statistics)
        return ((np.stack(made) - mean) / std).astype(np.float32)


CONFIGURATIONS = {
    "openai": Preprocessing(60, 53),
    "half": Preprocessing(48, 41, HALF),
    "bilinear": Preprocessing(56, 45, IMAGENET, BILINEAR),
}


def point_by_point(a: float) -> Callable:
    """Cubic interpolation of the four nearest points along each axis, without antialiasing."""

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0

    def along(image, size):
        scale = len(image) / size
        rows = []
        for i in range(size):
            center = (i + 0.5) * scale - 0.5
            first = int(np.floor(center)) - 1
            rows.append(
                sum(kernel(center - j) * image[min(max(j, 0), len(image) - 1)] for j in range(first, first + 4))
            )
        return np.stack(rows)

    def interpolate(image, height, width):
        x = along(along(image.astype(float), height).swapaxes(0, 1), width).swapaxes(0, 1)
        return np.clip(np.round(x), 0, 255).astype(np.uint8)

    return interpolate


def bilinear_without_antialiasing(image, height, width):
    step = image.shape[1] / width, image.shape[0] / height
    affine = step[0], 0, 0, 0, step[1], 0
    padded = Image.fromarray(np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge"))
    return np.asarray(padded.transform((width, height), Image.Transform.AFFINE, affine, BILINEAR))


def mistakes(right: Preprocessing) -> dict[str, Preprocessing]:
    """By what the mistake is called."""
    own = right.filter.name.lower()
    filters = (BICUBIC, BILINEAR, Image.Resampling.NEAREST)
    mean, std = right.statistics
    nothing, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    changes = {
        **{
            f"resized with {how.name.lower()} instead of {own} filter": {"resize": resized(how)}
            for how in filters
            if how != right.filter
        },
        "resized without antialiasing (bicubic, a = −0.75)": {"resize": point_by_point(-0.75)},
        "resized without antialiasing (bicubic, a = −0.5)": {"resize": point_by_point(-0.5)},
        "resized without antialiasing (bilinear)": {"resize": bilinear_without_antialiasing},
        "stretched to a square": {"stretch": True},
        "offset of the crop rounded up": {"offset": lambda extra: (extra + 1) // 2},
        "offset of the crop rounded instead of floored": {"offset": lambda extra: round(extra / 2)},
        "offset of the crop 0: the top left corner": {"offset": lambda extra: 0},
        "red and blue swapped (BGR)": {"channels": (2, 1, 0)},
        "not divided by 255": {"scale": 1},
        "divided by 255 twice": {"scale": 1 / 255**2},
        "mean and standard deviation not applied": {"statistics": (nothing, one)},
        "mean not subtracted": {"statistics": (nothing, std)},
        "not divided by the standard deviation": {"statistics": (mean, one)},
        **{
            f"mean and standard deviation {name} instead of the checkpoint's": {"statistics": statistics}
            for statistics, name in CALLED.items()
            if statistics != right.statistics
        },
    }
    return {cause: replace(right, **changed) for cause, changed in changes.items()}


def tied(right: Preprocessing, cause: str) -> set[str]:
    """What the data may not tell from this mistake, itself among it."""
    ties = [{"offset of the crop rounded up", "offset of the crop rounded instead of floored"}]
    if right.statistics == HALF:
        ties.append({"red and blue swapped (BGR)", "red and blue swapped after the normalisation"})
    return next((tie for tie in ties if cause in tie), {cause})


def unknown(right: Preprocessing) -> list[Preprocessing]:
    """Mistakes that are not among the known ones: nothing may be named for them."""
    mean, std = right.statistics
    changes = [
        {"statistics": (tuple(1.05 * np.asarray(mean)), std)},
        {"channels": (1, 0, 2)},
        {"resize": lambda image, *shape: resized(right.filter)(image[::-1], *shape)},
        {"offset": lambda extra: max(extra // 2 - 2, 0)},
        {"channels": (2, 1, 0), "scale": 1},
    ]
    return [replace(right, **changed) for changed in changes]


def pictures(seed: int) -> tuple[np.ndarray, ...]:
    """Parts of the examples, another one by each seed."""
    generator, parts = np.random.default_rng(seed), []
    for image in example_images():
        height, width = image.shape[0] // 2 + 3 * seed, image.shape[1] // 2 + seed
        top, left = generator.integers(image.shape[0] - height + 1), generator.integers(image.shape[1] - width + 1)
        parts.append(image[top : top + height, left : left + width])
    return tuple(parts)
