import ml_dtypes
import numpy as np
import pytest
from broken import inputs_of

from jaxclip.compare.rounding import coarser, growth, precision_of, relative_rms


def test_relative_rms_by_hand():
    assert relative_rms(np.array([3.0, 4.0]), np.array([5.0, 5.0])) == pytest.approx(np.sqrt(12.5) / 5)
    assert relative_rms(np.zeros(3), np.zeros(3)) == 0
    assert relative_rms(np.ones(3), np.zeros(3)) == np.inf
    assert relative_rms(np.zeros(0), np.zeros(0)) == 0


def test_the_precision_is_told_by_the_digits_whatever_the_dtype():
    x = {
        f"text_model.encoder.layers.{i}": np.random.default_rng(i).normal(size=(4, 5)).astype(np.float32)
        for i in range(9)
    }
    assert precision_of(x) == "float32"
    for name, dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        half = {key: value.astype(dtype) for key, value in x.items()}
        assert precision_of(half) == name
        assert precision_of({key: value.astype(np.float64) for key, value in half.items()}) == name
        # Of mixed precision a part.
        assert precision_of({**x, **{key: half[key] for key in list(half)[:4]}}) == name
        assert precision_of({**x, **{key: half[key] for key in list(half)[:2]}}) == "float32"
    # Token ids are whole numbers in any precision.
    assert precision_of({**x, "input_ids": np.arange(9)}) == "float32"


def test_the_coarser_of_two():
    assert coarser("float32", "bfloat16") == "bfloat16"
    assert coarser("float64", "float32") == "float32"
    assert coarser("tensorfloat32", "float16", "float32") == "float16"


def test_rounding_grows_with_depth_and_few_numbers_are_not_right_by_luck(checkpoint):
    made = checkpoint("openai", 1)
    inputs = inputs_of(made.config)
    exact = made.oracle(inputs.token_ids, inputs.pixels)
    found = growth(made.oracle, inputs, exact, "float32")
    assert list(found) == list(exact)
    assert (
        found["vision_model.embeddings"]
        < found["vision_model.encoder.layers.1"]
        < 20 * found["vision_model.embeddings"]
    )
    assert all(2**-27 < error < 1e-5 for name, error in found.items() if name != "text_model.embeddings")
    # Cosines of vectors in 20 dimensions, times the scale, and their loss: of the size that the vectors' errors are.
    assert found["logits_per_image"] > found["image_embeds"] / 2
    assert found["loss"] > found["image_embeds"] / 10
    half = growth(made.oracle, inputs, exact, "bfloat16")
    for name, error in found.items():
        assert half[name] > 1000 * error or name == "text_model.embeddings"
