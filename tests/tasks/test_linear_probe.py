import sys

import numpy as np
import pytest

from jaxclip.tasks.linear_probe import PENALTIES, cross_validated_scores, fit_linear_probe


@pytest.fixture(scope="module")
def data():
    """Unit vectors around five means that overlap, far from the origin as CLIP's are: 240 of 16 numbers."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 240)
    vectors = 3 + rng.normal(size=(5, 16))[targets] + 1.2 * rng.normal(size=(240, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), targets


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def standard(vectors):
    centred = vectors - vectors.mean(axis=0)
    return centred / np.sqrt((centred**2).mean())


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_equals_scikit_learns_minimum(data, l2):
    from sklearn.linear_model import LogisticRegression

    vectors, targets = data
    probe = fit_linear_probe(vectors, targets, 5, l2=l2)
    theirs = LogisticRegression(C=1 / (len(targets) * l2), max_iter=20_000, tol=1e-9)
    theirs.fit(standard(vectors.astype(np.float64)), targets)
    expected = theirs.predict_proba(standard(vectors.astype(np.float64)))
    np.testing.assert_allclose(softmax(probe(vectors)), expected, rtol=0, atol=2e-6)  # The worst is 1.3e-6.
    assert probe.l2 == l2
    assert probe.weights.shape == (16, 5)
    assert np.ptp(expected) > 0.5


def test_the_scale_and_the_origin_of_features_make_no_difference(data):
    vectors, targets = data
    here, there = (fit_linear_probe(x, targets, 5, l2=0.1) for x in (vectors, 50 * vectors - 7))
    np.testing.assert_allclose(softmax(there(50 * vectors - 7)), softmax(here(vectors)), atol=2e-4)


def test_the_penalty_is_chosen_on_images_that_were_not_fitted(data):
    """Of pure noise the strongest is best; of classes far apart a weak one."""
    vectors, targets = data
    rng = np.random.default_rng(1)
    noise = rng.normal(size=vectors.shape).astype(np.float32)
    assert fit_linear_probe(noise, targets, 5).l2 >= 1
    apart = (10 * np.eye(16)[targets] + 0.1 * noise).astype(np.float32)
    assert fit_linear_probe(apart, targets, 5).l2 <= 1e-3
    between = fit_linear_probe(vectors, targets, 5)
    assert PENALTIES[-1] < between.l2 < PENALTIES[0]
    assert fit_linear_probe(vectors, targets, 5).l2 == between.l2  # The split is the seed's.


def test_cross_validation_scores_each_image_by_others(data):
    vectors, targets = data
    scores, penalties = cross_validated_scores(vectors, targets, 5)
    held_out = (scores.argmax(axis=1) == targets).mean()
    fitted = (fit_linear_probe(vectors, targets, 5, l2=PENALTIES[-1])(vectors).argmax(axis=1) == targets).mean()
    assert len(penalties) == 5
    assert set(penalties) <= set(PENALTIES)
    assert 0.4 < held_out < fitted
    # Vectors that tell nothing: an image that was fitted would be known by heart.
    noise = np.random.default_rng(2).normal(size=(240, 16)).astype(np.float32)
    guessed = (cross_validated_scores(noise, targets, 5)[0].argmax(axis=1) == targets).mean()
    by_heart = (fit_linear_probe(noise, targets, 5, l2=PENALTIES[-1])(noise).argmax(axis=1) == targets).mean()
    assert guessed < 0.26 < 0.3 < by_heart


def test_a_class_without_images_gets_none(data):
    vectors, targets = data
    scores, _ = cross_validated_scores(vectors, np.where(targets == 2, 4, targets), 5)
    assert scores.shape == (240, 5)
    assert (scores.argmax(axis=1) != 2).all()


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        ([0, 0, 0, 0], 2, "at least two of the 2 classes"),
        ([0, 1, 2, 1], 2, "at least two of the 2 classes"),
        ([0, 1, 2, 3], 4, "no class has two images"),
    ],
)
def test_what_can_not_be_fitted_raises(targets, classes, message):
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(np.eye(4, dtype=np.float32), np.array(targets), classes)


def test_what_can_not_be_cross_validated_raises():
    with pytest.raises(ValueError, match="needs at least two folds and 5 images of each class, and one has 2"):
        cross_validated_scores(np.eye(10, dtype=np.float32), np.array([0] * 8 + [1] * 2), 2)
    with pytest.raises(ValueError, match="features must be finite"):
        fit_linear_probe(np.full((4, 2), np.nan, np.float32), np.array([0, 0, 1, 1]), 2)


def test_without_optax_it_says_so(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=r'pip install "jaxclip\[train\]"'):
        fit_linear_probe(*data, 5)
