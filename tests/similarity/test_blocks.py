import jax
import jax.numpy as jnp
import numpy as np
import pytest
from similarity_cases import EPS, jit, vectors

from jaxclip import similarity
from jaxclip.similarity.blocks import over_blocks


def test_blocks_are_put_together_and_unwanted_ones_skipped(monkeypatch):
    a, b = (jnp.asarray(x) for x in vectors(130, 150, 3))
    pair = jnp.asarray(np.random.default_rng(2).normal(size=(130, 150)).astype(np.float32))
    wanted = np.zeros((130, 150), bool)
    wanted[70, 149] = True

    def function(a, b, pair):
        return jnp.sum((a[:, None] - b[None]) ** 3, axis=-1) * pair

    def blocks(a, wanted=None):
        return over_blocks(function, (a,), (b,), (pair,), wanted=wanted)

    expected = jit(function)(a, b, pair)
    gradient = jit(jax.grad(lambda a: function(a, b, pair).sum()))(a)
    np.testing.assert_array_equal(jit(lambda a: blocks(a))(a), expected)
    # Blocks of 33 rows and 64 columns: the last of both are not full.
    monkeypatch.setattr("jaxclip.similarity.blocks._BUDGET", 6400)
    np.testing.assert_allclose(jit(lambda a: blocks(a))(a), expected, rtol=4 * EPS, atol=4 * EPS)
    # Sums of 150 terms of up to 100, in another order.
    found = jit(jax.grad(lambda a: blocks(a).sum()))(a)
    np.testing.assert_allclose(found, gradient, atol=1e-6 * np.abs(gradient).max())
    skipped = np.zeros((130, 150), np.float32)
    skipped[66:99, 128:] = expected[66:99, 128:]
    np.testing.assert_allclose(jit(blocks)(a, wanted), skipped, rtol=4 * EPS, atol=4 * EPS)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["manhattan_distance", "euclidean_distance"])
def test_memory_is_far_below_all_differences(name, backward):
    n, m, d = 600, 700, 256
    function = getattr(similarity, name)
    if backward:
        function = jax.grad(lambda a, b, f=function: f(a, b).sum())
    shapes = (jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((m, d), jnp.float32))
    memory = jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    # All differences are 430 MB; measured 11 to 50 MB, of blocks and (n, m) arrays.
    assert memory < n * m * d * 4 / 4
