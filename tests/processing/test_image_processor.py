"""Pixels: equal to transformers' `CLIPImageProcessorPil` to the last bit, or a clear error."""

import inspect
import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import BASE, CASES, CONFIGS, IMAGES, UNIT_FLOATS, in_mode, pattern
from PIL import Image

from jaxclip.processing import ImageError, ImageProcessor, Tokenizer

with np.load(Path(__file__).parent / "references" / "pixels.npz") as file:
    REFERENCES = dict(file)
PILLOW = int(PIL.__version__.split(".")[0])
STRETCHED = {("tall", config) for config in ("list_sizes", "square_size", "height_width")}
MEAN, STD = (np.array(value, np.float32) for value in (ImageProcessor().image_mean, ImageProcessor().image_std))


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert (actual.dtype, actual.shape) == (np.float32, expected.shape)
    np.testing.assert_array_equal(actual.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def processor(**config) -> ImageProcessor:
    return ImageProcessor.from_hub({**BASE, **config})


def geometry(**config) -> ImageProcessor:
    """Without scaling, so that the pixels can be read."""
    return processor(do_rescale=False, do_normalize=False, **config)


def png(image: Image.Image, **settings) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", **settings)
    return file.getvalue()


# What the reference gives


@pytest.mark.parametrize(("image", "config"), CASES)
def test_pixels_equal_the_reference(image, config):
    if (image, config) in STRETCHED and PILLOW < 13:
        pytest.skip(
            "Pillow 13 changed the order of its two passes: where the shape changes, some pixels differ by 1 to 4"
        )
    pixels = ImageProcessor.from_hub(CONFIGS[config])(IMAGES[image]())
    assert_same_bits(pixels, REFERENCES[f"{image}/{config}"][None])


def test_every_reference_is_compared():
    assert sorted(REFERENCES) == sorted(f"{image}/{config}" for image, config in CASES)


@pytest.mark.parametrize("image", UNIT_FLOATS)
def test_rescale_false_is_the_reference_without_rescaling(image):
    assert_same_bits(processor()(IMAGES[image](), rescale=False), REFERENCES[f"{image}/no_rescale"][None])


def test_rescale_true_turns_rescaling_on():
    assert_same_bits(processor(do_rescale=False)(IMAGES["tall"](), rescale=True), REFERENCES["tall/base"][None])


def test_the_lookup_table_holds_the_bits_of_the_arithmetic():
    """All 256 levels of a byte, through the table (uint8) and through the arithmetic (the same values as int64)."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    for config in CONFIGS.values():
        same_size = ImageProcessor.from_hub({**config, "do_resize": False, "do_center_crop": False})
        assert_same_bits(same_size(levels), same_size(levels.astype(np.int64)))


# The traps


def test_the_long_side_is_truncated():
    """Trap 12: 16 * 50 / 23 = 34.78; torchvision's float arithmetic agrees, a rounding port does not."""
    assert geometry(do_center_crop=False)(in_mode("RGB", 23, 50)).shape == (1, 16, 34, 3)
    assert geometry(do_center_crop=False)(in_mode("RGB", 50, 23)).shape == (1, 34, 16, 3)


@pytest.mark.parametrize("size", [19, 21])
def test_the_crop_offset_is_floored(size):
    """Trap 12: OpenAI and open_clip round it; of the offsets 1.5 and 2.5 at least one rounds up, whatever the rule."""
    image = pattern(size, 16)
    cropped = geometry(do_resize=False)(image)[0]
    offset = {19: 1, 21: 2}[size]
    np.testing.assert_array_equal(cropped, image[offset : offset + 16])
    assert (cropped != image[offset + 1 : offset + 17]).any()


def test_a_smaller_image_is_framed_in_zeros_with_the_odd_row_above():
    """Trap 14: zeros before normalising, so not zeros after it."""
    image = np.full((5, 3, 3), 200, np.uint8)
    framed = geometry(do_resize=False, crop_size={"height": 8, "width": 4})(image)[0]
    np.testing.assert_array_equal(framed[..., 0], np.pad(image[..., 0], ((2, 1), (1, 0))))
    normalized = processor(do_resize=False, crop_size={"height": 8, "width": 4})(image)[0]
    np.testing.assert_array_equal(normalized[0, 0], (0 - MEAN) / STD)


def test_rgb_comes_before_resizing():
    """Trap 12: OpenAI and open_clip resize first, though a palette's numbers can't be interpolated."""
    for image in (in_mode("P", 20, 31), in_mode("1", 20, 31), in_mode("CMYK", 20, 31)):
        pixels = geometry()(image)
        np.testing.assert_array_equal(pixels, geometry()(image.convert("RGB")))
        resized_first = image.resize((24, 16), Image.Resampling.BICUBIC).convert("RGB")
        assert (pixels != geometry(do_resize=False)(resized_first)).any()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
    """Trap 13: black is what `convert("RGB")` would give."""
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0)).convert(mode)
    np.testing.assert_array_equal(geometry()(clear), 255)
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128)).convert(mode)
    np.testing.assert_array_equal(geometry()(half), 127)
    np.testing.assert_array_equal(geometry()(np.zeros((20, 20, 4), np.uint8)), 255)


