from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from loss_cases import inputs, jit

from jaxclip import similarity
from jaxclip.losses import cosine_embedding_loss, triplet_loss

ARRAYS = {name: jnp.asarray(array) for name, array in inputs(seed=0, n=8, width=6).items()}
A, B, C = (ARRAYS[name] for name in "abc")


def test_cosine_embedding_by_hand():
    a = jnp.array([[2.0, 0.0]] * 4)
    b = jnp.array([[3.0, 4.0], [3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]])
    each = cosine_embedding_loss(a, b, jnp.array([1, -1, -1, 1]), margin=0.5, reduction="none")
    np.testing.assert_allclose(each, [0.4, 0.1, 0, 2], atol=1e-6)


def test_labels_draw_together_and_push_apart():
    labels = jnp.where(jnp.arange(8) < 4, 1, -1)

    @jit
    def step(a):
        return a - 0.5 * jax.grad(cosine_embedding_loss)(a, B, labels, 0.2)

    moved = A
    for _ in range(200):
        moved = step(moved)
    before, after = (similarity.cosine_similarity(x, B, paired=True) for x in (A, moved))
    assert (after[:4] > before[:4]).all()
    assert (after[4:] <= jnp.maximum(before[4:], 0.2) + 1e-6).all()
    assert before[4:].max() > 0.5
    assert cosine_embedding_loss(moved, B, labels, 0.2) < cosine_embedding_loss(A, B, labels, 0.2) / 2


def test_other_labels_are_found_by_checkify_and_cost_nothing():
    labels = jnp.array([1, -1, 0, 1, -1, 1, 1, 2])
    assert not cosine_embedding_loss(A, B, labels, reduction="none")[jnp.array([2, 7])].any()
    checked = jit(checkify.checkify(lambda labels, mask: cosine_embedding_loss(A, B, labels, mask=mask)))
    checked(labels, jnp.abs(labels) == 1)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="labels must be 1 or -1"):
        checked(labels, jnp.ones(8, bool))[0].throw()


def test_an_unsigned_label_is_never_minus_one():
    labels = jnp.array([1, 255, 0, 1, 255, 1, 1, 2], jnp.uint8)
    each = cosine_embedding_loss(A, B, labels, -0.9, reduction="none")
    np.testing.assert_array_equal(np.asarray(each) > 0, labels == 1)


METRICS = {
    "cosine": similarity.cosine_distance,
    "angular": similarity.angular_distance,
    "euclidean": similarity.euclidean_distance,
    "squared_euclidean": similarity.squared_euclidean_distance,
    "manhattan": similarity.manhattan_distance,
    "mahalanobis": partial(
        similarity.mahalanobis_distance, covariance=similarity.factor_covariance(jnp.diag(jnp.arange(1.0, 7.0)))
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_triplets_take_any_metric(name):
    metric = METRICS[name]
    near, far = metric(A, B, paired=True), metric(A, C, paired=True)
    wanted = [max(0, float(x) - float(y) + 1) for x, y in zip(near, far, strict=True)]
    np.testing.assert_allclose(triplet_loss(A, B, C, 1.0, metric, reduction="none"), wanted, rtol=1e-6, atol=1e-6)
    assert sum(x > 0 for x in wanted) > 0


def test_normalised_squared_distance_is_twice_the_cosine_loss():
    unit = [similarity.normalize(x) for x in (A, B, C)]
    faces = triplet_loss(*unit, 0.4, similarity.squared_euclidean_distance, reduction="none")
    np.testing.assert_allclose(faces, 2 * triplet_loss(A, B, C, 0.2, reduction="none"), atol=2e-6)


@pytest.mark.parametrize("name", METRICS)
def test_triplets_of_one_vector_cost_the_margin_and_have_a_gradient(name):
    value, slopes = jit(jax.value_and_grad(partial(triplet_loss, margin=0.3, metric=METRICS[name]), argnums=(0, 1, 2)))(
        A, A, A
    )
    np.testing.assert_allclose(value, 0.3, rtol=1e-6)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


@pytest.mark.usefixtures("plain_calls")
def test_errors():
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        cosine_embedding_loss(A, B, jnp.ones(8))
    with pytest.raises(ValueError, match=r"labels must have shape \(8,\), got \(7,\)"):
        cosine_embedding_loss(A, B, jnp.ones(7, int))
    with pytest.raises(ValueError, match=r"anchor \(8, 6\), positive \(8, 6\), negative \(7, 6\)"):
        triplet_loss(A, B, C[:7])
    with pytest.raises(ValueError, match="margin must be finite, got inf"):
        triplet_loss(A, B, C, float("inf"))
