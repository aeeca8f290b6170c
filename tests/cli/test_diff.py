import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
from cases import FOLDER

import jaxclip
from jaxclip.cli import main
from jaxclip.compare import Capture, capture, load_capture
from jaxclip.compare.inputs import TEXTS, example_images
from jaxclip.compare.sources import open_sides
from jaxclip.config import CLIPConfig

WEIGHTS = "text_model.encoder.layers.0.self_attn.attn_weights"


def test_a_model_and_the_oracle(model, capsys):
    assert main(["diff", model, f"oracle:{model}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tensor")
    assert lines[1].startswith("input_ids ")
    assert lines[-1].startswith("Equal within the rounding of float32: all 47 tensors;")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """What the oracle makes of the examples, written to a file by somebody else."""
    path = tmp_path_factory.mktemp("captures") / "mine.safetensors"
    a, *_ = open_sides(f"oracle:{FOLDER / 'whole'}", f"oracle:{FOLDER / 'whole'}")
    Capture(a).save(path)
    return path


@pytest.fixture
def broken(mine, tmp_path):
    """The same, but that the features were not normalised."""
    read = load_capture(mine)
    path = tmp_path / "broken.npz"
    later = {"text_embeds": read["text_projection"], "image_embeds": read["visual_projection"]}
    scale = read["logits_per_image"] / (read["image_embeds"] @ read["text_embeds"].T)
    Capture({**read, **later, "logits_per_image": scale * (later["image_embeds"] @ later["text_embeds"].T)}).save(path)
    return path


def test_a_file_is_compared_on_what_it_was_given(mine, model, capsys):
    texts = load_capture(mine).inputs.texts
    assert texts == TEXTS
    assert main(["diff", str(mine), f"oracle:{model}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Equal: all 47 tensors, bit for bit."


def test_a_file_of_arrays_alone_is_compared_on_them(mine, model, tmp_path, capsys):
    arrays = {name: value for name, value in load_capture(mine).items() if not name.startswith(("texts.", "images."))}
    Capture(arrays).save(tmp_path / "arrays.safetensors")
    assert main(["diff", str(tmp_path / "arrays.safetensors"), f"oracle:{model}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Equal: all 47 tensors, bit for bit."


def test_what_differs_is_named_with_its_cause(mine, broken, model, capsys):
    assert main(["diff", str(mine), str(broken), "--model", model]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "\nFirst divergence at text_embeds: " in printed.out
    assert "B departs from the specification at text_embeds: features not normalised." in printed.out
    assert "It explains image_embeds as well." in printed.out
    # Without the model no cause.
    assert main(["diff", str(mine), str(broken)]) == 1
    assert "--model MODEL" in capsys.readouterr().out


def test_json(mine, broken, model, capsys):
    assert main(["diff", str(mine), str(broken), "--model", model, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first_divergence"] == "text_embeds"
    assert found["diagnoses"][0]["causes"] == ["features not normalised"]
    assert found["judged_by"] == model


@pytest.mark.parametrize(("name", "start"), [("report.html", b"<!doctype html>"), ("growth.png", b"\x89PNG")])
def test_a_report_is_written(mine, broken, tmp_path, capsys, name, start):
    assert main(["diff", str(mine), str(broken), "-o", str(tmp_path / name)]) == 1
    assert (tmp_path / name).read_bytes().startswith(start)
    assert "First divergence at text_embeds" in capsys.readouterr().out


def test_colours_on_a_terminal(mine, broken, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["diff", str(mine), str(broken)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "text_embeds" in line).startswith("\x1b[31m")
    assert next(line for line in lines if "text_projection" in line).startswith("\x1b[32m")


def test_a_side_may_compute_in_half_precision(model, capsys):
    assert main(["diff", model, f"oracle:{model}", "--dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["precision"] == "bfloat16"
    assert found["verdict"].startswith("Equal as bfloat16 would be")


def test_without_tokenizer_and_image_processor_arrays_go_in_and_a_note_says_so(capsys):
    folder = FOLDER / "openai"
    assert main(["diff", f"oracle:{folder}", f"oracle:{folder}", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert [note.partition(":")[0] for note in notes] == [
        "Texts are compared from their token ids on",
        "Images are compared from their pixels on",
    ]
    assert notes[0].endswith("added_tokens.json.")


@pytest.mark.parametrize("order", [("whole", "bare"), ("bare", "whole")])
def test_a_model_without_tokenizer_and_image_processor_gets_what_the_other_makes(model, tmp_path, capsys, order):
    """As a conversion that was saved without them."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / "whole" / name, bare)
    sides = {"whole": f"oracle:{model}", "bare": f"oracle:{bare}"}
    assert main(["diff", *(sides[name] for name in order), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identical"] is True
    assert found["tensors"][0]["shape_a"] == found["tensors"][0]["shape_b"] == [4, 12]


@pytest.mark.parametrize("case", ["text", "vision_projection"])
def test_lone_towers(case, capsys):
    folder = FOLDER / case
    assert main(["diff", str(folder), f"oracle:{folder}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agree"] is True
    assert found["identical"] is False
    tower = "text" if case == "text" else "vision"
    assert any(row["name"] == f"{tower}_model.encoder.layers.1" for row in found["tensors"])


def test_a_checkpoint_that_was_converted_wrongly_is_found_by_the_original(tmp_path, capsys):
    """Both sides are right forward passes; one has a transposed weight and an activation that config.json misstates."""
    original = FOLDER / "openai"
    clip = jaxclip.load(original)
    query = clip.model.vision.blocks[1].attention.query.weight
    query.set_value(query[...].T)
    quick = clip.model.config
    clip.model.config = CLIPConfig(
        text=dataclasses.replace(quick.text, hidden_act="gelu"), vision=quick.vision, logit_scale_init_value=2.6592
    )
    clip.save(tmp_path / "converted")
    assert (
        main(["diff", f"oracle:{tmp_path / 'converted'}", f"oracle:{original}", "--model", str(original), "--json"])
        == 1
    )
    found = json.loads(capsys.readouterr().out)
    assert [(each["side"], each["causes"]) for each in found["diagnoses"]] == [
        ("A", ["exact GELU instead of QuickGELU"]),
        ("A", ["self_attn.q_proj.weight transposed"]),
    ]
    assert found["diagnoses"][1]["explains"] == ["vision_model.encoder.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npz", "nowhere.npz"], "nowhere.npz"),
        (["./nowhere", "oracle:./nowhere"], "there is no folder './nowhere'"),
        (["{mine}", "{empty}"], "no tensor in common"),
        (["{empty}", "oracle:{model}"], "holds nothing that went in"),
        (["{damaged}", "{mine}"], "is no whole file of tensors"),
        (["{mine}", "{mine}", "-o", "report.txt"], "name a file that ends with"),
        (["{mine}", "{broken}", "-o", "{broken}.html"], "there is no folder"),
        (["{mine}", f"oracle:{FOLDER / 'openai'}"], "the inputs are not for"),
        (["oracle:", "{mine}"], "oracle: names no model"),
        (["{mine}", "{model}/config.json"], "are read from a file that ends with .safetensors or .npz"),
        ([f"{FOLDER / 'text'}", f"oracle:{FOLDER / 'vision'}"], "has a vision tower alone"),
        (["{texts}", f"oracle:{FOLDER / 'vision'}"], "has a vision tower alone, and there are only texts to go in"),
        (["{texts}", "{images}"], "no tensor in common"),
        (["{folder}", "{mine}"], "has no config.json"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_status_2(mine, model, tmp_path, capsys, arguments, message):
    Capture({"stranger": np.zeros(3)}).save(tmp_path / "empty.npz")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 40)
    (tmp_path / "folder.npz").mkdir()
    for name, starts in {"texts": ("text", "input_ids"), "images": ("image", "vis", "pixel")}.items():
        read = load_capture(mine)
        Capture({n: v for n, v in read.items() if n.startswith(starts)}).save(tmp_path / f"{name}.npz")
    names = {
        "mine": mine, "model": model, "empty": tmp_path / "empty.npz", "damaged": tmp_path / "damaged.safetensors",
        "broken": tmp_path / "no" / "folder", "folder": tmp_path / "folder.npz",
        "texts": tmp_path / "texts.npz", "images": tmp_path / "images.npz",
    }  # fmt: skip
    assert main(["diff", *(argument.format(**names) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip diff: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_without_torch_it_says_so(model, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["diff", f"oracle:{model}", f"torch:{model}"]) == 2
    assert "torch is not installed" in capsys.readouterr().err


def test_a_report_never_replaces_an_input(mine, tmp_path, capsys):
    copy = tmp_path / "mine.html"
    copy.write_bytes(mine.read_bytes())
    (tmp_path / "link.safetensors").symlink_to(copy)
    assert main(["diff", str(tmp_path / "link.safetensors"), str(mine), "-o", str(copy)]) == 2
    assert "is an input" in capsys.readouterr().err
    assert copy.read_bytes() == mine.read_bytes()


def test_the_capture_of_a_model_is_compared_as_a_file(model, tmp_path, capsys):
    images = example_images()[:1]
    capture(jaxclip.load(model), "a cat", images).save(tmp_path / "one.safetensors")
    assert main(["diff", str(tmp_path / "one.safetensors"), f"oracle:{model}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"][0]["shape_a"] == [1, 5]
