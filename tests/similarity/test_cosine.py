"""Measures of direction, besides what is tested of every measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from similarity_cases import EPS, vectors

from jaxclip import similarity


@pytest.mark.parity
def test_gradient_and_zero_vectors_are_torchs():
    torch = pytest.importorskip("torch")
    a, b = vectors(12, 12, 16)
    a[3] = 0
    leaf = torch.tensor(a, requires_grad=True)
    expected = torch.nn.functional.cosine_similarity(leaf, torch.tensor(b), dim=1)
    expected.sum().backward()
    value, gradient = jax.value_and_grad(lambda a: similarity.cosine_similarity(a, b, paired=True).sum())(a)
    np.testing.assert_allclose(value, expected.sum().item(), atol=12 * 4 * EPS)
    # torch's own gradient at a zero vector is b̂ / eps, of the order of 1e8; ours is stated as 0.
    rows = np.arange(12) != 3
    np.testing.assert_allclose(gradient[rows], leaf.grad[rows], atol=4 * EPS)
    assert not gradient[3].any()


@pytest.mark.parametrize("d", [1, 512, 768, 2048])
def test_cosine_with_itself_is_one_and_never_more(d):
    a, _ = vectors(400, 0, d)
    a *= 10 ** np.random.default_rng(d).uniform(-30, 30, (400, 1)).astype(np.float32)
    own = np.diag(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(a)))
    pairs = np.asarray(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(a), paired=True))
    for value in (own, pairs, -np.diag(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(-a)))):
        assert value.max() <= 1
        # Three ulps of 1, of the docstring; measured 2.5, on an AMD EPYC (2 on a Xeon).
        assert value.min() >= 1 - 3.01 * EPS
    lengths = np.linalg.norm(np.asarray(similarity.normalize(a), np.float64), axis=1)
    assert np.abs(lengths - 1).max() <= 2 * EPS


def test_the_articles_number():
    """clip-article: cosine against the dot product of normalised vectors, 21 × 21 × 512, differ by 2.98e-8 at most."""
    a, b = vectors(21, 21, 512)
    cosine = np.asarray(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(b)))
    # Normalised as the article does it, by NumPy's norm.
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    dot = np.asarray(similarity.dot_product(jnp.asarray(unit_a), jnp.asarray(unit_b)))
    assert np.abs(cosine).max() < 0.5
    assert np.abs(cosine - dot).max() <= 3e-8
    normalized = similarity.dot_product(similarity.normalize(a), similarity.normalize(b))
    assert np.abs(cosine - normalized).max() <= 3e-8


def test_angles_between_almost_parallel_vectors():
    angle = np.array([1e-6, 1e-4, 1e-2, 1.0, np.pi - 1e-2, np.pi - 1e-4], np.float64)
    a, b = jnp.array([1.0, 0.0]), jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    # b itself is rounded: an ulp of 1.
    np.testing.assert_allclose(similarity.angular_distance(a, b), angle, atol=2 * EPS)
