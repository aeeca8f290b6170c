"""One step: gradients the same however they come about, what is frozen, clamped, averaged, and left alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import TINY, assert_same_bits, compiled, difference, model, pairs

from jaxclip.training import CLIPObjective, OptimizerConfig, SigLIPObjective, TrainState, make_optimizer, train_step

OBJECTIVE = CLIPObjective()
# Its step is the gradient, with the sign changed.
DESCENT = optax.sgd(1.0)
ADAMW, SCHEDULE = make_optimizer(OptimizerConfig(steps=100, warmup_steps=10, learning_rate=1e-2))
# Of the gradient's norm, float32 summed in another order; the worst was 1.05e-6.
TOLERANCE = 4e-6


def create(trained=None, optimizer=DESCENT, objective=OBJECTIVE, **settings):
    settings = {"key": jax.random.key(0), **settings}
    return TrainState.create(trained or model(), objective=objective, optimizer=optimizer, **settings)


def gradient(batch, trained=None, objective=OBJECTIVE, **settings):
    """What a step of descent takes away from the parameters, and the step's metrics."""
    state = create(trained, objective=objective)
    moved, metrics = compiled(objective=objective, optimizer=DESCENT, **settings)(state, batch)
    return jax.tree.map(jnp.subtract, state.parameters, moved.parameters), metrics


@pytest.fixture(scope="module")
def whole():
    return gradient(pairs())


def test_the_gradient_is_that_of_the_loss(whole):
    batch = pairs()

    def loss(clip):
        return OBJECTIVE(clip, None, batch, None, jax.random.key(0))[0]

    value, wanted = jax.jit(jax.value_and_grad(loss))(model())
    found, metrics = whole
    assert difference(jax.tree.leaves(found), jax.tree.leaves(wanted)) < TOLERANCE
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(wanted), rtol=1e-5)
    np.testing.assert_allclose(metrics["logit_scale"], 1 / 0.07, rtol=1e-4)
    assert metrics["finite"]


def test_gradient_caching_and_rematerialisation_change_nothing(whole):
    # Three rows at a time of eight: the last microbatch is not full.
    found, metrics = gradient(pairs(), microbatch=3, remat=True)
    assert difference(found, whole[0]) < TOLERANCE
    np.testing.assert_allclose(metrics["loss"], whole[1]["loss"], rtol=1e-6)


def test_rematerialisation_and_microbatches_are_in_the_program():
    def program(**settings):
        def step(state, batch):
            return train_step(state, batch, objective=OBJECTIVE, optimizer=DESCENT, **settings)

        return str(jax.make_jaxpr(step)(create(), pairs()))

    plain = program()
    assert not re.search(r"\b(remat2?|checkpoint)\[", plain)
    assert "scan[" not in plain
    # One in each tower: of the only block, what its one row needs.
    assert len(re.findall(r"\b(?:remat2?|checkpoint)\[", program(remat=True))) >= 2
    assert len(re.findall(r"length=3\b", program(microbatch=3))) >= 2


def test_accumulated_gradients_are_the_mean_of_the_parts(whole):
    batch = pairs()
    found, metrics = gradient(batch, accumulate=2)
    step = compiled(objective=OBJECTIVE, optimizer=DESCENT)
    parts = [{name: rows[part::2] for name, rows in batch.items()} for part in (0, 1)]
    moved, logged = zip(*(step(create(), part) for part in parts), strict=True)
    wanted = [jax.tree.map(jnp.subtract, create().parameters, state.parameters) for state in moved]
    mean = jax.tree.map(lambda one, other: (one + other) / 2, *wanted)
    assert difference(found, mean) < TOLERANCE
    np.testing.assert_allclose(metrics["loss"], (logged[0]["loss"] + logged[1]["loss"]) / 2, rtol=1e-6)
    # Four negatives are not eight.
    assert difference(found, whole[0]) > 0.01
    with pytest.raises(ValueError, match=r"\[8\] rows can't be accumulated over 3 equal parts"):
        compiled(objective=OBJECTIVE, optimizer=DESCENT, accumulate=3)(create(), batch)


def test_bfloat16_is_close_to_float32_and_its_masters_are_float32(whole):
    found, metrics = gradient(pairs(), model(dtype="bfloat16"))
    assert {value.dtype for value in found.values()} == {jnp.dtype("float32")}
    # bfloat16's half ulp is 2e-3; through one block, and with the cosines times 14, the gradient was 0.050 off and the
    # loss 0.0025.
    assert 1e-4 < difference(found, whole[0]) < 0.1
    np.testing.assert_allclose(metrics["loss"], whole[1]["loss"], rtol=0.01)


