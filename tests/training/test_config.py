"""A run's settings: TOML in, TOML out, and no key or value that isn't understood."""

import re
import tomllib

import pytest

from jaxclip.training import (
    Augmentation,
    CLIPObjective,
    DataConfig,
    MeshConfig,
    MoCoObjective,
    ModelConfig,
    SimCLRObjective,
    TrainConfig,
)
from jaxclip.training.config import differences, merged, parse_override

WHOLE = """
output = "run"
tokenizer = "merges"
image_processor = "processor"
epochs = 3
batch_size = 8
accumulate = 2
microbatch = 4
remat = true
dtype = "bfloat16"
freeze = ["vision", "text.blocks.0"]
ema = 0.99
seed = 4
save_every = 5
log_every = 6
evaluate_every = 7
keep = 2

[model]
vision = "tower"
projection_dim = 16
logit_scale_init_value = 2

[model.text]
hidden_size = 32
hidden_act = "gelu"
layer_norm_eps = 1e-6

[data]
train = "shards/{00..11}.tar"
held_out = "flickr8k"
held_out_split = "test"
text_length = 12
threads = 3

[data.augmentation]
scale = [0.5, 1]
flip = 0.5

[objective]
name = "moco"
queue_size = 64
temperature = 0.1

[optimizer]
learning_rate = 1e-3
warmup_steps = 10
clip_norm = false
layer_decay = 0.9

[mesh]
fsdp = 2
"""
LEAST = {"output": "run", "model": "whole", "data": "photos", "steps": 10}


def test_a_file_with_everything(tmp_path):
    (tmp_path / "config.toml").write_text(WHOLE)
    config = TrainConfig.from_toml(tmp_path / "config.toml")
    assert config == TrainConfig(
        output="run",
        model=ModelConfig(
            vision="tower",
            text={"hidden_size": 32, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
            projection_dim=16,
            logit_scale_init_value=2.0,
        ),
        data=DataConfig(
            train="shards/{00..11}.tar",
            held_out="flickr8k",
            held_out_split="test",
            augmentation=Augmentation(scale=(0.5, 1.0), flip=0.5),
            text_length=12,
            threads=3,
        ),
        objective=MoCoObjective(queue_size=64, temperature=0.1),
        optimizer={"learning_rate": 1e-3, "warmup_steps": 10, "clip_norm": None, "layer_decay": 0.9},
        tokenizer="merges",
        image_processor="processor",
        epochs=3,
        batch_size=8,
        accumulate=2,
        microbatch=4,
        remat=True,
        dtype="bfloat16",
        freeze=("vision", "text.blocks.0"),
        ema=0.99,
        mesh=MeshConfig(fsdp=2),
        seed=4,
        save_every=5,
        log_every=6,
        evaluate_every=7,
        keep=2,
    )
    assert tomllib.loads(config.to_toml())["data"]["augmentation"]["scale"] == [0.5, 1.0]
    assert TrainConfig.from_table(tomllib.loads(config.to_toml())) == config


def test_the_least_and_its_defaults():
    config = TrainConfig.from_table(LEAST)
    assert config == TrainConfig(
        output="run", model=ModelConfig(checkpoint="whole"), data=DataConfig(train="photos"), steps=10
    )
    assert config.objective == CLIPObjective()
    assert config.optimizer_config(10).warmup_steps == 1
    assert config.optimizer_config(10**6).warmup_steps == 2000
    assert TrainConfig.from_table(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outpt": "run"}, "unknown key 'outpt'; did you mean 'output'?"),
        (
            {"optimizer": {"learning_rat": 1.0}},
            "unknown key 'learning_rat' in [optimizer]; did you mean 'learning_rate'?",
        ),
        ({"optimizer": {"steps": 3}}, "unknown key 'steps' in [optimizer]"),
        ({"model": {"text": {"vocab": 3}}}, "unknown key 'vocab' in [model.text]; did you mean 'vocab_size'?"),
        ({"model": {"text": {"family": "clip"}}}, "unknown key 'family' in [model.text]"),
        ({"objective": {"name": "siglip", "bias": 1}}, "unknown key 'bias' in [objective]; did you mean 'logit_bias'?"),
        ({"objective": {"name": "simclr", "augment": 1}}, "unknown key 'augment' in [objective]"),
        ({"data": {"train": "a", "zzz": 1}}, "unknown key 'zzz' in [data]; known are augmentation, held_out,"),
        ({"steps": "10"}, "steps must be a whole number, got '10'"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"remat": 1}, "remat must be true or false, got 1"),
        ({"ema": False}, None),
        ({"ema": "0.9"}, "ema must be a number, got '0.9'"),
        ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate must be a number, got inf"),
        ({"freeze": "vision"}, "freeze must be a list of strings, got 'vision'"),
        ({"data": {"train": "a", "augmentation": {"scale": [1]}}}, "scale must be a list of 2 numbers, got [1]"),
        ({"data": {"train": "a", "augmentation": 3}}, "data.augmentation must be a string or a table, got 3"),
        ({"data": {"train": "a", "augmentation": "clop"}}, "must be one of none, clip, simclr, or a table, got 'clop'"),
        ({"data": {"split": "a"}}, "data.train is missing"),
        ({"data": {"train": "a", "threads": 0}}, "data.threads must be at least 1, got 0"),
        ({"model": 3}, "model must be a table, [model], got 3"),
        ({"model": {}}, "say what to train"),
        ({"model": {"checkpoint": "a", "text": "b"}}, "model.checkpoint is the whole model, and model.text a part"),
        ({"objective": "clop"}, "objective.name must be one of clip, siglip, simclr, moco, got 'clop'"),
        ({"epochs": 2}, "say how long to train: either steps or epochs"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"dtype": "float16"}, "dtype must be one of float32, tensorfloat32, bfloat16, got 'float16'"),
        ({"ema": 1.0}, "ema must be a decay between 0 and 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"optimizer": {"layer_decay": 2.0}}, "layer_decay must be above 0 and at most 1"),
        ({"optimizer": {"warmup_steps": 10}}, "warmup_steps (10) must be from 0 to below steps (10)"),
    ],
)
def test_what_is_not_understood(change, message):
    if message is None:
        assert TrainConfig.from_table(LEAST | change).ema is None
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig.from_table(LEAST | change)


