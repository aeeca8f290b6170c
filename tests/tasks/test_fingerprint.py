import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FOLDER
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxclip
from jaxclip.checkpoints.load import model_parameters
from jaxclip.tasks import fingerprint
from jaxclip.tasks.fingerprint import fingerprints


def test_it_is_the_parameters(clip, tmp_path):
    ours = fingerprints(clip.model)
    assert ours.keys() == {"vision", "text"}
    assert len(set(ours.values())) == 2
    clip.save(tmp_path / "saved")
    assert fingerprints(jaxclip.load(tmp_path / "saved", dtype="bfloat16").model) == ours
    for tower in ("vision", "text"):
        assert fingerprints(jaxclip.load(FOLDER / "whole", towers=tower).model) == {tower: ours[tower]}
    # Committed, for indexes outlive versions.
    assert ours["vision"].startswith("5101ac3e448dceb8")
    assert ours["text"].startswith("7917d0212f301258")


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_every_parameter_counts_for_its_tower(clip, tower):
    changed = jaxclip.load(FOLDER / "whole").model
    ours = fingerprints(clip.model)
    for path, parameter in model_parameters(changed).items():
        before = parameter[...]
        parameter[...] = before * np.float32(1.001) + np.float32(1e-6)
        theirs = fingerprints(changed)
        assert (theirs[tower] != ours[tower]) == path.startswith(tower), path
        parameter[...] = before
    assert fingerprints(changed) == ours


def test_it_is_the_same_wherever_the_parameters_lie(clip, monkeypatch):
    """On an accelerator the values are picked before they come to the host."""
    ours = fingerprints(clip.model)
    copied, device_get = [], jax.device_get
    monkeypatch.setattr("jaxclip.tasks.fingerprint._is_here", lambda value: False)
    monkeypatch.setattr(jax, "device_get", lambda values: device_get(copied.extend(values) or values))
    assert fingerprints(clip.model) == ours
    assert max(value.size for value in copied) == 64
    assert all(isinstance(value, jax.Array) for value in copied)
    # Split over a mesh, whose explicit axes JAX wants an answer for (of one device: all that a test can rely on).
    split = jaxclip.load(FOLDER / "whole").model
    sharding = NamedSharding(jax.make_mesh((1,), ("model",), axis_types=(AxisType.Explicit,)), PartitionSpec("model"))
    for parameter in model_parameters(split).values():
        value = parameter[...]
        parameter.set_value(jax.device_put(value, sharding) if value.ndim else value)
    assert fingerprints(split) == ours


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7,), (5, 13), (3, 4, 5, 6)])
def test_values_are_spread_evenly(shape, on_host):
    values = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float16).reshape(shape)
    (sample,) = fingerprint._samples([values]) if on_host else [fingerprint._on_device(values)]
    flat = np.asarray(values, np.float32).reshape(-1)
    places = np.linspace(0, flat.size - 1, min(64, flat.size)).astype(int)
    np.testing.assert_array_equal(sample, flat[places])
    assert sample.dtype == np.float32


def test_the_token_that_ends_a_text_counts(clip, tmp_path):
    folder = shutil.copytree(FOLDER / "whole", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    theirs, ours = fingerprints(jaxclip.load(folder).model), fingerprints(clip.model)
    assert theirs["text"] != ours["text"]
    assert theirs["vision"] == ours["vision"]


@pytest.mark.parametrize("setting", [{"hidden_act": "gelu"}, {"layer_norm_eps": 1e-6}, {"num_attention_heads": 1}])
def test_the_same_parameters_with_another_setting_are_another_model(clip, tmp_path, setting):
    folder = shutil.copytree(FOLDER / "whole", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= setting
    (folder / "config.json").write_text(json.dumps(config))
    theirs, ours = fingerprints(jaxclip.load(folder).model), fingerprints(clip.model)
    assert theirs["vision"] != ours["vision"]
    assert theirs["text"] == ours["text"]
