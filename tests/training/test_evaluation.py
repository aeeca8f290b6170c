"""Recall, against a loop over all orders that ties allow."""

import inspect
import json
from itertools import permutations

import jax
import numpy as np
import pytest
from cases import FOLDER
from tasks.index_cases import halves
from training.data_cases import captioned

import jaxclip
from jaxclip.training import evaluation
from jaxclip.training.captions import CaptionedFolder
from jaxclip.training.evaluation import Retrieval, evaluate_retrieval, retrieval
from jaxclip.training.features import cache_image_features


def looped(queries, items, right, k, draws=None):
    """The mean over queries of how often, with ties in every order, one of `right[query]` is among the first k."""
    hits = []
    for query, own in zip(queries, right, strict=True):
        scores = [float(np.dot(query, item)) for item in items]
        order = draws or permutations(range(len(items)))
        found = [
            any(i in own for i in sorted(range(len(items)), key=lambda i: (-scores[i], tie[i]))[:k]) for tie in order
        ]
        hits.append(np.mean(found))
    return np.mean(hits)


def owned(owners, n):
    return [[text for text, owner in enumerate(owners) if owner == image] for image in range(n)]


def test_ties_count_as_in_every_order():
    """Six vectors of which many are alike: all 720 orders."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        kinds = halves(rng, 2, width=5)
        images, texts = kinds[rng.integers(0, 2, 3)], kinds[rng.integers(0, 2, 6)]
        owners = np.concatenate([np.arange(3), rng.integers(0, 3, 3)])
        found = retrieval(images, texts, owners)
        assert (found.images, found.texts) == (3, 6)
        for k in (1, 5, 10):
            assert found.text_to_image[k] == pytest.approx(looped(texts, images, [[i] for i in owners], k), abs=1e-12)
            assert found.image_to_text[k] == pytest.approx(looped(images, texts, owned(owners, 3), k), abs=1e-12)


@pytest.mark.parametrize("block", [1 << 24, 300, 1])
def test_without_ties_it_is_the_plain_loop(monkeypatch, block):
    monkeypatch.setattr(evaluation, "_SCORES", block)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(40, 16)).astype(np.float32)
    owners = rng.permutation(np.concatenate([np.arange(40), rng.integers(0, 40, 60)]))
    # Lengths don't count.
    texts = (images[owners] + 2 * rng.normal(size=(100, 16))).astype(np.float32) * rng.uniform(0.1, 9, (100, 1))
    found = retrieval(images, texts, owners)
    units, text_units = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    for k in (1, 5, 10):
        one = [list(range(100))]
        assert found.text_to_image[k] == pytest.approx(looped(text_units, units, [[i] for i in owners], k, one))
        assert found.image_to_text[k] == pytest.approx(looped(units, text_units, owned(owners, 40), k, one))
    assert 0.1 < found.text_to_image[1] < found.text_to_image[5] < found.text_to_image[10] < 1
    assert retrieval(jax.numpy.asarray(images), jax.numpy.asarray(texts), owners) == found


def test_one_vector_for_everything_is_at_chance():
    same = np.ones((50, 8), np.float32)
    found = retrieval(same, np.ones((100, 8), np.float32), np.arange(100) % 50)
    assert found.text_to_image == pytest.approx({1: 1 / 50, 5: 5 / 50, 10: 10 / 50})
    # Two right ones of 100: 1 − C(98, k) / C(100, k).
    assert found.image_to_text == pytest.approx({k: 1 - (100 - k) * (99 - k) / (100 * 99) for k in (1, 5, 10)})


def test_perfect_and_hopeless():
    images = np.eye(12, dtype=np.float32)
    perfect = retrieval(images, images, np.arange(12))
    assert perfect.text_to_image == perfect.image_to_text == {1: 1, 5: 1, 10: 1}
    hopeless = retrieval(images, -images, np.arange(12))
    assert hopeless.text_to_image == hopeless.image_to_text == {1: 0, 5: 0, 10: 0}
    assert retrieval(images[:3], images[:3], np.arange(3)).text_to_image[10] == 1


@pytest.mark.parametrize(
    ("owners", "change", "message"),
    [
        ([0, 1, 3], None, r"got texts of images \[3\] and none of \[2\]"),
        ([0, 1, -1], None, r"got texts of images \[-1\]"),
        ([0, 1, 1], None, r"none of \[2\]"),
        ([0, 1], None, r"image_of_text \(texts,\), got \(3, 4\), \(3, 4\) and \(2,\)"),
        ([0, 1, 2], lambda x: x[:, :3], r"got \(3, 4\), \(3, 3\)"),
        ([0, 1, 2], lambda x: x * np.nan, "text_features must be finite"),
    ],
)
def test_what_has_no_recall(owners, change, message):
    features = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        # Unwrapped, because in tests jaxtyping may see the shapes first.
        inspect.unwrap(retrieval)(features, change(features) if change else features, np.array(owners))


@pytest.fixture(scope="module")
def clip():
    return jaxclip.load(FOLDER / "whole")


def test_of_a_handle_and_a_source(clip, tmp_path):
    source = CaptionedFolder(captioned(tmp_path / "data", 8))
    images = clip.encode_image([sample.image for sample in source])
    texts = clip.encode_text([caption for sample in source for caption in sample.captions])
    expected = retrieval(images, texts, np.repeat(np.arange(8), 3))
    assert evaluate_retrieval(clip, source) == expected == evaluate_retrieval(clip, source, batch_size=3)
    assert (expected.images, expected.texts, expected.skipped) == (8, 24, 0)
    cached = cache_image_features(clip, source, tmp_path / "cache")
    assert evaluate_retrieval(clip, source, image_features=cached) == expected
    assert (
        expected.text_to_image[1]
        < evaluate_retrieval(clip, source, image_features=np.asarray(texts[::3])).text_to_image[1]
    )


def test_bad_samples_are_left_out(clip, tmp_path):
    folder = captioned(tmp_path / "data", 5)
    good = evaluate_retrieval(clip, CaptionedFolder(captioned(tmp_path / "good", 4)))
    (folder / "images/04.png").write_bytes(b"no image")
    line = json.dumps({"file": "images/00.png", "captions": []})
    source = CaptionedFolder(folder)
    cached = cache_image_features(clip, source, tmp_path / "cache")
    assert evaluate_retrieval(clip, source) == Retrieval(**{**vars(good), "skipped": 1})
    assert evaluate_retrieval(clip, source, image_features=cached) == Retrieval(**{**vars(good), "skipped": 1})
    lines = (folder / "captions.jsonl").read_text().splitlines()
    (folder / "captions.jsonl").write_text("\n".join([line, *lines[1:]]))
    found = evaluate_retrieval(clip, CaptionedFolder(folder))
    assert (found.images, found.texts, found.skipped) == (3, 9, 2)
    (folder / "captions.jsonl").write_text(line)
    with pytest.raises(ValueError, match="not one of 1 samples has a caption and an image"):
        evaluate_retrieval(clip, CaptionedFolder(folder))