@pytest.mark.parametrize("name", ["output", "model", "data"])
def test_what_is_missing(name):
    with pytest.raises(ValueError, match=f"{name} is missing: {name} = "):
        TrainConfig.from_table({key: value for key, value in LEAST.items() if key != name})


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("output = run")
    with pytest.raises(ValueError, match=r"config\.toml: no TOML \(Invalid value .*line 1"):
        TrainConfig.from_toml(path)
    path.write_text("outpt = 3")
    with pytest.raises(ValueError, match=r"config\.toml: unknown key 'outpt'"):
        TrainConfig.from_toml(path)
    with pytest.raises(FileNotFoundError):
        TrainConfig.from_toml(tmp_path / "none.toml")


def test_overrides(tmp_path):
    (tmp_path / "config.toml").write_text(WHOLE)
    overrides = [
        parse_override("optimizer.learning_rate=1e-5"),
        parse_override("mesh.data = 4"),
        parse_override("freeze=[]"),
        parse_override("remat=false"),
        parse_override("image_processor=other/folder"),
        {"data": "photos"},
        {"model": "whole"},
        {"objective": "simclr"},
        {"steps": 20},
    ]
    config = TrainConfig.from_toml(tmp_path / "config.toml", *overrides)
    assert config.optimizer["learning_rate"] == 1e-5
    assert config.optimizer["layer_decay"] == 0.9
    assert config.mesh == MeshConfig(data=4, fsdp=2)
    assert config.freeze == ()
    assert not config.remat
    assert config.image_processor == "other/folder"
    # Other data are held out as before; another model or objective has nothing of the one before.
    assert (config.data.train, config.data.held_out) == ("photos", "flickr8k")
    assert config.model == ModelConfig(checkpoint="whole")
    assert config.objective == SimCLRObjective()
    assert (config.steps, config.epochs) == (20, None)
    assert merged({"steps": 3}, {"epochs": 2}) == {"epochs": 2}
    for text in ("seed", "=3", "optimizer.=3"):
        with pytest.raises(ValueError, match="is no key=value"):
            parse_override(text)


def test_differences():
    ours = TrainConfig.from_table(LEAST).to_table()
    theirs = TrainConfig.from_table(LEAST | {"seed": 1, "keep": 9, "freeze": ["vision"], "ema": 0.5}).to_table()
    theirs["optimizer"] = {"beta1": 0.5}
    assert differences(ours, theirs, without=("keep", "ema")) == [
        'freeze: ["vision"] there, [] now',
        "optimizer.beta1: 0.5 there, nothing now",
        "seed: 1 there, 0 now",
    ]
    assert differences(ours, theirs, without=("keep", "ema", "optimizer", "freeze", "seed")) == []
    assert differences(ours, ours, without=()) == []


def test_an_objective_of_ones_own_has_no_name_in_a_file():
    class Other(CLIPObjective):
        pass

    base = {"output": "run", "model": ModelConfig(checkpoint="a"), "data": DataConfig(train="b"), "steps": 1}
    for objective in (Other(), SimCLRObjective(augment=lambda key, image: image)):
        with pytest.raises(ValueError, match="can't be written to a file"):
            TrainConfig(**base, objective=objective).to_toml()