@pytest.mark.parametrize("image", [in_mode("P", 20, 31), in_mode("L", 20, 31), in_mode("RGB", 20, 31)])
def test_transparency_of_a_palette_entry_or_colour_lies_over_white(image):
    """Trap 13: it is written in a PNG's header, not in an alpha channel."""
    clear = image.getpixel((0, 0))
    opened = geometry(do_resize=False, do_center_crop=False)(png(image, transparency=clear))[0]
    values = np.asarray(image).reshape(20, 31, -1)
    expected = np.where((values == clear).all(-1, keepdims=True), 255, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(opened, expected)
    assert (expected != np.asarray(image.convert("RGB"))).any()


def test_sixteen_bits_are_clipped_as_pillow_does():
    """Trap 13: the policy that the docstring states."""
    image = Image.fromarray(np.array([[0, 100, 255, 256, 65535]], np.uint16))
    assert geometry(do_resize=False, do_center_crop=False)(image)[0, 0, :, 0].tolist() == [0, 100, 255, 255, 255]


def test_exif_rotation_is_an_option(tmp_path):
    """Trap 13."""
    image, exif = Image.fromarray(pattern(20, 16)), Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photo.png").write_bytes(png(image, exif=exif))
    as_shot, upright = pattern(20, 16), pattern(20, 16).swapaxes(0, 1)[:, ::-1]
    fit = geometry(do_resize=False, do_center_crop=False)
    with Image.open(tmp_path / "photo.png") as opened:
        for source in (tmp_path / "photo.png", opened):
            np.testing.assert_array_equal(fit(source)[0], as_shot)
            np.testing.assert_array_equal(fit(source, exif_rotation=True)[0], upright)
        assert opened.size == (16, 20), "the caller's image must stay as it is"


def test_a_long_strip_is_an_error_instead_of_gigabytes():
    """Trap 14: 1 x 3000 at size 224 would be 672,000 pixels high."""
    for strip in (Image.new("L", (1, 3000)), np.zeros((1, 3000, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"image 0: .*would be resized to .*672000.*less extreme"):
            ImageProcessor()(strip)
    assert ImageProcessor()(Image.new("L", (1, 500))).shape == (1, 224, 224, 3)


def test_a_size_that_rounds_to_nothing_is_an_error():
    with pytest.raises(ImageError, match="resized to 0 x 16"):
        processor(size={"max_height": 16, "max_width": 16})(Image.new("L", (100, 1)))


def test_floats_in_0_1_are_not_divided_twice():
    """Where we refuse what the reference does silently."""
    unit = pattern(20, 31) / 255
    for image in (unit, unit.astype(np.float32), in_mode("F", 9, 9).point(lambda value: value * 0 + 0.5)):
        with pytest.raises(ImageError, match=r"image 0: .*rescale=False"):
            processor(do_convert_rgb=not isinstance(image, Image.Image))(image)
    assert processor()(np.zeros((20, 31, 3), np.float32)).shape == (1, 16, 16, 3), "all black is the same either way"


# Inputs


def test_one_image_and_many_in_every_form(tmp_path):
    array = pattern(20, 31)
    path = tmp_path / "image.png"
    path.write_bytes(png(Image.fromarray(array)))
    expected = processor()(array)
    forms = [array, path, str(path), path.read_bytes(), Image.fromarray(array), array.astype(np.int32), array.tolist()]
    for form in forms[:-1]:
        assert_same_bits(processor()(form), expected)
    assert_same_bits(processor()(forms), np.concatenate([expected] * len(forms)))
    assert_same_bits(processor()(tuple(forms)), processor()(iter(forms)))
    assert_same_bits(processor()(np.stack([array, array[::-1]])), processor()([array, array[::-1]]))


def test_arrays_of_other_libraries():
    class Foreign:
        ndim = 4

        def __array__(self, dtype=None, copy=None):
            return pattern(20, 31)[None]

    assert_same_bits(processor()(Foreign()), processor()(pattern(20, 31)))


def test_layouts_come_from_the_argument():
    array = pattern(20, 31)
    first = np.moveaxis(array, -1, 0)
    assert_same_bits(processor()(first, channels="first"), processor()(array))
    assert_same_bits(processor()(np.stack([first, first]), channels="first"), processor()([array, array]))
    ambiguous = pattern(3, 4, 3)
    assert_same_bits(processor()(ambiguous.transpose(2, 0, 1), channels="first"), processor()(ambiguous))
    grey = pattern(20, 31, 1)
    assert_same_bits(processor()(grey[..., 0]), processor()(grey))
    assert_same_bits(processor()(grey[..., 0], channels="first"), processor()(grey))


def test_no_images():
    assert ImageProcessor()([]).shape == (0, 224, 224, 3)
    assert processor(do_center_crop=False, size={"height": 9, "width": 7})([]).shape == (0, 9, 7, 3)
    assert processor(do_center_crop=False)([]).shape == (0, 0, 0, 3)


def test_inputs_are_not_changed():
    array = pattern(20, 31, 4)
    array.flags.writeable = False
    processor()(array)
    image = in_mode("RGBA", 20, 31)
    before = image.tobytes()
    processor()(image)
    assert (image.tobytes(), image.mode, image.size) == (before, "RGBA", (31, 20))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    st.integers(1, 24),
    st.integers(1, 24),
    st.booleans(),
)
@settings(deadline=None)
def test_laws_of_shape(sizes, height, width, resize):
    cropping = processor(crop_size={"height": height, "width": width}, do_resize=resize)
    batch = cropping([pattern(*size) for size in sizes])
    assert batch.shape == (len(sizes), height, width, 3)
    assert np.isfinite(batch).all()
    for index, size in enumerate(sizes):
        assert_same_bits(batch[index : index + 1], cropping(pattern(*size)))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 32))
