"""The reductions of the logits: dense against float64 NumPy, chunked against dense."""

import functools
import inspect
import re

import hypothesis
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import jit

from jaxclip.losses.streaming import global_indices, row_and_column_log_sum_exp, row_log_sum_exp, row_softplus_sum

# One at a time, with a remainder, and more than there are.
CHUNKS = [1, 5, 100]
LEAST = np.finfo(np.float32).min


def unit_vectors(generator, count, width):
    vectors = generator.normal(size=(count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def example(seed, n, m, width, scale=10.0, bias=-3.0, dtype="float32"):
    """Operands of `results`, and weights that tell every row and column apart."""
    generator = np.random.default_rng(seed)
    vectors = [unit_vectors(generator, count, width) for count in (n, m)]
    weights = [generator.normal(size=count) for count in (n, n, n, m)]
    numbers = [jnp.asarray(x, dtype) for x in (*vectors, scale, bias)], [jnp.asarray(x, dtype) for x in weights]
    masks = [jnp.asarray(generator.random(count) < 0.7) for count in (n, m)]
    return *numbers, (*masks, jnp.asarray(generator.integers(-1, m + 1, n)))


def results(queries, keys, scale, bias, masks, **options):
    query_mask, key_mask, excluded = masks
    seen = {"key_mask": key_mask, "excluded": excluded}
    rows, columns = row_and_column_log_sum_exp(queries, keys, scale, query_mask=query_mask, **seen, **options)
    alone = row_log_sum_exp(queries, keys, scale, **seen, **options)
    return rows, alone, row_softplus_sum(queries, keys, scale, bias, **seen, **options), columns


def loss(operands, weights, masks, **options):
    """A number that every result is in, but those of rows and columns that see nothing; and the results."""
    values = results(*operands, masks, **options)
    terms = [jnp.vdot(w, jnp.where(v > LEAST / 2, v, 0)) for w, v in zip(weights, values, strict=True)]
    return sum(terms), values


@functools.partial(jax.jit, static_argnames="chunk_size")
def value_and_gradient(operands, weights, masks, chunk_size):
    return jax.value_and_grad(loss, has_aux=True)(operands, weights, masks, chunk_size=chunk_size)


def oracle(queries, keys, scale, bias, masks):
    queries, keys, scale, bias = (np.asarray(x, np.float64) for x in (queries, keys, scale, bias))
    n, m = len(queries), len(keys)
    query_mask, key_mask, excluded = masks
    pairs = np.ones((n, m), bool) if excluded is None else np.asarray(excluded)[:, None] != np.arange(m)
    by_row = pairs if key_mask is None else pairs & np.asarray(key_mask)
    by_column = pairs if query_mask is None else pairs & np.asarray(query_mask)[:, None]
    logits = scale * queries @ keys.T

    def log_sum_exp(visible, axis):
        values = np.logaddexp.reduce(np.where(visible, logits, -np.inf), axis=axis)
        return np.where(visible.any(axis), values, LEAST)

    rows = log_sum_exp(by_row, 1)
    softplus = np.where(by_row, np.logaddexp(0, logits + bias), 0).sum(axis=1)
    return rows, rows, softplus, log_sum_exp(by_column, 0)


def distance(ours, theirs):
    """The largest difference, relative to the norm of the array it is in, or to 1 where that is smaller. Rows that see
    nothing have the least float32 in both, and don't count."""
    found = []
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        nothing = b < LEAST / 2
        np.testing.assert_array_equal(a < LEAST / 2, nothing)
        a, b = (np.where(nothing, 0, x) for x in (a, b))
        found.append(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1.0)))
    return max(found)


