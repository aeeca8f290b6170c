"""A locked tower's features: made once, in the samples' order, whatever interrupts."""

import itertools
import json
import os

import numpy as np
import pytest
from cases import FOLDER
from flax import nnx
from PIL import Image
from training.data_cases import captioned

import jaxclip
from jaxclip.training import features as features_module
from jaxclip.training.captions import CaptionedFolder
from jaxclip.training.features import cache_image_features


@pytest.fixture(scope="module")
def loaded():
    return jaxclip.load(FOLDER / "whole")


@pytest.fixture
def clip(loaded, monkeypatch):
    """Compiled for all tests; each may change it."""
    monkeypatch.setattr(loaded, "model", nnx.clone(loaded.model))
    monkeypatch.setitem(loaded._own, "image_processor", None)
    return loaded


@pytest.fixture
def source(tmp_path):
    return CaptionedFolder(captioned(tmp_path / "data", 9))


@pytest.fixture
def encoded(clip, monkeypatch):
    """How many images the handle has encoded."""
    numbers = []

    def images(model, rows, original=clip.encoder.images, **settings):
        numbers.append(len(rows))
        return original(model, rows, **settings)

    monkeypatch.setattr(clip.encoder, "images", images)
    return numbers


def test_made_once(clip, source, tmp_path, encoded):
    expected = np.asarray(clip.encode_image([sample.image for sample in source]))
    encoded.clear()
    made = cache_image_features(clip, source, tmp_path / "cache", batch_size=4)
    assert isinstance(made, np.memmap)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert sum(encoded) == 9
    again = cache_image_features(clip, CaptionedFolder(source.folder), tmp_path / "cache")
    np.testing.assert_array_equal(again, made)
    assert sum(encoded) == 9
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0


def test_made_anew_for_other_models_images_and_processors(clip, source, tmp_path, encoded):
    def make():
        return np.array(cache_image_features(clip, source, tmp_path / "cache"))

    make()
    os.utime(source.folder / "images/03.png", ns=(0, 1))
    make()
    assert sum(encoded) == 18
    clip.image_processor = jaxclip.processing.ImageProcessor(
        **{**vars(clip.image_processor), "image_mean": (0.5, 0.5, 0.5)}
    )
    assert (make() != 0).all()
    assert sum(encoded) == 27
    before = make()
    clip.model.vision.projection.weight[...] *= -1
    assert abs(make() - before).max() > 0.01
    assert sum(encoded) == 36
    # All of them are still there.
    make()
    assert sum(encoded) == 36
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_captions_and_the_text_tower_make_no_difference(clip, source, tmp_path, encoded):
    cache_image_features(clip, source, tmp_path / "cache")
    file = source.folder / "captions.jsonl"
    file.write_text(file.read_text().replace("photo", "picture"))
    clip.model.text.projection.weight[...] *= -1
    cache_image_features(clip, CaptionedFolder(source.folder), tmp_path / "cache")
    assert sum(encoded) == 9


def test_goes_on_after_a_kill(clip, source, tmp_path, encoded, monkeypatch):
    whole = np.array(cache_image_features(clip, source, tmp_path / "whole", batch_size=2))
    encoded.clear()
    # Eight seconds from look to look at the clock, one for each batch of two: every other one is noted.
    ticks = itertools.count(step=8)
    monkeypatch.setattr(features_module, "_SECONDS", 15.0)
    monkeypatch.setattr(features_module, "monotonic", lambda: float(next(ticks)))
    written = []

    def write(path, content, original=features_module.write_atomically):
        if path.name == "progress.json":
            written.append(json.loads(content)["done"])
            if written == [4, 8]:
                raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(features_module, "write_atomically", write)
    with pytest.raises(KeyboardInterrupt):
        cache_image_features(clip, source, tmp_path / "cache", batch_size=2)
    encoded.clear()
    made = cache_image_features(clip, source, tmp_path / "cache", batch_size=2)
    # Rows 4 to 7 had been made, but nothing said so.
    assert (sum(encoded), written) == (5, [4, 8, 8, 9])
    np.testing.assert_array_equal(made, whole)


def test_images_that_can_not_be_read_are_nan(clip, source, tmp_path, encoded):
    (source.folder / "images/02.png").write_bytes(b"no image")
    (source.folder / "images/08.png").write_bytes(b"no image")
    made = cache_image_features(clip, source, tmp_path / "cache", batch_size=3)
    assert np.flatnonzero(np.isnan(made).all(axis=1)).tolist() == [2, 8]
    assert np.flatnonzero(np.isnan(made).any(axis=1)).tolist() == [2, 8]
    assert cache_image_features(clip, source, tmp_path / "cache") is not made
    assert sum(encoded) == 7


class Broken(CaptionedFolder):
    def __getitem__(self, index):
        if index in (0, 5):
            raise ValueError("lacks its image")
        return super().__getitem__(index)


def test_samples_that_can_not_be_read_are_nan(clip, source, tmp_path):
    made = cache_image_features(clip, Broken(source.folder), tmp_path / "cache")
    assert np.flatnonzero(np.isnan(made).any(axis=1)).tolist() == [0, 5]


def test_what_is_complete_is_only_read(clip, source, tmp_path, monkeypatch):
    made = cache_image_features(clip, source, tmp_path / "cache")

    def locked(path):
        raise PermissionError(path)

    monkeypatch.setattr(features_module, "FileLock", locked)
    np.testing.assert_array_equal(cache_image_features(clip, source, tmp_path / "cache"), made)
    with pytest.raises(PermissionError):
        cache_image_features(clip, source, tmp_path / "other")


def test_photos_are_turned_as_their_exif_says(clip, source, tmp_path):
    path = source.folder / "images/01.png"
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(path, exif=exif)
    made = cache_image_features(clip, CaptionedFolder(source.folder), tmp_path / "turned")
    captioned(source.folder, 9)
    np.testing.assert_array_equal(made, cache_image_features(clip, source, tmp_path / "upright"))
