from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from similarity_cases import EPS, jit

from jaxclip import reference, similarity

FILE = Path(__file__).parent / "references" / "measures.npz"


def data(n=80, d=6, seed=0):
    """Correlated samples far from the origin."""
    rng = np.random.default_rng(seed)
    return (100 + rng.normal(size=(n, d)) @ rng.normal(size=(d, d))).astype(np.float32)


def test_equals_the_committed_references():
    with np.load(FILE) as arrays:
        a, b, expected, shrinkage = (arrays[name] for name in ("a", "b", "mahalanobis_distance", "shrinkage"))
    factor = similarity.covariance(np.concatenate([a[:-2], b[:-2]]), shrinkage=float(shrinkage))
    value = similarity.mahalanobis_distance(a, b, factor)
    far = expected > 1e-3
    np.testing.assert_allclose(value[far], expected[far], rtol=TOLERANCE)
    # Nearly equal: in units of the vectors' own length, counted from the first b, that is rounded by whitening.
    sigma = np.asarray(factor.cholesky, np.float64) @ np.asarray(factor.cholesky, np.float64).T
    length = reference.mahalanobis_distance(a, b[:1], sigma) + np.zeros(expected.shape)
    assert (np.abs(value - expected)[~far] <= TOLERANCE * length[~far]).all()
    paired = similarity.mahalanobis_distance(a, b[:24], factor, paired=True)
    np.testing.assert_allclose(paired, np.diag(expected), rtol=TOLERANCE)


# Worst measured: 1.3e-6 (the covariance is summed in float32).
TOLERANCE = 5e-6


@pytest.mark.parity
def test_equals_scipy_and_sklearn_live():
    distance = pytest.importorskip("scipy.spatial.distance")
    sklearn = pytest.importorskip("sklearn.covariance")
    x = data()
    for shrinkage in (0.0, 0.3):
        sigma = sklearn.shrunk_covariance(np.cov(x.astype(np.float64).T), shrinkage)
        factor = similarity.covariance(x, shrinkage=shrinkage)
        np.testing.assert_allclose(factor.cholesky @ factor.cholesky.T, sigma, atol=4 * EPS * np.abs(sigma).max())
        expected = distance.cdist(
            x.astype(np.float64), x[:9].astype(np.float64), "mahalanobis", VI=np.linalg.inv(sigma)
        )
        np.testing.assert_allclose(similarity.mahalanobis_distance(x, x[:9], factor), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("paired", [False, True])
def test_equals_the_oracle_by_matrix_and_by_factor(paired):
    x = data()
    sigma = reference.covariance(x)
    a, b = x[:9], x[9:18]
    expected = reference.mahalanobis_distance(a, b, sigma)
    expected = np.diag(expected) if paired else expected
    given = jnp.asarray(sigma, jnp.float32)
    for covariance in (given, similarity.factor_covariance(given), similarity.covariance(x)):
        value = similarity.mahalanobis_distance(a, b, covariance, paired=paired)
        # Measured 7e-6: the condition number's square root is 60 here.
        np.testing.assert_allclose(value, expected, rtol=2.8e-5)


def test_data_far_from_the_origin_lose_nothing():
    x = data()
    near, far = x - 100, x + 3900
    sigma = reference.covariance(x)
    expected = reference.mahalanobis_distance(far[:9], far[9:18], sigma)
    factor = similarity.factor_covariance(jnp.asarray(sigma, jnp.float32))
    np.testing.assert_allclose(similarity.mahalanobis_distance(far[:9], far[9:18], factor), expected, rtol=2.8e-5)
    assert not np.diag(similarity.mahalanobis_distance(near, near, factor)).any()


def test_whitened_euclidean_distance_is_the_mahalanobis_distance():
    x = data() - 100
    factor = similarity.covariance(x)
    white = factor.whiten(x)
    np.testing.assert_allclose(np.cov(np.asarray(white, np.float64).T), np.eye(6), atol=4e-5)
    found = similarity.top_k(white[:5], white, 3, metric="euclidean")
    expected = np.sort(reference.mahalanobis_distance(x[:5], x, reference.covariance(x)), axis=1)[:, :3]
    np.testing.assert_allclose(found.values, expected, rtol=2.8e-5, atol=1e-6)
    assert factor.whiten(x[0]).shape == (6,)
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., 6\) as the covariance is, got \(2, 5\)"):
        factor.whiten(x[:2, :5])


