"""Images to the model's pixels, bit for bit as transformers' `CLIPImageProcessorPil` 5.23 makes them."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Shaped
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from jaxclip.processing.decoding import ImageError, open_image

ImageLike = str | os.PathLike[str] | bytes | Image.Image | ArrayLike

_SIZE_FORMS = (
    {"shortest_edge"},
    {"height", "width"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)
_SWITCHES = {
    "size": "do_resize",
    "resample": "do_resize",
    "crop_size": "do_center_crop",
    "rescale_factor": "do_rescale",
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
}
_TYPES = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Convert to RGB, resize, crop the centre, scale to [0, 1], normalise: each step as the checkpoint states it.

    The fields are named as in `preprocessor_config.json`, and their defaults are transformers' for the keys that a
    file omits. `size` is one of `{"shortest_edge"}`, `{"height", "width"}`, `{"shortest_edge", "longest_edge"}` and
    `{"max_height", "max_width"}`, `crop_size` is `{"height", "width"}`, all in pixels; `resample` is a
    `PIL.Image.Resampling`; `image_mean` and `image_std` hold one number per channel, or one for all.

    What becomes of unusual images is what the reference does through Pillow: transparency is laid over white; palette,
    CMYK, YCbCr, 1-bit and grey are converted to RGB; 16- and 32-bit grey are *clipped* at 255, so that most 16-bit
    files turn white (scale them to 8 bits first); of an animation the current frame counts, which is the first one in
    a file. EXIF orientation is ignored unless `exif_rotation=True`.

    Raises `ValueError` for settings that the reference would refuse.
    """

    do_resize: bool = True
    size: Mapping[str, int] = field(default_factory=lambda: {"shortest_edge": 224})
    resample: int = Image.Resampling.BICUBIC
    do_center_crop: bool = True
    crop_size: Mapping[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] | float = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] | float = (0.26862954, 0.26130258, 0.27577711)
    do_convert_rgb: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("do_") and not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
        for name, size in (("size", self.size), ("crop_size", self.crop_size)):
            if not isinstance(size, Mapping):
                raise ValueError(f"{name} must be a dict of edges in pixels, got {size!r} (from_hub takes older forms)")
        if self.do_resize and set(self.size) not in _SIZE_FORMS:
            raise ValueError(f"size must have the keys of one of {[sorted(f) for f in _SIZE_FORMS]}, got {self.size}")
        if self.do_center_crop and set(self.crop_size) != {"height", "width"}:
            raise ValueError(f"crop_size must have the keys height and width, got {self.crop_size}")
        for name, size in (("size", self.size), ("crop_size", self.crop_size)):
            if not all(type(edge) is int and edge > 0 for edge in size.values()):
                raise ValueError(f"{name} must hold whole numbers of pixels, at least 1, got {size}")
        if self.resample not in list(Image.Resampling):
            raise ValueError(f"resample must be one of {list(map(int, Image.Resampling))}, got {self.resample!r}")
        for name in ("rescale_factor", "image_mean", "image_std"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} must hold finite numbers, got {getattr(self, name)}")
        if not np.all(self.image_std):
            raise ValueError(f"image_std must not hold a zero, got {self.image_std}")

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> "ImageProcessor":
        """The processor that a `preprocessor_config.json`, or the newer `processor_config.json`, describes.

        Sizes may be an int, a list `[height, width]` or a dict, as in files of every age; a key that is missing takes
        its default, and a `do_...` that is null is off. Raises `ValueError` for another kind of image processor and
        for settings that CLIP's doesn't have.
        """
        nested = config.get("image_processor", config)
        if not isinstance(nested, Mapping):
            raise ValueError(f"image_processor must be an object of settings, got {nested!r}")
        kind = nested.get("image_processor_type") or nested.get("feature_extractor_type")
        if kind is not None and kind not in _TYPES:
            raise ValueError(f"the file describes a {kind}, not one of {', '.join(_TYPES)}")
        names = {f.name for f in dataclasses.fields(cls)}
        if kind is None and "processor_class" in nested and not names & nested.keys():
            raise ValueError("this processor_config.json has no image_processor; read preprocessor_config.json instead")
        for name in ("do_pad", "use_square_size"):
            if nested.get(name):
                raise ValueError(f"{name} is not supported; CLIP checkpoints crop the centre instead")

        stated = {name: nested[name] for name in names & nested.keys()}
        for name in [name for name, value in stated.items() if value is None]:
            if name in _SWITCHES and stated.get(_SWITCHES[name], True):
                raise ValueError(f"{name} is null, but {_SWITCHES[name]} needs it; state it or delete the line")
            del stated[name]
            if name.startswith("do_"):
                stated[name] = False  # not the default: to the reference null is false
        if "size" in stated:
            square = bool(nested.get("default_to_square"))
            stated["size"] = _edges(stated["size"], ("height", "width") if square else ("shortest_edge",))
        if "crop_size" in stated:
            stated["crop_size"] = _edges(stated["crop_size"], ("height", "width"))
        for name in stated.keys() & {"rescale_factor", "image_mean", "image_std"}:
            value = stated[name]
            try:
                stated[name] = tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} must be a number or a list of numbers, got {value!r}") from error
        return cls(**stated)

    def to_hub(self) -> dict[str, Any]:
        """The contents of a `preprocessor_config.json` that transformers and `from_hub` read back the same."""
        config = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("size", "crop_size"):
            config[name] = dict(config[name])
        for name in ("image_mean", "image_std"):
            if isinstance(config[name], tuple):
                config[name] = list(config[name])
        return {**config, "resample": int(self.resample), "image_processor_type": "CLIPImageProcessor"}

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        channels: Literal["last", "first"] = "last",
        exif_rotation: bool = False,
        rescale: bool | None = None,
    ) -> Float32[np.ndarray, "batch height width channel"]:
        """Pixels for the model's vision tower, channels last.

        `images` is one image or many: paths, file contents (bytes), PIL images, arrays (height, width),
        (height, width, 1), (height, width, 3 or 4), or one array (batch, height, width, channel); one image gives a
        batch of one. With `channels="first"` arrays have the channel axis before height and width. Arrays hold 0 to
        255, or floats in [0, 1] with `rescale=False`, which is the reference's `do_rescale=False` for this call.

        Raises `ImageError`, naming the image's path or index, for an image that can't be read; floats in [0, 1] that
        would be divided by 255 once more (the reference does so silently); values that are not finite or that Pillow
        can't resize; a strip so long that resizing it would pass `PIL.Image.MAX_IMAGE_PIXELS`; and images whose results
        differ in size, which is possible only with `do_center_crop` off.
        """
        if channels not in ("last", "first"):
            raise ValueError(f"channels must be 'last' or 'first', got {channels!r}")
        rescale = self.do_rescale if rescale is None else rescale
        images = _listed(images)
        batch = np.empty((0, *self._empty_shape()), np.float32)
        for index, image in enumerate(images):
            try:
                pixels = self._crop(self._resize(self._read(image, channels, exif_rotation, rescale)))
                if index == 0:
                    batch = np.empty((len(images), *pixels.shape), np.float32)
                elif pixels.shape != batch.shape[1:]:
                    raise ImageError(
                        f"comes out as {pixels.shape} and image 0 as {batch.shape[1:]}, but a batch needs one size; "
                        "set do_center_crop, or a size with height and width, or pass the images one at a time"
                    )
                self._scale_into(pixels, rescale, batch[index])
            except ImageError as error:
                name = f"{os.fspath(image)!r}" if isinstance(image, str | os.PathLike) else f"image {index}"
                raise ImageError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
        return batch

    def _empty_shape(self) -> tuple[int, int, int]:
        fixed = self.crop_size if self.do_center_crop else self.size if self.do_resize else {}
        return fixed.get("height", 0), fixed.get("width", 0), 3

    def _read(
        self, image: Any, channels: Literal["last", "first"], exif_rotation: bool, rescale: bool
    ) -> Image.Image | Shaped[np.ndarray, "height width channel"]:
        if isinstance(image, str | os.PathLike | bytes):
            image = open_image(image, exif_rotation=exif_rotation)
            exif_rotation = False
        if isinstance(image, Image.Image):
            if 0 in image.size:
                raise ImageError(f"has no pixels ({image.height} x {image.width}); leave it out")
            try:
                image.load()
                image = ImageOps.exif_transpose(image) if exif_rotation else image
                if self.do_convert_rgb:
                    return _pil_to_rgb(image)
                pixels = np.asarray(image)
            except Exception as error:  # an image opened lazily is decoded only here
                raise ImageError(f"can't be decoded or converted to RGB ({error}); convert it first") from error
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        else:
            pixels = _as_array(image, channels)
        if pixels.dtype.kind == "f":
            _check_floats(pixels, rescale)
        return _array_to_rgb(pixels) if self.do_convert_rgb else pixels

    def _resize(
        self, image: Image.Image | Shaped[np.ndarray, "height width channel"]
    ) -> Shaped[np.ndarray, "new_height new_width channel"]:
        if not self.do_resize:
            return np.asarray(image)
        unit_scale = False
        if not isinstance(image, Image.Image):
            image, unit_scale = _array_to_pil(image)
        height, width = self._resized(image.height, image.width)
        limit = Image.MAX_IMAGE_PIXELS
        if not 0 < height * width <= (limit or height * width):
            raise ImageError(
                f"of {image.height} x {image.width} pixels (height x width) would be resized to {height} x {width}, "
                f"not 1 to {limit} pixels (PIL.Image.MAX_IMAGE_PIXELS); crop it to a less extreme shape first"
            )
        resized = np.asarray(image.resize((width, height), self.resample))
        resized = resized[..., None] if resized.ndim == 2 else resized
        return _times(resized, 1 / 255) if unit_scale else resized

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to resize to; the reference truncates the longer side where others round it."""
        size = self.size
        if "height" in size:
            return size["height"], size["width"]
        if "max_height" in size:
            scale = min(size["max_height"] / height, size["max_width"] / width)
            return int(height * scale), int(width * scale)
        short, long = min(height, width), max(height, width)
        target: float = size["shortest_edge"]
        if "longest_edge" in size:
            if long / short * target > size["longest_edge"]:
                target = size["longest_edge"] * float(short) / long
            if short == round(target):
                return height, width
        new_short, new_long = round(target), int(target * long / short)
        return (new_long, new_short) if width < height else (new_short, new_long)

    def _crop(
        self, pixels: Shaped[np.ndarray, "height width channel"]
    ) -> Shaped[np.ndarray, "crop_height crop_width channel"]:
        if not self.do_center_crop:
            return pixels
        (height, width), crop = pixels.shape[:2], (self.crop_size["height"], self.crop_size["width"])
        # Floor division puts the odd row above and to the left, for a crop as for the zeros around a smaller image.
        top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
        inside = pixels[max(top, 0) : top + crop[0], max(left, 0) : left + crop[1]]
        if inside.shape[:2] == crop:
            return inside
        padded = np.zeros((*crop, pixels.shape[2]), pixels.dtype)
        padded[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
        return padded

    def _scale_into(
        self,
        pixels: Shaped[np.ndarray, "height width channel"],
        rescale: bool,
        out: Float32[np.ndarray, "height width channel"],
    ) -> None:
        if pixels.dtype != np.uint8:
            out[...] = self._scale(pixels, rescale)
            return
        # 256 values per channel are all there are: scaling those and looking the rest up gives the same bits, faster.
        levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 1, pixels.shape[2]))
        table = self._scale(levels, rescale).astype(np.float32)
        for channel in range(pixels.shape[2]):
            out[..., channel] = table[:, 0, channel].take(pixels[..., channel])

    def _scale(
        self, pixels: Shaped[np.ndarray, "height width channel"], rescale: bool
    ) -> Shaped[np.ndarray, "height width channel"]:
        if rescale:
            pixels = _times(pixels, self.rescale_factor)
        if not self.do_normalize:
            return pixels
        if pixels.dtype.kind != "f":
            pixels = pixels.astype(np.float32)
        mean, std = (np.asarray(value, pixels.dtype) for value in (self.image_mean, self.image_std))
        for name, value in (("image_mean", mean), ("image_std", std)):
            if value.ndim and len(value) != pixels.shape[2]:
                raise ImageError(
                    f"has {pixels.shape[2]} channels, but {name} has {len(value)}; set do_convert_rgb or convert it"
                )
        return (pixels - mean) / std


def _edges(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError(f"a size must be a number, [height, width] or a dict, got {value!r}")
        return dict(zip(("height", "width"), value, strict=True))
    return {name: value for name in names}  # noqa: C420  (pyright sees dict.fromkeys(..., Any) as a dict of None)


def is_single_image(images: Any) -> bool:
    """Whether what `ImageProcessor` would take is one image, and not a batch of them."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return True
    return hasattr(images, "__array__") and getattr(images, "ndim", 0) != 4