@settings(deadline=None)
def test_laws_of_resizing(height, width, edge):
    resizing = geometry(size={"shortest_edge": edge}, do_center_crop=False)
    _, new_height, new_width, _ = resizing(pattern(height, width)).shape
    assert min(new_height, new_width) == edge
    long, short = max(height, width), min(height, width)
    assert max(new_height, new_width) == edge * long // short
    assert (new_height > new_width) <= (height > width)


# Errors


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.jpg", r"^'missing\.jpg': no such file"),
        (b"hello", "image 1: an image of 5 bytes: no image format"),
        (np.full((9, 9, 3), np.nan), "image 1: .*not finite"),
        (np.full((9, 9, 3), np.inf, np.float32), "image 1: .*not finite"),
        (np.full((9, 9, 3), 0.25) * np.arange(9)[:, None, None], r"image 1: .*from 0\.0 to 2\.0.*8 bits"),
        (np.full((9, 9, 3), 256), "image 1: .*from 256 to 256.*8 bits"),
        (np.full((9, 9, 3), -1), "image 1: .*8 bits"),
        (np.full((9, 9, 4), 200.0), r"image 1: .*alpha channel and floats outside \[0, 1\]"),
        (np.zeros((9, 9, 2), np.uint8), r"image 1: an array of shape \(9, 9, 2\).*channels='first'"),
        (np.zeros((3, 9, 9), np.uint8), r"image 1: an array of shape \(3, 9, 9\).*channels='first'"),
        (np.zeros((0, 9, 3), np.uint8), r"image 1: an array of shape \(0, 9, 3\)"),
        (np.zeros((1, 9, 9, 3), np.uint8), r"image 1: an array of shape \(1, 9, 9, 3\)"),
        (np.zeros((9, 9, 3), np.complex64), "image 1: an array of complex64"),
        (None, "image 1: an array of object"),
        ([[1, 2], [3]], "image 1: neither a path"),
        (Image.new("RGB", (0, 5)), "image 1: has no pixels"),
    ],
)
def test_bad_images_are_named_by_path_or_index(image, message):
    # Unwrapped, because in tests jaxtyping would see the wrong types first.
    with pytest.raises(ImageError, match=message):
        inspect.unwrap(ImageProcessor.__call__)(processor(), [pattern(9, 9), image])


