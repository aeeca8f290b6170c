import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, FOLDER, TOLERANCE, errors, errors_of, expected, loaded_outputs
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import jaxclip
from jaxclip.checkpoints.load import model_parameters
from jaxclip.nn import CLIP


@pytest.fixture
def folder(tmp_path):
    """A copy of a joint checkpoint to spoil."""
    return shutil.copytree(FOLDER / "first_eos", tmp_path / "checkpoint")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", CASES)
def test_every_hidden_state_is_the_references(case):
    found = errors_of(loaded_outputs(case), case)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_filled_with_float32(case):
    parameters = model_parameters(jaxclip.load(FOLDER / case).model)
    assert all(parameter[...].dtype == jnp.float32 for parameter in parameters.values())


def test_parameters_may_keep_half_precision():
    model = jaxclip.load(FOLDER / "heads_80", param_dtype="bfloat16").model
    assert {parameter[...].dtype for parameter in model_parameters(model).values()} == {jnp.dtype("bfloat16")}
    assert max(errors(model, "heads_80").values()) < TOLERANCE  # The file is bfloat16: nothing is lost.


def test_all_that_is_wrong_is_listed_at_once(folder):
    def spoil(tensors):
        del tensors["text_model.final_layer_norm.bias"]
        del tensors["logit_scale"]
        tensors["visual_projection.bias"] = np.zeros(20, np.float32)
        tensors["text_projection.weight"] = tensors["text_projection.weight"].T.copy()
        tensors["vision_model.pre_layrnorm.bias"] = np.zeros(36, np.int32)

    rewrite(folder, spoil)
    with pytest.raises(jaxclip.CheckpointError) as error:
        jaxclip.load(folder)
    assert str(folder / "model.safetensors") in str(error.value)
    assert str(error.value).splitlines()[1:] == [
        "  missing: text_model.final_layer_norm.bias",
        "  missing: logit_scale",
        "  unexpected: visual_projection.bias [20]",
        "  shape: text_projection.weight is [32, 20], config.json asks for [20, 32]",
        "  dtype: vision_model.pre_layrnorm.bias is int32, not floating point",
    ]


@pytest.mark.parametrize(("layers", "problem"), [(1, "unexpected: {}.layers.1."), (3, "missing: {}.layers.2.")])
def test_a_layer_too_many_or_too_few_is_an_error(folder, layers, problem):
    reconfigure(folder, lambda config: config["text_config"].update(num_hidden_layers=layers))
    with pytest.raises(jaxclip.CheckpointError, match=problem.format("text_model.encoder")):
        jaxclip.load(folder)


def test_an_absurd_depth_is_an_error_and_not_a_hang(folder):
    reconfigure(folder, lambda config: config["text_config"].update(num_hidden_layers=10**12))
    with pytest.raises(jaxclip.CheckpointError, match=r"asks for 10{12} layers, and the files hold only 78 tensors"):
        jaxclip.load(folder)


def test_only_the_known_buffers_are_ignored(folder):
    rewrite(folder, lambda t: t.update({"text_model.embeddings.position_ids": np.arange(12)[None]}))
    jaxclip.load(folder)
    rewrite(folder, lambda t: t.update({"text_model.position_ids": np.arange(12)[None]}))
    with pytest.raises(jaxclip.CheckpointError, match=r"unexpected: text_model\.position_ids \[1, 12\]"):
        jaxclip.load(folder)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_one_tower_of_a_joint_checkpoint(tower):
    clip, whole = jaxclip.load(FOLDER / "first_eos", towers=tower), jaxclip.load(FOLDER / "first_eos")
    reference = expected("first_eos")
    other, inputs = ("vision", "pixels") if tower == "text" else ("text", "token_ids")
    assert getattr(clip.model, other) is None
    assert clip.model.logit_scale is None
    given = jnp.asarray(reference["token_ids" if tower == "text" else "pixels"])
    np.testing.assert_array_equal(
        getattr(clip.model, tower)(given).features, getattr(whole.model, tower)(given).features
    )
    encode = clip.model.encode_image if tower == "text" else clip.model.encode_text
    with pytest.raises(ValueError, match=f"no {other} tower"):
        encode(jnp.asarray(reference[inputs]))


def test_a_tower_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="has no text tower"):
        jaxclip.load(FOLDER / "vision", towers="text")
    with pytest.raises(ValueError, match="towers must be 'both', 'text' or 'vision'"):
        jaxclip.CLIPConfig().select("image")


def test_a_subclass_is_filled_with_the_same_weights():
    class Doubled(CLIP):
        def encode_text(self, token_ids, *arguments, **options):
            return 2 * super().encode_text(token_ids, *arguments, **options)

    ids = jnp.asarray(expected("first_eos")["token_ids"])
    model = jaxclip.load(FOLDER / "first_eos", model=Doubled).model
    assert isinstance(model, Doubled)
    np.testing.assert_array_equal(model.encode_text(ids), 2 * jaxclip.load(FOLDER / "first_eos").model.encode_text(ids))


def test_a_subclass_may_replace_a_block():
    class Scaled(nnx.Module):
        def __init__(self, block):
            self.norm1, self.attention, self.norm2, self.mlp = block.norm1, block.attention, block.norm2, block.mlp

        def __call__(self, x, mask=None, *, tap):
            return 0 * x

    class WithScaled(CLIP):
        def __init__(self, config, **settings):
            super().__init__(config, **settings)
            self.vision.blocks[0] = Scaled(self.vision.blocks[0])

    model = jaxclip.load(FOLDER / "first_eos", model=WithScaled).model
    output = model.vision(jnp.asarray(expected("first_eos")["pixels"]))
    assert not output.hidden_states[1].any()
    assert output.hidden_states[2].any()


def test_parameters_that_the_checkpoint_does_not_know_are_an_error():
    class WithHead(CLIP):
        def __init__(self, config, **settings):
            super().__init__(config, **settings)
            self.head = nnx.Linear(20, 3, rngs=settings["rngs"])

    with pytest.raises(jaxclip.CheckpointError, match=r"parameter head\.kernel of its own \(add it after loading\)"):
        jaxclip.load(FOLDER / "first_eos", model=WithHead)


def test_a_bad_config_names_the_file_and_the_key(folder):
    reconfigure(folder, lambda config: config["vision_config"].update(patch_size=[4, 4]))
    with pytest.raises(jaxclip.CheckpointError, match=r"config\.json: VisionConfig\.patch_size must be an integer"):
        jaxclip.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(jaxclip.CheckpointError, match=r"config\.json: expected JSON"):
        jaxclip.load(folder)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_load_or_are_refused(folder, data):
    """Bytes of either file overwritten at random: the same names and shapes come out, or a CheckpointError does."""
    originals = {name: (FOLDER / "first_eos" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    name = data.draw(st.sampled_from(sorted(originals)))
    damaged = bytearray(originals[name])
    # The header of safetensors is where damage means anything; the numbers themselves may be any.
    header = min(len(damaged), 8 + int.from_bytes(originals["model.safetensors"][:8], "little"))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, header - 1)) % len(damaged)] = data.draw(st.integers(0, 255))
    for original, content in originals.items():
        (folder / original).write_bytes(bytes(damaged) if original == name else content)
    try:
        model = jaxclip.load(folder).model
    except jaxclip.CheckpointError as error:
        message = str(error)
    else:
        message = f"{folder}: loaded"
        assert len(model_parameters(model)) == 78
    assert str(folder) in message
