import json
import shutil

import numpy as np
import pytest
from cases import FOLDER

import jaxclip
from jaxclip.checkpoints.load import model_parameters
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
    assert ours["vision"].startswith("3a056def50d1333c")
    assert ours["text"].startswith("d6a48bfb38455e68")


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


@pytest.mark.parametrize("setting", [{"hidden_act": "gelu"}, {"layer_norm_eps": 1e-6}, {"num_attention_heads": 1}])
def test_the_same_parameters_with_another_setting_are_another_model(clip, tmp_path, setting):
    folder = shutil.copytree(FOLDER / "whole", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= setting
    (folder / "config.json").write_text(json.dumps(config))
    theirs, ours = fingerprints(jaxclip.load(folder).model), fingerprints(clip.model)
    assert theirs["vision"] != ours["vision"]
    assert theirs["text"] == ours["text"]