def _listed(images: Any) -> list[Any]:
    if is_single_image(images):
        return [images]
    if hasattr(images, "__array__"):
        return list(np.asarray(images))
    if isinstance(images, Iterable):
        return list(images)
    raise ImageError(f"images must be one image or an iterable of images, got a {type(images).__name__}")


def _as_array(image: Any, channels: Literal["last", "first"]) -> Shaped[np.ndarray, "height width channel"]:
    try:
        pixels = np.asarray(image)
    except Exception as error:  # whatever the foreign array's own conversion raises
        raise ImageError(f"neither a path, nor a PIL image, nor an array ({error})") from error
    if pixels.dtype.kind not in "buif":
        raise ImageError(f"an array of {pixels.dtype}; pass uint8 0 to 255, or float32 [0, 1] with rescale=False")
    given = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and channels == "first":
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or pixels.size == 0:
        form = "(height, width, channel)" if channels == "last" else "(channel, height, width)"
        raise ImageError(
            f"an array of shape {given}, not (height, width) or {form} with 1, 3 or 4 channels; "
            f"transpose it, or pass channels={'first' if channels == 'last' else 'last'!r}"
        )
    return pixels


def _check_floats(pixels: Float[np.ndarray, "height width channel"], rescale: bool) -> None:
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("holds values that are not finite; replace the NaN and infinities")
    if rescale and low >= 0 and 0 < high <= 1:
        raise ImageError(
            "holds floats in [0, 1], which rescaling would divide by 255 once more; "
            "pass uint8 values 0 to 255, or rescale=False"
        )


