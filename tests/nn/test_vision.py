import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip.config import VisionConfig
from jaxclip.nn import VisionTransformer, record

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
         "image_size": 12, "patch_size": 4, "projection_dim": 8}  # fmt: skip


@pytest.fixture(scope="module")
def vision():
    return VisionTransformer(VisionConfig(**SMALL), rngs=nnx.Rngs(0))


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_patches_are_embedded_as_by_a_strided_convolution(vision):
    image = pixels(2, 14, 9, 3)  # The rows and columns that fill no patch are not seen.
    wanted = jax.lax.conv_general_dilated(
        image, vision.patch_embedding.kernel[...], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )  # fmt: skip
    ours = vision.patch_embedding(image)
    assert ours.shape == (2, 3, 2, 16)
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_another_size_needs_to_be_asked_for(vision):
    with pytest.raises(ValueError, match=r"16 × 12, .* trained at 12 × 12: .*interpolate_positions=True"):
        jax.jit(lambda x: vision(x).pooled).trace(pixels(1, 16, 12, 3))
    assert vision(pixels(1, 16, 12, 3), interpolate_positions=True).last_hidden_state.shape == (1, 4 * 3 + 1, 16)


def test_interpolating_to_the_same_size_changes_nothing(vision):
    image = pixels(1, 12, 12, 3)
    np.testing.assert_array_equal(vision(image, interpolate_positions=True).features, vision(image).features)


def test_wrong_layouts_are_named(vision):
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 12\): expected \(batch, height, width, 3\), channels last"):
        vision(pixels(1, 3, 12, 12))
    with pytest.raises(ValueError, match="3 × 12, smaller than one patch of 4 × 4"):
        vision(pixels(1, 3, 12, 3), interpolate_positions=True)


def test_patches_are_projected_like_the_class_token(vision):
    output = vision(pixels(2, 12, 12, 3))
    projected = vision.project(output.last_hidden_state)
    assert projected.shape == (2, 10, 8)
    np.testing.assert_allclose(projected[:, 0], output.features, atol=1e-6)


def test_projecting_needs_a_projection():
    vision = VisionTransformer(VisionConfig(**{**SMALL, "projection_dim": None}), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no projection into a joint space"):
        vision.project(jnp.zeros((1, 16)))


def test_channels_are_the_configs():
    vision = VisionTransformer(VisionConfig(**SMALL, num_channels=5), rngs=nnx.Rngs(0))
    assert vision(pixels(1, 12, 12, 5)).features.shape == (1, 8)


def test_one_without_a_batch_axis_is_named(vision):
    # Unwrapped, because in tests jaxtyping would see the shape first.
    with pytest.raises(
        ValueError, match=r"pixels must be of shape \(batch, height, width, channels\), got \(12, 12, 3\)"
    ):
        VisionTransformer.__call__.__wrapped__(vision, jnp.zeros((12, 12, 3)))


def test_patch_features_are_the_values_of_the_last_block_alone(vision):
    """In float64 from the recorded input of the block, with nothing of the model's own but its parameters."""
    image, seen = pixels(2, 12, 20, 3), {}
    vision(image, interpolate_positions=True, tap=record(seen))

    def norm(x, layer):
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return x * np.asarray(layer.scale[...], np.float64) + np.asarray(layer.bias[...], np.float64)

    def linear(x, layer):
        y = x @ np.asarray(layer.weight[...], np.float64).T
        return y if layer.bias is None else y + np.asarray(layer.bias[...], np.float64)

    last = vision.blocks[-1]
    x = norm(np.asarray(seen["blocks.0"], np.float64)[:, 1:], last.norm1)
    x = linear(linear(x, last.attention.value), last.attention.out)
    wanted = linear(norm(x, vision.post_norm), vision.projection)
    found = vision.patch_features(image)
    assert found.shape == (2, 3, 5, 8)
    np.testing.assert_allclose(found, wanted.reshape(2, 3, 5, 8), atol=1e-5 * np.abs(wanted).max())


def test_patch_features_need_a_projection_and_whole_patches(vision):
    lone = VisionTransformer(VisionConfig(**{**SMALL, "projection_dim": None}), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no projection into a joint space"):
        lone.patch_features(pixels(1, 12, 12, 3))
    with pytest.raises(ValueError, match="3 × 12, smaller than one patch"):
        vision.patch_features(pixels(1, 3, 12, 3))
