"""The oracle itself: numbers worked out by hand, the committed references, and what it imports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxclip import reference

A, B = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [-3.0, -4.0], [-4.0, 3.0]])
BY_HAND = {
    "dot_product": [[24, -25, 0], [0, 0, 0]],
    "cosine_similarity": [[0.96, -1, 0], [0, 0, 0]],
    "cosine_distance": [[0.04, 2, 1], [1, 1, 1]],
    "angular_distance": [[np.arccos(0.96), np.pi, np.pi / 2], [np.pi / 2] * 3],
    "squared_euclidean_distance": [[2, 100, 50], [25, 25, 25]],
    "euclidean_distance": [[np.sqrt(2), 10, np.sqrt(50)], [5, 5, 5]],
    "manhattan_distance": [[2, 14, 8], [7, 7, 7]],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    value = getattr(reference, name)(A, B)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, BY_HAND[name], atol=1e-15)


def test_normalize_mahalanobis_and_top_k_by_hand():
    np.testing.assert_allclose(reference.normalize(A), [[0.6, 0.8], [0, 0]], atol=1e-16)
    sigma = reference.covariance(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]))
    np.testing.assert_allclose(sigma, [[2 / 3, 0], [0, 8 / 3]], atol=1e-16)
    np.testing.assert_allclose(reference.mahalanobis_distance(A, 0 * A, sigma)[:, 0], [np.sqrt(13.5 + 6), 0])
    shrunk = reference.covariance(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]), shrinkage=0.5)
    np.testing.assert_allclose(shrunk, [[7 / 6, 0], [0, 13 / 6]])
    values, columns = reference.top_k(np.array([[1.0, 3.0, 3.0, 2.0]]), 3)
    np.testing.assert_array_equal(values, [[3, 3, 2]])
    np.testing.assert_array_equal(columns, [[1, 2, 3]])


def test_equals_the_committed_references():
    with np.load(Path(__file__).parents[1] / "similarity" / "references" / "measures.npz") as arrays:
        a, b = arrays["a"], arrays["b"]
        for name in sorted(BY_HAND.keys() - {"angular_distance"}):
            np.testing.assert_allclose(getattr(reference, name)(a, b), arrays[name], rtol=1e-12, atol=1e-12)
        samples = np.concatenate([a[:-2], b[:-2]])
        sigma = reference.covariance(samples, shrinkage=float(arrays["shrinkage"]))
        expected = arrays["mahalanobis_distance"]
        np.testing.assert_allclose(reference.mahalanobis_distance(a, b, sigma), expected, rtol=1e-10, atol=1e-10)


def test_imports_neither_jax_nor_flax():
    code = "import sys, jaxclip.reference; print({m for m in ('jax', 'flax', 'torch', 'scipy') if m in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "set()\n"
