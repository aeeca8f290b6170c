"""The images and settings of the committed reference pixels, made by whole-number arithmetic so that no file is needed.

`scripts/write_processing_references.py` runs them through transformers, `test_image_processor.py` through jaxclip.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def pattern(height: int, width: int, channels: int = 3) -> np.ndarray:
    """uint8 (height, width, channels): smooth enough for resizing to matter, irregular enough to catch a shift."""
    y, x, channel = np.indices((height, width, channels))
    return ((x * 11 + y * 7 + channel * 53 + (x * y) // 3 + 29 * ((x ^ y) % 5)) % 256).astype(np.uint8)


def in_mode(mode: str, height: int, width: int, **info: Any) -> Image.Image:
    """A Pillow image of any mode, with `info` as its file would have brought it."""
    bands = pattern(height, width, 4)
    if mode == "P":
        image = Image.fromarray(bands[..., 0]).convert("P")
        image.putpalette(pattern(16, 16, 3).tobytes())
    elif mode == "1":
        image = Image.fromarray(bands[..., 0]).convert("1")
    elif mode == "I;16":
        image = Image.fromarray(bands[..., 0].astype(np.uint16) * 4)
    elif mode == "I":
        image = Image.fromarray(bands[..., 0].astype(np.int32) * 3 - 200)
    elif mode == "F":
        image = Image.fromarray(bands[..., 0].astype(np.float32) * 1.25 - 20.5)
    else:
        count = len(Image.new(mode, (1, 1)).getbands())
        image = Image.frombytes(mode, (width, height), bands[..., :count].tobytes())
    image.info.update(info)
    return image


def animation() -> Image.Image:
    """A GIF of two frames, opened lazily as a user would."""
    first, second = in_mode("P", 20, 31), in_mode("P", 20, 31).transpose(Image.Transpose.ROTATE_180)
    file = BytesIO()
    first.save(file, "GIF", save_all=True, append_images=[second])
    return Image.open(file)


IMAGES: Mapping[str, Callable[[], Image.Image | np.ndarray]] = {
    "tall": lambda: in_mode("RGB", 47, 29),
    "wide": lambda: in_mode("RGB", 23, 50),
    "square": lambda: in_mode("RGB", 31, 31),
    "small": lambda: in_mode("RGB", 5, 8),
    "one_pixel": lambda: in_mode("RGB", 1, 1),
    "one_wide": lambda: in_mode("RGB", 40, 1),
    "long": lambda: in_mode("RGB", 3, 120),
    "L": lambda: in_mode("L", 20, 31),
    "L_transparent": lambda: in_mode("L", 20, 31, transparency=53),
    "LA": lambda: in_mode("LA", 20, 31),
    "RGB_transparent": lambda: in_mode("RGB", 20, 31, transparency=(0, 53, 106)),
    "RGBA": lambda: in_mode("RGBA", 20, 31),
    "P": lambda: in_mode("P", 20, 31),
    "P_transparent": lambda: in_mode("P", 20, 31, transparency=11),
    "P_translucent": lambda: in_mode("P", 20, 31, transparency=pattern(16, 16, 1).tobytes()),
    "1": lambda: in_mode("1", 20, 31),
    "CMYK": lambda: in_mode("CMYK", 20, 31),
    "YCbCr": lambda: in_mode("YCbCr", 20, 31),
    "HSV": lambda: in_mode("HSV", 20, 31),
    "I;16": lambda: in_mode("I;16", 20, 31),
    "I": lambda: in_mode("I", 20, 31),
    "F": lambda: in_mode("F", 20, 31),
    "animation": animation,
    "uint8": lambda: pattern(20, 31),
    "uint8_grey": lambda: pattern(20, 31, 1),
    "uint8_alpha": lambda: pattern(20, 31, 4),
    "int64": lambda: pattern(20, 31).astype(np.int64),
    "uint16_alpha": lambda: pattern(20, 31, 4).astype(np.uint16),
    "bool": lambda: pattern(20, 31) > 99,
    "float32_255": lambda: pattern(20, 31).astype(np.float32),
    "float32": lambda: pattern(20, 31).astype(np.float32) / 255,
    "float64": lambda: pattern(20, 31) / 255,
    "float16": lambda: (pattern(20, 31) / 255).astype(np.float16),
    "float32_grey": lambda: pattern(20, 31, 1).astype(np.float32) / 255,
    "float64_alpha": lambda: pattern(20, 31, 4) / 255,
}

BASE: Mapping[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "base": BASE,
    "legacy_sizes": {"size": 16, "crop_size": 16, "feature_extractor_type": "CLIPFeatureExtractor"},
    "list_sizes": {"size": [14, 19], "crop_size": [11, 16]},
    "square_size": {**BASE, "size": 16, "default_to_square": True},
    "height_width": {**BASE, "size": {"height": 18, "width": 21}},
    "longest_edge": {"size": {"shortest_edge": 16, "longest_edge": 25}, "do_center_crop": False},
    "longest_edge_kept": {"size": {"shortest_edge": 30, "longest_edge": 49}, "do_center_crop": False},
    "max_height_width": {"size": {"max_height": 14, "max_width": 17}, "do_center_crop": False},
    **{f"resample_{filter}": {**BASE, "resample": filter} for filter in range(6)},
    "no_crop": {**BASE, "do_center_crop": False},
    "odd_crop": {**BASE, "crop_size": {"height": 15, "width": 13}},
    "larger_crop": {**BASE, "crop_size": {"height": 21, "width": 45}},
    "no_resize": {**BASE, "do_resize": False},
    "no_rescale": {**BASE, "do_rescale": False},
    "other_factor": {**BASE, "rescale_factor": 1 / 127.5},
    "no_normalize": {**BASE, "do_normalize": False},
    "only_geometry": {**BASE, "do_rescale": False, "do_normalize": False},
    "scalar_mean": {**BASE, "image_mean": 0.5, "image_std": 0.25},
    "other_mean": {**BASE, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.8, 0.9]},
    "nulls": {**BASE, "do_resize": None, "size": None, "resample": None, "do_rescale": None},
    "as_it_is": {**BASE, "do_convert_rgb": False, "do_normalize": False},
    "untouched": dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), False),
}
"""`preprocessor_config.json` in every form that CLIP checkpoints, old and new, have them."""

UNIT_FLOATS = ("float32", "float64", "float16", "float32_grey", "float64_alpha")
"""Floats in [0, 1], which jaxclip takes only without rescaling."""

CASES = [
    *((image, "no_rescale" if image in UNIT_FLOATS else "base") for image in IMAGES),
    *((image, config) for config in CONFIGS for image in ("tall", "wide", "small") if config != "base"),
    *((image, "as_it_is") for image in ("L", "LA", "RGBA", "P", "1", "uint8_alpha", "uint8_grey", "float32_255")),
    *((image, "untouched") for image in ("L", "RGBA", "P", "1", "I;16", "I", "F", "float64", "float16", "bool")),
    *((image, "no_resize") for image in ("int64", "uint16_alpha", "float32_255", "RGBA")),
]
