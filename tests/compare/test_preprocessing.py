"""Mistakes in tokens and pixels, made by plain NumPy and Pillow, and what is found."""

import dataclasses

import numpy as np
import pytest
from cases import FOLDER
from PIL import Image

from jaxclip.compare import Capture, capture, diff
from jaxclip.compare.inputs import TEXTS, example_images
from jaxclip.compare.preprocessing import diagnose_pixels, diagnose_token_ids
from jaxclip.processing import ImageProcessor

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZE, CROP = 60, 53
PROCESSOR = ImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": CROP, "width": CROP})


def resize(image, height, width, how=Image.Resampling.BICUBIC):
    return np.asarray(Image.fromarray(image).resize((width, height), how))


def point_by_point(a):
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
    return np.asarray(padded.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


def process(images, *, resize=resize, offset=lambda extra: extra // 2, scale=1 / 255, mean=MEAN, std=STD,
            channels=slice(None), stretch=False):  # fmt: skip
    made = []
    for image in images:
        height, width = image.shape[:2]
        short = min(height, width)
        sizes = (SIZE, SIZE) if stretch else (int(SIZE * height / short), int(SIZE * width / short))
        pixels = resize(image[..., channels], *sizes)
        top, left = offset(pixels.shape[0] - CROP), offset(pixels.shape[1] - CROP)
        pixels = pixels[top : top + CROP, left : left + CROP] * scale
        made.append((pixels - mean) / std)
    return np.stack(made).astype(np.float32)


MISTAKES = {
    "resized with bilinear instead of bicubic filter": {
        "resize": lambda *a: resize(*a, Image.Resampling.BILINEAR)
    },
    "resized with nearest instead of bicubic filter": {
        "resize": lambda *a: resize(*a, Image.Resampling.NEAREST)
    },
    "resized without antialiasing (bicubic, a = −0.75)": {"resize": point_by_point(-0.75)},
    "resized without antialiasing (bicubic, a = −0.5)": {"resize": point_by_point(-0.5)},
    "resized without antialiasing (bilinear)": {"resize": bilinear_without_antialiasing},
    "stretched to a square": {"stretch": True, "offset": lambda extra: extra // 2},
    "offset of the crop rounded up": {"offset": lambda extra: (extra + 1) // 2},
    "offset of the crop rounded instead of floored": {"offset": lambda extra: round(extra / 2)},
    "offset of the crop 0: the top left corner": {"offset": lambda extra: 0},
    "red and blue swapped (BGR)": {"channels": slice(None, None, -1)},
    "not divided by 255": {"scale": 1},
    "divided by 255 twice": {"scale": 1 / 255**2},
    "mean and standard deviation not applied": {"mean": 0, "std": 1},
    "mean not subtracted": {"mean": 0},
    "not divided by the standard deviation": {"std": 1},
    "mean and standard deviation ImageNet's instead of the checkpoint's": {"mean": IMAGENET[0], "std": IMAGENET[1]},
    "mean and standard deviation 0.5 and 0.5 instead of the checkpoint's": {"mean": 0.5, "std": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def right():
    images = tuple(image[: image.shape[0] // 2, : image.shape[1] // 2] for image in example_images())
    pixels = PROCESSOR(list(images))
    np.testing.assert_allclose(process(images), pixels, atol=2e-6)
    return images, pixels


@pytest.mark.parametrize("cause", MISTAKES)
def test_the_mistake_is_named(right, cause):
    images, pixels = right
    wrong = process(images, **MISTAKES[cause])
    found = diagnose_pixels(wrong, pixels, images, PROCESSOR, "B")
    # Half of the examples' remainders are odd ones that both roundings take up.
    tied = {"offset of the crop rounded up", "offset of the crop rounded instead of floored"}
    assert cause in found.causes
    assert found.causes == (cause,) or (cause in tied and set(found.causes) == tied)
    assert found.residual * 3 < found.without
    assert found.explains == ("pixel_values",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": MEAN * 1.05},
        {"channels": [1, 0, 2]},
        {"resize": lambda image, height, width: resize(image[::-1], height, width)},
        {"offset": lambda extra: max(extra // 2 - 2, 0)},
        {"channels": slice(None, None, -1), "scale": 1},
    ],
)
def test_no_mistake_is_named_that_was_not_made(right, wrong):
    images, pixels = right
    found = diagnose_pixels(process(images, **wrong), pixels, images, PROCESSOR, "B")
    assert found.causes == ()
    assert found.residual is None


def test_resizing_in_floating_point_is_told_from_a_wrong_filter(right):
    images, pixels = right

    def channels_as_floats(image, height, width):
        """Pillow resizes 32-bit floats without rounding."""
        parts = [Image.fromarray(image[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
                 for c in range(3)]  # fmt: skip
        return np.clip(np.stack([np.asarray(part) for part in parts], axis=-1), 0, 255)

    found = diagnose_pixels(process(images, resize=channels_as_floats), pixels, images, PROCESSOR, "A")
    assert found.causes == ("resized in floating point, not rounded to 8 bits",)
    assert found.side == "A"


IDS = np.array([[90, 1, 2, 99, 99], [90, 3, 99, 99, 99], [90, 4, 5, 6, 99]])
ENDS = np.array([3, 2, 4])


@pytest.mark.parametrize(
    ("wrong", "causes"),
    [
        (np.array([[90, 1, 2, 99, 0], [90, 3, 99, 0, 0], [90, 4, 5, 6, 99]]), ("padded with 0 instead of 99",)),
        (IDS[:, 1:], ("no token at the start (BOS)",)),
        (np.array([[90, 1, 2, 99], [90, 3, 99, 99], [90, 4, 5, 6]]),
         ("no token at the end (EOS)", "cut to 4 tokens, the end of text with them")),
        (np.array([[90, 1, 2], [90, 3, 99], [90, 4, 5]]), ("cut to 3 tokens, the end of text with them",)),
        (np.array([[90, 1, 7, 99, 99], [90, 3, 99, 99, 99], [90, 4, 5, 6, 99]]), ()),
    ],
)  # fmt: skip
def test_token_ids(wrong, causes):
    found = diagnose_token_ids(wrong, IDS, ENDS, "B")
    assert found.causes == causes
    assert found.residual == (0.0 if causes else None)


def test_strings_and_images_that_were_kept_show_who_is_wrong(whole, captured):
    ids = captured["input_ids"]
    other = np.where(np.arange(ids.shape[1]) > (ids == 913).argmax(axis=1)[:, None], 0, ids)
    dark = dataclasses.replace(whole.image_processor, do_rescale=False)(list(example_images()))
    wrong = capture(whole, TEXTS, example_images(), token_ids=other, pixels=dark)
    for a, b, side in ((captured, wrong, "B"), (wrong, captured, "A")):
        found = diff(a, b, model=str(FOLDER / "whole"))
        assert found.first_divergence.name == "input_ids"
        assert [(each.side, each.name, each.causes) for each in found.diagnoses] == [
            (side, "input_ids", ("padded with 0 instead of 913",)),
            (side, "pixel_values", ("not divided by 255",)),
        ]
    # Without them A is taken to be right about token ids, and nothing is said of pixels.
    bare = [
        Capture({n: v for n, v in each.items() if not n.startswith(("texts.", "images."))})
        for each in (captured, wrong)
    ]
    found = diff(*bare, model=str(FOLDER / "whole"))
    assert [(each.side, each.name) for each in found.diagnoses] == [("B", "input_ids")]
