"""Which parameters are trained, by which names, and that a state is a plain pytree of its own arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from training_cases import IMAGES_ALONE, TINY, model

from jaxclip.nn import CLIP
from jaxclip.training import CLIPObjective, MoCoObjective, SigLIPObjective, SimCLRObjective, TrainState
from jaxclip.training.state import named_parameters, with_parameters


def create(trained, objective=None, **settings):
    settings = {"optimizer": optax.adam(1e-3), "key": jax.random.key(0), **settings}
    return TrainState.create(trained, objective=objective or CLIPObjective(), **settings)


def test_parameters_have_the_names_of_their_paths():
    names = named_parameters(model())
    assert len(names) == len(jax.tree.leaves(model()))
    for name in ("logit_scale", "text.blocks.0.attention.query.weight", "vision.class_embedding"):
        assert name in names
    np.testing.assert_array_equal(names["vision.projection.weight"], model().vision.projection.weight[...])


def test_parameters_go_back_where_they_were():
    trained, head = model(), {"logit_bias": jnp.ones(())}
    given = {"text.final_norm.bias": jnp.full(16, 3.0), "head.logit_bias": jnp.full((), 4.0)}
    other, other_head = with_parameters(trained, head, given)
    assert isinstance(other, CLIP)
    np.testing.assert_array_equal(other.text.final_norm.bias[...], 3)
    assert other_head["logit_bias"] == 4
    assert not trained.text.final_norm.bias[...].any()
    np.testing.assert_array_equal(other.vision.position_embedding[...], trained.vision.position_embedding[...])


def test_what_is_no_parameter_is_not_trained():
    class Counting(CLIP):
        def __init__(self, config, **settings):
            super().__init__(config, **settings)
            self.mean = nnx.BatchStat(jnp.zeros(3))

    trained = Counting(TINY, rngs=nnx.Rngs(0))
    assert "mean" not in create(trained).parameters
    assert len(create(trained).parameters) == len(jax.tree.leaves(trained)) - 1


def test_frozen_parts_have_no_optimizer_state():
    state = create(model(), frozen=("vision", "text.blocks.0.mlp", "logit_scale"))
    moments = state.optimizer_state[0].mu
    assert set(moments) == set(state.parameters)
    assert not any(name.startswith(("vision.", "text.blocks.0.mlp.", "logit_scale")) for name in moments)
    assert "text.blocks.0.attention.key.weight" in moments


@pytest.mark.parametrize("objective", [SimCLRObjective(), MoCoObjective(queue_size=4)])
def test_what_an_objective_has_no_use_for_is_frozen(objective):
    state = create(model(), objective)
    assert state.frozen == ("text", "logit_scale")
    assert {name.split(".")[0] for name in state.parameters} == {"vision"}
    assert create(model(IMAGES_ALONE), objective).parameters.keys() == state.parameters.keys()


def test_a_head_is_trained_beside_the_model():
    state = create(model(), SigLIPObjective(), frozen=("vision",))
    assert state.parameters["head.logit_bias"] == -10
    assert "head.logit_bias" in state.optimizer_state[0].mu
    assert not any("bias" in name and "logit" in name for name in named_parameters(state.model))


def test_a_state_has_arrays_of_its_own():
    trained = model()
    state = create(trained, MoCoObjective(queue_size=4), ema=True)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.model, state.ema, state.extras))]
    buffers += [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trained)]
    assert len(set(buffers)) == len(buffers)
    assert (state.step, state.step.dtype) == (0, jnp.int32)
    # The static part travels with the structure.
    assert jax.tree.map(lambda leaf: leaf, state).frozen == state.frozen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": ("visions",)}, "no parameters of the name 'visions'"),
        ({"frozen": ("text.block",)}, r"no parameters of the name 'text\.block'"),
        ({"frozen": ("vision", "text", "logit_scale")}, "nothing is left of the model to train"),
    ],
)
def test_parts_that_cannot_be_frozen(settings, message):
    with pytest.raises(ValueError, match=message):
        create(model(), **settings)


def test_masters_are_float32():
    with pytest.raises(ValueError, match=r"and 4[0-9] more are bfloat16: train float32 parameters"):
        create(model(param_dtype="bfloat16"))
    assert create(model(dtype="bfloat16")).parameters["logit_scale"].dtype == jnp.float32
