"""The handle: strings and photos in, vectors out."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FOLDER, TEXTS, TOLERANCE, expected, photos, relative_error
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file

import jaxclip
from jaxclip.config import CLIPConfig, TextConfig
from jaxclip.nn import CLIP

WHOLE = FOLDER / "whole"


@pytest.fixture(scope="module")
def clip():
    return jaxclip.load(WHOLE)


@pytest.fixture(scope="module")
def reference():
    return expected("whole")


def unit(features):
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def test_strings_and_photos_become_the_references_vectors(clip, reference):
    assert relative_error(clip.encode_text(TEXTS, normalize=False), reference["string_features"]) < TOLERANCE
    assert relative_error(clip.encode_image(photos(), normalize=False), reference["photo_features"]) < TOLERANCE
    np.testing.assert_allclose(clip.encode_text(TEXTS), unit(reference["string_features"]), atol=1e-6)
    np.testing.assert_allclose(clip.encode_image(photos()), unit(reference["photo_features"]), atol=1e-6)


def test_one_gives_a_vector_and_many_give_a_matrix(clip, tmp_path):
    np.testing.assert_allclose(clip.encode_text(TEXTS[0]), clip.encode_text(TEXTS)[0], atol=1e-6)
    photo = photos()[0]
    path = tmp_path / "chelsea.png"
    Image.fromarray(photo).save(path)
    wanted = clip.encode_image(photos())[0]
    for one in (photo, Image.fromarray(photo), path, str(path), path.read_bytes(), jnp.asarray(photo)):
        assert clip.encode_image(one).shape == (20,)
        np.testing.assert_allclose(clip.encode_image(one), wanted, atol=1e-6)
    np.testing.assert_allclose(clip.encode_image(photo[None])[0], wanted, atol=1e-6)
    np.testing.assert_allclose(clip.encode_image(iter([photo, path])), [wanted, wanted], atol=1e-6)


def test_none_gives_no_rows(clip):
    assert clip.encode_text([]).shape == clip.encode_image([]).shape == (0, 20)


def test_vectors_are_float32_jax_arrays_of_unit_length(clip):
    for vectors in (clip.encode_text(TEXTS), clip.encode_image(photos())):
        assert isinstance(vectors, jax.Array)
        assert vectors.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_text_is_cut_to_the_longest_of_the_batch(clip):
    short = clip.tokenizer(["a cat"])
    assert short.shape[1] < 12
    padded = clip.tokenizer(["a cat"], padding="max_length")
    assert padded.shape == (1, 12)
    np.testing.assert_allclose(clip.encode_text(padded), clip.encode_text("a cat")[None], atol=1e-6)


def test_token_ids_are_taken_as_they_are(clip):
    ids = clip.tokenizer(TEXTS)
    np.testing.assert_allclose(clip.encode_text(clip.tokenizer("a cat")), clip.encode_text("a cat"), atol=1e-6)
    for given in (ids, jnp.asarray(ids)):
        np.testing.assert_array_equal(clip.encode_text(given), clip.encode_text(TEXTS))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[912, 5, 913], [912, 5, 6]], "text 1 has no end-of-text token"),
        ([[912, 914, 913]], "must be from 0 to 913, this model's vocabulary; got 912 to 914"),
        ([[912, -1, 913]], "got -1 to 913"),
        ([[[912, 913]]], r"integers of shape \(n, tokens\); got int64 \(1, 1, 2\)"),
    ],
)
def test_token_ids_that_mean_nothing_are_refused(clip, ids, message):
    with pytest.raises(ValueError, match=message):
        clip.encode_text(np.array(ids))


def test_no_eos_is_refused_under_the_legacy_rule_too():
    model = jaxclip.load(FOLDER / "openai")
    with pytest.raises(ValueError, match="text 0 has no end-of-text token"):
        model.encode_text(np.array([[95, 5, 6, 7]]))
    assert model.encode_text(np.array([[95, 5, 98, 0]])).shape == (1, 20)


def test_under_the_legacy_rule_the_tokenizer_knows_the_eos(tmp_path):
    folder = shutil.copytree(WHOLE, tmp_path / "legacy")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    clip = jaxclip.load(folder)
    np.testing.assert_array_equal(clip.encode_text(TEXTS), jaxclip.load(WHOLE).encode_text(TEXTS))
    with pytest.raises(ValueError, match="text 0 has no end-of-text token"):
        clip.encode_text(np.array([[5, 7, 6]]))


def test_photos_that_can_not_be_read_are_named(clip, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no photo")
    with pytest.raises(jaxclip.ImageError, match=r"^'.*bad\.jpg': "):
        clip.encode_image([photos()[0], bad])


def test_the_model_is_the_same_function(clip):
    pixels = clip.image_processor(photos())
    np.testing.assert_allclose(clip.model.encode_image(jnp.asarray(pixels)), clip.encode_image(photos()), atol=1e-6)
    np.testing.assert_array_equal(clip.encode_pixels(pixels), clip.encode_image(photos()))


def test_a_second_call_compiles_nothing(clip):
    jax.clear_caches()
    clip.encode_text(["a cat"])
    compiled = jaxclip.encoder._encode._cache_size()
    clip.encode_text(["a dog"])
    assert jaxclip.encoder._encode._cache_size() == compiled
    clip.encode_text(["a dog"], normalize=False)
    assert jaxclip.encoder._encode._cache_size() == compiled + 1


def test_what_a_checkpoint_lacks_raises_when_it_is_asked_for():
    clip = jaxclip.load(FOLDER / "openai")
    with pytest.raises(jaxclip.CheckpointError, match=r"openai' has no tokenizer\.json or .* there is no tokenizer"):
        clip.encode_text("a cat")
    with pytest.raises(jaxclip.CheckpointError, match=r"has no processor_config\.json or .* no image processor"):
        clip.encode_image(photos())
    text = jaxclip.load(FOLDER / "text_projection")
    with pytest.raises(ValueError, match="has no vision tower"):
        text.encode_image(photos())
    with pytest.raises(ValueError, match="has no vision tower"):
        _ = text.image_processor
    with pytest.raises(ValueError, match="has no text tower"):
        jaxclip.load(FOLDER / "vision").encode_text([])


def test_the_newer_processor_config_is_read(tmp_path):
    folder = shutil.copytree(WHOLE, tmp_path / "newer")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert jaxclip.load(folder).image_processor == jaxclip.load(WHOLE).image_processor
    # transformers < 5 wrote a processor_config.json that says nothing of images, beside the other.
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert jaxclip.load(folder).image_processor == jaxclip.load(WHOLE).image_processor


def test_a_handle_of_your_own_model(tmp_path, clip):
    model = CLIP(clip.model.config, rngs=nnx.Rngs(0))
    own = jaxclip.Clip(model, tokenizer=clip.tokenizer, image_processor=clip.image_processor)
    own.save(tmp_path / "own")
    again = jaxclip.load(tmp_path / "own")
    np.testing.assert_array_equal(again.encode_text(TEXTS), own.encode_text(TEXTS))
    np.testing.assert_array_equal(again.encode_image(photos()), own.encode_image(photos()))
    bare = jaxclip.Clip(CLIP(CLIPConfig(text=TextConfig(num_hidden_layers=1), vision=None), rngs=nnx.Rngs(0)))
    with pytest.raises(jaxclip.CheckpointError, match="this handle was given no tokenizer"):
        bare.encode_text("a cat")


def test_repr_says_what_it_is(clip):
    assert repr(clip) == f"Clip({str(WHOLE)!r}, text and vision)"


@pytest.mark.parametrize("case", ["whole", "heads_80", "openai", "text", "vision_projection", "sharded", "torch_file"])
def test_saving_gives_the_tensors_back_bit_for_bit(case, tmp_path):
    jaxclip.load(FOLDER / case).save(tmp_path / "saved")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    tensors = jaxclip.checkpoints.tensors.open_tensors(
        jaxclip.checkpoints.files.weight_files(jaxclip.checkpoints.files.locate(FOLDER / case))
    )
    prefix = {"text": "text_model."}.get(case, "")
    original = {prefix + name: tensor.read() for name, tensor in tensors.items() if "position_ids" not in name}
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape)
        assert written[name].tobytes() == tensor.tobytes()


def test_saving_keeps_the_files_beside_the_weights(tmp_path):
    jaxclip.load(WHOLE).save(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (WHOLE / name).read_bytes()


def test_saving_one_tower_gives_a_lone_towers_checkpoint(tmp_path):
    jaxclip.load(WHOLE, towers="text").save(tmp_path / "text")
    again = jaxclip.load(tmp_path / "text")
    assert again.model.vision is None
    np.testing.assert_array_equal(again.encode_text(TEXTS), jaxclip.load(WHOLE).encode_text(TEXTS))
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModelWithProjection"]


def test_who_may_read_the_config_may_read_the_weights(tmp_path, clip):
    before = os.umask(0o022)
    try:
        clip.save(tmp_path / "saved")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "saved").iterdir()} == {"0o644"}


def test_a_failed_save_leaves_what_was_there(tmp_path, clip, monkeypatch):
    folder = tmp_path / "saved"
    clip.save(folder)
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxclip.checkpoints.save.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        jaxclip.load(FOLDER / "first_eos").save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    monkeypatch.undo()
    jaxclip.load(FOLDER / "first_eos").save(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_saving_over_another_checkpoint_leaves_nothing_of_it(tmp_path, clip):
    folder = tmp_path / "saved"
    shutil.copytree(FOLDER / "sharded", folder)
    (folder / "processor_config.json").write_text('{"image_processor": {"size": 99}}')
    (folder / "merges.txt").write_text("")
    (folder / "notes.txt").write_text("mine")
    clip.save(folder)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"),
        *("notes.txt", "expected.safetensors"),
    }
    again = jaxclip.load(folder)
    np.testing.assert_array_equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))
    assert again.image_processor == clip.image_processor


def test_what_was_given_to_the_handle_is_what_is_saved(tmp_path):
    clip = jaxclip.load(WHOLE)
    clip.image_processor = dataclasses.replace(clip.image_processor, image_mean=(0.0, 0.0, 0.0))
    clip.tokenizer = dataclasses.replace(clip.tokenizer, max_length=8)
    clip.save(tmp_path / "saved")
    again = jaxclip.load(tmp_path / "saved")
    assert again.image_processor == clip.image_processor
    assert again.image_processor.image_mean == (0.0, 0.0, 0.0)
    assert again.tokenizer.max_length == 8
    assert not (tmp_path / "saved" / "vocab.json").exists()


def test_values_beyond_the_stored_dtype_are_not_saved_as_infinity(tmp_path):
    clip = jaxclip.load(WHOLE)  # float16
    scale = clip.model.text.final_norm.scale
    scale.set_value(1e6 * scale[...])
    with pytest.raises(ValueError, match=r"text\.final_norm\.scale has values up to .*e\+06, more than float16"):
        clip.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    jaxclip.Clip(clip.model).save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors")["logit_scale"].dtype == np.float32
    # transformers would load it in the dtype that the config states, whatever the file's.
    stated = [json.loads((folder / "config.json").read_text()).get("dtype") for folder in (WHOLE, tmp_path / "saved")]
    assert stated == ["float16", None]


def test_a_model_without_what_its_config_has_is_not_saved(tmp_path, clip):
    model = jaxclip.load(WHOLE).model
    model.vision = None
    with pytest.raises(ValueError, match=r"lacks parameters that its config asks for: vision\.blocks\.0"):
        jaxclip.Clip(model).save(tmp_path / "saved")


def test_offline_with_half_a_checkpoint_cached_says_so(tmp_path, monkeypatch):
    """The weights are there and the tokenizer was never fetched: neither is it "not there", nor may saving drop it."""
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(WHOLE / name, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clip = jaxclip.load("a/b")
    assert (clip.source, clip.revision) == ("a/b", "0" * 40)
    assert clip.encode_text(np.array([[912, 5, 913]])).shape == (1, 20)
    with pytest.raises(jaxclip.CheckpointError, match=r"is not in the cache .*, and HF_HUB_OFFLINE is set"):
        clip.encode_text("a cat")
    with pytest.raises(jaxclip.CheckpointError, match="is not in the cache"):
        clip.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_damaged_files_beside_the_weights_are_named(tmp_path):
    folder = shutil.copytree(WHOLE, tmp_path / "damaged")
    (folder / "preprocessor_config.json").write_text("[]")
    (folder / "tokenizer.json").write_text("{")
    clip = jaxclip.load(folder)
    with pytest.raises(jaxclip.CheckpointError, match=r"preprocessor_config\.json: expected a JSON object, got \[\]"):
        clip.encode_image(photos())
    with pytest.raises(jaxclip.CheckpointError, match=r"tokenizer\.json"):
        clip.encode_text("a cat")


def test_a_folder_in_the_way_is_seen_before_anything_is_replaced(tmp_path, clip):
    folder = tmp_path / "saved"
    (folder / "config.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"has folders named config\.json"):
        clip.save(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_saving_over_a_file_is_refused(tmp_path, clip):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file; a checkpoint is saved to a folder"):
        clip.save(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"is a link to .*nowhere.*, which is not there"):
        clip.save(tmp_path / "link")


def test_parameters_of_ones_own_can_not_be_saved_silently(tmp_path):
    clip = jaxclip.load(FOLDER / "first_eos")
    clip.model.head = nnx.Linear(20, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"no place for the parameters head\.bias, head\.kernel"):
        clip.save(tmp_path / "saved")


@pytest.mark.parametrize(("dtype", "worst"), [("bfloat16", 3e-2), ("float16", 4e-3), ("tensorfloat32", 1e-6)])
def test_lower_precision_is_an_explicit_choice(dtype, worst, clip):
    lower = jaxclip.load(WHOLE, dtype=dtype)
    for ours, theirs in (
        (lower.encode_text(TEXTS), clip.encode_text(TEXTS)),
        (lower.encode_image(photos()), clip.encode_image(photos())),
    ):
        difference = float(jnp.abs(ours - theirs).max())
        assert difference < worst
        # A CPU has no TF32; there the name changes nothing.
        assert difference > worst / 100 or (dtype == "tensorfloat32" and jax.default_backend() == "cpu")
