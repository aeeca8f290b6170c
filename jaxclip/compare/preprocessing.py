"""Why token ids or pixels are not what the checkpoint's own tokenizer and image processor make of the same inputs."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from jaxclip.compare.diagnosis import Diagnosis
from jaxclip.compare.resampling import LINEAR, Kernel, cubic, resized
from jaxclip.compare.rounding import UNITS, relative_rms
from jaxclip.processing import ImageProcessor

Images = tuple[UInt8[np.ndarray, "_ _ 3"], ...]
Pixels = Float[np.ndarray, "images height width channels"]

# Grey levels, in root mean square, that resizing may differ by where it is done in other arithmetic.
_LEVELS = 0.6
# A mistake is named when it comes this many times closer, and another one besides when it comes about as close.
_CLOSER, _AS_CLOSE = 3.0, 1.5

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def diagnose_token_ids(
    ids: Int[np.ndarray, "texts length"], right: Int[np.ndarray, "texts tokens"], ends: Int[np.ndarray, " _"], side: str
) -> Diagnosis:
    """`ends` are the positions in `right` that texts are read off at: what follows is padding."""
    causes = [cause for cause, made in _token_mistakes(ids, right, ends) if np.array_equal(made, ids)]
    without = relative_rms(ids - right, right) if ids.shape == right.shape else np.inf
    return Diagnosis(side, "input_ids", tuple(causes), 0.0 if causes else None, without, 0.0, ("input_ids",))


def _token_mistakes(ids: np.ndarray, right: np.ndarray, ends: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    texts, length = right.shape
    padding = np.arange(length) > ends[:, None]
    if padding.any() and ids.shape == right.shape:
        # What stands most often where padding should be.
        values, counts = np.unique(ids[padding], return_counts=True)
        pad, own = values[counts.argmax()], right[padding][0]
        yield f"padded with {pad} instead of {own}", np.where(padding, pad, right)
    yield "no token at the start (BOS)", right[:, 1:]
    rows = [np.delete(row, end) for row, end in zip(right, ends, strict=True)]
    yield "no token at the end (EOS)", np.stack(rows)
    if ids.ndim == 2 and len(ids) == texts and ids.shape[1] < length:
        yield f"cut to {ids.shape[1]} tokens, the end of text with them", right[:, : ids.shape[1]]


def diagnose_pixels(pixels: Pixels, right: Pixels, images: Images, processor: ImageProcessor, side: str) -> Diagnosis:
    """`right` is what the processor makes of the images, which may be another size than `pixels`."""

    def distance(made: Pixels) -> float:
        return relative_rms(pixels - made, pixels) if made.shape == pixels.shape else np.inf

    scale = np.sqrt(np.mean(np.square(pixels, dtype=np.float64)))
    level = _LEVELS * processor.rescale_factor / np.min(processor.image_std) / scale
    without = distance(right)
    found = []
    for cause, make in _pixel_mistakes(processor):
        residual = distance(make(images))
        if residual <= max(level, 8 * UNITS["float32"]) and _CLOSER * residual <= without:
            found.append((residual, cause))
    found.sort()
    closest = found[0][0] if found else None
    causes = tuple(cause for residual, cause in found if residual <= _AS_CLOSE * max(found[0][0], 8 * UNITS["float32"]))
    return Diagnosis(side, "pixel_values", causes, closest, without, UNITS["float32"], ("pixel_values",))


def _pixel_mistakes(processor: ImageProcessor) -> Iterator[tuple[str, Callable[[Images], Pixels]]]:
    """Each with what it makes of images."""

    def changed(**fields) -> Callable[[Images], Pixels]:
        return lambda images: dataclasses.replace(processor, **fields)(list(images))

    if processor.do_resize:
        yield from _of_resizing(processor, changed)
    if processor.do_center_crop:
        for what, offset in (
            ("rounded instead of floored", lambda size, crop: round((size - crop) / 2)),
            ("rounded up", lambda size, crop: -((crop - size) // 2)),
            ("0: the top left corner", lambda size, crop: 0),
        ):
            yield f"offset of the crop {what}", _cropping(processor, offset)
    yield "red and blue swapped (BGR)", lambda images: processor([image[..., ::-1] for image in images])
    yield "red and blue swapped after the normalisation", lambda images: processor(list(images))[..., ::-1]
    if processor.do_rescale:
        yield "not divided by 255", changed(do_rescale=False)
        yield "divided by 255 twice", changed(rescale_factor=processor.rescale_factor**2)
    if processor.do_normalize:
        yield "mean and standard deviation not applied", changed(do_normalize=False)
        yield "mean not subtracted", changed(image_mean=(0.0, 0.0, 0.0))
        yield "not divided by the standard deviation", changed(image_std=(1.0, 1.0, 1.0))
        for what, (mean, std) in (("ImageNet's", _IMAGENET), ("OpenAI's CLIP's", _OPENAI), ("0.5 and 0.5", _HALF)):
            if not np.allclose((mean, std), (processor.image_mean, processor.image_std)):
                other = changed(image_mean=mean, image_std=std)
                yield f"mean and standard deviation {what} instead of the checkpoint's", other


def _of_resizing(processor: ImageProcessor, changed: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    own = Image.Resampling(processor.resample)
    for other in (
        Image.Resampling.BICUBIC,
        Image.Resampling.BILINEAR,
        Image.Resampling.LANCZOS,
        Image.Resampling.NEAREST,
    ):
        if other != own:
            yield f"resized with {other.name.lower()} instead of {own.name.lower()} filter", changed(resample=other)
    for what, kernel in (
        ("bicubic, a = −0.75", cubic(-0.75)),
        ("bicubic, a = −0.5", cubic(-0.5)),
        ("bilinear", LINEAR),
    ):
        yield f"resized without antialiasing ({what})", _resizing(processor, kernel, antialias=False)
    if own in _KERNELS:
        # Another program's own arithmetic: as good, but not the same.
        resizing = _resizing(processor, _KERNELS[own], antialias=True)
        yield "resized in floating point, not rounded to 8 bits", resizing
    yield "not resized", changed(do_resize=False)
    if "shortest_edge" in processor.size:
        edge = processor.size["shortest_edge"]
        yield "stretched to a square", changed(size={"height": edge, "width": edge})


_KERNELS: dict[int, Kernel] = {Image.Resampling.BICUBIC: cubic(-0.5), Image.Resampling.BILINEAR: LINEAR}


def _resizing(processor: ImageProcessor, kernel: Kernel, *, antialias: bool) -> Callable[[Images], Pixels]:
    """The processor with another way of resizing, to the same sizes."""
    alone = dataclasses.replace(processor, do_center_crop=False, do_rescale=False, do_normalize=False)
    rest = dataclasses.replace(processor, do_resize=False)

    def process(images: Images) -> Pixels:
        made = []
        for image in images:
            height, width = alone(image).shape[1:3]
            made.append(resized(image, height, width, kernel, antialias=antialias).clip(0, 255).astype(np.float32))
        return rest(made)

    return process


def _cropping(processor: ImageProcessor, offset: Callable[[int, int], int]) -> Callable[[Images], Pixels]:
    """The processor with another offset of the crop, where the image is no smaller."""
    before = dataclasses.replace(processor, do_center_crop=False, do_rescale=False, do_normalize=False)
    rest = dataclasses.replace(processor, do_resize=False, do_center_crop=False)
    crop = processor.crop_size

    def process(images: Images) -> Pixels:
        made = []
        for image in images:
            whole = before(image)[0].astype(np.uint8)
            top, left = offset(whole.shape[0], crop["height"]), offset(whole.shape[1], crop["width"])
            made.append(whole[top : top + crop["height"], left : left + crop["width"]])
        return rest(made)

    return process
