"""What models are compared on: strings and images, or the arrays that were made of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxclip.config import CLIPConfig

TEXTS = (
    "a photo of a cat",
    "two dogs running across a frosty field",
    "Ein Café, 2 Äpfel!",
    "a very detailed description of what can be seen in this picture: it's a small red boat, and its sail is torn",
)
# Height and width: both shapes of a rectangle, one image smaller than most models', and odd remainders of a crop.
_IMAGE_SIZES = ((240, 320), (360, 200), (150, 150), (333, 517))


@dataclass(frozen=True)
class Inputs:
    """Of texts the strings or the token ids, of images RGB pixels of 8 bits or what a vision tower takes. Where both
    are there, the latter are what one side made of the former."""

    texts: tuple[str, ...] | None = None
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...] | None = None
    token_ids: Int[np.ndarray, "texts tokens"] | None = None
    attention_mask: Int[np.ndarray, "texts tokens"] | Bool[np.ndarray, "texts tokens"] | None = None
    position_ids: Int[np.ndarray, "_ tokens"] | None = None
    pixels: Float[np.ndarray, "images height width channels"] | None = None

    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """As the oracle takes them."""
        return self.token_ids, self.pixels, self.attention_mask, self.position_ids

    def tensors(self) -> dict[str, np.ndarray]:
        """As a capture holds them."""
        kept: dict[str, Any] = {
            "input_ids": self.token_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "pixel_values": None if self.pixels is None else self.pixels.transpose(0, 3, 1, 2),
        }
        kept |= {f"texts.{i}": np.frombuffer(text.encode(), np.uint8) for i, text in enumerate(self.texts or ())}
        kept |= {f"images.{i}": image for i, image in enumerate(self.images or ())}
        return {name: np.asarray(value) for name, value in kept.items() if value is not None}

    def of_rows(self, rows: Int[np.ndarray, " rows"], *, texts: bool) -> "Inputs":
        """Some of the texts alone, or some of the images, as a tower takes them."""
        if not texts:
            assert self.pixels is not None
            return Inputs(pixels=self.pixels[rows])
        assert self.token_ids is not None
        mask, positions = self.attention_mask, self.position_ids
        return Inputs(
            token_ids=self.token_ids[rows],
            attention_mask=None if mask is None else mask[rows],
            position_ids=positions if positions is None or len(positions) == 1 else positions[rows],
        )


def example_images() -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """Photos would be large; these have what a photo has: edges, gradients, detail finer than a resized pixel, and
    another content in each channel."""
    images = []
    for index, (height, width) in enumerate(_IMAGE_SIZES):
        y, x = np.mgrid[:height, :width] / min(height, width)
        rings = np.cos((30 + 9 * index) * ((x - 0.4) ** 2 + (y - 0.6) ** 2) * np.array([1.0, 1.7, 2.6])[:, None, None])
        edges = np.sign(np.sin(11 * x + 3 * index) + np.sin(9 * y - x))
        detail = np.random.default_rng(index).uniform(-1, 1, (3, height, width))
        slope = np.stack([x - y, y, 1 - x])
        mixed = 0.45 * rings + 0.2 * edges + 0.2 * detail + 0.3 * slope
        images.append(np.clip(127.5 + 110 * mixed, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy())
    return tuple(images)


def example_token_ids(config: CLIPConfig) -> Int[np.ndarray, "texts tokens"]:
    """For a model without a tokenizer: random texts of several lengths, padded with the token that ends them."""
    text = config.text
    assert text is not None
    generator = np.random.default_rng(0)
    end = text.vocab_size - 1 if text.pooling == "largest_id" else text.eos_token_id
    longest = min(16, text.max_position_embeddings - 1)  # Positions that are off by one shouldn't run out.
    rows = np.full((len(TEXTS), longest), end, np.int32)
    for row, length in zip(rows, np.linspace(longest / 2, longest, len(rows)).astype(int), strict=True):
        words = generator.integers(0, text.vocab_size, length - 1)
        row[: length - 1] = np.where(words == end, 0, words)
    if text.pooling == "largest_id":
        rows[:, 2] = text.eos_token_id  # What a port that takes config.json at its word would look for.
    return rows


def example_pixels(config: CLIPConfig) -> Float[np.ndarray, "images height width channels"]:
    """For a model without an image processor: noise of unit variance."""
    vision = config.vision
    assert vision is not None
    shape = len(_IMAGE_SIZES), vision.image_size, vision.image_size, vision.num_channels
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
