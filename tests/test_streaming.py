"""Any number of inputs, in order, in constant memory, errors in their place."""

import itertools
import threading

import numpy as np
import pytest
from cases import FOLDER, TEXTS, photos
from PIL import Image

import jaxclip


@pytest.fixture(scope="module")
def clip():
    return jaxclip.load(FOLDER / "whole")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i in range(7):
        paths.append(folder / f"{i}.png")
        Image.fromarray(np.roll(photos()[i % 2], 17 * i, axis=1)).save(paths[-1])
    return paths


def vectors(batches):
    return np.concatenate([batch.vectors for batch in batches])


def test_texts_come_in_order_with_their_vectors(clip):
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS * 30)]
    batches = list(clip.stream_texts(iter(texts), batch_size=4))
    assert [text for batch in batches for text in batch.inputs] == texts
    assert [len(batch) for batch in batches] == [4] * 37 + [2]
    np.testing.assert_array_equal(np.concatenate([batch.indices for batch in batches]), np.arange(150))
    np.testing.assert_allclose(vectors(batches), clip.encode_text(texts), atol=1e-6)
    assert not any(batch.errors for batch in batches)
    raw = vectors(clip.stream_texts(texts, normalize=False))
    np.testing.assert_allclose(raw, clip.encode_text(texts, normalize=False), rtol=0, atol=1e-6 * np.abs(raw).max())


def test_what_is_no_text_is_named_and_stops_nothing(clip):
    texts = ["a cat", None, "a dog", 3, b"bytes"]
    first, second = clip.stream_texts(iter(texts), batch_size=3)
    assert first.inputs == ["a cat", "a dog"]
    assert first.indices.tolist() == [0, 2]
    assert [(e.index, e.input, str(e.error)) for e in first.errors + second.errors] == [
        (1, None, "text 1 is no string but a NoneType"),
        (3, 3, "text 3 is no string but a int"),
        (4, b"bytes", "text 4 is no string but a bytes"),
    ]
    assert second.vectors.shape == (0, 20)
    np.testing.assert_allclose(first.vectors, clip.encode_text(["a cat", "a dog"]), atol=1e-6)


def test_what_can_not_be_tokenized_is_named_and_stops_nothing(clip):
    (batch,) = clip.stream_texts(["a cat", "\udcff", "a dog"])
    assert batch.indices.tolist() == [0, 2]
    assert [(failure.index, failure.input) for failure in batch.errors] == [(1, "\udcff")]
    assert "text 1" in str(batch.errors[0].error)
    np.testing.assert_allclose(batch.vectors, clip.encode_text(["a cat", "a dog"]), atol=1e-6)


def test_a_tokenizer_that_ends_no_text_is_noticed(clip):
    class Endless(type(clip.tokenizer)):
        def __call__(self, texts, **options):
            return super().__call__(texts, **options)[:, :2]

    endless = jaxclip.Clip(clip.model, tokenizer=Endless(clip.tokenizer.backend, clip.tokenizer.special_tokens, 12))
    (batch,) = endless.stream_texts(["a cat", "a dog"])
    assert len(batch) == 0
    assert "text 1 has no end-of-text token" in str(batch.errors[1].error)


def test_images_come_in_order_with_their_vectors(clip, files):
    given = [files[0], photos()[0], str(files[1]), Image.fromarray(photos()[1]), *files[2:]]
    batches = list(clip.stream_images(iter(given), batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert [image for batch in batches for image in batch.inputs] == given
    np.testing.assert_allclose(vectors(batches), clip.encode_image(given), atol=1e-6)


def test_an_image_that_can_not_be_read_is_named_and_stops_nothing(clip, files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:500])
    given = [files[0], broken, tmp_path / "none.png", np.zeros((3, 3, 7), np.uint8), files[1], np.ones((4, 4, 3))]
    batches = list(clip.stream_images(given, batch_size=2))
    assert [batch.indices.tolist() for batch in batches] == [[0], [], [4]]
    failures = [failure for batch in batches for failure in batch.errors]
    assert [failure.index for failure in failures] == [1, 2, 3, 5]
    assert [failure.input for failure in failures[:2]] == given[1:3]
    for failure, words in zip(failures, ("broken.png': truncated", "none.png': no such", "image 3: an array of shape",
                                         "image 5: holds floats in [0, 1]"), strict=True):  # fmt: skip
        assert isinstance(failure.error, jaxclip.ImageError)
        assert words in str(failure.error)
    np.testing.assert_allclose(vectors(batches), clip.encode_image([files[0], files[1]]), atol=1e-6)


def test_a_photo_is_turned_when_asked_for(clip, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.fromarray(photos()[0]).save(turned, exif=exif, quality=95)
    (upright,) = clip.stream_images([turned], exif_rotation=True)
    (lying,) = clip.stream_images([turned])
    np.testing.assert_allclose(lying.vectors[0], clip.encode_image(turned), atol=1e-6)
    wanted = clip.encode_pixels(clip.image_processor(turned, exif_rotation=True))
    np.testing.assert_allclose(upright.vectors, wanted, atol=1e-6)
    assert np.abs(upright.vectors - lying.vectors).max() > 1e-3


def test_nothing_gives_no_batch(clip):
    assert list(clip.stream_texts([])) == list(clip.stream_images([])) == []


def test_streams_are_lazy_and_end_where_the_consumer_ends(clip):
    drawn, others = itertools.count(), set(threading.enumerate())
    photo = photos()[0]
    stream = clip.stream_images((photo for _ in iter(lambda: next(drawn), None)), batch_size=2)
    assert next(drawn) == 0
    next(stream)
    next(stream)
    # Three batches are started, and two more are ready or being read.
    assert next(drawn) <= 1 + 2 * (3 + 2)
    stream.close()
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("jaxclip")]
    endless = clip.stream_texts(itertools.repeat("a cat"), batch_size=2)
    np.testing.assert_allclose(next(endless).vectors, clip.encode_text(["a cat"] * 2), atol=1e-6)


def test_one_input_is_not_taken_for_many(clip, files):
    with pytest.raises(TypeError, match="stream_texts takes an iterable of strings"):
        clip.stream_texts("a cat")
    with pytest.raises(TypeError, match="stream_images takes an iterable of images"):
        clip.stream_images(str(files[0]))


def test_decoding_goes_on_while_the_model_runs(clip, monkeypatch):
    """The model's first batch doesn't end before the second has been read."""
    processor, encode = clip.image_processor, clip.encoder.images
    second, read, waited = threading.Event(), itertools.count(1), []

    class Counting(type(processor)):
        def __call__(self, *arguments, **options):
            if next(read) == 8:
                second.set()
            return processor(*arguments, **options)

    def slow(*arguments, **options):
        waited.append(second.wait(timeout=60))
        return encode(*arguments, **options)

    clip = jaxclip.Clip(clip.model, image_processor=Counting())
    monkeypatch.setattr(clip.encoder, "images", slow)
    assert len(list(clip.stream_images([photos()[0]] * 20, batch_size=4))) == 5
    assert all(waited)
