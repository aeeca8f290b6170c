"""What augmentations do to images, on average and each time."""

import numpy as np
import pytest
from PIL import Image

from jaxclip.training.augmentation import AUGMENTATIONS, Augmentation, _hue_shifted

BICUBIC = Image.Resampling.BICUBIC
# All of a photo of 3:2.
NONE = Augmentation(scale=(1.0, 1.0), ratio=(3 / 2, 3 / 2))


def photo(width=60, height=40):
    """Red and green say where a pixel was; there is some blue."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 100)], axis=-1).astype(np.uint8))


def made(augmentation, n, image=None, size=(32, 32)):
    image = image or photo()
    return np.stack(
        [np.asarray(augmentation(image, size, np.random.default_rng(i), resample=BICUBIC)) for i in range(n)]
    ).astype(float)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_same_generator_same_image(name):
    first, second = made(AUGMENTATIONS[name], 20), made(AUGMENTATIONS[name], 20)
    np.testing.assert_array_equal(first, second)
    # Whole pixels: two small crops may be the same.
    assert len(np.unique(first.reshape(20, -1), axis=0)) >= 18


def test_presets():
    assert AUGMENTATIONS["clip"] == Augmentation(scale=(0.9, 1.0), ratio=(1.0, 1.0))
    simclr = AUGMENTATIONS["simclr"]
    assert (simclr.scale, simclr.ratio, simclr.flip, simclr.jitter, simclr.jitter_probability) == (
        (0.08, 1),
        (3 / 4, 4 / 3),
        0.5,
        0.8,
        0.8,
    )
    assert (simclr.grey, simclr.blur) == (0.2, 0.5)


@pytest.mark.parametrize(("scale", "ratio"), [((0.3, 0.6), (3 / 4, 4 / 3)), ((0.9, 1.0), (1.0, 1.0))])
@pytest.mark.parametrize(("width", "height"), [(600, 400), (400, 600), (500, 500)])
def test_crops_have_the_area_and_shape_asked_for(scale, ratio, width, height):
    augmentation = Augmentation(scale=scale, ratio=ratio)
    left, top, w, h = np.array([augmentation._crop(width, height, np.random.default_rng(i)) for i in range(2000)]).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()
    shape = w / h
    part = w * h / np.minimum(width**2 / shape, height**2 * shape)
    # Edges are whole pixels: half of one of 150 or more. Uniform: the standard error of the mean is 0.6 % of the range.
    for found, (low, high) in ((part, scale), (np.log(shape), np.log(ratio))):
        assert found.min() == pytest.approx(low, abs=0.01)
        assert found.max() == pytest.approx(high, abs=0.01)
        assert found.mean() == pytest.approx((low + high) / 2, abs=0.01)
    # Anywhere alike, from the first pixel to the last.
    for start, room in ((left, width - w), (top, height - h)):
        where = (start / np.maximum(room, 1))[room > 10]
        assert len(where) == 0 or where.mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 1), (2, 1)])
def test_crops_of_strips(width, height):
    edge = min(width, height)
    for i in range(50):
        left, top, w, h = Augmentation()._crop(width, height, np.random.default_rng(i))
        assert (w, h) in ((edge, edge), (edge - 1, edge - 1))
        assert 0 <= left <= width - w
        assert 0 <= top <= height - h


def test_without_changes_it_is_a_resize():
    image = photo()
    np.testing.assert_array_equal(made(NONE, 2, image)[1], np.asarray(image.resize((32, 32), BICUBIC)))
    assert made(NONE, 1, image, size=(8, 12)).shape == (1, 8, 12, 3)


def test_nothing_outside_of_a_crop_bleeds_in():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    # All crops are 10 wide and high: those in the black half are black to the last column.
    images = made(Augmentation(scale=(1 / 16, 1 / 16)), 200, Image.fromarray(pixels))
    crops = [Augmentation(scale=(1 / 16, 1 / 16))._crop(80, 40, np.random.default_rng(i)) for i in range(200)]
    inside = np.array([left + width <= 40 for left, _, width, _ in crops])
    assert 60 < inside.sum() < 130
    assert (images[inside] == 0).all()


def test_flips_half_of_them():
    images = made(Augmentation(scale=(1.0, 1.0), ratio=(3 / 2, 3 / 2), flip=0.5), 400)
    plain = made(NONE, 1)[0]
    flipped = (images == plain[:, ::-1]).all(axis=(1, 2, 3))
    assert ((images == plain).all(axis=(1, 2, 3)) ^ flipped).all()
    assert 160 < flipped.sum() < 240  # Four standard deviations.


def test_greyscale():
    images = made(Augmentation(scale=(1.0, 1.0), ratio=(3 / 2, 3 / 2), grey=0.2), 400)
    grey = (images == images[..., :1]).all(axis=(1, 2, 3))
    assert 48 < grey.sum() < 112
    red, green, blue = np.moveaxis(made(NONE, 1)[0], -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    np.testing.assert_allclose(images[grey][0, ..., 0], luma, atol=1)


def test_jitter_changes_brightness_around_the_same_mean():
    images = made(Augmentation(scale=(1.0, 1.0), ratio=(3 / 2, 3 / 2), jitter=0.4), 300)
    brightness = images.mean(axis=(1, 2, 3))
    plain = made(NONE, 1).mean()
    assert brightness.mean() == pytest.approx(plain, rel=0.05)
    # Brightness alone is uniform in 1 ± 0.4, of standard deviation 0.23.
    assert brightness.std() / plain == pytest.approx(0.23, abs=0.05)
    some = made(Augmentation(scale=(1.0, 1.0), ratio=(3 / 2, 3 / 2), jitter=0.4, jitter_probability=0.5), 300)
    unchanged = (some == made(NONE, 1)).all(axis=(1, 2, 3))
    assert 110 < unchanged.sum() < 190


def test_hue():
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    for shift, colour in ((0.0, (200, 0, 0)), (1 / 3, (0, 200, 0)), (-1 / 3, (0, 0, 200)), (1.0, (200, 0, 0))):
        found = np.asarray(_hue_shifted(red, shift))[0, 0]
        np.testing.assert_allclose(found, colour, atol=6)  # 1/3 is 85 of 256 steps.


def test_blur_takes_the_edges_and_keeps_the_mean():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
    images = made(Augmentation(scale=(1.0, 1.0), ratio=(3 / 2, 3 / 2), blur=0.5), 200, noise, size=(32, 48))
    contrast = images.std(axis=(1, 2, 3)) / np.asarray(noise).std()
    assert 65 < (contrast < 0.999).sum() < 135
    assert contrast.min() < 0.3
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), np.asarray(noise).mean(), rtol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.1}, "flip must be a probability, got 1.1"),
        ({"blur": -0.1}, "blur must be a probability"),
        ({"scale": (0.0, 1.0)}, "scale must be two parts"),
        ({"scale": (0.9, 0.8)}, "scale must be two parts"),
        ({"ratio": (2.0, 1.0)}, "ratio must be two positive numbers"),
        ({"jitter": 2.0}, "jitter must be from 0 to 1, got 2.0"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
