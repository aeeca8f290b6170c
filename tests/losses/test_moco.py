import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import inputs, jit

from jaxclip import losses
from jaxclip.losses import KeyQueue, momentum_update

ARRAYS = {name: jnp.asarray(array) for name, array in inputs(seed=0, n=8, width=6).items()}
A, B, C = (ARRAYS[name] for name in "abc")
SIZE = 5
enqueue, info_nce, moco_loss = jit(KeyQueue.enqueue), jit(losses.info_nce), jit(losses.moco_loss)


def rows(numbers):
    """A vector a number, told apart by direction."""
    angles = 0.01 * np.asarray(numbers, np.float32)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@settings(max_examples=30, deadline=None, derandomize=True)
# Of one row, of fewer than the queue takes, and of more: a program is compiled for each.
@given(
    batches=st.lists(
        st.sampled_from([1, 3, 7]).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n)), max_size=8
    )
)
def test_equals_a_list(batches):
    """Batches of any size, larger than the queue too, some of their rows padded."""
    queue, wanted, number = KeyQueue.empty(SIZE, 2), [], 0
    for mask in batches:
        numbers = list(range(number, number + len(mask)))
        number += len(mask)
        queue = enqueue(queue, 3 * rows(numbers), np.array(mask))
        wanted = (wanted + [n for n, real in zip(numbers, mask, strict=True) if real])[-SIZE:]
    assert queue.count == len(wanted)
    np.testing.assert_array_equal(queue.mask, np.arange(SIZE) < len(wanted))
    # From the oldest: in front where the queue isn't full yet, else where the next one goes.
    start = int(queue.position) if len(wanted) == SIZE else 0
    found = np.roll(queue.keys, -start, axis=0)[: len(wanted)]
    np.testing.assert_allclose(found, rows(wanted), atol=1e-6)
    assert not np.asarray(queue.keys)[len(wanted) :].any()


def test_positions_wrap_around():
    queue = enqueue(enqueue(KeyQueue.empty(SIZE, 2), rows([0, 1, 2])), rows([3, 4, 5]))
    assert (queue.position, queue.count) == (1, SIZE)
    np.testing.assert_allclose(queue.keys, rows([5, 1, 2, 3, 4]), atol=1e-6)


def test_the_queue_is_a_pytree_and_never_changed():
    empty = KeyQueue.empty(SIZE, 6, jnp.bfloat16)
    filled = jit(lambda queue, keys: queue.enqueue(keys))(empty, A[:3])
    assert isinstance(filled, KeyQueue)
    assert filled.keys.dtype == jnp.bfloat16
    assert (empty.count, filled.count) == (0, 3)
    assert jax.tree.structure(filled) == jax.tree.structure(empty)

    def fill(queue, keys):
        return queue.enqueue(keys), queue.count

    queue, counts = jax.lax.scan(fill, empty, A.reshape(4, 2, 6))
    assert queue.count == SIZE
    assert counts.tolist() == [0, 2, 4, 5]


def test_the_loss_is_info_nce_against_what_is_in_the_queue():
    queue = KeyQueue.empty(6, 6)
    assert moco_loss(A, B, queue) == 0
    queue = enqueue(queue, C[:4])
    np.testing.assert_allclose(moco_loss(A, B, queue, 0.2), info_nce(A, B, C[:4], 0.2), rtol=1e-6)
    queue = enqueue(queue, C[4:8])
    np.testing.assert_allclose(moco_loss(A, B, queue, 0.2), info_nce(A, B, C[2:8], 0.2), rtol=1e-6)


def test_only_queries_and_temperature_have_a_gradient():
    def loss(queries, keys, earlier, temperature):
        return losses.moco_loss(queries, keys, KeyQueue.empty(6, 6).enqueue(earlier), temperature)

    of_queries, of_keys, of_queue, of_temperature = jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(A, B, C[:5], 0.2)
    wanted = jit(jax.grad(losses.info_nce, argnums=(0, 3)))(A, B, C[:5], 0.2)
    np.testing.assert_allclose(of_queries, wanted[0], atol=1e-6)
    np.testing.assert_allclose(of_temperature, wanted[1], rtol=1e-6)
    assert not of_keys.any()
    assert not of_queue.any()
    queue = enqueue(KeyQueue.empty(6, 6), C[:5])
    of_buffer = jit(jax.grad(lambda keys: losses.moco_loss(A, B, dataclasses.replace(queue, keys=keys))))(queue.keys)
    assert not of_buffer.any()


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 4, rngs=rngs)
        self.steps = nnx.BatchStat(jnp.array(0))


