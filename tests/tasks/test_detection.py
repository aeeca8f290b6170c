"""Detection with the bundled model on pictures of emoji whose places are known."""

from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from processes import figures, start
from scipy.special import softmax
from tqdm import tqdm

import jaxclip
from jaxclip import bundled
from jaxclip.processing import ImageError
from jaxclip.tasks import detection
from jaxclip.tasks.boxes import Box
from jaxclip.tasks.detection import BACKGROUND, prompts_of
from jaxclip.tasks.emoji import twemoji
from jaxclip.tasks.relevance import coverage, interpolated, window_corners

PLACED = {"pizza": (20, 30, 80), "tiger face": (160, 90, 88)}  # x, y and the side.


@pytest.fixture(scope="module")
def emoji():
    return jaxclip.load("emoji")


@pytest.fixture(scope="module")
def drawings():
    return {picture.emoji.name: picture.path for picture in twemoji()}


def scene(drawings, placed, size=(256, 192), scale=1):
    picture = Image.new("RGB", (size[0] * scale, size[1] * scale), (230, 235, 240))
    for name, place in placed.items():
        x, y, side = (scale * value for value in place)
        drawing = Image.open(drawings[name]).convert("RGBA").resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(drawing, (x, y), drawing)
    return picture


def box_of(x, y, side):
    return Box(x, y, x + side, y + side, 1)


@pytest.fixture(scope="module")
def prompts(emoji):
    names = [picture.emoji.name for picture in twemoji()[::25]]
    return prompts_of(emoji, [*PLACED, "fire engine"], names)


@pytest.fixture(scope="module")
def found(emoji, drawings, prompts):
    return jaxclip.detect(emoji, scene(drawings, PLACED), prompts, method="windows")


def test_things_are_found_where_they_are(found):
    assert found.prompts == [*PLACED, "fire engine"]
    assert found.size == (256, 192)
    assert found.image is None
    for number, (name, place) in enumerate(PLACED.items()):
        row, column = np.unravel_index(found.relevance[number].argmax(), found.relevance[number].shape)
        true = box_of(*place)
        assert true.x0 < column < true.x1
        assert true.y0 < row < true.y1
        assert found.boxes[name][0].iou(true) > 0.4


def test_what_is_not_there_is_not_found(found):
    assert found.boxes["fire engine"] == []


def test_maps_are_of_the_image_and_from_0_to_1(found):
    assert found.relevance.shape == (3, 192, 256)
    assert found.relevance.dtype == np.float32
    assert found.relevance.min() >= 0
    assert found.relevance.max() <= 1
    assert (found.cells.sum(axis=0) <= 1 + 1e-6).all()


def test_a_box_follows_what_moves(emoji, drawings, prompts, found):
    moved = {"pizza": (148, 30, 80), "tiger face": (10, 90, 88)}
    there = jaxclip.detect(emoji, scene(drawings, moved), prompts, method="windows")
    for name, place in moved.items():
        box, true = there.boxes[name][0], box_of(*place)
        assert box.iou(true) > 0.4
        assert box.iou(found.boxes[name][0]) < 0.1


def test_a_box_scales_with_the_image(emoji, drawings, prompts, found):
    larger = jaxclip.detect(emoji, scene(drawings, PLACED, scale=3), prompts, method="windows")
    assert larger.size == (768, 576)
    for name in PLACED:
        a, b = found.boxes[name][0], larger.boxes[name][0]
        assert Box(3 * a.x0, 3 * a.y0, 3 * a.x1, 3 * a.y1, 1).iou(b) > 0.8


def test_a_box_survives_cropping_and_padding(emoji, drawings, prompts):
    whole = scene(drawings, {"pizza": (60, 50, 80)})
    padded = Image.new("RGB", (320, 240), (230, 235, 240))
    padded.paste(whole, (40, 30))
    for picture, by in ((whole.crop((30, 20, 222, 164)), (-30, -20)), (padded, (40, 30))):
        result = jaxclip.detect(emoji, picture, prompts, method="windows")
        assert result.boxes["pizza"][0].iou(box_of(60 + by[0], 50 + by[1], 80)) > 0.4