@settings(max_examples=60, deadline=None)
@hypothesis.example(seed=39284563, chunk_size=1, scale=1.0, bias=0.0, masked=True)  # A row and a column see nothing.
@given(
    seed=st.integers(0, 2**32 - 1),
    chunk_size=st.sampled_from(CHUNKS),
    scale=st.floats(-2, 3).map(lambda exponent: 10**exponent),
    bias=st.floats(-20, 20),
    masked=st.booleans(),
)
def test_chunked_equals_dense_and_both_equal_float64(seed, chunk_size, scale, bias, masked):
    operands, weights, masks = example(seed, 7, 12, 5, scale, bias)
    if not masked:
        masks = jnp.ones_like(masks[0]), jnp.ones_like(masks[1]), jnp.full_like(masks[2], -1)
    (_, dense), dense_gradient = value_and_gradient(operands, weights, masks, None)
    (_, chunked), gradient = value_and_gradient(operands, weights, masks, chunk_size)
    exact = oracle(*operands, masks)
    # The worst of 1,000 examples was 3.2e-7 against float64 and 1.4e-7 of each other.
    assert distance(dense, exact) < 1e-6
    assert distance(chunked, exact) < 1e-6
    assert distance(chunked, dense) < 5e-7
    # The worst was 4.3e-6: weights of both signs cancel, and at a scale of 1,000 an ulp of a logit is 6e-5.
    assert distance(gradient, dense_gradient) < 1.5e-5


@functools.partial(jax.jit, static_argnums=1)
def of_a_batch(operands, chunk_size):
    def loss(operands):
        rows, columns = row_and_column_log_sum_exp(*operands[:3], chunk_size=chunk_size)
        return jnp.mean(rows + columns + row_softplus_sum(*operands, chunk_size=chunk_size))

    return jax.value_and_grad(loss)(operands)


@pytest.mark.parametrize("chunk_size", [1, 100, 256])
def test_of_a_batch_chunked_equals_dense_to_a_millionth(chunk_size):
    generator = np.random.default_rng(0)
    images, texts = (unit_vectors(generator, 256, 512).astype(np.float32) for _ in range(2))
    # CLIP's scale at first and at most. The worst differences were 5.6e-7 and 1.5e-6; at a scale of 100 the order of
    # addition in a product decides, and from float64 dense was 1.4e-6 and chunked 0.4e-6 to 1.4e-6.
    for scale, tolerance in ((1 / 0.07, 1e-6), (100.0, 3e-6)):
        operands = (images, texts, scale, -10.0)
        wanted, ours = (of_a_batch(operands, chunk) for chunk in (None, chunk_size))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
            assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_float64_finite_differences(chunk_size, masked):
    with jax.enable_x64(True):
        operands, weights, masks = example(3, 12, 7, 4, dtype="float64")
        masks = masks if masked else (None, None, None)
        both = jit(jax.value_and_grad(lambda operands: loss(operands, weights, masks, chunk_size=chunk_size)[0]))
        gradient = [np.asarray(g) for g in both(operands)[1]]
        operands, step = [np.asarray(x) for x in operands], 1e-6
        for seed in range(3):
            generator = np.random.default_rng(seed)
            direction = [generator.normal(size=x.shape) for x in operands]
            there, back = (
                both([x + h * d for x, d in zip(operands, direction, strict=True)])[0] for h in (step, -step)
            )
            slope = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
            # Central differences: step² by the third derivative, and rounding of 1e-15 / step: 2.7e-9 at worst.
            np.testing.assert_allclose((there - back) / (2 * step), slope, rtol=1e-8)
        # Each of the four is differentiated by, not only the largest.
        assert all(np.linalg.norm(g) > 0.01 for g in gradient)


