import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.nn import record

BLOCK = ["norm1", "attention.query", "attention.key", "attention.value", "attention.weights", "attention.out", "norm2"]
BLOCK += ["mlp.fc1", "mlp.activation", "mlp.fc2"]


def block_names(tower):
    return [f"{tower}.blocks.{i}{part}" for i in range(2) for part in (*(f".{name}" for name in BLOCK), "")]


NAMES = [
    "text.embeddings", *block_names("text"), "text.final_norm", "text.pooled", "text.projection",
    "vision.embeddings", "vision.pre_norm", *block_names("vision"), "vision.pooled",
    "vision.projection", "text_features", "image_features", "logits_per_image",
]  # fmt: skip


def test_every_intermediate_has_its_documented_name(model, inputs):
    seen = {}
    output = model(*inputs, tap=record(seen))
    assert list(seen) == NAMES
    for name, value in {
        "text.blocks.0": output.text.hidden_states[1],
        "text.final_norm": output.text.last_hidden_state,
        "vision.pre_norm": output.vision.hidden_states[0],
        "vision.blocks.1": output.vision.last_hidden_state,
        "vision.pooled": output.vision.pooled,
        "vision.projection": output.vision.features,
        "logits_per_image": output.logits_per_image,
    }.items():
        np.testing.assert_array_equal(seen[name], value)


def test_documented_shapes_and_sums(model, inputs):
    seen = {}
    model.vision(inputs[1], tap=record(seen))
    assert seen["blocks.1.attention.weights"].shape == (2, 3, 17, 17)
    np.testing.assert_allclose(seen["blocks.1.attention.weights"].sum(-1), 1, atol=1e-6)
    assert seen["blocks.1.attention.query"].shape == (2, 17, 36)
    assert seen["blocks.1.mlp.activation"].shape == (2, 17, 52)
    residual = seen["blocks.0"] + seen["blocks.1.attention.out"] + seen["blocks.1.mlp.fc2"]
    np.testing.assert_allclose(seen["blocks.1"], residual, atol=1e-5)


def test_a_tap_works_under_jit(model, inputs):
    @jax.jit
    def middle(model, pixels):
        seen = {}
        model.encode_image(pixels, tap=record(seen))
        return seen["vision.blocks.0"]

    np.testing.assert_allclose(middle(model, inputs[1]), model.vision(inputs[1]).hidden_states[1], atol=1e-5)


def test_a_tap_can_replace_a_value(model, inputs):
    def without_attention(name, value):
        return jnp.zeros_like(value) if name == "blocks.0.attention.out" else value

    seen = {}
    changed = model.vision(inputs[1], tap=lambda name, value: record(seen)(name, without_attention(name, value)))
    np.testing.assert_allclose(changed.hidden_states[1], changed.hidden_states[0] + seen["blocks.0.mlp.fc2"], atol=1e-6)


def test_a_tap_can_not_see_into_rematerialised_blocks(model, inputs):
    with pytest.raises(ValueError, match="remat=True recomputes"):
        model.encode_image(inputs[1], tap=record({}), remat=True)