@pytest.mark.parametrize("method", ["dense", "windows"])
def test_the_same_image_in_any_form(emoji, drawings, prompts, method, tmp_path):
    picture = scene(drawings, PLACED)
    picture.save(tmp_path / "scene.png")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown turned by 90° clockwise.
    turned.save(tmp_path / "turned.png", exif=exif)
    wanted = jaxclip.detect(emoji, picture, prompts, method=method)
    forms = (
        tmp_path / "scene.png",
        str(tmp_path / "turned.png"),
        np.asarray(picture),
        (tmp_path / "scene.png").read_bytes(),
    )
    for form in forms:
        result = jaxclip.detect(emoji, form, prompts, method=method)
        assert result.size == (256, 192)
        np.testing.assert_allclose(result.cells, wanted.cells, atol=1e-6)
        assert result.boxes == wanted.boxes
    assert jaxclip.detect(emoji, tmp_path / "scene.png", prompts).image == tmp_path / "scene.png"


def by_a_loop(picture, vectors, encode):
    """Each crop of the resized picture by itself through the encoder, its similarities added where it lies; then the
    mean of what is relevant at each size. The scale is e."""
    side, grid, total = 64, (8, 13), 0.0
    for level in (1, 2**0.5, 2):
        height, width = round(64 * level), round(160 * round(64 * level) / 100)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
        corners = window_corners(height, width, side, side // 4)
        near = coverage(corners, side, (height, width), grid)
        spread = np.zeros((*grid, len(vectors)))
        for number, (y, x) in enumerate(corners):
            spread += near[:, :, number, None] * (vectors @ encode(pixels[None, y : y + side, x : x + side]))
        powers = np.exp(np.e * spread)
        total = total + powers / powers.sum(axis=-1, keepdims=True) / 3
    return np.moveaxis(total, -1, 0)


def test_the_map_of_windows_is_a_loop_over_crops(emoji, drawings):
    picture, labels = scene(drawings, PLACED, size=(160, 100)), ["pizza", "tiger face"]
    result = jaxclip.detect(emoji, picture, labels, method="windows", resolution=2, background=None, logit_scale=1)
    vectors = np.asarray(emoji.encode_text(labels))
    wanted = by_a_loop(picture, vectors, lambda pixels: np.asarray(emoji.encode_pixels(pixels))[0])
    np.testing.assert_allclose(result.cells, wanted, atol=1e-5)


@pytest.mark.parity
def test_the_map_of_windows_is_a_loop_over_transformers(emoji, drawings, transformers):
    import torch

    picture, labels = scene(drawings, PLACED, size=(160, 100)), ["pizza", "tiger face"]
    result = jaxclip.detect(emoji, picture, labels, method="windows", resolution=2, background=None, logit_scale=1)
    folder = Path(bundled.__file__).parent / "emoji"
    model = transformers.CLIPModel.from_pretrained(folder).float().eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(labels, padding=True, return_tensors="pt")

    def unit(features):
        return torch.nn.functional.normalize(features.pooler_output, dim=-1).numpy()

    with torch.no_grad():
        vectors = unit(model.get_text_features(**tokens))
        wanted = by_a_loop(
            picture,
            vectors,
            lambda pixels: unit(model.get_image_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())))[0],
        )
    np.testing.assert_allclose(result.cells, wanted, atol=1e-5)


