import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cases import FOLDER, expected
from oracle_cases import oracle
from PIL import Image

import jaxclip
from jaxclip.compare import Capture, capture, load_capture
from jaxclip.compare.inputs import TEXTS, example_images, example_pixels, example_token_ids
from jaxclip.nn import record
from jaxclip.reference import Oracle


def test_it_holds_all_that_the_oracle_names_and_all_that_the_tap_sees(whole, captured):
    ids, pixels = whole.tokenizer(TEXTS), whole.image_processor(example_images())
    exact = oracle("whole")(ids, pixels)
    raw = [name for index in range(4) for name in (f"images.{index}", f"texts.{index}")]
    inputs = {"text_model.embeddings": "input_ids", "vision_model.embeddings": "pixel_values"}
    names = [name for each in exact for name in (*([inputs[each]] if each in inputs else []), each)]
    assert list(captured) == raw + names
    assert captured.source == str(FOLDER / "whole")
    np.testing.assert_array_equal(captured["input_ids"], ids)
    np.testing.assert_array_equal(captured["pixel_values"].transpose(0, 2, 3, 1), pixels)
    seen = {}
    whole.model(jnp.asarray(ids), jnp.asarray(pixels), tap=record(seen))
    for ours, name in {
        "text.blocks.0.attention.weights": "text_model.encoder.layers.0.self_attn.attn_weights",
        "vision.blocks.1.mlp.activation": "vision_model.encoder.layers.1.mlp.activation_fn",
        "vision.blocks.1": "vision_model.encoder.layers.1",
        "vision.pooled": "vision_model.post_layernorm",
        "text_features": "text_embeds",
    }.items():
        np.testing.assert_allclose(captured[name], seen[ours], rtol=0, atol=1e-5 * np.abs(seen[ours]).max())
    assert len(seen) == len(exact) - 1
    for name, value in exact.items():
        assert captured[name].shape == value.shape, name
        np.testing.assert_allclose(captured[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_inputs_come_back(captured):
    inputs = captured.inputs
    assert inputs.texts == TEXTS
    for ours, image in zip(inputs.images, example_images(), strict=True):
        np.testing.assert_array_equal(ours, image)
    np.testing.assert_array_equal(inputs.pixels.transpose(0, 3, 1, 2), captured["pixel_values"])
    channels_last = Capture({"pixel_values": inputs.pixels})
    np.testing.assert_array_equal(channels_last.inputs.pixels, inputs.pixels)
    assert (channels_last.inputs.texts, channels_last.inputs.images, channels_last.inputs.token_ids) == (None,) * 3
    with pytest.raises(ValueError, match=r"pixel_values must be \(images, channels, height, width\)"):
        Capture({"pixel_values": np.zeros((3, 4, 4))}).inputs  # noqa: B018
    with pytest.raises(ValueError, match=r"input_ids must be integers"):
        Capture({"input_ids": np.zeros((3, 4))}).inputs  # noqa: B018


def test_gradients_are_the_slopes_of_the_oracles_loss():
    clip, inputs, exact = jaxclip.load(FOLDER / "norms"), expected("norms"), oracle("norms")
    ids, pixels = inputs["token_ids"][:2], inputs["pixels"]
    found = capture(clip, token_ids=ids, pixels=pixels, gradients=True)
    np.testing.assert_allclose(found["loss"], exact(ids, pixels)["loss"], rtol=1e-5)
    generator, step = np.random.default_rng(0), 1e-6
    for name, value in exact.tensors.items():
        direction = generator.normal(size=value.shape)
        moved = [Oracle(exact.config, {**exact.tensors, name: value + h * direction}) for h in (step, -step)]
        there, back = (made(ids, pixels)["loss"] for made in moved)
        ours = found[f"gradients.{name}"]
        assert ours.shape == value.shape
        # Float32's gradients, relative to their length; a key bias has none but for rounding.
        atol = 1e-5 * np.linalg.norm(found[f"gradients.{name.replace('k_proj.bias', 'q_proj.bias')}"]) + 1e-7
        np.testing.assert_allclose((ours * direction).sum(), (there - back) / (2 * step), rtol=1e-4, atol=atol)
    parameters = exact.tensors
    assert sum(name.startswith("gradients.") for name in found) == len(parameters)
    assert list(found)[-len(parameters) - 1] == "loss"
    assert "texts.0" not in found
    with pytest.raises(ValueError, match="as many texts as images"):
        capture(clip, token_ids=ids[:1], pixels=pixels, gradients=True)


@pytest.mark.parametrize(
    ("case", "last"),
    [
        ("text", "text_model.pooler_output"),
        ("text_projection", "text_embeds"),
        ("vision", "vision_model.post_layernorm"),
        ("vision_projection", "image_embeds"),
    ],
)
def test_towers_alone(case, last):
    inputs = expected(case)
    name = "token_ids" if case.startswith("text") else "pixels"
    found = capture(jaxclip.load(FOLDER / case), **{name: inputs[name]})
    exact = oracle(case)(**{name: inputs[name]})
    assert list(found)[1:] == list(exact)
    assert list(found)[-1] == last
    np.testing.assert_allclose(found[last], exact[last], atol=2e-5)


def test_one_string_one_photo_of_another_kind_and_another_size(whole, tmp_path):
    photo = Image.fromarray(np.dstack([example_images()[0], np.full((240, 320), 127, np.uint8)]))
    found = capture(whole, "a cat", photo)
    assert found.inputs.texts == ("a cat",)
    half = example_images()[0].astype(float) * 127 / 255 + 255 * 128 / 255  # Laid over white, as the reference does.
    np.testing.assert_allclose(found.inputs.images[0], half, atol=1)
    assert found["logits_per_image"].shape == (1, 1)
    other = capture(whole, pixels=np.zeros((1, 24, 16, 3), np.float32))
    assert other["vision_model.embeddings"].shape == (1, 25, 36)
    with pytest.raises(ValueError, match="nothing to capture"):
        capture(whole)


def test_a_mask_and_positions_go_in(whole):
    inputs = expected("whole")
    given = {name: inputs[name] for name in ("token_ids", "attention_mask", "position_ids")}
    found = capture(whole, **given)
    exact = oracle("whole")(**given)
    np.testing.assert_allclose(found["text_embeds"], exact["text_embeds"], atol=2e-6)
    np.testing.assert_array_equal(found.inputs.position_ids, inputs["position_ids"])
    assert list(found)[:3] == ["input_ids", "attention_mask", "position_ids"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files(captured, suffix, tmp_path):
    half = captured["text_embeds"].astype(ml_dtypes.bfloat16)
    saved = Capture({**captured, "text_embeds": half, "zebra": np.zeros(0)}, source=captured.source)
    saved.save(tmp_path / f"capture{suffix}")
    read = load_capture(tmp_path / f"capture{suffix}")
    assert list(read) == [*captured, "zebra"]
    for name, value in saved.items():
        np.testing.assert_array_equal(read[name].astype(np.float64), value.astype(np.float64))
        assert read[name].shape == value.shape  # The loss has none.
        assert read[name].dtype == value.dtype or (suffix == ".npz" and name == "text_embeds")
    assert read.source == (captured.source if suffix == ".safetensors" else None)
    with pytest.raises(ValueError, match=r"ends with \.safetensors or \.npz"):
        captured.save(tmp_path / "capture.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
def test_files_that_are_none(name, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_capture(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 not a whole file")
    with pytest.raises(ValueError, match=rf"{name}: is no whole file of tensors"):
        load_capture(tmp_path / name)


@pytest.mark.parametrize("value", [np.array(["a"]), np.zeros(3, complex)])
def test_what_is_no_number_is_refused(captured, value, tmp_path):
    np.savez(tmp_path / "a.npz", **{**captured, "text_embeds": value})
    with pytest.raises(ValueError, match=r"a\.npz: text_embeds holds no real numbers, but"):
        load_capture(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"texts.9": np.zeros(1, np.uint8)}, "texts.4 is missing"),
        ({"texts.0": np.array([255], np.uint8)}, "texts.0 must be a text in UTF-8"),
        ({"images.0": np.zeros((3, 4, 5), np.uint8)}, r"images.0 must be uint8 of shape .*, got uint8 \(3, 4, 5\)"),
        ({"images.0": np.zeros((4, 5, 3))}, "images.0 must be uint8"),
        ({"input_ids": np.zeros((4, 5))}, "input_ids must be integers"),
        ({"pixel_values": np.zeros((3, 4, 4))}, "pixel_values must be"),
    ],
)
def test_inputs_that_cannot_be_are_refused(captured, changed, message):
    with pytest.raises(ValueError, match=message):
        _ = Capture({**captured, **changed}).inputs


@pytest.mark.parametrize("case", ["openai", "first_eos", "metaclip_2"])
def test_examples_tell_the_pooling_rules_apart(case):
    config = oracle(case).config
    ids = example_token_ids(config)
    assert ids.min() >= 0
    assert ids.max() < config.text.vocab_size
    assert ids.shape[1] <= config.text.max_position_embeddings
    end = oracle(case).pooled_position(ids)
    assert (ids[np.arange(4), end] == ids[:, -1]).all()
    assert len(set(end)) > 2
    assert (end < ids.shape[1] - 1).any()
    if case != "openai":
        assert (ids.argmax(axis=1) != end).any()
    assert example_pixels(config).shape == (4, 16, 16, 3)
