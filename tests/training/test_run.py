"""Whole runs: from a folder of captioned photos to a checkpoint, through every objective, a locked tower, and an
interruption."""

import json
import os
import re
import shutil
import signal
from functools import partial

import jax
import jaxtyping
import numpy as np
import pytest
from cases import FOLDER
from filelock import FileLock
from safetensors.numpy import load_file
from training.data_cases import captioned
from training_cases import FAST

import jaxclip
from jaxclip.training import Batches, Checkpoints, TrainConfig, build_model, compile_step, read_log, train

# Text and images of width 16 and 36, with a tokenizer and images of 16 pixels.
WHOLE = str(FOLDER / "whole")
STEPS = 4
SMALL = {"hidden_size": 16, "num_hidden_layers": 1}
TEXTS = [f"photo {number} a" for number in range(4)]
PHOTOS = [f"{number:02d}.png" for number in range(4)]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without the suite's check of annotations, which a state of shapes doesn't pass, most of the compiler's
    optimisations, and the curves; and one program for runs that are alike."""
    compiled = {}

    def compile_once(state, *, optimizer, schedule, **settings):
        key = jax.tree.structure(state), *settings.items()
        if key not in compiled:
            settings |= {"optimizer": optimizer, "schedule": schedule}
            compiled[key] = compile_step(state, compiler_options=FAST, **settings)
        return compiled[key]

    jaxtyping.config.update("jaxtyping_disable", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxclip.training.run.compile_step", compile_once)
        patch.setattr("jaxclip.training.loop.training_curves", lambda records: None)
        patch.setattr("jaxclip.training.loop.write_figure", lambda path, figure: None)
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return captioned(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture(scope="module")
def held_out(data, tmp_path_factory):
    """Four pairs, in one shape: what is encoded anywhere here, is these."""
    folder = tmp_path_factory.mktemp("held_out")
    for name, text in zip(PHOTOS, TEXTS, strict=True):
        shutil.copy(data / "images" / name, folder)
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


def config(data, output, /, **changes):
    table = {
        "output": str(output),
        "model": WHOLE,
        "data": {"train": str(data), "threads": 2},
        "steps": STEPS,
        "batch_size": 4,
        "log_every": 1,
        "optimizer": {"learning_rate": 1e-2, "layer_decay": 0.9},
    }
    return TrainConfig.from_table(table | changes)


@pytest.fixture(scope="module")
def whole(data, held_out):
    """Of everything something."""
    places = {"train": str(data), "held_out": str(held_out), "threads": 2}
    return partial(config, data, data=places, ema=0.5, save_every=3, evaluate_every=2)


@pytest.fixture(scope="module")
def finished(whole, tmp_path_factory):
    return train(whole(tmp_path_factory.mktemp("run") / "run"))


def vectors(clip, folder):
    return clip.encode_text(TEXTS), clip.encode_image([folder / name for name in PHOTOS])


def bits(folder):
    return load_file(folder / "model" / "model.safetensors")


def same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def test_the_model_is_a_checkpoint_like_any(finished, held_out):
    clip, before = jaxclip.load(finished.model), jaxclip.load(WHOLE)
    moved = []
    for ours, trained, old in zip(*(vectors(one, held_out) for one in (clip, finished.clip, before)), strict=True):
        np.testing.assert_allclose(ours, trained, atol=1e-6)
        moved.append(np.abs(ours - old).max())
    assert min(moved) > 0.01
    assert clip.tokenizer(TEXTS).tolist() == before.tokenizer(TEXTS).tolist()
    # The file was float16, and what was learned since is not.
    assert {tensor.dtype for tensor in bits(finished.folder).values()} == {np.dtype("float32")}
    assert finished.averaged
    assert (finished.steps, finished.skipped, finished.bad_samples) == (STEPS, 0, [])


def test_what_is_saved_is_the_moving_average(finished):
    with Checkpoints(finished.folder / "checkpoints") as checkpoints:
        arrays = checkpoints._manager.restore(STEPS)["state"]
    saved = bits(finished.folder)["logit_scale"]
    assert saved == arrays["ema.logit_scale.value"] != arrays["model.logit_scale.value"]


def test_it_is_evaluated(finished):
    names = {f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}
    evaluations = [record for record in read_log(finished.folder / "log.jsonl") if "evaluation" in record]
    assert [record["step"] for record in evaluations] == [2, 4]
    assert finished.evaluation == evaluations[-1]["evaluation"]
    assert finished.evaluation.keys() == names
    assert 0 < finished.evaluation["text_to_image_recall@10"] <= 1
    assert finished.seconds >= evaluations[-1]["seconds"] > 0


def test_all_settings_are_in_the_folder(finished, data):
    found = TrainConfig.from_toml(finished.folder / "config.toml")
    assert found.data.augmentation == "clip"
    assert found.optimizer["beta2"] == 0.98
    assert found.optimizer["warmup_steps"] == 0
    assert found.model.checkpoint == WHOLE
    assert found.data.train == str(data)
    # And they are a config: the same run, which is done.
    again = train(found)
    assert again.evaluation == finished.evaluation
    assert len(read_log(finished.folder / "log.jsonl")) == STEPS + 2


def test_interrupted_it_goes_on_as_if_nothing_had_been(finished, whole, tmp_path, monkeypatch):
    drawn = []

    def interrupted(batches, original=Batches.__next__):
        drawn.append(1)
        if len(drawn) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(batches)

    monkeypatch.setattr(Batches, "__next__", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(whole(tmp_path / "run"))
    monkeypatch.undo()
    assert stopped.value.__notes__[0].startswith("step 2 of 4 is saved in ")
    assert not (tmp_path / "run" / "model").exists()
    train(whole(tmp_path / "run", keep=2))
    same_bits(bits(tmp_path / "run"), bits(finished.folder))
    lines = [
        [(line["step"], line.get("loss"), line.get("evaluation")) for line in read_log(folder / "log.jsonl")]
        for folder in (tmp_path / "run", finished.folder)
    ]
    assert lines[0] == lines[1]


def test_another_run_s_folder_is_refused(finished, whole, tmp_path):
    with pytest.raises(ValueError, match=re.escape("(ema: 0.5 there, nothing now; seed: 0 there, 1 now)")):
        train(whole(finished.folder, seed=1, ema=False))
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has checkpoints without a config\.toml"):
        train(whole(tmp_path))
    with (
        FileLock(finished.folder / ".lock"),
        pytest.raises(BlockingIOError, match="another process trains here"),
    ):
        train(whole(finished.folder))


@pytest.mark.parametrize(
    ("objective", "changes", "said"),
    [
        ("siglip", {"microbatch": 2}, {"logit_bias", "logit_scale"}),
        ("simclr", {"accumulate": 2, "dtype": "bfloat16"}, set()),
        ({"name": "moco", "queue_size": 12, "momentum": 0.9}, {"remat": True}, {"queue"}),
    ],
)
def test_every_objective(data, tmp_path, objective, changes, said):
    alone = objective != "siglip"
    if alone:
        # Photos without captions will do, and an image tower without a text tower.
        sizes = {"image_size": 16, "patch_size": 8, **SMALL}
        changes |= {"data": {"train": str(data / "images"), "threads": 2}, "model": {"vision": sizes}}
    result = train(config(data, tmp_path / "run", steps=3, objective=objective, **changes))
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    # MoCo's queue is empty at first, and its loss 0.
    assert all(0 < line["loss"] < 30 and line["grad_norm"] > 0 for line in lines[1:])
    assert said <= lines[0].keys()
    assert ("logit_scale" in lines[0]) is not alone
    assert result.evaluation is None
    clip = jaxclip.load(result.model)
    assert (clip.model.text is None) is alone
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(clip.model), jax.tree.leaves(result.clip.model))


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """An image tower alone, with its projection and its preprocessing."""
    folder = tmp_path_factory.mktemp("tower")
    clip = jaxclip.load(WHOLE, towers="vision")
    clip.save(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["CLIPVisionModelWithProjection"]
    return str(folder)


def test_a_locked_tower_and_a_text_tower_from_scratch(data, held_out, tower, tmp_path, monkeypatch):
    """LiT (arXiv 2111.07991)."""
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "images" / "03.png").write_bytes(b"no image")
    changes = {
        "model": {"vision": tower, "text": SMALL | {"max_position_embeddings": 10}},
        "tokenizer": WHOLE,
        "freeze": ["vision"],
        "data": {"train": str(tmp_path / "data"), "held_out": str(held_out), "threads": 2},
        "ema": 0.5,
    }
    encoded = []

    def images(encoder, model, pixels, original=jaxclip.encoder.Encoder.images, **settings):
        encoded.append(len(pixels))
        return original(encoder, model, pixels, **settings)

    monkeypatch.setattr(jaxclip.encoder.Encoder, "images", images)
    result = train(config(data, tmp_path / "run", **changes))
    # Each photo once, however often it is trained on and evaluated.
    assert sum(encoded) == 11 + 4
    assert sorted(path.name for path in (tmp_path / "run" / "features").glob("*/features.npy")) == ["features.npy"] * 2
    assert result.skipped >= 1
    assert result.bad_samples[0].reason.endswith("03.png: its features are not finite: the image couldn't be read")
    clip, locked = jaxclip.load(result.model), jaxclip.load(tower)
    assert clip.model.config.text.vocab_size == clip.tokenizer.vocab_size
    assert clip.model.config.text.eos_token_id == clip.tokenizer.eos_token_id
    assert clip.model.config.text.num_attention_heads == 1
    assert clip.model.config.text.intermediate_size == 64
    assert clip.tokenizer.max_length == 10
    assert clip.image_processor == locked.image_processor
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(clip.model.vision), jax.tree.leaves(locked.model))
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert result.evaluation == lines[-1]["evaluation"]
    # The tower is no part of what is saved in between.
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        names = checkpoints._manager.item_metadata(STEPS)["state"].keys()
    assert not any("vision" in name for name in names)
    assert any(name.startswith("model.text.") for name in names)
    # Again, nothing is computed anew.
    encoded.clear()
    train(config(data, tmp_path / "run", **changes))
    assert sum(encoded) == 0


def test_a_text_tower_from_scratch_follows_from_the_seed(data, tower, tmp_path):
    def text(seed):
        changes = {"model": {"vision": tower, "text": SMALL}, "tokenizer": WHOLE, "seed": seed}
        return build_model(config(data, tmp_path, **changes)).model.text.token_embedding.embedding[...]

    np.testing.assert_array_equal(text(3), text(3))
    assert np.abs(text(3) - text(4)).max() > 0.01


def test_models_of_towers(data, tower, tmp_path):
    build = partial(config, data, tmp_path)
    # Each from a checkpoint; the logarithm of the scale as SigLIP's paper begins with.
    clip = build_model(build(model={"text": WHOLE, "vision": tower}, objective="siglip"))
    before = jaxclip.load(WHOLE).model
    for tower in ("text", "vision"):
        ours, theirs = (jax.tree.leaves(getattr(model, tower)) for model in (clip.model, before))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_allclose(np.exp(clip.model.logit_scale[...]), 10, rtol=1e-6)
    # Both from scratch.
    towers = {"text": SMALL, "vision": SMALL | {"image_size": 16, "patch_size": 8}, "projection_dim": 16}
    clip = build_model(build(model=towers, tokenizer=WHOLE, dtype="bfloat16"))
    assert clip.model.config.vision.projection_dim == clip.model.config.text.projection_dim == 16
    assert clip.model.vision.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(clip.model)} == {np.dtype("float32")}
    assert clip.image_processor([np.zeros((30, 40, 3), np.uint8)]).shape == (1, 16, 16, 3)
    np.testing.assert_allclose(np.exp(clip.model.logit_scale[...]), 1 / 0.07, rtol=1e-4)


NO_PROJECTION = str(FOLDER / "vision")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"vision": WHOLE, "text": SMALL}}, "a text tower from scratch needs a tokenizer"),
        ({"model": {"vision": WHOLE}}, r"CLIPObjective trains a text tower.* give it one in \[model.text\]"),
        ({"model": {"text": WHOLE}, "objective": "simclr"}, "SimCLRObjective trains a vision tower"),
        ({"model": {"vision": WHOLE, "text": WHOLE, "projection_dim": 8}}, "8, and that of .* is 20"),
        ({"model": {"vision": NO_PROJECTION, "text": SMALL}, "tokenizer": WHOLE}, "has no projection into"),
        ({"model": {"vision": WHOLE, "text": SMALL | {"vocab_size": 99}}, "tokenizer": WHOLE}, "text tower has 99"),
        ({"image_processor": "PROCESSOR"}, r"images of .*: 24.* takes 16 × 16"),
        ({"tokenizer": NO_PROJECTION}, "has no tokenizer.json or vocab.json"),
        ({"image_processor": NO_PROJECTION}, "has no processor_config.json or preprocessor_config.json"),
        ({"freeze": ["visoin"]}, "no parameters of the name 'visoin'"),
        ({"steps": 0, "epochs": 1, "batch_size": 16}, "1 epochs of 12 samples make no batch of 16"),
        ({"data": {"train": "DATA", "text_length": 13}}, "text_length is 13, and the model has 12 positions"),
        ({"data": {"train": "DATA", "split": "test"}}, "no line of the split 'test'"),
        (
            {"model": {"vision": WHOLE}, "objective": "simclr", "data": {"train": "DATA", "held_out": "DATA"}},
            "the model has not both towers",
        ),
    ],
)
def test_parts_that_do_not_fit(data, tmp_path, changes, message):
    (tmp_path / "preprocessor_config.json").write_text('{"size": 24, "crop_size": 24}')
    changes = json.dumps(changes).replace("DATA", str(data)).replace("PROCESSOR", str(tmp_path))
    table = config(data, tmp_path / "run").to_table() | json.loads(changes)
    if "epochs" in table:
        del table["steps"]
    with pytest.raises(ValueError, match=message):
        train(TrainConfig.from_table(table))


@pytest.mark.parity
def test_transformers_loads_what_was_trained(finished, held_out, transformers):
    import torch

    model = transformers.CLIPModel.from_pretrained(finished.model).eval()
    clip = jaxclip.load(finished.model)
    photos = [held_out / name for name in PHOTOS]
    token_ids, pixels = clip.tokenizer(TEXTS), clip.image_processor(photos)
    with torch.no_grad():
        output = model(input_ids=torch.tensor(token_ids), pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)))
    text_features, image_features = vectors(finished.clip, held_out)
    np.testing.assert_allclose(text_features, output.text_embeds, atol=1e-5)
    np.testing.assert_allclose(image_features, output.image_embeds, atol=1e-5)
    scale = model.logit_scale.exp().item()
    np.testing.assert_allclose(scale * image_features @ text_features.T, output.logits_per_image, atol=1e-5 * scale)
