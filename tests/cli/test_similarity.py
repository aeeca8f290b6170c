import csv
import io
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip.cli import main


def read(text) -> tuple[list[str], list[str], np.ndarray]:
    """Texts, images and values."""
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    return [row[0] for row in rows], header[1:], np.array([row[1:] for row in rows], np.float32)


def test_prints_the_matrix_as_csv(folder, captions, model, capsys):
    odd = 'a "quoted", odd\nname.png'
    shutil.copy(folder / "coffee.png", folder / odd)
    assert main(["similarity", "--texts", str(captions), "--images", str(folder), "--model", model]) == 0
    printed = capsys.readouterr()
    texts, images, values = read(printed.out)
    assert texts == ["a cat", "ein Café, 2 Äpfel!", "two dogs"]
    assert images == [str(folder / name) for name in (odd, "chelsea.png", "coffee.png")]
    clip = jaxclip.load(model)
    expected = jaxclip.similarity_matrix(clip, texts, folder)
    np.testing.assert_array_equal(values, expected.values)
    vectors = clip.encode_text(texts), clip.encode_image(images)
    np.testing.assert_allclose(values, vectors[0] @ vectors[1].T, atol=1e-6)
    assert printed.err == ""


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".pdf", ".svg", ".jpg"])
def test_draws_a_heat_map_and_writes_the_numbers_beside_it(folder, captions, model, capsys, suffix):
    out = folder.parent / f"matrix{suffix}"
    command = ["similarity", "--texts", str(captions), "--images", str(folder), "--model", model]
    assert main([*command, "-o", str(out)]) == 0
    numbers = folder.parent / "matrix.csv"
    assert capsys.readouterr().out == f"{out} and {numbers}: 3 texts, 2 images\n"
    written = numbers.read_text(encoding="utf-8")
    assert main(command) == 0
    assert capsys.readouterr().out == written
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".jpg": b"\xff\xd8\xff"}[suffix.lower()]
    assert out.read_bytes().startswith(start)
    assert sorted(os.listdir(folder.parent)) == sorted(["captions.txt", "matrix.csv", f"matrix{suffix}", "photos"])


def test_the_picture_shows_the_photos(captions, model, tmp_path):
    (tmp_path / "photos").mkdir()
    for name, color in {"red": (220, 20, 30), "blue": (10, 30, 210)}.items():
        Image.new("RGB", (60, 40), color).save(tmp_path / "photos" / f"{name}.png")
    out = tmp_path / "matrix.png"
    arguments = ["--texts", str(captions), "--images", str(tmp_path / "photos"), "--model", model, "-o", str(out)]
    assert main(["similarity", *arguments]) == 0
    picture = np.asarray(Image.open(out).convert("RGB"))
    red, blue = ((picture == color).all(axis=-1) for color in ((220, 20, 30), (10, 30, 210)))
    assert red.sum() == blue.sum() == 114 * 76
    assert blue.any(axis=0).argmax() < red.any(axis=0).argmax()  # In the order of their names.


def test_csv_alone(folder, captions, model, capsys):
    out = folder.parent / "m.csv"
    out.write_text("old")
    arguments = ["--texts", str(captions), "--images", str(folder / "coffee.png"), "--model", model, "-o", str(out)]
    assert main(["similarity", *arguments]) == 0
    assert capsys.readouterr().out == f"{out}: 3 texts, 1 images\n"
    assert read(out.read_text(encoding="utf-8"))[2].shape == (3, 1)
    assert sorted(os.listdir(folder.parent)) == ["captions.txt", "m.csv", "photos"]


def test_skipped_files_are_named_and_the_status_says_so(folder, captions, model, capsys):
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"no photo")
    shutil.copy(folder / "coffee.png", folder / os.fsdecode(b"\xfe.png"))
    out = folder.parent / "matrix.png"
    arguments = ["--texts", str(captions), "--images", str(folder), "--model", model, "-o", str(out)]
    assert main(["similarity", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("skipped: ")
    assert r"\udcff.png" in printed.err
    assert printed.err.count("\n") == 1
    images = read((folder.parent / "matrix.csv").read_text(encoding="utf-8"))[1]
    assert images == [str(folder / name) for name in ("chelsea.png", "coffee.png", r"\udcfe.png")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--texts": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"--images": "nowhere"}, "nowhere: no such file or folder"),
        ({"--images": "empty"}, "no photos could be read in"),
        ({"--texts": "blank.txt"}, "there is no text in it"),
        ({"-o": "matrix.gif"}, "name a file that ends with .png, .jpg, .pdf, .svg or .csv"),
        ({"-o": "nowhere/matrix.png"}, "there is no folder"),
        ({"-o": "folder.csv"}, "is a folder"),
        ({"-o": "folder.png"}, "folder.csv: is a folder"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_status_2(folder, captions, model, capsys, monkeypatch, options, message):
    monkeypatch.chdir(folder.parent)
    for name in ("empty", "folder.csv"):
        (folder.parent / name).mkdir()
    (folder.parent / "blank.txt").write_text("\n \n")
    arguments = {"--texts": str(captions), "--images": str(folder), "--model": model} | options
    if "-o" in options:  # Said before the model is loaded.
        monkeypatch.setattr("jaxclip.clip.load", None)
    assert main(["similarity", *(word for pair in arguments.items() for word in pair)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip similarity: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("out", "overwritten"),
    [
        ("captions.csv", "captions.csv"),
        ("captions.png", "captions.csv"),  # The numbers, beside the picture.
        ("photos/coffee.png", "photos/coffee.png"),
        ("photos/matrix.png", "photos/matrix.csv"),
    ],
)
def test_nothing_replaces_an_input(folder, captions, model, capsys, monkeypatch, out, overwritten):
    monkeypatch.chdir(folder.parent)
    captions.rename("captions.csv")
    (folder / "matrix.csv").write_text("old")
    monkeypatch.setattr("jaxclip.clip.load", None)  # Said before the model is loaded.
    arguments = ["--texts", "captions.csv", "--images", "photos", "--model", model, "-o", out]
    assert main(["similarity", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"jaxclip similarity: {overwritten}: is ")
    assert printed.err.count("\n") == 1


def test_the_numbers_keep_the_suffix_that_was_given(folder, captions, model, capsys):
    out = folder.parent / "M.CSV"
    arguments = ["--texts", str(captions), "--images", str(folder), "--model", model, "-o", str(out)]
    assert main(["similarity", *arguments]) == 0
    assert capsys.readouterr().out == f"{out}: 3 texts, 2 images\n"
    assert out.exists()


def test_without_matplotlib_it_says_so_before_the_work(folder, captions, model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("jaxclip.clip.load", None)
    arguments = ["--texts", str(captions), "--images", str(folder), "--model", model, "-o", "matrix.png"]
    assert main(["similarity", *arguments]) == 2
    assert 'pip install "jaxclip[plot]"' in capsys.readouterr().err


def test_a_picture_that_fails_leaves_the_old_one(folder, captions, model, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    out = folder.parent / "matrix.png"
    out.write_bytes(b"old")
    monkeypatch.setattr("jaxclip.atomic.os.fsync", fail)
    arguments = ["--texts", str(captions), "--images", str(folder), "--model", model, "-o", str(out)]
    assert main(["similarity", *arguments]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(folder.parent)) == ["captions.txt", "matrix.png", "photos"]
