import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_cases import EPS, jit

from jaxclip import reference, similarity
from jaxclip.similarity import top_k

FUNCTIONS = {
    "cosine": "cosine_similarity",
    "dot_product": "dot_product",
    "cosine_distance": "cosine_distance",
    "angular": "angular_distance",
    "euclidean": "euclidean_distance",
    "squared_euclidean": "squared_euclidean_distance",
    "manhattan": "manhattan_distance",
}


def whole_numbers(n, m, d, seed=0):
    """Of which every sum is exact, with many ties."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-2, 3, (rows, d)).astype(np.float32) for rows in (n, m))


def sorted_whole(metric, queries, items, k):
    scores = getattr(reference, FUNCTIONS[metric])(queries, items)
    sign = 1 if metric in ("cosine", "dot_product") else -1
    values, indices = reference.top_k(sign * scores, k)
    return sign * values, indices


@pytest.mark.parametrize(
    ("k", "block_size"),
    [(1, None), (10, None), (300, None), (10, 1), (10, 7), (1, 100), (300, 256), (10, 1999), (1, 5000)],
)
def test_equals_a_stable_sort_ties_included(k, block_size):
    queries, items = whole_numbers(6, 2000, 5)
    found = top_k(queries, items, k, "dot_product", block_size=block_size)
    values, indices = sorted_whole("dot_product", queries, items, k)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.indices, indices)
    assert found.indices.dtype == jnp.int32


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    m=st.sampled_from([1, 5, 700, 1025]),
    k=st.sampled_from([1, 4, 33]),
    block_size=st.sampled_from([None, 64, 333]),
    metric=st.sampled_from(["dot_product", "manhattan"]),
    seed=st.integers(0, 99),
)
def test_equals_a_stable_sort_in_all_shapes(m, k, block_size, metric, seed):
    queries, items = whole_numbers(3, m, 4, seed)
    k = min(k, m)
    found = top_k(queries, items, k, metric, block_size=block_size)
    values, indices = sorted_whole(metric, queries, items, k)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.indices, indices)


@pytest.mark.parametrize("metric", sorted(FUNCTIONS.keys() - {"cosine_distance"}))
def test_every_metric_is_its_function(metric):
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(5, 24)).astype(np.float32), rng.normal(size=(300, 24)).astype(np.float32)
    items *= np.exp(rng.normal(size=(300, 1))).astype(np.float32)
    found = top_k(queries, items, 4, metric, block_size=128)
    values, indices = sorted_whole(metric, queries, items, 4)
    np.testing.assert_array_equal(found.indices, indices)
    # Measured 1.1e-6, of a sum of 24 products.
    np.testing.assert_allclose(found.values, values, rtol=4e-6)


def test_cosine_at_the_edges():
    x = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    items = x * 10.0 ** np.linspace(-30, 30, 40, dtype=np.float32)[:, None]
    items[7] = 0
    found = top_k(x, items, 40)
    values, indices = np.asarray(found.values), np.asarray(found.indices)
    np.testing.assert_allclose(values, sorted_whole("cosine", x, items, 40)[0], atol=8 * EPS)
    assert values.max() <= 1
    assert (indices[np.arange(40) != 7, 0] == np.delete(np.arange(40), 7)).all()
    assert (np.take_along_axis(values, np.argwhere(indices == 7)[:, 1:], axis=1) == 0).all()


def test_groups_may_be_cut_anywhere():
    # Rows whose best lie in the columns beyond the last whole group, and at both ends of a group.
    scores = np.zeros((1, 1003), np.float32)
    scores[0, [0, 7, 8, 1000, 1002]] = 5, 4, 3, 6, 7
    found = top_k(jnp.ones((1, 1)), jnp.asarray(scores.T), 6, "dot_product")
    np.testing.assert_array_equal(found.indices, [[1002, 1000, 0, 7, 8, 1]])
    np.testing.assert_array_equal(found.values, [[7, 6, 5, 4, 3, 0]])


def test_under_jit_vmap_and_for_one_query():
    queries, items = (jnp.asarray(x) for x in whole_numbers(6, 500, 5))
    whole = top_k(queries, items, 3, "dot_product", block_size=100)
    search = partial(top_k, k=3, metric="dot_product", block_size=100)
    for found in (jax.jit(search)(queries, items), jax.vmap(search, in_axes=(0, None))(queries, items)):
        np.testing.assert_array_equal(found.values, whole.values)
        np.testing.assert_array_equal(found.indices, whole.indices)
    one = search(queries[2], items)
    assert one.values.shape == one.indices.shape == (3,)
    np.testing.assert_array_equal(one.indices, whole.indices[2])
    assert search(queries[:0], items).values.shape == (0, 3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_gradients_are_those_of_the_winners(metric):
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(4, 8)).astype(np.float32), rng.normal(size=(300, 8)).astype(np.float32)
    weights = rng.normal(size=(4, 3)).astype(np.float32)

    def searched(queries, items):
        return (weights * top_k(queries, items, 3, metric, block_size=100).values).sum()

    function = getattr(similarity, FUNCTIONS[metric])
    matrix = np.asarray(function(queries, items))
    _, indices = reference.top_k(-matrix if metric == "euclidean" else matrix, 3)

    def whole(queries, items):
        return (weights * jnp.take_along_axis(function(queries, items), indices, axis=1)).sum()

    both = jit(lambda *given: (jax.grad(searched, (0, 1))(*given), jax.grad(whole, (0, 1))(*given)))
    for found, expected in zip(*both(queries, items), strict=True):
        np.testing.assert_allclose(found, expected, atol=8 * EPS)


def test_never_the_whole_matrix():
    n, m, d = 64, 2**20, 8
    memory = (
        jax.jit(partial(top_k, k=10))
        .lower(jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((m, d), jnp.float32))
        .compile()
        .memory_analysis()
    )
    # All similarities are 268 MB, a block of them 34 MB; measured twice that and the block's items.
    assert memory.temp_size_in_bytes < 80e6


def test_approximate_is_exact_off_tpu():
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(5, 16)).astype(np.float32), rng.normal(size=(1000, 16)).astype(np.float32)
    exact = top_k(queries, items, 10, block_size=300)
    for block_size in (None, 300):
        approximate = top_k(queries, items, 10, approx=True, block_size=block_size)
        np.testing.assert_array_equal(approximate.indices, exact.indices)
    program = str(jax.make_jaxpr(partial(top_k, k=10, approx=True, recall_target=0.75))(queries, items))
    assert "approx_top_k" in program
    assert "recall_target=0.75" in program


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_items(dtype):
    queries, items = (jnp.asarray(x, dtype) for x in whole_numbers(3, 700, 6))
    found = top_k(queries, items, 5, "dot_product", block_size=128)
    assert found.values.dtype == jnp.float32
    wide = top_k(queries.astype(jnp.float32), items.astype(jnp.float32), 5, "dot_product")
    np.testing.assert_array_equal(found.indices, wide.indices)
    np.testing.assert_array_equal(found.values, wide.values)


def test_items_sharded_over_a_mesh():
    """In a process of its own, of eight devices."""
    code = """
