"""Schedule, clipping, which parameters decay, and what lower layers learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip.config import CLIPConfig
from jaxclip.nn import CLIP, Abstract
from jaxclip.training import OptimizerConfig, make_optimizer
from jaxclip.training.optimizer import decay_mask, layer_factors
from jaxclip.training.state import named_parameters

BASE = named_parameters(CLIP(CLIPConfig(), rngs=Abstract()))


def test_learning_rate_warms_up_and_follows_a_cosine():
    config = OptimizerConfig(steps=110, warmup_steps=10, learning_rate=1e-2, final_learning_rate=1e-3)
    schedule = make_optimizer(config)[1]
    wanted = {0: 0, 5: 5e-3, 10: 1e-2, 60: 5.5e-3, 110: 1e-3, 1000: 1e-3}
    wanted[35] = 1e-3 + 9e-3 * (1 + np.cos(np.pi / 4)) / 2
    for step, rate in wanted.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)


def test_matrices_decay_and_nothing_else():
    mask = decay_mask(BASE)
    assert {name.split(".")[-1] for name, decays in mask.items() if decays} == {"weight", "kernel"}
    assert all(decays for name, decays in mask.items() if name.endswith(("weight", "kernel")))
    for name in (
        "logit_scale",
        "text.token_embedding.embedding",
        "text.position_embedding.embedding",
        "vision.class_embedding",
        "vision.position_embedding",
        "vision.post_norm.scale",
        "text.blocks.3.mlp.fc1.bias",
    ):
        assert mask[name] is False
    assert decay_mask({"head.hidden.weight": jnp.ones((2, 2)), "head.logit_bias": jnp.ones(())}) == {
        "head.hidden.weight": True,
        "head.logit_bias": False,
    }


def test_lower_layers_learn_slower():
    factors = layer_factors([*BASE, "head.logit_bias"], 0.5)
    for name, exponent in {
        "logit_scale": 0,
        "head.logit_bias": 0,
        "text.projection.weight": 0,
        "vision.post_norm.scale": 0,
        "text.final_norm.bias": 0,
        "vision.blocks.11.mlp.fc1.weight": 1,
        "text.blocks.10.norm1.scale": 2,
        "text.blocks.0.attention.out.bias": 12,
        "vision.pre_norm.scale": 13,
        "vision.patch_embedding.kernel": 13,
        "vision.class_embedding": 13,
        "text.token_embedding.embedding": 13,
    }.items():
        assert factors[name] == 0.5**exponent, name


CONFIG = OptimizerConfig(steps=10, warmup_steps=0, learning_rate=0.1, weight_decay=0.5, epsilon=0.0, clip_norm=None)
PARAMETERS = {
    "text.blocks.0.mlp.fc1.weight": jnp.full((2, 2), 2.0),
    "text.blocks.1.mlp.fc1.weight": jnp.full((2, 2), 2.0),
    "text.blocks.1.mlp.fc1.bias": jnp.full((2,), 2.0),
}


def updates(config, gradient=3.0):
    optimizer, _ = make_optimizer(config)
    gradients = jax.tree.map(lambda value: jnp.full_like(value, gradient), PARAMETERS)
    found, _ = optimizer.update(gradients, optimizer.init(PARAMETERS), PARAMETERS)
    return [float(value.ravel()[0]) for value in (found[name] for name in PARAMETERS)]


def test_the_first_step_of_adamw():
    # Adam's first step is the gradient's sign; decay adds 0.5 · 2 to it, for kernels; both times the learning rate.
    np.testing.assert_allclose(updates(CONFIG), [-0.2, -0.2, -0.1], rtol=1e-6)
    np.testing.assert_allclose(updates(dataclasses.replace(CONFIG, layer_decay=0.5)), [-0.05, -0.1, -0.05], rtol=1e-6)


def test_gradients_are_clipped_to_a_global_norm():
    # With a large epsilon Adam's first step is the gradient by epsilon, nearly: ten values of 3 have the norm √90.
    config = dataclasses.replace(CONFIG, weight_decay=0.0, epsilon=1e3)
    np.testing.assert_allclose(updates(config), [-3e-4] * 3, rtol=4e-3)
    clipped = updates(dataclasses.replace(config, clip_norm=1.0))
    np.testing.assert_allclose(clipped, [-1e-4 / 10**0.5] * 3, rtol=4e-3)
    assert updates(dataclasses.replace(config, clip_norm=10.0)) == updates(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 10, "warmup_steps": 10}, "below steps"),
        ({"steps": 10, "warmup_steps": 1, "layer_decay": 0.0}, "layer_decay"),
        ({"steps": 10, "warmup_steps": 1, "clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


def test_any_model_has_factors_and_a_mask():
    class Own(CLIP):
        def __init__(self, config, **settings):
            super().__init__(config, **settings)
            self.extra = nnx.Param(jnp.ones((2, 2)))

    names = named_parameters(Own(CLIPConfig(), rngs=Abstract()))
    assert layer_factors(names, 0.5)["extra"] == 1
    assert decay_mask(names)["extra"]
