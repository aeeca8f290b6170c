"""Strings to token ids and images to pixels, bit for bit as the reference does; NumPy only, no JAX."""

from jaxclip.processing.decoding import ImageError, open_image
from jaxclip.processing.image_processor import ImageLike, ImageProcessor, is_single_image
from jaxclip.processing.tokenizer import FILES as TOKENIZER_FILES
from jaxclip.processing.tokenizer import TokenBatch, Tokenizer

__all__ = [
    "TOKENIZER_FILES",
    "ImageError",
    "ImageLike",
    "ImageProcessor",
    "TokenBatch",
    "Tokenizer",
    "is_single_image",
    "open_image",
]