import re
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxclip.similarity import top_k
rng = np.random.default_rng(0)
queries, items = (jnp.asarray(rng.integers(-2, 3, (n, 5)).astype(np.float32)) for n in (6, 1600))
xy = (2, 4), ("x", "y")
for (shape, names), spec in ((xy, P(("x", "y"))), (xy, P("y"))):
    sharding = NamedSharding(Mesh(np.array(jax.devices()).reshape(shape), names), spec)
    placed = jax.device_put(items, sharding)
    for metric, k in (("dot_product", 7), ("cosine", 300)):
        one = top_k(queries, items, k, metric, block_size=150)
        search = jax.jit(partial(top_k, k=k, metric=metric, block_size=150, sharding=sharding))
        search = search.lower(queries, placed).compile()
        for found in (top_k(queries, placed, k, metric, block_size=150), search(queries, placed)):
            if metric != "cosine":  # Whose sums are rounded: ties aren't.
                np.testing.assert_array_equal(found.indices, one.indices)
            np.testing.assert_allclose(found.values, one.values, atol=1e-6)
        program = search.as_text()
        # Candidates travel, items don't.
        for shape in re.findall(r"= \\(?\\w+\\[([\\d,]*)\\][^=]* all-gather", program):
            assert np.prod([int(n) for n in shape.split(",")]) <= 6 * k * 8, shape
        assert "all-gather" in program
gradient = jax.grad(lambda items: top_k(queries, items, 3, "dot_product", sharding=sharding).values.sum())(placed)
expected = jax.grad(lambda items: top_k(queries, items, 3, "dot_product").values.sum())(items)
np.testing.assert_array_equal(gradient, expected)
try:
    top_k(queries, jax.device_put(items[:799], jax.devices()[0]), 3, sharding=sharding)
except ValueError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "items have 799 rows, which the 4 devices of the mesh axes ('y',) can't share equally\n"


def test_what_does_not_fit_raises_while_tracing():
    def trace(queries=(2, 4), items=(5, 4), k=3, dtype=jnp.float32, **options):
        arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in (queries, items)]
        jax.eval_shape(partial(top_k, k=k, **options), *arguments)

    for options, message in (
        ({"queries": (2, 3)}, r"queries must be \(n, d\) or \(d,\) and items \(m, d\), got \(2, 3\) and \(5, 4\)"),
        ({"items": (4,)}, r"items \(m, d\), got \(2, 4\) and \(4,\)"),
        ({"k": 6}, "k must be from 1 to the number of items, 5, got 6"),
        ({"k": 0}, "k must be from 1 to the number of items, 5, got 0"),
        ({"items": (0, 4)}, "number of items, 0, got 3"),
        ({"metric": "hamming"}, "metric must be one of cosine, dot_product, cosine_distance, .* got 'hamming'"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            trace(**options)
    with pytest.raises(TypeError, match="queries must be a floating-point array, got int32"):
        trace(dtype=jnp.int32)