def test_second_derivatives():
    with jax.enable_x64(True):
        operands, weights, masks = example(4, 5, 6, 3, dtype="float64")

        def penalty(operands, chunk_size):
            gradient = jax.grad(lambda operands: loss(operands, weights, masks, chunk_size=chunk_size)[0])(operands)
            return sum(jnp.sum(g**2) for g in gradient)

        derivative = jit(jax.grad(penalty), static_argnums=1)
        dense, chunked = (derivative(operands, chunk) for chunk in (None, 4))
        assert distance(chunked, dense) < 1.5e-14  # 4.3e-15


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_identical_rows_at_a_scale_of_a_thousand(chunk_size):
    vectors = np.tile(np.float32([[0.6, 0.8]]), (6, 1))
    loss = jit(
        jax.value_and_grad(lambda q, k: row_log_sum_exp(q, k, 1e3, chunk_size=chunk_size).mean(), argnums=(0, 1))
    )
    value, gradient = loss(vectors, vectors)
    np.testing.assert_allclose(value, 1e3 + np.log(6), rtol=1e-6)
    for part in gradient:
        np.testing.assert_allclose(part, 1e3 / 6 * vectors, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("keys", [0, 6])
def test_without_a_key_to_see_values_are_finite_and_gradients_zero(chunk_size, keys):
    queries, keys = np.ones((3, 2), np.float32), np.ones((keys, 2), np.float32)
    masks = (jnp.zeros(3, bool), jnp.zeros(len(keys), bool), None)

    def total(operands):
        rows, alone, softplus, columns = values = results(*operands, masks, chunk_size=chunk_size)
        return jnp.sum(rows * 1e-3 + alone * 1e-3 + softplus) + jnp.sum(columns * 1e-3), values

    gradient, (rows, alone, softplus, columns) = jit(jax.grad(total, has_aux=True))((queries, keys, 10.0, 1.0))
    for part in (rows, alone, columns):
        np.testing.assert_array_equal(part, LEAST)
    np.testing.assert_array_equal(softplus, 0)
    for part in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(part, 0)
    # With nothing but the positive a cross-entropy is 0.
    assert np.logaddexp(0, np.asarray(rows) - 10).max() == 0


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_non_finite_values_are_not_hidden(chunk_size):
    queries, keys = np.ones((3, 2), np.float32), np.ones((5, 2), np.float32)
    queries[1, 0] = np.nan
    of_all = jit(functools.partial(results, chunk_size=chunk_size))
    rows, alone, softplus, columns = of_all(queries, keys, 1.0, 0.0, (None, None, None))
    for part in (rows, alone, softplus):
        np.testing.assert_array_equal(np.isnan(part), [False, True, False])
    assert np.isnan(columns).all()


@pytest.mark.parametrize("chunk_size", [None, 16])
def test_a_small_loss_keeps_its_digits(chunk_size):
    """As the module's docstring has it: without the positive, and with a softplus."""
    generator = np.random.default_rng(0)
    n, scale = 48, 30.0
    keys = unit_vectors(generator, n, 64)
    queries = keys + 0.01 * unit_vectors(generator, n, 64)
    queries, keys = (np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (queries, keys))

    def total(queries, keys):
        positive = scale * jnp.sum(queries * keys, axis=1)
        others = row_log_sum_exp(queries, keys, scale, excluded=global_indices(n), chunk_size=chunk_size)
        losses = jax.nn.softplus(others - positive)
        return jnp.sum(losses), (losses, row_log_sum_exp(queries, keys, scale, chunk_size=chunk_size) - positive)

    gradient, (losses, naive) = jax.jit(jax.grad(total, has_aux=True))(queries, keys)
    queries64, keys64 = (np.asarray(x, np.float64) for x in (queries, keys))
    logits = scale * queries64 @ keys64.T
    odds = np.exp(logits - np.diag(logits)[:, None]) * (1 - np.eye(n))
    exact = np.log1p(odds.sum(axis=1))
    softmax = odds / (1 + odds.sum(axis=1, keepdims=True))
    exact_gradient = scale * (softmax @ keys64 - softmax.sum(axis=1, keepdims=True) * keys64)
    assert 0 < exact.max() < 1e-6

    def error(ours, exact):
        return np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact)

    # An ulp of a logit of 30 is 1.9e-6, and so much is lost at best: 3.8e-6 was.
    assert error(losses, exact) < 1e-5
    assert error(gradient, exact_gradient) < 1e-5
    assert error(naive, exact) > 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_halves_are_reduced_in_float32(dtype, chunk_size):
    operands, weights, _ = example(5, 7, 12, 5)
    halves = [np.asarray(x).astype(jnp.dtype(dtype)) for x in operands[:2]] + [operands[2]]

    @jit
    def value_and_gradient(operands):
        return jax.value_and_grad(
            lambda operands: jnp.vdot(weights[0], row_log_sum_exp(*operands, chunk_size=chunk_size))
        )(operands)

    value, gradient = value_and_gradient(halves)
    wanted, wanted_gradient = value_and_gradient([np.asarray(x, np.float32) for x in halves])
    # On CPU both are float32's products; what is added is the rounding of the gradient as it leaves.
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, wanted)
    for ours, theirs, half in zip(gradient, wanted_gradient, halves, strict=True):
        assert ours.dtype == half.dtype
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(half.dtype))


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_precision_on_accelerators(dtype, precision, chunk_size):
    operands, weights, masks = example(6, 8, 8, 4)
    operands = [*(x.astype(dtype) for x in operands[:2]), *operands[2:]]
    step = jax.jit(jax.grad(lambda operands: loss(operands, weights, masks, chunk_size=chunk_size)[0]))
    program = jax.export.export(step, platforms=["tpu", "cuda"])(operands).mlir_module()
    products = re.findall(r"stablehlo\.dot_general.*", program)
    # The logits and their two gradients, of three functions; jax.numpy multiplies vectors (the weights) likewise.
    matrices = [product for product in products if "x" in product.rpartition("tensor<")[2].partition("xf32>")[0]]
    assert len(matrices) >= 9
    # stablehlo doesn't print what is the default.
    stated = [re.findall(r"precision = \[(\w+), (\w+)\]", product) or [("DEFAULT",) * 2] for product in matrices]
    assert stated == [[(precision, precision)]] * len(matrices)
    assert all(("tensor<" in product and product.endswith("f32>")) or "f32>" in product for product in matrices)


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, c: sum(jnp.sum(x) for x in row_and_column_log_sum_exp(q, k, 10.0, chunk_size=c)),
        lambda q, k, c: jnp.sum(row_softplus_sum(q, k, 10.0, -3.0, chunk_size=c)),
    ],
)
def test_memory_grows_with_the_chunk_and_not_with_the_batch(function):
    def temporary(count, chunk_size):
        vectors = jax.ShapeDtypeStruct((count, 8), jnp.float32)
        step = jax.jit(jax.value_and_grad(lambda q, k: function(q, k, chunk_size), argnums=(0, 1)))
        return step.lower(vectors, vectors).compile().memory_analysis().temp_size_in_bytes

    matrix = 4 * 4096 * 4096
    assert temporary(4096, None) >= matrix
    # Two buffers of a chunk's logits, and some vectors.
    assert temporary(4096, 64) < 2.5 * matrix * 64 / 4096
    assert temporary(4096, 256) < 2.5 * matrix * 256 / 4096