def test_moco_learns_toy_data():
    """The page's third example: an encoder learns from its momentum copy's keys, this batch's and earlier ones'."""

    def step(training, key):
        query_encoder, key_encoder, queue = training
        keys = jax.random.split(key, 3)
        things = jax.random.normal(keys[0], (16, 4))
        views = [jnp.concatenate([things, 2 * jax.random.normal(k, (16, 4))], axis=1) for k in keys[1:]]
        targets = key_encoder.linear(views[1])

        def loss(encoder):
            return losses.moco_loss(encoder.linear(views[0]), targets, queue, 0.2)

        value, slope = jax.value_and_grad(loss, allow_int=True)(query_encoder)
        moved = jax.tree.map(
            lambda p, g: p - 0.3 * g if jnp.issubdtype(p.dtype, jnp.floating) else p, query_encoder, slope
        )
        return (moved, momentum_update(key_encoder, moved, 0.9), queue.enqueue(targets)), value

    training = Encoder(nnx.Rngs(0)), Encoder(nnx.Rngs(0)), KeyQueue.empty(40, 4)
    keys = jax.random.split(jax.random.key(1), 80)
    (query_encoder, key_encoder, queue), values = jit(lambda *given: jax.lax.scan(step, *given))(training, keys)
    assert queue.count == 40
    # Not from the first steps: the queue is still filling then, and fewer negatives cost less.
    assert values[-10:].mean() < values[3:10].mean() - 0.5
    assert isinstance(key_encoder, Encoder)
    apart = jnp.abs(key_encoder.linear.kernel[...] - query_encoder.linear.kernel[...]).max()
    assert 0 < apart < 0.2


def test_momentum_update():
    old, new = {"w": jnp.array([1.0, 2.0]), "n": jnp.array(3)}, {"w": jnp.array([3.0, -2.0]), "n": jnp.array(4)}
    moved = momentum_update(old, new, 0.75)
    np.testing.assert_allclose(moved["w"], [1.5, 1.0])
    assert moved["n"] == 4
    np.testing.assert_array_equal(momentum_update(old, new, 1)["w"], old["w"])
    np.testing.assert_array_equal(momentum_update(old, new, 0)["w"], new["w"])
    np.testing.assert_allclose(jit(momentum_update)(old, new, 0.75)["w"], moved["w"])
    np.testing.assert_allclose(momentum_update(old, new)["w"], [1.002, 1.996], rtol=1e-6)


def test_momentum_update_of_modules_with_random_keys():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.linear = nnx.Linear(2, 2, rngs=rngs)

    one, other = Noisy(nnx.Rngs(0)), Noisy(nnx.Rngs(1))
    moved = momentum_update(one, other, 0.5)
    wanted = (one.linear.kernel[...] + other.linear.kernel[...]) / 2
    np.testing.assert_allclose(moved.linear.kernel[...], wanted, rtol=1e-6)


def test_momentum_update_of_python_numbers():
    assert momentum_update({"w": 1.0, "n": 3}, {"w": 2.0, "n": 4}, 0.75) == {"w": 1.25, "n": 4}


def test_momentum_update_of_halves_rounds_once():
    old, new = jnp.array(1.0, jnp.bfloat16), jnp.array(2.0, jnp.bfloat16)
    moved = momentum_update(old, new, 0.9)
    assert moved.dtype == jnp.bfloat16
    assert moved == jnp.bfloat16(1.1)
    # Why the docstring wants float32.
    assert momentum_update(old, new, 0.999) == old


@pytest.mark.usefixtures("plain_calls")
def test_errors():
    with pytest.raises(ValueError, match="size and width must be positive, got 0 and 4"):
        KeyQueue.empty(0, 4)
    queue = KeyQueue.empty(SIZE, 4)
    with pytest.raises(ValueError, match=r"keys must have shape \(n, 4\), as the queue's, got \(8, 6\)"):
        queue.enqueue(A)
    with pytest.raises(TypeError, match="keys must be floating-point, got int32"):
        queue.enqueue(jnp.ones((2, 4), int))
    with pytest.raises(ValueError, match=r"mask must have shape \(8,\), got \(5,\)"):
        KeyQueue.empty(SIZE, 6).enqueue(A, jnp.ones(5, bool))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
        momentum_update({}, {}, 1.5)
    with pytest.raises(ValueError, match="two encoders of one structure"):
        momentum_update({"w": A}, {"v": A})
    with pytest.raises(ValueError, match=r"\['w'\]: expected one shape, got \(8, 6\) and \(5, 6\)"):
        momentum_update({"w": A}, {"w": A[:5]})
    with pytest.raises(TypeError, match=r"\['w'\]: expected one dtype, got float32 and float16"):
        momentum_update({"w": A}, {"w": A.astype("float16")})