def test_a_damaged_image_that_was_opened_lazily():
    contents = png(in_mode("RGB", 60, 80))
    with (
        Image.open(BytesIO(contents[: len(contents) // 2])) as image,
        pytest.raises(ImageError, match="image 0: can't be"),
    ):
        processor()(image)


def test_results_of_different_sizes():
    with pytest.raises(
        ImageError, match=r"image 1: comes out as \(16, 24, 3\) and image 0 as \(24, 16, 3\).*center_crop"
    ):
        processor(do_center_crop=False)([pattern(30, 20), pattern(20, 30)])


def test_channels_that_do_not_fit_the_mean():
    with pytest.raises(ImageError, match="image 0: has 1 channels, but image_mean has 3; set do_convert_rgb"):
        processor(do_convert_rgb=False)(in_mode("L", 20, 31))


def test_bad_arguments():
    call = inspect.unwrap(ImageProcessor.__call__)
    with pytest.raises(ValueError, match="channels must be 'last' or 'first'"):
        call(processor(), pattern(9, 9), channels="NHWC")
    with pytest.raises(ImageError, match="one image or an iterable of images, got a int"):
        call(processor(), 5)


# Settings


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_survive_saving(config):
    processor = ImageProcessor.from_hub(CONFIGS[config])
    assert ImageProcessor.from_hub(json.loads(json.dumps(processor.to_hub()))) == processor


def test_omitted_settings_are_transformers_defaults():
    assert ImageProcessor.from_hub({}) == ImageProcessor()
    assert ImageProcessor().to_hub() == {
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
        "image_processor_type": "CLIPImageProcessor",
    }


def test_the_nested_processor_config():
    nested = {"image_processor": {"size": 336, "crop_size": 336}, "processor_class": "CLIPProcessor"}
    assert ImageProcessor.from_hub(nested) == ImageProcessor.from_hub(nested["image_processor"])
    assert ImageProcessor.from_hub(nested).crop_size == {"height": 336, "width": 336}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "describes a SiglipImageProcessor"),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "describes a ViTFeatureExtractor"),
        ({"processor_class": "CLIPProcessor"}, "read preprocessor_config.json instead"),
        ({"do_pad": True}, "do_pad is not supported"),
        ({"use_square_size": True}, "use_square_size is not supported"),
        ({"image_processor": None}, "image_processor must be an object of settings, got None"),
        ({"size": [1, 2, 3]}, r"a size must be a number, \[height, width\] or a dict"),
        ({"size": {"longest_edge": 224}}, "size must have the keys"),
        ({"size": {"min_pixels": 1, "max_pixels": 2}}, "size must have the keys"),
        ({"size": {"shortest_edge": 224, "width": 224}}, "size must have the keys"),
        ({"size": {"shortest_edge": 0}}, "size must hold whole numbers"),
        ({"crop_size": {"shortest_edge": 224}}, "crop_size must have the keys height and width"),
        ({"crop_size": -1}, "crop_size must hold whole numbers"),
        ({"resample": 99}, "resample must be one of "),
        ({"resample": -1}, "resample must be one of "),
        ({"size": None}, "size is null, but do_resize needs it"),
        ({"image_mean": None}, "image_mean is null, but do_normalize needs it"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std must not hold a zero"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean must be a number or a list of numbers"),
        ({"rescale_factor": {}}, "rescale_factor must be a number or a list of numbers"),
        ({"rescale_factor": float("nan")}, "rescale_factor must hold finite numbers"),
    ],
)
def test_settings_that_clip_does_not_have_are_errors(config, message):
    with pytest.raises(ValueError, match=message):
        ImageProcessor.from_hub(config)


