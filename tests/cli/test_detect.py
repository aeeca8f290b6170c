import json
import shutil

import numpy as np
import pytest
from cases import photos
from PIL import Image

import jaxclip
from jaxclip.cli import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, photo in zip(("chelsea", "coffee"), photos(), strict=True):
        Image.fromarray(photo).resize((96, 64)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folder(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "photos")


def test_boxes_are_printed_line_by_line(folder, capsys):
    photo = str(folder / "chelsea.png")
    arguments = ["detect", photo, "a cat", "a dog", "--threshold", "0.05", "--model", "emoji"]
    assert main(arguments) == 0
    result = jaxclip.detect(jaxclip.load("emoji"), photo, ["a cat", "a dog"], threshold=0.05)
    wanted = []
    for prompt, boxes in result.boxes.items():
        corners = [" ".join(f"{edge:.0f}" for edge in (box.x0, box.y0, box.x1, box.y1)) for box in boxes]
        scores = [f"{box.score:.3f}" for box in boxes]
        rows = [f"{photo}\t{prompt}\t{score}\t{box}" for score, box in zip(scores, corners, strict=True)]
        wanted += rows or [f"{photo}\t{prompt}\tnot found"]
    printed = capsys.readouterr()
    assert printed.out.splitlines() == wanted
    assert printed.err == ""


def test_what_is_not_found_is_said(folder, capsys):
    assert main(["detect", str(folder / "coffee.png"), "a cat", "--threshold", "1", "--model", "emoji"]) == 0
    assert capsys.readouterr().out == f"{folder / 'coffee.png'}\ta cat\tnot found\n"


def test_json_and_a_picture(folder, tmp_path, capsys):
    output = tmp_path / "found.png"
    arguments = ["detect", str(folder / "coffee.png"), "a cup", "--json", "-o", str(output), "--model", "emoji"]
    assert main([*arguments, "--threshold", "0", "--method", "windows", "--resolution", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["method"] == "windows"
    assert document["model"]["source"] == "emoji"
    (image,) = document["images"]
    assert image["size"] == [96, 64]
    (prompt,) = image["prompts"]
    assert prompt["prompt"] == "a cup"
    assert all(0 <= box["score"] <= 1 and len(box["box"]) == 4 for box in prompt["boxes"])
    assert len(prompt["boxes"]) >= 1
    with Image.open(output) as picture:
        assert picture.width > 500


def test_a_folder_of_photos_makes_a_folder_of_pictures(folder, tmp_path, capsys):
    (folder / "bad.png").write_bytes(b"no photo")
    (folder / "more").mkdir()
    shutil.copy(folder / "coffee.png", folder / "more" / "coffee.png")
    output = tmp_path / "found"
    arguments = ["detect", str(folder), "a cat", "a cup", "-o", str(output), "--resolution", "1", "--model", "emoji"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "bad.png': no image format that Pillow knows" in printed.err
    names = sorted(path.name for path in output.iterdir())
    assert names == ["chelsea-png.png", "coffee-png.png", "more-coffee-png.png"]
    assert len({line.split("\t")[0] for line in printed.out.splitlines()}) == 3


def test_ready_made_embeddings_and_a_background_by_file(folder, tmp_path, capsys):
    vectors = np.asarray(jaxclip.load("emoji").encode_text(["a cat", "a cup"]))
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "prompts.txt").write_text("first\nsecond\n")
    (tmp_path / "background.txt").write_text("a table\n")
    photo = str(folder / "coffee.png")
    files = ["--prompts-file", str(tmp_path / "prompts.txt"), "--embeddings", str(tmp_path / "vectors.npy")]
    assert main(["detect", photo, *files, "--logit-scale", "2", "--json", "--model", "emoji"]) == 0
    prompts = json.loads(capsys.readouterr().out)["images"][0]["prompts"]
    assert [prompt["prompt"] for prompt in prompts] == ["first", "second"]
    background = ["--background-file", str(tmp_path / "background.txt")]
    assert main(["detect", photo, "a cup", *background, "--json", "--threshold", "0", "--model", "emoji"]) == 0
    (box, *_) = json.loads(capsys.readouterr().out)["images"][0]["prompts"][0]["boxes"]
    clip = jaxclip.load("emoji")
    result = jaxclip.detect(clip, photo, ["a cup"], background=["a table"], threshold=0)
    assert box["score"] == pytest.approx(result.boxes["a cup"][0].score, abs=1e-6)
    np.save(tmp_path / "vectors.npy", vectors[:1])
    assert main(["detect", photo, *files, "--model", "emoji"]) == 2
    assert "has 1 rows, and there are 2 prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "a cat"], "none.png: no such file or folder"),
        (["{photo}", "a cat", "--threshold", "3"], "threshold must be from 0 to 1, got 3.0"),
        (["{photo}", "a cat", "-o", "found.txt"], "name a file that ends with"),
        (["{photo}", "a cat", "-o", "{photo}"], "is an input, and would be overwritten"),
        (["{folder}", "a cat", "-o", "{photo}"], "is a file; for a folder of photos name a folder"),
        (["{photo}", "a cat", "a cat"], "a prompt is there twice"),
    ],
)
def test_mistakes_are_named_in_one_line(folder, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    words = [word.format(photo=folder / "coffee.png", folder=folder) for word in arguments]
    assert main(["detect", *words, "--model", "emoji"]) == 2
    assert message in capsys.readouterr().err


def test_there_must_be_something_to_look_for(folder, capsys):
    with pytest.raises(SystemExit):
        main(["detect", str(folder / "coffee.png"), "--model", "emoji"])
    assert "say what to look for" in capsys.readouterr().err


def test_nothing_readable_is_an_error(tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no photo")
    assert main(["detect", str(tmp_path), "a cat", "--model", "emoji"]) == 2
    assert "no photos could be read in" in capsys.readouterr().err
