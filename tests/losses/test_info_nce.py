import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from loss_cases import inputs, jit

from jaxclip import losses
from jaxclip.reference import losses as reference

ARRAYS = {name: jnp.asarray(array) for name, array in inputs(seed=0, n=8, width=6).items()}
info_nce = jit(losses.info_nce, static_argnames="reduction")
A, B, SHARED, OWN = (ARRAYS[name] for name in ("a", "b", "shared", "own"))


def test_the_softmax_sharpens_as_the_temperature_falls():
    """One key at cosine 0.8, nine at 0.6: the loss is -log of the first one's probability, which goes from one in ten
    to certain; how far it has gone is what the two cosines say."""
    query = jnp.array([[1.0, 0.0]])
    key, negatives = jnp.array([[0.8, 0.6]]), jnp.tile(jnp.array([0.6, 0.8]), (9, 1))
    temperatures = jnp.array([100.0, 1.0, 0.2, 0.07, 0.02, 0.001])
    loss = jit(jax.vmap(jax.value_and_grad(lambda t: losses.info_nce(query, key, negatives, t))))
    values, slopes = loss(temperatures)
    probabilities = np.exp(-values)
    assert (np.diff(probabilities) > 0).all()
    np.testing.assert_allclose(probabilities[[0, -1]], [0.1, 1], atol=2e-4)
    temperatures = np.asarray(temperatures, np.float64)
    exact = np.log1p(9 * np.exp(-0.2 / temperatures))
    # The difference of two cosines is known to 6e-8, of which the smallest temperature with any loss makes 3e-6.
    np.testing.assert_allclose(values, exact, rtol=6e-6, atol=1e-30)
    # d/dτ log(1 + 9 exp(-0.2 / τ)) = (1 - p) 0.2 / τ²
    np.testing.assert_allclose(slopes, -np.expm1(-exact) * 0.2 / temperatures**2, rtol=6e-6, atol=1e-30)


def test_a_small_loss_keeps_its_digits():
    """Log-sum-exp less the positive would be 0 here."""
    query, negative = jnp.array([[1.0, 0.0]]), jnp.array([[-1.0, 0.0]])
    np.testing.assert_allclose(info_nce(query, query, negative, 0.1), np.exp(-20), rtol=1e-5)


@pytest.mark.parametrize("negatives", [None, jnp.ones((9, 6)), jnp.ones((8, 7, 6))])
def test_among_equal_vectors_the_positive_is_one_of_all_even_when_cold(negatives):
    count = 8 if negatives is None else negatives.shape[-2] + 1
    ones = jnp.ones((8, 6))
    # A cosine's last digit, 6e-8, is 6e-5 of a logit.
    np.testing.assert_allclose(info_nce(ones, 5 * ones, negatives, 1e-3), np.log(count), atol=1.2e-4)


@pytest.mark.parametrize("negatives", [SHARED, OWN])
def test_negatives_that_are_masked_are_not_there(negatives):
    negatives = np.asarray(negatives)
    mask = np.arange(negatives.shape[-2]) < 3
    mask = mask if negatives.ndim == 2 else np.tile(mask, (8, 1))
    padded = np.where(mask[..., None], negatives, np.float32(np.nan))
    loss = jit(jax.value_and_grad(losses.info_nce, argnums=(0, 2)))
    value, (of_queries, of_negatives) = loss(A, B, padded, 0.2, negatives_mask=mask)
    wanted, (slope, slope_of_negatives) = loss(A, B, negatives[..., :3, :], 0.2)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(of_queries, slope, atol=1e-6)
    np.testing.assert_allclose(np.asarray(of_negatives)[..., :3, :], slope_of_negatives, atol=1e-6)
    assert not np.asarray(of_negatives)[..., 3:, :].any()


def test_each_query_has_its_own_negatives():
    each = info_nce(A, B, OWN, 0.2, reduction="none")
    alone = [reference.info_nce(A[i : i + 1], B[i : i + 1], OWN[i], 0.2) for i in range(8)]
    np.testing.assert_allclose(each, alone, rtol=1e-6)


@pytest.mark.parametrize("mask", [None, jnp.zeros(7, bool)])
def test_without_negatives_there_is_nothing_to_mistake(mask):
    negatives = SHARED[:0] if mask is None else SHARED
    value, gradient = jit(jax.value_and_grad(losses.info_nce))(A, B, negatives, negatives_mask=mask)
    assert value == 0
    assert not gradient.any()
    assert info_nce(A[:1], B[:1]) == 0


def test_no_rows_are_no_loss():
    assert info_nce(A[:0], B[:0]) == 0
    assert info_nce(A[:0], B[:0], reduction="none").shape == (0,)


@pytest.mark.usefixtures("plain_calls")
def test_errors():
    a, b, shared, own = (np.asarray(x) for x in (A, B, SHARED, OWN))
    for temperature in (0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            losses.info_nce(a, b, temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be finite, got inf"):
        losses.info_nce(a, b, temperature=float("inf"))
    with pytest.raises(ValueError, match=r"temperature must be a scalar, got shape \(2,\)"):
        losses.info_nce(a, b, temperature=np.ones(2, np.float32))
    with pytest.raises(TypeError, match="temperature must be a number or a floating-point array, got int32"):
        losses.info_nce(a, b, temperature=np.array(1))
    with pytest.raises(ValueError, match="negatives_mask needs negatives"):
        losses.info_nce(a, b, negatives_mask=np.ones(8, bool))
    with pytest.raises(ValueError, match=r"negatives must have shape \(m, width\) or \(n, m, width\), got \(6,\)"):
        losses.info_nce(a, b, shared[0])
    with pytest.raises(ValueError, match=r"negatives must be 8 sets, one a query, got \(7, 5, 6\)"):
        losses.info_nce(a, b, own[:7])
    with pytest.raises(ValueError, match=r"vectors of one width, got queries \(8, 6\), negatives \(7, 5\)"):
        losses.info_nce(a, b, shared[:, :5])
    with pytest.raises(ValueError, match=r"negatives_mask must have shape \(8, 5\), got \(5,\)"):
        losses.info_nce(a, b, own, negatives_mask=np.ones(5, bool))


def test_checkify_finds_a_traced_temperature_that_is_not_positive():
    checked = jit(checkify.checkify(lambda t: losses.info_nce(A, B, temperature=t)))
    checked(0.1)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match=r"^temperature must be positive, got -0\.1"):
        checked(-0.1)[0].throw()


def test_a_temperature_can_be_learned():
    """Towards 0, where every query's own key is the nearest."""
    optimizer = optax.adam(0.1)

    @jit
    def step(log_temperature, state):
        slope = jax.grad(lambda x: losses.info_nce(A, A, temperature=jnp.exp(x)))(log_temperature)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(log_temperature, updates), state

    log_temperature = jnp.array(0.0)
    state = optimizer.init(log_temperature)
    for _ in range(20):
        log_temperature, state = step(log_temperature, state)
    assert log_temperature < -1