@pytest.fixture(scope="module")
def adamw():
    return compiled(objective=OBJECTIVE, optimizer=ADAMW, schedule=SCHEDULE, ema_decay=0.75, max_logit_scale=2.65)


def test_the_moving_average_and_the_clamp(adamw):
    state = create(optimizer=ADAMW, ema=True)
    assert state.model.logit_scale[...] > 2.65
    moved, metrics = state, {}
    for step in range(3):
        before = moved
        moved, metrics = adamw(moved, pairs())
        assert moved.step == step + 1
        assert moved.model.logit_scale[...] <= 2.65
        np.testing.assert_allclose(metrics["learning_rate"], SCHEDULE(step), rtol=1e-6)
        wanted = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before.ema, moved.model)
        jax.tree.map(lambda ours, by_hand: np.testing.assert_allclose(ours, by_hand, atol=1e-7), moved.ema, wanted)
    # The first step's learning rate is 0, and what moves is the clamped scale alone.
    assert difference(moved.model, state.model) > 1e-4
    assert difference(moved.ema, state.model) < difference(moved.model, state.model)


def test_a_step_that_is_not_finite_changes_nothing(adamw):
    state, _ = adamw(create(optimizer=ADAMW, ema=True), pairs())
    batch = pairs()
    batch["pixels"] = batch["pixels"].at[3, 1, 1, 0].set(jnp.nan)
    left, metrics = adamw(state, batch)
    assert not metrics["finite"]
    assert jnp.isnan(metrics["loss"])
    assert_same_bits(left, state)
    after, metrics = adamw(left, pairs())
    assert metrics["finite"]
    assert after.step == 2


@pytest.fixture(scope="module")
def locked():
    """A state with the image tower frozen, before and after steps from pixels and from cached features."""
    state = create(optimizer=ADAMW, frozen=("vision",), ema=True)
    batch = pairs()
    cached = {"image_features": model().encode_image(batch["pixels"]), "token_ids": batch["token_ids"]}
    step = compiled(objective=OBJECTIVE, optimizer=ADAMW)
    moved = []
    for given in (batch, cached):
        after = state
        for _ in range(3):
            after, _ = step(after, given)
        moved.append(after)
    return state, *moved


def test_frozen_parts_do_not_move(locked):
    before, after, _ = locked
    assert_same_bits(after.model.vision, before.model.vision)
    assert difference(after.ema.vision, before.ema.vision) < 1e-6
    moved = [name for name, value in after.parameters.items() if (value != before.parameters[name]).any()]
    assert len(moved) == len(after.parameters)
    assert not any(name.startswith("vision.") for name in moved)


def test_frozen_parts_have_no_gradient_computed():
    def products(batch):
        def step(state, batch):
            return train_step(state, batch, objective=OBJECTIVE, optimizer=DESCENT)

        return str(jax.make_jaxpr(step)(create(frozen=("vision",)), batch)).count("dot_general")

    batch = pairs()
    cached = {"image_features": jnp.ones((8, 8)), "token_ids": batch["token_ids"]}
    forward = str(jax.make_jaxpr(lambda clip, x: clip.encode_image(x))(model(), batch["pixels"])).count("dot_general")
    # Against a step that has no image tower: the tower's forward pass, and nothing else.
    assert products(batch) - products(cached) == forward > 8


def test_cached_features_train_as_pixels_do(locked):
    before, from_pixels, from_features = locked
    moved = jax.tree.map(jnp.subtract, from_pixels.parameters, before.parameters)
    apart = jax.tree.map(jnp.subtract, from_pixels.parameters, from_features.parameters)
    assert optax.tree.norm(apart) < 1e-4 * optax.tree.norm(moved)


def test_cached_features_need_a_frozen_tower():
    batch = {"image_features": jnp.ones((8, 8)), "token_ids": pairs()["token_ids"]}
    with pytest.raises(ValueError, match="freeze it"):
        train_step(create(), batch, objective=OBJECTIVE, optimizer=DESCENT)


def test_a_head_learns_with_the_model():
    objective = SigLIPObjective(logit_bias=-3.0)
    found, metrics = gradient(pairs(), objective=objective, microbatch=4, accumulate=2)
    assert jnp.abs(found["head.logit_bias"]) > 1e-3
    assert metrics["logit_bias"] == -3


def test_the_state_may_be_donated_and_the_model_stays():
    clip = model(TINY)
    state = create(clip, ema=True)

    @jax.jit
    def nudge(state):
        return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf * 2, state)

    jax.jit(nudge, donate_argnums=0)(state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(clip))
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
