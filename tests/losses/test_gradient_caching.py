"""GradCache against the whole batch at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import jit

from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
from jaxclip.losses.gradient_caching import cached_value_and_grad, microbatched
from jaxclip.losses.streaming import global_indices, row_and_column_log_sum_exp
from jaxclip.nn import CLIP, Abstract


def contrastive_loss(scale, images, texts):
    positives = scale * jnp.sum(images * texts, axis=1)
    others = row_and_column_log_sum_exp(images, texts, scale, excluded=global_indices(len(images)), chunk_size=5)
    return sum(jnp.mean(jax.nn.softplus(rows - positives)) for rows in others) / 2


def encode(parameters, inputs):
    features = jnp.tanh(inputs @ parameters["in"]) @ parameters["out"]
    # Of zeros its gradient is NaN: padding mustn't be zeros.
    return features / jnp.linalg.norm(features, axis=1, keepdims=True)


def loss(parameters, images, texts):
    return contrastive_loss(parameters["scale"], images, texts)


def whole(parameters, images, texts):
    return loss(parameters, encode(parameters, images), encode(parameters, texts))


def example(count, width=256):
    generator = np.random.default_rng(0)
    arrays = (generator.normal(size=shape) for shape in ((4, width), (width, 8), (count, 4), (count, 4)))
    into, out, images, texts = (x.astype(np.float32) for x in arrays)
    return {"in": into, "out": out, "scale": np.float32(10)}, images, images + texts


def relative_error(ours, theirs):
    """Of all leaves as one vector."""
    ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, theirs))
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def wanted():
    return jit(jax.value_and_grad(whole))(*example(14))


# One at a time, a divisor, with a remainder, and more than the batch.
@pytest.mark.parametrize("microbatch_size", [1, 7, 4, 20])
def test_the_whole_batchs_value_and_gradient(wanted, microbatch_size):
    value, gradient = jit(cached_value_and_grad((encode, encode), loss, microbatch_size))(*example(14))
    assert relative_error(value, wanted[0]) < 5e-7
    for name in gradient:
        # 7e-7 at worst, and 2.3e-6 of the scale's, which is a sum of both signs.
        assert relative_error(gradient[name], wanted[1][name]) < (5e-6 if name == "scale" else 2e-6)


def test_of_a_clip_model():
    tower = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = CLIPConfig(
        text=TextConfig(**tower, vocab_size=50, projection_dim=8, eos_token_id=49),
        vision=VisionConfig(**tower, image_size=8, patch_size=4, projection_dim=8),
    )
    generator = np.random.default_rng(0)
    # Larger than a new model's parameters, whose features are nearly alike.
    model = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.3, leaf.shape), leaf.dtype), CLIP(config, rngs=Abstract())
    )
    model.logit_scale[...] = jnp.log(10.0)
    pixels = jnp.asarray(generator.normal(size=(10, 8, 8, 3)), jnp.float32)
    token_ids = jnp.asarray(generator.integers(1, 48, (10, 6)), jnp.int32).at[:, -1].set(49)

    def loss(model, images, texts):
        return contrastive_loss(jnp.exp(model.logit_scale[...]), images, texts)

    def whole(model, pixels, token_ids):
        return loss(model, model.encode_image(pixels), model.encode_text(token_ids))

    step = cached_value_and_grad((CLIP.encode_image, CLIP.encode_text), loss, 4)
    wanted, ours = (jit(step)(model, pixels, token_ids) for step in (jax.value_and_grad(whole), step))
    assert isinstance(ours[1], CLIP)
    assert relative_error(ours[0], wanted[0]) < 4e-7  # 1.0e-7 measured
    assert relative_error(ours[1], wanted[1]) < 4e-6  # 1.6e-6


def test_memory_is_a_microbatchs():
    def temporary(function, count):
        return jax.jit(function).lower(*example(count)).compile().memory_analysis().temp_size_in_bytes

    step = cached_value_and_grad((encode, encode), loss, 16)
    # Of each row still its 8 features, and no more its 256 activations: measured 0.101.
    assert temporary(step, 2048) < 0.12 * temporary(jax.value_and_grad(whole), 2048)


@functools.cache
def count_calls(rows, microbatch_size):
    """Of the encoder, in one step."""
    calls = []

    def encode(weights, inputs):
        # (What doesn't depend on the inputs is taken out of the loop.)
        jax.debug.callback(lambda _: calls.append(inputs.shape), inputs[0, 0])
        return jnp.tanh(inputs @ weights)

    step = cached_value_and_grad([encode], lambda _, features: jnp.sum(features**2), microbatch_size)
    jax.block_until_ready(jit(step)(np.ones((3, 2), np.float32), np.ones((rows, 3), np.float32)))
    jax.effects_barrier()
    return calls


def test_every_microbatch_is_encoded_twice():
    assert count_calls(12, 4) == [(4, 3)] * 6
    # 10 rows in 3 parts as equal as can be, and not of 4, 4 and 2.
    assert count_calls(10, 4) == [(4, 3)] * 6
    assert count_calls(9, 4) == [(3, 3)] * 6
    # Nothing to save.
    assert count_calls(4, 4) == [(4, 3)]


def test_rows_keep_their_order_and_trees_their_structure():
    def encode(offset, inputs):
        return {"sum": inputs["x"].sum(axis=1) + offset, "pair": (inputs["x"], inputs["y"])}

    inputs = {"x": np.arange(30, dtype=np.float32).reshape(10, 3), "y": np.arange(10, dtype=np.int32)}
    features = jit(microbatched(encode, 4))(100.0, inputs)
    np.testing.assert_array_equal(features["sum"], inputs["x"].sum(axis=1) + 100)
    np.testing.assert_array_equal(features["pair"][0], inputs["x"])
    np.testing.assert_array_equal(features["pair"][1], inputs["y"])


def test_inputs_have_gradients_too():
    def encode(weights, x, y):
        return jnp.tanh(x @ weights) * y

    operands = [np.ones((3, 2)), np.arange(30).reshape(10, 3) / 30, np.arange(20).reshape(10, 2)]
    operands = [x.astype(np.float32) for x in operands]
    ours, theirs = (
        jit(jax.grad(lambda *operands, e=e: jnp.sum(e(*operands) ** 2), argnums=(0, 1, 2)))(*operands)
        for e in (microbatched(encode, 3), encode)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 4e-6  # 1.3e-6


def test_what_does_not_fit_is_an_error():
    def encode(weights, x, y):
        return x + y

    with pytest.raises(ValueError, match="microbatch_size must be at least 1, got 0"):
        microbatched(encode, 0)
    with pytest.raises(ValueError, match=r"of one length, at least 1, got \[3, 4\]"):
        microbatched(encode, 2)(1.0, jnp.ones((3, 1)), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match=r"of one length, at least 1, got \[0\]"):
        microbatched(encode, 2)(1.0, jnp.ones((0, 1)), jnp.ones((0, 1)))