def _pil_to_rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _array_to_rgb(pixels: Shaped[np.ndarray, "height width channel"]) -> Shaped[np.ndarray, "height width 3"]:
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 3:
        return pixels
    if pixels.dtype.kind == "f" and (pixels.min() < 0 or pixels.max() > 1):
        raise ImageError("has an alpha channel and floats outside [0, 1]; pass uint8 values, or scale it to [0, 1]")
    white = 255 if pixels.dtype.kind in "ui" else 1.0
    alpha = pixels[..., 3:] / white
    composite = alpha * pixels[..., :3] + (1 - alpha) * white
    return (np.round(composite) if white == 255 else composite).astype(pixels.dtype)


def _array_to_pil(pixels: Shaped[np.ndarray, "height width channel"]) -> tuple[Image.Image, bool]:
    """The array as 8-bit Pillow image, which is all that Pillow resizes, and whether its values were in [0, 1]."""
    unit_scale = False
    if pixels.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        whole = low >= 0 and high <= 255 and bool(np.allclose(pixels, pixels.astype(int)))
        unit_scale = bool(not whole and low >= 0 and high <= 1)
        if not (whole or unit_scale):
            raise ImageError(
                f"holds values from {low} to {high}, which can't be resized as 8 bits; "
                "pass whole numbers from 0 to 255, or floats in [0, 1] with rescale=False"
            )
        # Truncated to 8 bits, not rounded: the reference's way.
        pixels = (_times(pixels, 255.0) if unit_scale else pixels).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), unit_scale


def _times(pixels: Shaped[np.ndarray, "*shape"], factor: float) -> Float32[np.ndarray, "*shape"]:
    """In float64, then rounded once to float32, as the reference multiplies."""
    return (pixels.astype(np.float64) * factor).astype(np.float32)
