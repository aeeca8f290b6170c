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

from jaxclip import reference, similarity
from jaxclip.similarity.blocks import over_blocks

FILE = Path(__file__).parent / "references" / "measures.npz"
MEASURES = [
    "cosine_similarity",
    "cosine_distance",
    "angular_distance",
    "dot_product",
    "euclidean_distance",
    "squared_euclidean_distance",
    "manhattan_distance",
]
# The cosine's distance is 1 - cosine: what takes long to compile is tested of the others.
COMPUTED = [name for name in MEASURES if name != "cosine_distance"]
OF_DIRECTION = MEASURES[:3]
OF_DIFFERENCE = MEASURES[4:]
# float32 against float64, in the unit of each measure's docstring (see `error`). Worst measured over 400 draws of
# `mixed`: 3.1e-7 (cosine), 2.8e-7 (angle), 1.4e-7 (dot product), 1.7e-7 (Euclidean), 3.2e-7 (its square), 2.7e-7.
TOLERANCE = dict.fromkeys(MEASURES, 1.1e-6) | {"dot_product": 5e-7, "euclidean_distance": 6.6e-7}
# Of gradients; worst of the same draws 2.2e-7.
GRADIENT_TOLERANCE = 8e-7
EPS = float(np.finfo(np.float32).eps)
LARGEST = float(np.finfo(np.float32).max)


def error(name, value, expected, a, b):
    """The worst difference: in units of 1 for directions, of ‖a‖ ‖b‖ for products, of the value for distances."""
    assert value.shape == expected.shape
    assert np.isfinite(value).all()
    expected = np.clip(expected, -LARGEST, LARGEST)
    if name in OF_DIRECTION:
        unit = np.ones(expected.shape)
    elif name == "dot_product":
        unit = np.linalg.norm(a, axis=-1)[:, None] * np.linalg.norm(b, axis=-1)
    else:
        unit = expected
    # What is under the smallest normal float may be 0.
    difference = np.maximum(np.abs(np.asarray(value, np.float64) - expected) - np.finfo(np.float32).tiny, 0)
    return np.max(np.divide(difference, unit, out=difference.copy(), where=unit > 0), initial=0)


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


def exact(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def vectors(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)


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
    n=st.sampled_from([0, 1, 3]),
    m=st.sampled_from([1, 4]),
    d=st.sampled_from([0, 1, 300]),
    name=st.sampled_from(MEASURES),
    seed=st.integers(0, 99),
)
def test_equals_the_oracle_in_all_shapes(n, m, d, name, seed):
    a, b = vectors(n, m, d, seed)
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

        # What optimising machine code costs is not worth it for one call.
        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
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


@pytest.mark.parametrize("d", [1, 512, 768, 2048])
def test_cosine_with_itself_is_one_and_never_more(d):
    a, _ = vectors(400, 0, d)
    a *= 10 ** np.random.default_rng(d).uniform(-30, 30, (400, 1)).astype(np.float32)
    own = np.diag(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(a)))
    pairs = np.asarray(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(a), paired=True))
    for value in (own, pairs, -np.diag(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(-a)))):
        assert value.max() <= 1
        # Two ulps of 1, of the docstring; measured 2 (d = 2048).
        assert value.min() >= 1 - 2.01 * EPS
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


def test_squared_distance_of_unit_vectors_is_two_minus_two_cosines():
    a, b = vectors(40, 50, 96)
    b[:20] = a[:20] + 0.05 * b[:20]
    cosine = np.asarray(similarity.cosine_similarity(a, b))
    squared = np.asarray(similarity.squared_euclidean_distance(similarity.normalize(a), similarity.normalize(b)))
    # Four ulps of 2, the largest terms; measured two.
    np.testing.assert_allclose(squared, 2 - 2 * cosine, atol=8 * EPS)
    np.testing.assert_array_equal(np.argsort(squared, axis=1), np.argsort(-cosine, axis=1))


def test_near_vectors_are_right_where_the_expansion_cancels():
    a, _ = vectors(300, 0, 512)
    b = a * (1 + 1e-6 * np.random.default_rng(1).normal(size=a.shape)).astype(np.float32)
    expected = np.linalg.norm(a.astype(np.float64) - b, axis=1)
    value = np.diag(similarity.euclidean_distance(jnp.asarray(a), jnp.asarray(b)))
    # Measured 1.2e-7; the expansion is off by 100 %.
    np.testing.assert_allclose(value, expected, rtol=4.8e-7)
    assert not np.diag(similarity.euclidean_distance(jnp.asarray(a), jnp.asarray(a))).any()
    gradient = jax.grad(lambda a: jnp.diagonal(similarity.euclidean_distance(a, b)).sum())(a)
    np.testing.assert_allclose(gradient, (a.astype(np.float64) - b) / expected[:, None], atol=4 * EPS)


