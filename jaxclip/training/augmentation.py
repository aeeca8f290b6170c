"""Random changes of an image that keep what it shows."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random crop resized to the model's size, and what else is to change, drawn anew for each image.

    - `ratio`: the crop's width divided by its height, from and to, on a logarithmic scale
    - `scale`: its part of the area that a crop of that ratio can have at most, from and to
    - `flip`: the probability of a mirror image. Captions with "left" in them are then wrong.
    - `jitter`: how far brightness, contrast, saturation (factors 1 ± jitter) and hue (± jitter / 4 of the circle)
      change, in random order
    - `jitter_probability`, `grey`, `blur`: the probabilities of jitter, of no colours, and of a Gaussian blur with σ
      from 0.1 to 2 pixels

    The defaults are CLIP's: "a random square crop from resized images is the only data augmentation" (arXiv
    2103.00020, section 2.3), with open_clip's scale. But for what scale means the operations are torchvision's on PIL
    images: there it is of the whole image, and the middle is taken where such a crop doesn't fit, which at 0.9 of a 3:2
    photo is always.

    Raises ValueError for probabilities and ranges that are none.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    jitter: float = 0.0
    jitter_probability: float = 1.0
    grey: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter_probability", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two parts of the area, rising, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two positive numbers, rising, got {self.ratio}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be from 0 to 1, got {self.jitter}")

    def __call__(
        self, image: Image.Image, size: tuple[int, int], rng: np.random.Generator, *, resample: int
    ) -> Image.Image:
        """An RGB image of `size` (height, width) from an RGB image; `resample` is a `PIL.Image.Resampling`."""
        left, top, width, height = self._crop(image.width, image.height, rng)
        # Cropped first: Pillow's resize to a box would let pixels outside of it bleed in.
        image = image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), resample)
        if self.flip and rng.random() < self.flip:
            image = ImageOps.mirror(image)
        if self.jitter and rng.random() < self.jitter_probability:
            image = _jittered(image, self.jitter, rng)
        if self.grey and rng.random() < self.grey:
            image = image.convert("L").convert("RGB")
        if self.blur and rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        return image

    def _crop(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, top, width and height, in pixels."""
        low, high = map(math.log, self.ratio)
        ratio = math.exp(rng.uniform(low, high))
        largest = min(width, height * ratio)
        wide = largest * math.sqrt(rng.uniform(*self.scale))
        w, h = (max(1, round(edge)) for edge in (wide, wide / ratio))
        return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h


# SimCLR's with colour distortion of strength 1 (arXiv 2002.05709, appendix A).
AUGMENTATIONS = {
    "clip": Augmentation(),
    "simclr": Augmentation(
        scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, jitter=0.8, jitter_probability=0.8, grey=0.2, blur=0.5
    ),
}


def _jittered(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    for operation in rng.permutation(4):
        if operation == 3:
            image = _hue_shifted(image, rng.uniform(-strength / 4, strength / 4))
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
            image = enhance(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _hue_shifted(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    steps = round(shift * 256)
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
