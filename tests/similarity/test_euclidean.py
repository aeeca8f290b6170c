"""Where Euclidean distances change from a product to differences, and what they are of unit vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from similarity_cases import EPS, jit, vectors

from jaxclip import similarity


def test_squared_distance_of_unit_vectors_is_two_minus_two_cosines():
    a, b = vectors(40, 50, 96)
    b[:20] = a[:20] + 0.05 * b[:20]
    cosine = np.asarray(similarity.cosine_similarity(a, b))
    squared = np.asarray(similarity.squared_euclidean_distance(similarity.normalize(a), similarity.normalize(b)))
    # Four ulps of 2, the largest terms; measured two.
    np.testing.assert_allclose(squared, 2 - 2 * cosine, atol=8 * EPS)
    np.testing.assert_array_equal(np.argsort(squared, axis=1), np.argsort(-cosine, axis=1))


def test_near_vectors_are_right_where_the_expansion_cancels():
    a, _ = vectors(100, 0, 512)
    b = a * (1 + 1e-6 * np.random.default_rng(1).normal(size=a.shape)).astype(np.float32)
    expected = np.linalg.norm(a.astype(np.float64) - b, axis=1)
    value = np.diag(similarity.euclidean_distance(jnp.asarray(a), jnp.asarray(b)))
    # Measured 1.2e-7; the expansion is off by 100 %.
    np.testing.assert_allclose(value, expected, rtol=4.8e-7)
    assert not np.diag(similarity.euclidean_distance(jnp.asarray(a), jnp.asarray(a))).any()
    gradient = jit(jax.grad(lambda a: jnp.trace(similarity.euclidean_distance(a, b))))(a)
    np.testing.assert_allclose(gradient, (a.astype(np.float64) - b) / expected[:, None], atol=4 * EPS)


def test_just_beyond_the_border_to_differences():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 512)).astype(np.float32)
    b = (a * (1 + 0.27 * rng.normal(size=a.shape))).astype(np.float32)
    expected = np.linalg.norm(a.astype(np.float64) - b, axis=1)
    part = expected**2 / (np.linalg.norm(a, axis=1) ** 2 + np.linalg.norm(b, axis=1) ** 2)
    assert 1 / 32 < np.median(part) < 1.2 / 32
    # The docstring's bound; measured 6.5e-6.
    np.testing.assert_allclose(np.diag(similarity.euclidean_distance(a, b)), expected, rtol=1e-5)
