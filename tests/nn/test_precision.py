import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
from jaxclip.nn import CLIP
from jaxclip.nn.precision import computation, parameter_dtype


@pytest.mark.parametrize(
    ("dtype", "arrays", "products"),
    [
        ("float32", "float32", "highest"),
        (jnp.float32, "float32", "highest"),
        ("tensorfloat32", "float32", "tensorfloat32"),
        (jnp.bfloat16, "bfloat16", "default"),
        ("float16", "float16", "default"),
    ],
)
def test_dtypes(dtype, arrays, products):
    assert computation(dtype) == (jnp.dtype(arrays), products)


def test_other_dtypes_are_errors():
    with pytest.raises(ValueError, match="dtype must be one of float64, float32, tensorfloat32"):
        computation("int8")
    with pytest.raises(ValueError, match="needs 64-bit JAX"):
        computation("float64")


SMALL = CLIPConfig(
    text=TextConfig(num_hidden_layers=2, hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=50,
                    projection_dim=8),
    vision=VisionConfig(num_hidden_layers=2, hidden_size=16, intermediate_size=32, num_attention_heads=2, image_size=8,
                        patch_size=4, projection_dim=8),
)  # fmt: skip


def products(program):
    """The precision of every matrix product in a program."""
    return re.findall(r"dot_general\[.*?precision=(\S+)", str(program), re.DOTALL)


@pytest.mark.parametrize("backward", [False, True])
def test_every_product_is_traced_at_its_precision(backward):
    def loss(model):
        return model(jnp.ones((1, 5), int), jnp.ones((1, 8, 8, 3))).logits_per_image.sum()

    programs = {
        dtype: products(
            jax.make_jaxpr(jax.grad(loss) if backward else loss)(CLIP(SMALL, dtype=dtype, rngs=nnx.Rngs(0)))
        )
        for dtype in ("float32", "tensorfloat32", "bfloat16")
    }
    # Eight a block, four blocks, the patches, two projections, the logits.
    assert all(len(found) >= 8 * 4 + 4 for found in programs.values())
    assert all("HIGHEST" in product for product in programs["float32"])
    # The cosines of finished vectors alone stay exact: one product, and two in the backward pass.
    for dtype in ("tensorfloat32", "bfloat16"):
        assert sum("HIGHEST" in product for product in programs[dtype]) == (3 if backward else 1)


@pytest.mark.parametrize("part", ["attention", "mlp", "whole"])
def test_a_block_on_its_own_is_as_exact(part):
    block = CLIP(SMALL, rngs=nnx.Rngs(0)).vision.blocks[0]
    function = block if part == "whole" else getattr(block, part)
    found = products(jax.make_jaxpr(lambda x: function(x))(jnp.ones((1, 5, 16))))
    assert len(found) >= 2
    assert all("HIGHEST" in product for product in found)


def test_parameters_have_real_dtypes():
    assert parameter_dtype("bfloat16") == parameter_dtype(jnp.bfloat16) == jnp.dtype("bfloat16")
    for wrong in ("int8", "tensorfloat32", "foo"):
        with pytest.raises(ValueError, match="param_dtype must be float32, bfloat16, float16 or float64"):
            parameter_dtype(wrong)
    with pytest.raises(ValueError, match="needs 64-bit JAX"):
        CLIP(SMALL, param_dtype="float64", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("dtype", "short"), [("bfloat16", "bf16"), ("float16", "f16")])
def test_half_precision_keeps_softmax_norms_and_features_in_float32(dtype, short):
    model = CLIP(SMALL, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    ids, pixels = jnp.ones((2, 5), int), jnp.ones((1, 8, 8, 3))
    output = model(ids, pixels)
    assert output.vision.last_hidden_state.dtype == jnp.dtype(dtype)
    assert output.text_features.dtype == output.logits_per_image.dtype == jnp.float32
    program = str(jax.make_jaxpr(lambda model: model(ids, pixels).logits_per_image)(model))
    for operation in (" exp ", " rsqrt "):
        lines = [line for line in program.splitlines() if operation in line]
        assert len(lines) >= 4
        assert not any(f":{short}[" in line for line in lines)
