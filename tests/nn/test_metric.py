import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import train_metric
from flax import nnx

from jaxclip.nn import Abstract
from jaxclip.nn.metric import LearnedMetric

X = jnp.asarray(np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32))


def changed(metric, scale=0.3):
    """Away from the initial values, which are special."""

    def noise(leaf):
        return leaf + scale * jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(noise, metric)


@pytest.mark.parametrize("hidden", [None, 9])
def test_equals_its_formula_in_float64(hidden):
    metric = changed(LearnedMetric(6, 4, hidden_features=hidden, activation="relu", rngs=nnx.Rngs(0)))
    x = np.asarray(X, np.float64)
    if hidden:
        x = np.maximum(x @ np.asarray(metric.hidden.weight).T + np.asarray(metric.hidden.bias), 0)
    h = x @ np.asarray(metric.out.weight, np.float64).T + np.asarray(metric.out.bias)
    z = np.asarray(metric(X), np.float64)
    # Measured 4e-7, of sums of up to nine terms of the order of 1.
    np.testing.assert_allclose(z, h @ np.asarray(metric.factor[...], np.float64), atol=1.6e-6)
    form = np.asarray(metric.bilinear_form(), np.float64)
    np.testing.assert_allclose(z @ z.T, h @ form @ h.T, atol=1e-5)
    np.testing.assert_allclose(form, form.T)
    assert np.linalg.eigvalsh(form).min() >= -1e-6


def test_begins_as_the_head_alone():
    metric = LearnedMetric(6, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(metric(X), metric.out(X))
    np.testing.assert_array_equal(metric.bilinear_form(), np.eye(4))


def test_gradients_reach_every_parameter():
    metric = changed(LearnedMetric(6, 4, hidden_features=8, rngs=nnx.Rngs(0)))
    gradient = jax.jit(jax.grad(lambda metric: (metric(X) ** 2).mean()))(metric)
    assert len(jax.tree.leaves(gradient)) == 5
    assert all(jnp.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(gradient))


def test_training_lowers_the_loss():
    metric = LearnedMetric(6, 4, hidden_features=8, rngs=nnx.Rngs(0))
    labels = jnp.arange(7) % 2

    def loss(metric):
        z = metric(X)
        squared = jnp.sum((z[:, None] - z[None]) ** 2, axis=-1)
        same = labels[:, None] == labels
        return jnp.where(same, squared, jnp.maximum(0, 4 - squared)).mean()

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(metric, state):
        value, gradient = jax.value_and_grad(loss)(metric)
        updates, state = optimizer.update(gradient, state, metric)
        return optax.apply_updates(metric, updates), state, value

    state, values = optimizer.init(metric), []
    for _ in range(200):
        metric, state, value = step(metric, state)
        values.append(float(value))
    assert values[-1] < 0.02 * values[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_returns_float32(dtype):
    metric = LearnedMetric(6, 4, hidden_features=8, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    assert metric.factor[...].dtype == metric.out.weight[...].dtype == jnp.dtype(dtype)
    assert jax.eval_shape(metric, X).dtype == jax.eval_shape(metric.bilinear_form).dtype == jnp.float32


def test_float32_is_traced_at_full_precision():
    for dtype, expected in (("float32", 3), ("bfloat16", 0)):
        metric = LearnedMetric(6, 4, hidden_features=8, dtype=dtype, rngs=nnx.Rngs(0))
        program = str(jax.make_jaxpr(lambda metric: metric(X))(metric))
        assert program.count("dot_general[") == 3
        assert program.count("precision=(Precision.HIGHEST") + program.count("precision=Precision.HIGHEST") == expected


def test_abstract_has_shapes_and_no_values():
    metric = LearnedMetric(6, 4, hidden_features=8, rngs=Abstract())
    shapes = {".".join(map(str, path)): leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(metric))}
    assert shapes == {
        "hidden.weight": (8, 6),
        "hidden.bias": (8,),
        "out.weight": (4, 8),
        "out.bias": (4,),
        "factor": (4, 4),
    }
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(metric))


def test_another_width_raises_while_tracing():
    for hidden in (None, 8):
        metric = LearnedMetric(6, 4, hidden_features=hidden, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match=r"x must be \(batch, 6\), got \(7, 5\)"):
            jax.eval_shape(metric, jnp.ones((7, 5)))


def test_learns_what_cosine_cannot_see():
    """Two classes told apart by the sign of one feature, beside twelve louder ones that say nothing."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    x = np.concatenate([rng.normal(size=(300, 12)), 0.5 * (2 * y - 1)[:, None]], axis=1).astype(np.float32)
    metric = train_metric.train(x[:150], y[:150], steps=60, batch=100, augment=lambda x, rng: x)
    x, held_x = jnp.asarray(x[:150]), jnp.asarray(x[150:])
    plain = train_metric.accuracy(x, y[:150], held_x, y[150:])
    learned = train_metric.accuracy(metric(x), y[:150], metric(held_x), y[150:])
    # Measured 0.62 and 1.
    assert plain < 0.7
    assert learned > 0.97


@pytest.mark.parity
def test_raises_nearest_neighbour_accuracy_on_digits():
    pytest.importorskip("sklearn")
    x, y, held_x, held_y = train_metric.digits()
    metric = train_metric.train(x, y, steps=600)
    x, held_x = jnp.asarray(x), jnp.asarray(held_x)
    plain = train_metric.accuracy(x, y, held_x, held_y)
    learned = train_metric.accuracy(metric(x), y, metric(held_x), held_y)
    # 95.77 %, and 97.66 to 98.00 % over seeds.
    assert round(plain, 4) == 0.9577
    assert learned > plain + 0.01