def test_settings_of_the_wrong_type_are_errors():
    """In a process of its own, because in this one jaxtyping sees them first."""
    code = """
import json, sys
from jaxclip.processing import ImageProcessor
for config in json.loads(sys.argv[1]):
    try:
        ImageProcessor.from_hub(config)
    except ValueError as error:
        print(error)
"""
    configs = [{"size": {"shortest_edge": 224.0}}, {"size": "224"}, {"resample": ["bicubic"]}, {"do_resize": "no"}]
    arguments = [sys.executable, "-W", "error", "-c", code, json.dumps(configs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    filters = [int(filter) for filter in Image.Resampling]
    assert done.stdout.splitlines() == [
        "size must hold whole numbers of pixels, at least 1, got {'shortest_edge': 224.0}",
        "size must hold whole numbers of pixels, at least 1, got {'shortest_edge': '224'}",
        f"resample must be one of {filters}, got ['bicubic']",
        "do_resize must be true or false, got 'no'",
    ]


# Live


def reference_pixels(transformers, config, image, **layout) -> np.ndarray:
    pixels = transformers.CLIPImageProcessorPil(**config)(image, **layout)["pixel_values"]
    return np.moveaxis(np.asarray(pixels), 1, -1)


PHOTOS = ("chelsea", "coffee", "astronaut", "camera", "logo", "page")


@pytest.mark.parity
@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": 336, "crop_size": 336},
        {
            "size": {"height": 384, "width": 384},
            "do_center_crop": False,
            "resample": 2,
            "image_mean": 0.5,
            "image_std": 0.5,
        },
    ],
)
def test_live_photos(transformers, photo, config):
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(getattr(data, photo)())
    for variant in (image, image.convert("L"), image.convert("CMYK"), image.convert("P"), image.convert("LA")):
        assert_same_bits(ImageProcessor.from_hub(config)(variant), reference_pixels(transformers, config, variant))


