"""All measures, held to committed and live references, to the float64 oracle, and to what their docstrings state."""

import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import jaxtyped
from similarity_cases import COMPUTED, EPS, LARGEST, MEASURES, OF_DIRECTION, TOLERANCE, error, exact, jit, vectors

from jaxclip import reference, similarity

FILE = Path(__file__).parent / "references" / "measures.npz"
# Of gradients; worst of the same draws 2.2e-7.
GRADIENT_TOLERANCE = 8e-7


@pytest.fixture(scope="module")
def committed():
    with np.load(FILE) as arrays:
        return dict(arrays)


@cache
def compiled(name, paired):
    """Value, and gradients of Σ weights · measure."""
    function = partial(getattr(similarity, name), paired=paired)

    def weighted(a, b, weights):
        value = function(a, b)
        return (weights * value).sum(), value

    @jax.jit
    def value_and_gradients(a, b, weights):
        gradients, value = jax.grad(weighted, argnums=(0, 1), has_aux=True)(a, b, weights)
        return value, gradients

    return value_and_gradients


def mixed(seed, n=9, m=7, d=20, exponents=30):
    """Rows of any norm from 1e-30 to 1e30, and among b's some that are equal, near, opposite and zero."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(rows, d)) * 10 ** rng.uniform(-exponents, exponents, (rows, 1)) for rows in (n, m))
    b[0], b[1], b[2] = a[0], a[1] * (1 + 1e-5 * rng.normal(size=d)), -a[2]
    b[3] = a[3] * (1 + 0.12 * rng.normal(size=d))
    b[4] = 0
    a[5] = 0
    return a.astype(np.float32), b.astype(np.float32)


def test_the_references_are_of_their_size():
    assert FILE.stat().st_size < 150_000


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "angular_distance"])
def test_equals_the_committed_references(name, committed):
    a, b = committed["a"], committed["b"]
    value = getattr(similarity, name)(jnp.asarray(a), jnp.asarray(b))
    assert error(name, value, committed[name], *exact(a, b)) < TOLERANCE[name]


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
def test_equals_scipy_sklearn_and_torch_live(seed):
    for package in ("torch", "scipy", "sklearn"):
        pytest.importorskip(package)
    from write_similarity_references import SHRINKAGE, outputs

    a, b = vectors(60, 70, 64, seed)
    b[:20] = a[:20] * (1 + 1e-4 * b[:20])
    expected = outputs(a, b)
    expected.pop("mahalanobis_distance")
    for name, values in expected.items():
        value = getattr(similarity, name)(jnp.asarray(a), jnp.asarray(b))
        assert error(name, value, values, *exact(a, b)) < TOLERANCE[name], name
    assert SHRINKAGE == 0.1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(MEASURES), paired=st.booleans())
def test_equals_the_oracle_at_all_scales(seed, name, paired):
    a, b = mixed(seed)
    if paired:
        a = a[: len(b)]
    value = getattr(similarity, name)(jnp.asarray(a), jnp.asarray(b), paired=paired)
    a, b = exact(a, b)
    expected = np.clip(getattr(reference, name)(a, b), -LARGEST, LARGEST)
    if paired:
        value = np.where(np.eye(len(a), dtype=bool), np.asarray(value), expected)
    assert error(name, value, expected, a, b) < TOLERANCE[name]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(0, 4, 20), (3, 1, 0), (1, 4, 1), (3, 4, 300)]),
    name=st.sampled_from(MEASURES),
    seed=st.integers(0, 99),
)
def test_equals_the_oracle_in_all_shapes(shape, name, seed):
    a, b = vectors(*shape, seed)
    value = getattr(similarity, name)(jnp.asarray(a), jnp.asarray(b))
    assert value.dtype == jnp.float32
    a, b = exact(a, b)
    assert error(name, value, getattr(reference, name)(a, b), a, b) < TOLERANCE[name]


def gradients(name, a, b, weights):
    """Of Σ weights · measure with respect to a, from the formulas in float64, and the size its error is to be in."""
    if name in OF_DIRECTION:
        length = np.linalg.norm(a, axis=1, keepdims=True)
        safe = np.where(length == 0, 1, length)
        unit_a, unit_b = reference.normalize(a), reference.normalize(b)
        cosines = unit_a @ unit_b.T
        if name == "angular_distance":
            angle = reference.angular_distance(a, b)
            sine = np.sin(angle)
            # Parallel: no derivative. (Rounding makes angles of 1e-7 of it.)
            weights = np.divide(-weights, sine, out=np.zeros_like(sine), where=sine > 1e-6)
        elif name == "cosine_distance":
            weights = -weights
        gradient = (weights[:, :, None] * (unit_b[None] - cosines[:, :, None] * unit_a[:, None])).sum(1) / safe
        return np.where(length == 0, 0, gradient), np.abs(weights).sum(1, keepdims=True) / safe
    difference = a[:, None] - b[None]
    if name == "dot_product":
        return weights @ b, np.abs(weights) @ np.abs(b)
    if name == "squared_euclidean_distance":
        terms = 2 * difference
        size = 2 * (np.abs(a)[:, None] + np.abs(b)[None])
    elif name == "manhattan_distance":
        terms, size = np.sign(difference), np.ones_like(difference)
    else:
        distance = reference.euclidean_distance(a, b)[..., None]
        terms = np.divide(difference, distance, out=np.zeros_like(difference), where=distance > 0)
        size = np.ones_like(difference)
    return (weights[:, :, None] * terms).sum(1), (np.abs(weights)[:, :, None] * size).sum(1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(MEASURES))
def test_gradients_equal_the_formulas_at_all_scales(seed, name):
    # Nearly equal directions aside for the angle: its gradient there is a quotient of two roundings.
    a, b = mixed(seed)
    if name == "angular_distance":
        b[1] = b[5]
    weights = np.random.default_rng(seed).normal(size=(len(a), len(b)))
    one, other = compiled(name, False)(a, b, jnp.asarray(weights, jnp.float32))[1]
    a, b = exact(a, b)
    for gradient, (expected, unit) in (
        (one, gradients(name, a, b, weights)),
        (other, gradients(name, b, a, weights.T)),
    ):
        assert np.isfinite(gradient).all()
        allowed = GRADIENT_TOLERANCE * unit + np.finfo(np.float32).tiny
        assert (np.abs(np.asarray(gradient, np.float64) - expected) <= allowed).all()


@pytest.mark.parametrize(
    ("name", "paired"),
    [(name, False) for name in COMPUTED]
    + [("cosine_similarity", True), ("dot_product", True), ("angular_distance", True)],
)
def test_derivatives_match_float64_finite_differences(name, paired):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 2, 4))
    b[1] = a[1] * (1 + 0.08 * rng.normal(size=4))  # Near: by differences.
    weights = rng.normal(size=2 if paired else (2, 2))

    def function(x):
        a, b = x.reshape(2, 2, 4)
        return (weights * getattr(similarity, name)(a, b, paired=paired)).sum()

    with jax.enable_x64(True):
        x, step = jnp.asarray(np.stack([a, b]).ravel()), 1e-5 * np.eye(16)

        def differences(function):
            return (jax.lax.map(function, x + step) - jax.lax.map(function, x - step)) / 2e-5

        @jit
        def derivatives(x):
            gradient = jax.grad(function)
            first = gradient(x), jax.jacfwd(function)(x), differences(function)
            return function(x), first, (jax.jacfwd(gradient)(x), differences(gradient))

        value, (backward, forward, expected), (hessian, expected_hessian) = derivatives(x)
    assert value.dtype == jnp.float64
    # A central difference's own error, step² times the third derivative and 1e-16 / step: measured 1e-8 at most.
    for found, wanted in ((backward, expected), (forward, expected), (hessian, expected_hessian)):
        np.testing.assert_allclose(found, wanted, atol=4e-8 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("case", ["zero", "equal", "opposite", "huge", "tiny", "huge and tiny", "beyond"])
def test_edges_are_finite_with_finite_gradients(name, case):
    a, b = vectors(9, 7, 20)
    a, b = {
        "zero": (0 * a, b),
        "equal": (a, a[:7]),
        "opposite": (a, -a[:7]),
        "huge": (a * 1e30, b * 1e30),
        "tiny": (a * 1e-30, b * 1e-30),
        "huge and tiny": (a * 1e30, b * 1e-30),
        "beyond": (a * 1e-42, b * 3e37),
    }[case]
    for paired, rows, shape in ((False, a, (9, 7)), (True, a[:7], (7,))):
        weights = np.full(shape, 0.1, np.float32)
        value, gradients = compiled(name, paired)(rows, b, weights)
        assert all(np.isfinite(array).all() for array in (value, *gradients))
        if case == "zero":
            value, gradients = compiled(name, paired)(rows, 0 * b, weights)
            at_zero = {"angular_distance": np.pi / 2, "cosine_distance": 1.0}.get(name, 0.0)
            np.testing.assert_array_equal(value, np.full(shape, at_zero, np.float32))
            assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", MEASURES)
def test_one_convention_of_shapes(name):
    function = getattr(similarity, name)
    for a, b, paired, shape in (
        ((9, 20), (7, 20), False, (9, 7)),
        ((1, 20), (1, 20), False, (1, 1)),
        ((20,), (7, 20), False, (7,)),
        ((9, 20), (20,), False, (9,)),
        ((20,), (20,), False, ()),
        ((7, 20), (7, 20), True, (7,)),
        ((20,), (20,), True, ()),
        ((0, 20), (7, 20), False, (0, 7)),
        ((9, 20), (0, 20), False, (9, 0)),
        ((0, 20), (0, 20), True, (0,)),
    ):
        arguments = [jax.ShapeDtypeStruct(of, jnp.float32) for of in (a, b)]
        # The annotations are true of all.
        checked = partial(jaxtyped(function, typechecker=beartype), paired=paired)
        value = jax.eval_shape(checked, *arguments)
        assert (value.shape, value.dtype) == (shape, jnp.float32)
        gradient = jax.eval_shape(jax.grad(lambda a, b, p=paired: function(a, b, paired=p).sum()), *arguments)
        assert gradient.shape == a


@pytest.mark.parametrize("name", COMPUTED)
def test_vectors_pairs_and_vmap_are_rows_and_diagonals_of_the_matrix(name):
    function = getattr(similarity, name)

    @jit
    def forms(a, b):
        by_row = [jax.vmap(lambda row: function(row, b))(a)] if name in ("dot_product", "euclidean_distance") else []
        return function(a, b), (function(a[1], b), function(a[:7], b, paired=True), *by_row)

    whole, found = forms(*vectors(9, 7, 20))
    wanted = (whole[1], np.diagonal(whole), whole)
    for value, expected in zip(found, wanted[: len(found)], strict=True):
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=4 * EPS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MEASURES)
def test_half_precision_is_computed_in_float32(name, dtype):
    a, b = (jnp.asarray(x, dtype) for x in vectors(9, 7, 20))
    function = getattr(similarity, name)
    value = function(a, b)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, function(a.astype(jnp.float32), b.astype(jnp.float32)))
    assert jax.eval_shape(jax.grad(lambda a: function(a, b).sum()), a).dtype == jnp.dtype(dtype)
    assert jax.eval_shape(similarity.normalize, a).dtype == jnp.float32


@pytest.mark.parametrize("name", [*MEASURES, "mahalanobis_distance"])
def test_float32_products_are_traced_at_full_precision(name):
    extra = (similarity.factor_covariance(jnp.eye(8)),) if name == "mahalanobis_distance" else ()
    function = lambda a, b: getattr(similarity, name)(a, b, *extra).sum()  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(function, argnums=(0, 1)))(jnp.ones((3, 8)), jnp.ones((4, 8))))
    products = re.findall(r"dot_general\[.*?precision=(\S+)", program, re.DOTALL)
    # Mahalanobis solves besides. Forward, and back to both sides.
    assert len(products) >= (0 if name == "manhattan_distance" else 3)
    assert all("HIGHEST" in product for product in products)


@pytest.mark.parametrize("name", MEASURES)
def test_what_does_not_fit_raises_while_tracing(name):
    def trace(*shapes, dtype=jnp.float32, **options):
        arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        jax.eval_shape(partial(getattr(similarity, name), **options), *arguments)

    with pytest.raises(ValueError, match=r"same length d: \(n, d\) and \(m, d\), got \(3, 4\) and \(3, 5\)"):
        trace((3, 4), (3, 5))
    with pytest.raises(ValueError, match=r"or vectors \(d,\), got \(2, 3, 4\) and \(3, 4\)"):
        trace((2, 3, 4), (3, 4))
    with pytest.raises(ValueError, match=r"or vectors \(d,\), got \(\) and \(4,\)"):
        trace((), (4,))
    with pytest.raises(ValueError, match=r"paired=True wants .* got \(3, 4\) and \(2, 4\)"):
        trace((3, 4), (2, 4), paired=True)
    with pytest.raises(TypeError, match="a must be a floating-point array, got int32"):
        trace((3, 4), (2, 4), dtype=jnp.int32)
    with pytest.raises(TypeError, match="a must be a floating-point array, got list"):
        getattr(similarity, name)([1.0], [2.0])


def test_nan_stays_nan():
    a, b = vectors(9, 7, 20)
    a[1, 2] = np.nan
    for name in MEASURES:
        unknown = np.isnan(getattr(similarity, name)(jnp.asarray(a), jnp.asarray(b)))
        assert unknown[1].all()
        assert unknown.sum() == 7