def test_derivatives_match_float64_finite_differences():
    x = data().astype(np.float64)
    sigma = reference.covariance(x)
    with jax.enable_x64(True):

        def total(a, sigma):
            return similarity.mahalanobis_distance(a, jnp.asarray(x[5:9]), sigma).sum()

        both = jit(jax.value_and_grad(total, (0, 1)))
        inputs = [x[:3], sigma]
        for argument, step in ((0, 1e-5), (1, 1e-6)):
            gradient = both(*inputs)[1][argument]
            direction = np.random.default_rng(1).normal(size=gradient.shape)
            direction = direction if argument == 0 else direction + direction.T
            ends = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[argument] = moved[argument] + sign * step * direction
                ends.append(both(*moved)[0])
            np.testing.assert_allclose(np.vdot(gradient, direction), (ends[0] - ends[1]) / (2 * step), rtol=2e-6)


def test_singular_is_an_error_on_concrete_arrays():
    x = data()
    with pytest.raises(ValueError, match="covariance is singular: a variable follows from the others"):
        similarity.covariance(np.concatenate([x[:, :5], x[:, :2].sum(axis=1, keepdims=True)], axis=1))
    for samples in (x[:5], x * np.array([1, 1, 0, 1, 1, 1], np.float32)):
        with pytest.raises(ValueError, match="covariance is singular"):
            similarity.covariance(samples)
        shrunk = similarity.covariance(samples, shrinkage=0.01)
        assert jnp.isfinite(similarity.mahalanobis_distance(x, x, shrunk)).all()
    with pytest.raises(ValueError, match="covariance is singular"):
        similarity.mahalanobis_distance(x, x, jnp.zeros((6, 6)))
    with pytest.raises(ValueError, match="covariance is singular"):
        similarity.factor_covariance(-jnp.eye(3))


@jit
def distances_of_covariance(x, samples):
    def total(samples):
        return similarity.mahalanobis_distance(x[:4], x[5:9], similarity.covariance(samples)).sum()

    return jax.value_and_grad(total)(samples)


@pytest.mark.parametrize("samples", ["too few", "constant", "all constant"])
def test_singular_inside_a_trace_is_free_of_nan(samples):
    x = data()
    samples = {"too few": x[:4], "constant": x * np.array([1, 1, 0, 1, 1, 1], np.float32), "all constant": 0 * x}[
        samples
    ]

    value, gradient = distances_of_covariance(x, samples)
    assert 0 < value < np.inf
    assert np.isfinite(gradient).all()


def test_what_does_not_fit_raises():
    x = jnp.ones((4, 3))
    for matrix, message in (
        (jnp.ones((3, 4)), r"covariance must be \(d, d\), got \(3, 4\)"),
        (jnp.array([[1.0, jnp.nan], [jnp.nan, 1.0]]), "covariance must be finite"),
        (jnp.array([[1.0, 0.5], [0.0, 1.0]]), "covariance must be symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            similarity.factor_covariance(matrix)
    with pytest.raises(ValueError, match=r"samples must be \(n, d\) with at least two rows, got \(1, 3\)"):
        similarity.covariance(x[:1])
    with pytest.raises(ValueError, match=r"shrinkage must be from 0 to 1, got 1\.5"):
        similarity.covariance(x, shrinkage=1.5)
    with pytest.raises(TypeError, match="covariance must be a floating-point array, got int32"):
        similarity.factor_covariance(jnp.eye(3, dtype=int))
    with pytest.raises(ValueError, match=r"as the covariance is, got \(4, 3\)"):
        similarity.mahalanobis_distance(x, x, jnp.eye(2))
    assert similarity.covariance(data().astype(jnp.bfloat16)).cholesky.dtype == jnp.float32


def test_a_concrete_covariance_closed_over_by_a_traced_function():
    sigma = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    a, b = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0], [3.0, 3.0]])
    eager = similarity.mahalanobis_distance(a, b, sigma)
    compiled = jax.jit(lambda a: similarity.mahalanobis_distance(a, b, sigma))(a)
    np.testing.assert_allclose(compiled, eager, rtol=1e-6)
    singular = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"singular|positive definite"):
        jax.jit(lambda a: similarity.mahalanobis_distance(a, b, singular))(a)
