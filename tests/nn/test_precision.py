import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
from jaxclip.nn import CLIP
from jaxclip.nn.precision import computation


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
    assert not any("HIGHEST" in product for product in programs["tensorfloat32"] + programs["bfloat16"])


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
