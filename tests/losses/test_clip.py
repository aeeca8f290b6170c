import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from loss_cases import inputs, jit

from jaxclip import losses
from jaxclip.losses import clamp_logit_scale
from jaxclip.reference import losses as reference

ARRAYS = {name: jnp.asarray(array) for name, array in inputs(seed=0, n=8, width=6).items()}
clip_loss = jit(losses.clip_loss, static_argnames="reduction")
IMAGES, TEXTS = ARRAYS["a"], ARRAYS["b"]


def test_clip_learns_toy_data():
    """The page's second example: two encoders and the logit scale learn to match two noisy sides of one thing."""
    keys = jax.random.split(jax.random.key(0), 4)
    things = jax.random.normal(keys[0], (16, 4))
    photos, captions = (jnp.concatenate([things, jax.random.normal(key, (16, 4))], axis=1) for key in keys[1:3])
    weights = jax.random.normal(keys[3], (2, 8, 4))
    parameters = {"image": weights[0], "text": weights[1], "logit_scale": jnp.log(1 / 0.07)}
    optimizer = optax.adam(0.05)

    def loss(parameters):
        return losses.clip_loss(photos @ parameters["image"], captions @ parameters["text"], parameters["logit_scale"])

    def step(training, _):
        parameters, state = training
        value, slope = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(slope, state)
        parameters = optax.apply_updates(parameters, updates)
        parameters["logit_scale"] = clamp_logit_scale(parameters["logit_scale"])
        return (parameters, state), value

    training = (parameters, optimizer.init(parameters))
    (trained, _), values = jit(lambda training: jax.lax.scan(step, training, length=120))(training)
    assert values[0] > 4
    assert values[-1] < 0.5
    assert trained["logit_scale"] != parameters["logit_scale"]


def test_the_scale_is_a_logarithm():
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(IMAGES), np.asarray(TEXTS)))
    cosines, labels = images @ texts.T, np.arange(8)
    cross_entropy = jit(lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())
    wanted = (cross_entropy(cosines / 0.07) + cross_entropy(cosines.T / 0.07)) / 2
    np.testing.assert_allclose(clip_loss(IMAGES, TEXTS, math.log(1 / 0.07)), wanted, rtol=1e-6)


def test_clamp():
    assert clamp_logit_scale(jnp.array(5.0)) == pytest.approx(math.log(100))
    assert clamp_logit_scale(jnp.array(-3.0)) == -3
    assert clamp_logit_scale(jnp.array(2.0), maximum=1.5) == 1.5
    assert clamp_logit_scale(jnp.array(5.0, jnp.bfloat16)).dtype == jnp.bfloat16


def test_targets_on_the_diagonal_are_the_default():
    for targets in (7 * np.eye(8), np.eye(8, dtype=int), np.eye(8, dtype=bool)):
        # A cosine's last digit, times exp(2.3).
        each = clip_loss(IMAGES, TEXTS, 2.3, targets, reduction="none")
        np.testing.assert_allclose(each, clip_loss(IMAGES, TEXTS, 2.3, reduction="none"), atol=1.2e-6)


def test_a_caption_that_is_there_twice_may_be_either():
    """Texts 0 and 1 are one: by the diagonal even the best features cost; marked as one another's, they reach the
    least there is, where both have the probability one half."""
    features = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    marks = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    each = clip_loss(features, features, math.log(100), marks, reduction="none")
    np.testing.assert_allclose(each, [math.log(2), math.log(2), 0, 0], atol=6e-6)
    slope = jit(jax.grad(losses.clip_loss))(features, features, math.log(10), marks)
    assert np.abs(np.asarray(slope)[:2]).max() < 1e-3


def test_more_texts_than_images():
    images, texts = np.asarray(IMAGES), np.asarray(TEXTS)
    texts = np.concatenate([texts, texts[::-1] + images])
    targets = np.concatenate([np.eye(8), np.eye(8)[::-1]], axis=1)
    wanted = reference.clip_loss(IMAGES, texts, 2.3, targets)
    np.testing.assert_allclose(clip_loss(IMAGES, texts, 2.3, targets), wanted, rtol=1e-6)
    # Two texts more, padded.
    padded = np.concatenate([texts, np.full((2, 6), np.nan, np.float32)])
    mask = np.arange(18) < 16
    wider = np.concatenate([targets, np.ones((8, 2))], axis=1)
    masked = clip_loss(IMAGES, padded, 2.3, wider, mask=np.ones(8, bool), text_mask=mask)
    np.testing.assert_allclose(masked, wanted, rtol=1e-6)


def test_a_row_without_targets_does_not_count():
    targets = np.diag(np.arange(8) != 3).astype(np.float32)
    each = np.asarray(clip_loss(IMAGES, TEXTS, 2.3, targets, reduction="none"))
    assert each[3] == 0
    assert (np.delete(each, 3) > 0).all()
    np.testing.assert_allclose(clip_loss(IMAGES, TEXTS, 2.3, targets), each.sum() / 7, rtol=1e-6)
    np.testing.assert_allclose(clip_loss(IMAGES, TEXTS, 2.3, targets), reference.clip_loss(IMAGES, TEXTS, 2.3, targets),
                               rtol=1e-6)  # fmt: skip


def test_a_padded_text_alone_leaves_its_image_without_a_positive():
    mask = np.arange(8) != 2
    each = clip_loss(IMAGES, TEXTS, 2.3, text_mask=mask, reduction="none")
    assert each[2] == 0
    images_first = clip_loss(TEXTS, IMAGES, 2.3, mask=mask, text_mask=np.ones(8, bool), reduction="none")
    np.testing.assert_allclose(each, images_first, rtol=1e-6)


def test_checkify_finds_negative_targets_and_a_scale_too_large():
    checked = jit(checkify.checkify(lambda targets, scale: losses.clip_loss(IMAGES, TEXTS, scale, targets)))
    checked(np.eye(8), 2.0)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="targets must not be negative"):
        checked(-np.eye(8), 2.0)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="the loss must be finite"):
        checked(np.eye(8), 1000.0)[0].throw()


@pytest.mark.usefixtures("plain_calls")
def test_errors():
    images, texts = np.asarray(IMAGES), np.asarray(TEXTS)
    with pytest.raises(ValueError, match=r"one shape for all, got image_features \(8, 6\), text_features \(7, 6\)"):
        losses.clip_loss(images, texts[:7], 2.0)
    with pytest.raises(ValueError, match=r"one shape for all, got image_features \(8, 6\), text_features \(7, 6\)"):
        losses.clip_loss(images, texts[:7], 2.0, np.ones((8, 7)), reduction="none")
    with pytest.raises(ValueError, match=r"targets must have shape \(8, 8\), got \(8,\)"):
        losses.clip_loss(images, texts, 2.0, np.arange(8))
    with pytest.raises(TypeError, match="targets must be real, got complex64"):
        losses.clip_loss(images, texts, 2.0, np.eye(8, dtype="complex64"))
    with pytest.raises(ValueError, match=r"text_mask must have shape \(7,\), got \(8,\)"):
        losses.clip_loss(images, texts[:7], 2.0, np.ones((8, 7)), mask=np.ones(8, bool))
    with pytest.raises(ValueError, match="logit_scale must be finite, got nan"):
        losses.clip_loss(images, texts, math.nan)