_EDGE = st.integers(1, 24)
_BY_HEIGHT = st.fixed_dictionaries({"height": _EDGE, "width": _EDGE})
_SIZE = st.one_of(
    _EDGE,
    st.lists(_EDGE, min_size=2, max_size=2),
    _BY_HEIGHT,
    st.fixed_dictionaries({"shortest_edge": _EDGE}),
    st.fixed_dictionaries({"shortest_edge": _EDGE, "longest_edge": _EDGE}),
    st.fixed_dictionaries({"max_height": _EDGE, "max_width": _EDGE}),
)
_FLAG = st.sampled_from([True, True, True, False, None])
_MEAN = st.one_of(st.sampled_from([0.25, 0.5, 0.75]), st.lists(st.floats(0.1, 0.9), min_size=3, max_size=3))
_CONFIG = st.fixed_dictionaries(
    {"size": _SIZE, "crop_size": st.one_of(_EDGE, _BY_HEIGHT)},
    optional={
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), _FLAG),
        "resample": st.integers(0, 5),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 0.1, 2]),
        "image_mean": _MEAN,
        "image_std": _MEAN,
        "default_to_square": st.booleans(),
    },
)


@pytest.mark.parity
@settings(max_examples=900, deadline=None)
@given(
    st.sampled_from([name for name in IMAGES if name not in ("animation", "one_pixel", "long")]),
    st.integers(1, 50),
    st.integers(1, 50),
    _CONFIG,
)
@pytest.mark.filterwarnings("ignore")
def test_live_any_mode_size_and_settings(transformers, name, height, width, config):
    """Either the same bits, or both refuse; except for the floats in [0, 1] that we alone refuse."""
    image = resized(IMAGES[name](), height, width)
    layout = {} if isinstance(image, Image.Image) else {"input_data_format": "channels_last"}
    expected = outcome(lambda: reference_pixels(transformers, config, image, **layout))
    actual = outcome(lambda: ImageProcessor.from_hub(config)(image))
    if isinstance(actual, Exception):
        assert isinstance(expected, Exception) or "once more" in str(actual)
    else:
        assert not isinstance(expected, Exception), f"only transformers refuses: {expected}"
        assert_same_bits(actual, expected)


def outcome(function):
    try:
        return function()
    except (ValueError, TypeError, ZeroDivisionError) as error:
        return error


def resized(image: Image.Image | np.ndarray, height: int, width: int) -> Image.Image | np.ndarray:
    """The same kind of image, repeated to another size."""
    array = np.resize(np.asarray(image), (height, width, *np.asarray(image).shape[2:]))
    if not isinstance(image, Image.Image):
        return array
    small = image.resize((width, height), Image.Resampling.NEAREST)
    small.info.update(image.info)
    return small


@pytest.mark.parity
def test_live_saved_settings_load_in_transformers(transformers, tmp_path):
    for index, config in enumerate(CONFIGS.values()):
        ours = ImageProcessor.from_hub(config)
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "preprocessor_config.json").write_text(json.dumps(ours.to_hub()))
        theirs = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / str(index))
        expected = np.moveaxis(np.asarray(theirs(IMAGES["tall"]())["pixel_values"]), 1, -1)
        assert_same_bits(ours(IMAGES["tall"]()), expected)
        theirs.save_pretrained(tmp_path / str(index))
        written = json.loads((tmp_path / str(index) / "preprocessor_config.json").read_text())
        assert ImageProcessor.from_hub(written) == ours


@pytest.mark.parity
def test_live_a_saved_processor_loads_as_a_whole(transformers, tmp_path):
    folder = Path(__file__).parent / "references" / "tokenizers" / "openai"
    tokenizer = Tokenizer.from_files({name: folder / name for name in ("vocab.json", "merges.txt")})
    tokenizer.save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ImageProcessor().to_hub()))
    loaded = transformers.CLIPProcessor.from_pretrained(tmp_path)
    assert type(loaded.tokenizer).__name__ == "CLIPTokenizer"
    assert loaded(text=["a cat"])["input_ids"] == tokenizer.encode(["a cat"])
    loaded.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "processor_config.json").read_text())
    assert ImageProcessor.from_hub(config) == ImageProcessor()


def test_cases_need_no_random_numbers():
    """The references are only as reproducible as the images: these bytes must never change."""
    assert pattern(2, 2).tolist() == [[[0, 53, 106], [40, 93, 146]], [[36, 89, 142], [18, 71, 124]]]