def test_blocks_are_put_together_and_unwanted_ones_skipped(monkeypatch):
    a, b = (jnp.asarray(x) for x in vectors(130, 150, 3))
    pair = jnp.asarray(np.random.default_rng(2).normal(size=(130, 150)).astype(np.float32))
    wanted = jnp.zeros((130, 150), bool).at[70, 149].set(True)

    def function(a, b, pair):
        return jnp.sum((a[:, None] - b[None]) ** 3, axis=-1) * pair

    def blocks(a, wanted=None):
        return over_blocks(function, (a,), (b,), (pair,), wanted=wanted)

    expected = function(a, b, pair)
    gradient = jax.grad(lambda a: function(a, b, pair).sum())(a)
    np.testing.assert_array_equal(jax.jit(blocks)(a), jax.jit(function)(a, b, pair))
    # Blocks of 33 rows and 64 columns: the last of both are not full.
    monkeypatch.setattr("jaxclip.similarity.blocks._BUDGET", 6400)
    np.testing.assert_allclose(jax.jit(lambda a: blocks(a))(a), expected, rtol=4 * EPS, atol=4 * EPS)
    # Sums of 150 terms of up to 100, in another order.
    found = jax.jit(jax.grad(lambda a: blocks(a).sum()))(a)
    np.testing.assert_allclose(found, gradient, atol=1e-6 * np.abs(gradient).max())
    skipped = np.zeros((130, 150), np.float32)
    skipped[66:99, 128:] = expected[66:99, 128:]
    np.testing.assert_allclose(jax.jit(blocks)(a, wanted), skipped, rtol=4 * EPS, atol=4 * EPS)


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
    a, b = (jnp.asarray(x) for x in vectors(9, 7, 20))
    whole = function(a, b)
    for value, expected in (
        (function(a[1], b), whole[1]),
        (function(a[:7], b, paired=True), jnp.diagonal(whole)),
        *(
            [(jax.vmap(lambda row: function(row, b))(a), whole)]
            if name in ("dot_product", "euclidean_distance")
            else []
        ),
    ):
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


def test_normalize():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [3e30, 4e30], [3e-30, 4e-30], [1e-40, 0.0]])
    unit = [0.6, 0.8]
    np.testing.assert_allclose(similarity.normalize(x), [unit, [0, 0], unit, unit, [0, 0]], atol=EPS)
    assert similarity.normalize(x[0]).shape == (2,)
    assert similarity.normalize(jnp.ones((2, 3, 4))).shape == (2, 3, 4)
    assert similarity.normalize(x[:0]).shape == (0, 2)
    gradient = jax.jit(jax.jacrev(similarity.normalize))(x)[jnp.arange(5), :, jnp.arange(5)]
    tangent = np.array([[0.64, -0.48], [-0.48, 0.36]])
    for row, length in ((0, 5), (2, 5e30), (3, 5e-30)):
        np.testing.assert_allclose(gradient[row] * length, tangent, atol=4 * EPS)
    assert not gradient[jnp.array([1, 4])].any()
    with pytest.raises(ValueError, match="x must have an axis"):
        similarity.normalize(jnp.array(1.0))
    with pytest.raises(TypeError, match="x must be a floating-point array, got int32"):
        similarity.normalize(jnp.arange(3))


def test_nan_stays_nan():
    a, b = vectors(9, 7, 20)
    a[1, 2] = np.nan
    for name in MEASURES:
        unknown = np.isnan(getattr(similarity, name)(jnp.asarray(a), jnp.asarray(b)))
        assert unknown[1].all()
        assert unknown.sum() == 7


def test_just_beyond_the_border_to_differences():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 512)).astype(np.float32)
    b = (a * (1 + 0.27 * rng.normal(size=a.shape))).astype(np.float32)
    expected = np.linalg.norm(a.astype(np.float64) - b, axis=1)
    part = expected**2 / (np.linalg.norm(a, axis=1) ** 2 + np.linalg.norm(b, axis=1) ** 2)
    assert 1 / 32 < np.median(part) < 1.2 / 32
    # The docstring's bound; measured 6.5e-6.
    np.testing.assert_allclose(np.diag(similarity.euclidean_distance(a, b)), expected, rtol=1e-5)


def test_angles_between_almost_parallel_vectors():
    angle = np.array([1e-6, 1e-4, 1e-2, 1.0, np.pi - 1e-2, np.pi - 1e-4], np.float64)
    a, b = jnp.array([1.0, 0.0]), jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    # b itself is rounded: an ulp of 1.
    np.testing.assert_allclose(similarity.angular_distance(a, b), angle, atol=2 * EPS)