def test_a_strip_is_the_mean_of_overlapping_tiles(emoji, drawings, prompts):
    strip = scene(drawings, {"pizza": (0, 0, 64), "tiger face": (400, 0, 64)}, size=(640, 64))
    config = emoji.model.config.vision
    patch, grid = config.patch_size, config.grid_size
    assert config.image_size == strip.height
    pixels = np.asarray(strip, np.float32)[None] / 127.5 - 1
    total, count = np.zeros((grid, strip.width // patch, len(prompts.embeddings))), np.zeros(strip.width // patch)
    for _, x in window_corners(grid, strip.width // patch, grid, 3 * grid // 4):
        tile = pixels[:, :, x * patch : (x + grid) * patch]
        features = np.asarray(emoji.model.vision.patch_features(jnp.asarray(tile)), np.float64)[0]
        total[:, x : x + grid] += features @ prompts.embeddings.T / np.linalg.norm(features, axis=-1, keepdims=True)
        count[x : x + grid] += 1
    assert count.max() == 2
    cosines = total / count[:, None]
    wanted = softmax(np.exp(float(emoji.model.logit_scale[...])) * cosines, axis=-1)[..., : len(prompts.labels)]
    found = jaxclip.detect(emoji, strip, prompts, resolution=1).cells
    np.testing.assert_allclose(found, np.moveaxis(wanted, -1, 0), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (3, 700), (900, 40)])
@pytest.mark.parametrize("method", ["dense", "windows"])
def test_any_size_and_shape(emoji, size, method):
    result = jaxclip.detect(emoji, Image.new("RGB", size, "red"), ["a cat", "a dog"], method=method, resolution=1)
    assert result.relevance.shape == (2, size[1], size[0])
    assert all(
        0 <= box.x0 < box.x1 <= size[0] and 0 <= box.y0 < box.y1 <= size[1]
        for boxes in result.boxes.values()
        for box in boxes
    )


def test_the_map_of_patches_is_where_both_sizes_agree(emoji, drawings, prompts):
    picture = scene(drawings, PLACED, size=(256, 256))
    config = emoji.model.config.vision
    grid = config.grid_size
    views = []
    for size in (1, 2):
        pixels = np.asarray(picture.resize((size * config.image_size,) * 2, Image.Resampling.BICUBIC), np.float32)
        features = np.asarray(emoji.model.vision.patch_features(jnp.asarray(pixels[None] / 127.5 - 1)), np.float64)[0]
        cosines = features @ prompts.embeddings.T / np.linalg.norm(features, axis=-1, keepdims=True)
        views.append(np.moveaxis(interpolated(np.moveaxis(cosines, -1, 0), (2 * grid, 2 * grid)), 0, -1))
    logits = np.exp(float(emoji.model.logit_scale[...])) * np.stack(views)
    wanted = np.prod(softmax(logits, axis=-1), axis=0)[..., : len(prompts.labels)] ** 0.5
    found = jaxclip.detect(emoji, picture, prompts, resolution=2).cells
    np.testing.assert_allclose(found, np.moveaxis(wanted, -1, 0), atol=1e-4)


def test_patch_tokens_themselves_would_give_another_map(emoji, drawings):
    """Those of the last hidden state hold what the whole picture shows, not what their patch does: their map of an
    emoji in a corner hardly tells the corner from the rest, or is inverted."""
    vision, names = emoji.model.vision, list(drawings)[::40]
    texts = np.asarray(emoji.encode_text(names), np.float64)
    ours, theirs = [], []
    for name, text in zip(names, texts, strict=True):
        picture = scene(drawings, {name: (8, 8, 64)}, size=(128, 128))
        pixels = jnp.asarray(np.asarray(picture, np.float32)[None] / 127.5 - 1)
        tokens = vision(pixels, interpolate_positions=True).last_hidden_state[:, 1:]
        for found, features in ((ours, vision.patch_features(pixels)), (theirs, vision.project(tokens))):
            features = np.asarray(features, np.float64).reshape(8, 8, -1)
            cosines = features @ text / np.linalg.norm(features, axis=-1)
            found.append(cosines[1:4, 1:4].mean() - cosines[5:, 5:].mean())
    # By more than what 48 emoji may be by chance.
    assert np.mean(ours) > 2 * np.std(ours) / np.sqrt(len(ours))
    assert np.mean(theirs) < 0
    assert np.mean(np.greater(theirs, 0)) < 0.5


def test_prompts_and_background_compete(emoji):
    several = prompts_of(emoji, ["pizza", "violin"], ["sky", "pizza"])
    assert several.labels == ["pizza", "violin"]
    assert len(several.embeddings) == 3  # A prompt doesn't compete with itself.
    assert len(prompts_of(emoji, ["pizza"]).embeddings) == 1 + len(BACKGROUND)
    vectors = np.asarray(emoji.encode_text(["pizza", "violin", "sky"]))
    ready = prompts_of(emoji, {"pizza": vectors[0], "violin": vectors[1]}, vectors[2:])
    np.testing.assert_allclose(ready.embeddings, several.embeddings, atol=1e-6)


def test_mistakes_are_named(emoji, drawings, tmp_path):
    picture = scene(drawings, PLACED)
    with pytest.raises(ValueError, match="one prompt has nothing to compete with"):
        jaxclip.detect(emoji, picture, ["pizza"], background=None)
    with pytest.raises(ValueError, match="a prompt is there twice: pizza, pizza"):
        jaxclip.detect(emoji, picture, ["pizza", "pizza"])
    with pytest.raises(ValueError, match="method must be one of dense, windows, got 'sliding'"):
        jaxclip.detect(emoji, picture, ["pizza"], method="sliding")
    with pytest.raises(ValueError, match="threshold must be from 0 to 1, got 25"):
        jaxclip.detect(emoji, picture, ["pizza"], threshold=25)
    with pytest.raises(ValueError, match=r"resolution must be a number from 1, got 0\.5"):
        jaxclip.detect(emoji, picture, ["pizza"], resolution=0.5)
    with pytest.raises(TypeError, match="put 'pizza' into one"):
        jaxclip.detect(emoji, picture, "pizza")
    with pytest.raises(ImageError, match="no such file"):
        jaxclip.detect(emoji, tmp_path / "none.png", ["pizza"])
    with pytest.raises(ImageError, match="has no pixels"):
        jaxclip.detect(emoji, np.zeros((0, 5, 3), np.uint8), ["pizza"])
    with pytest.raises(ImageError, match=r"got the shape \(2, 8, 8, 3\)"):
        jaxclip.detect(emoji, np.zeros((2, 8, 8, 3), np.uint8), ["pizza"])


def test_a_lone_image_tower_takes_embeddings(emoji, drawings, tmp_path):
    emoji.save(tmp_path / "emoji")
    lone = jaxclip.load(tmp_path / "emoji", towers="vision")
    vectors = dict(zip(PLACED, np.asarray(emoji.encode_text(list(PLACED))), strict=True))
    picture = scene(drawings, PLACED)
    with pytest.raises(ValueError, match="no logit_scale"):
        jaxclip.detect(lone, picture, vectors)
    found = jaxclip.detect(lone, picture, vectors, logit_scale=2.5)
    wanted = jaxclip.detect(emoji, picture, vectors, background=None, logit_scale=2.5)
    np.testing.assert_allclose(found.cells, wanted.cells, atol=1e-6)


def test_bytes_of_a_damaged_file_are_an_error(emoji):
    buffer = BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    with pytest.raises(ImageError, match="truncated or damaged"):
        jaxclip.detect(emoji, buffer.getvalue()[:60], ["pizza"])


@pytest.mark.parametrize(("method", "unit", "steps"), [("dense", "tile", 10), ("windows", "window", 110)])
def test_what_takes_long_shows_how_far_it_is(emoji, monkeypatch, method, unit, steps):
    terminal = StringIO()
    bar = partial(tqdm, file=terminal)
    monkeypatch.setattr(detection, "tqdm", lambda *args, **options: bar(*args, **options | _SHOWN))
    jaxclip.detect(emoji, Image.new("RGB", (256, 64)), ["a cat", "a dog"], method=method, resolution=1.5)
    (first, *_, last) = terminal.getvalue().split("\r")[1:]
    assert first.startswith(f"{unit}s:   0%")
    assert f"{steps}/{steps}" in last
    assert last.rstrip().endswith(f"{unit}/s]")


# As on a terminal, and at once.
_SHOWN = {"disable": False, "delay": 0, "leave": True, "mininterval": 0}


def test_half_precision(emoji, drawings, prompts, found):
    half = jaxclip.load("emoji", dtype="bfloat16")
    narrow = jaxclip.detect(half, scene(drawings, PLACED), prompts, method="windows")
    assert narrow.cells.dtype == np.float32
    # The largest difference measured was 0.001, of what goes up to 0.73.
    np.testing.assert_allclose(narrow.cells, found.cells, atol=0.004)
    assert [*map(len, narrow.boxes.values())] == [*map(len, found.boxes.values())]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much memory was taken")
def test_a_large_photo_takes_little_memory():
    """Of 12 megapixels, which are 36 MB, a few copies."""
    dense, windows = figures(start(Path(__file__).parent / "large_photo.py", 1))
    assert 36 < dense < 150
    assert 36 < windows < 150
