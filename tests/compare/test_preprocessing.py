"""Mistakes in tokens and pixels, made by plain NumPy and Pillow, and what is found."""

import dataclasses

import numpy as np
import pytest
from broken_pixels import CONFIGURATIONS, mistakes, pictures, tied, unknown
from cases import FOLDER
from PIL import Image

from jaxclip.compare import Capture, capture, diff
from jaxclip.compare.inputs import TEXTS, example_images
from jaxclip.compare.preprocessing import diagnose_pixels, diagnose_token_ids


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def right(request):
    """A configuration, images, and what it makes of them."""
    made, images = CONFIGURATIONS[request.param], pictures(seed=list(CONFIGURATIONS).index(request.param))
    pixels = made.processor()(list(images))
    np.testing.assert_allclose(made(images), pixels, atol=2e-6)
    return made, images, pixels


def test_mistakes_are_named(right):
    made, images, pixels = right
    for cause, wrong in mistakes(made).items():
        found = diagnose_pixels(wrong(images), pixels, images, made.processor(), "B")
        assert cause in found.causes
        assert set(found.causes) <= tied(made, cause)
        assert found.residual * 3 < found.without
        assert found.explains == ("pixel_values",)


def test_no_mistake_is_named_that_was_not_made(right):
    made, images, pixels = right
    for wrong in unknown(made):
        found = diagnose_pixels(wrong(images), pixels, images, made.processor(), "B")
        assert found.causes == ()
        assert found.residual is None


def test_resizing_in_floating_point_is_told_from_a_wrong_filter(right):
    made, images, pixels = right

    def channels_as_floats(image, height, width):
        """Pillow resizes 32-bit floats without rounding."""
        channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
        parts = [np.asarray(channel.resize((width, height), made.filter)) for channel in channels]
        return np.clip(np.stack(parts, axis=-1), 0, 255)

    wrong = dataclasses.replace(made, resize=channels_as_floats)(images)
    found = diagnose_pixels(wrong, pixels, images, made.processor(), "A")
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