def test_vmap():
    queries, keys = (np.random.default_rng(i).normal(size=(3, 6, 4)).astype(np.float32) for i in range(2))
    grad = jax.grad(lambda q, k: row_log_sum_exp(q, k, 2.0, chunk_size=4).sum())
    one, several = jit(grad), jit(jax.vmap(grad))
    wanted = [one(q, k) for q, k in zip(queries, keys, strict=True)]
    np.testing.assert_allclose(several(queries, keys), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_key_is_excluded_by_its_number_in_any_integer(dtype):
    generator = np.random.default_rng(0)
    queries, keys = (unit_vectors(generator, count, 4).astype(np.float32) for count in (2, 300))
    of = jit(lambda excluded: row_log_sum_exp(jnp.asarray(queries), jnp.asarray(keys), 9.0, excluded=excluded))
    np.testing.assert_array_equal(of(np.array([5, 100], dtype)), of(np.array([5, 100], np.int32)))


def test_global_indices_of_one_device():
    np.testing.assert_array_equal(global_indices(4), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (((3, 2), (4, 3), 1.0), {}, ValueError, "of one width, got 2 and 3"),
        (((3,), (4, 3), 1.0), {}, ValueError, r"queries must be of shape \(number, width\), got \(3,\)"),
        (((3, 2), (4, 2), 1.0), {"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        (((3, 2), (4, 2), 1.0), {"collective": "star"}, ValueError, "must be 'gather' or 'ring', got 'star'"),
        (((3, 2), (4, 2), 1.0), {"dtype": int}, TypeError, "queries must be floating-point, got int32"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, options, error, message):
    dtype = options.pop("dtype", jnp.float32)
    queries, keys, scale = jnp.ones(arguments[0], dtype), jnp.ones(arguments[1], dtype), arguments[2]
    for function in (row_log_sum_exp, row_and_column_log_sum_exp, row_softplus_sum):
        # Without the tests' own check of annotated types, which would come first.
        bare = functools.partial(inspect.unwrap(function), **options)
        with pytest.raises(error, match=message):
            jax.eval_shape(bare, queries, keys, scale)
