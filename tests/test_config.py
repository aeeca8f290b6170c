import json

import pytest
from cases import CASES, FOLDER
from hypothesis import given
from hypothesis import strategies as st

from jaxclip.config import CLIPConfig, TextConfig, VisionConfig


def test_what_a_file_omits_is_vit_b_32():
    config = CLIPConfig.from_hub({"model_type": "clip"})
    assert config == CLIPConfig()
    assert (config.text.hidden_size, config.vision.hidden_size) == (512, 768)
    assert (config.text.num_attention_heads, config.vision.num_attention_heads) == (8, 12)
    assert config.text.layer_norm_eps == 1e-5
    assert config.text.hidden_act == "quick_gelu"
    assert config.text.pooling == "first_eos"


@pytest.mark.parametrize(
    ("model_type", "eos", "pooling"),
    [
        ("clip", 2, "largest_id"),
        ("clip", 49407, "first_eos"),
        ("metaclip_2", 2, "first_eos"),
        ("metaclip_2", 49407, "first_eos"),
    ],
)
def test_the_pooling_rule_depends_on_the_eos_id_and_the_family(model_type, eos, pooling):
    config = CLIPConfig.from_hub({"model_type": model_type, "text_config": {"eos_token_id": eos}})
    assert config.text.pooling == pooling
    assert CLIPConfig.from_hub(config.to_hub()).text.pooling == pooling


def test_the_joint_model_takes_the_top_level_projection_dim():
    hub = {"model_type": "clip", "projection_dim": 640, "text_config": {"projection_dim": 7}}
    config = CLIPConfig.from_hub(hub)
    assert config.text.projection_dim == config.vision.projection_dim == 640


def test_a_legacy_dict_overrides_and_so_do_its_defaults():
    hub = {
        "model_type": "clip",
        "text_config": {
            **{"hidden_size": 96, "num_attention_heads": 3, "eos_token_id": 2, "hidden_act": "gelu"},
            **{"attention_dropout": 0.1, "note": "kept"},
        },
        "text_config_dict": {"hidden_size": 64},
        "vision_config": {"patch_size": 16},
    }
    config = CLIPConfig.from_hub(hub)
    assert config.text == TextConfig(hidden_size=64)
    assert config.vision == VisionConfig(patch_size=16)
    assert config.text.other == {"note": "kept"}


@pytest.mark.parametrize(
    ("architecture", "projection_dim"), [("CLIPTextModel", None), ("CLIPTextModelWithProjection", 40)]
)
def test_a_lone_towers_architecture_tells_whether_it_projects(architecture, projection_dim):
    hub = {"model_type": "clip_text_model", "architectures": [architecture], "projection_dim": 40}
    config = CLIPConfig.from_hub(hub)
    assert config.vision is None
    assert config.text.projection_dim == projection_dim
    assert config.to_hub()["architectures"] == [architecture]


@pytest.mark.parametrize("case", CASES)
def test_to_hub_loses_nothing_that_the_file_says(case):
    hub = json.loads((FOLDER / case / "config.json").read_text())
    written = CLIPConfig.from_hub(hub).to_hub()
    assert CLIPConfig.from_hub(written) == CLIPConfig.from_hub(hub)
    if case != "legacy_config_dict":
        for tower in ("text_config", "vision_config"):
            own = {"projection_dim"}  # The joint model has only one, the top level's.
            given = {key: value for key, value in hub.pop(tower, {}).items() if key not in own}
            assert given.items() <= written.get(tower, {}).items()
        assert all(written[key] == value for key, value in hub.items())


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        ([], "must hold a JSON object, got list"),
        ({}, "model_type is None; jaxclip reads: clip, clip_text_model"),
        ({"model_type": "siglip"}, "model_type is 'siglip'"),
        ({"model_type": "clip", "text_config": 3}, "text_config must be a JSON object, got 3"),
        ({"model_type": "clip", "vision_config": {"patch_size": [16, 16]}}, r"patch_size must .* \[16, 16\]"),
        ({"model_type": "clip", "vision_config": {"patch_size": 300}}, "exceeds image_size"),
        ({"model_type": "clip", "text_config": {"hidden_size": 100}}, r"multiple of num_attention_heads \(8\)"),
        ({"model_type": "clip", "text_config": {"num_hidden_layers": True}}, "num_hidden_layers must be an integer"),
        ({"model_type": "clip", "text_config": {"eos_token_id": [1, 2]}}, "eos_token_id must be an integer"),
        ({"model_type": "clip", "text_config": {"layer_norm_eps": "x"}}, "layer_norm_eps must be a number from 0 to 1"),
        ({"model_type": "clip", "projection_dim": None}, "projection_dim must be the same number"),
        ({"model_type": "clip_text_model"}, r'expected \["CLIPTextModel"\] or .*, got None'),
    ],
)
def test_a_bad_config_is_refused_by_key(hub, message):
    with pytest.raises(ValueError, match=message):
        CLIPConfig.from_hub(hub)


def test_towers_must_fit_together():
    with pytest.raises(ValueError, match="text has 512, vision has 256"):
        CLIPConfig(vision=VisionConfig(projection_dim=256))
    with pytest.raises(ValueError, match="families differ"):
        CLIPConfig(vision=VisionConfig(family="metaclip_2"))
    with pytest.raises(ValueError, match="needs a text tower"):
        CLIPConfig(text=None, vision=None)
    with pytest.raises(ValueError, match="family must be one of"):
        TextConfig(family="align")


def test_configs_are_hashable_and_equal_by_value():
    assert hash(CLIPConfig.from_hub({"model_type": "clip", "x": 1})) == hash(CLIPConfig())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = [*json.loads((FOLDER / "legacy_config_dict" / "config.json").read_text()), "image_size", "hidden_size"]


@given(
    model_type=st.sampled_from(["clip", "clip_text_model", "clip_vision_model", "metaclip_2"]),
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
    tower_changes=st.dictionaries(st.sampled_from([*CLIPConfig().to_hub()["vision_config"], "x"]), JSON, max_size=4),
)
def test_any_json_is_read_or_refused_by_a_value_error(model_type, changes, tower_changes):
    hub = {"model_type": model_type, "architectures": ["CLIPTextModel"], "vision_config": tower_changes, **changes}
    try:
        config = CLIPConfig.from_hub(hub)
    except ValueError:
        return
    assert CLIPConfig.from_hub(config.to_hub()) == config
