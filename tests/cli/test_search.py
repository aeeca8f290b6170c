import os
import shutil
import subprocess
import sys

import pytest
from cases import FOLDER, photos
from PIL import Image

import jaxclip
from jaxclip.cli import main

MODEL = str(FOLDER / "whole")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, photo in zip(("chelsea", "coffee"), photos(), strict=True):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def test_prints_the_best_first(folder, capsys):
    assert main(["search", "a cat", str(folder), "--model", MODEL]) == 0
    printed = capsys.readouterr()
    hits = jaxclip.search(jaxclip.load(MODEL), "a cat", folder).hits
    assert printed.out.splitlines() == [f"{i}  {hit.score:7.4f}  {hit.path}" for i, hit in enumerate(hits, start=1)]
    assert hits[0].score > hits[1].score
    assert printed.err == ""  # No progress bar where nobody looks.


def test_skipped_files_are_named_and_the_status_says_so(folder, capsys):
    (folder / "bad.png").write_bytes(b"no photo")
    assert main(["search", "a cat", str(folder), "--model", MODEL, "--top", "1"]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert printed.err.startswith("skipped: ")
    assert "bad.png" in printed.err


@pytest.mark.parametrize(
    ("photos", "options", "message"),
    [
        ("nowhere", [], "nowhere: no such file or folder"),
        ("photos", ["--model", "./nowhere"], "no folder './nowhere'"),
        ("photos", ["--top", "0"], "top must be at least 1"),
        ("empty", [], "no photos could be read in"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_status_2(folder, capsys, photos, options, message):
    (folder.parent / "empty").mkdir()
    assert main(["search", "a cat", str(folder.parent / photos), "--model", MODEL, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip search: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_ctrl_c_ends_without_a_traceback(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxclip.tasks.search.search", interrupt)
    assert main(["search", "a cat", str(folder), "--model", MODEL]) == 130
    assert capsys.readouterr().err == "jaxclip search: interrupted\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["search", "--help"])
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    assert "two dogs running across a frosty field" in printed
    assert "--model" in printed


def test_odd_names_keep_to_their_line(folder, capsys):
    for name in ("new\nline.png", os.fsdecode(b"\xff.png"), "Spaß 🐕.png"):
        shutil.copy(folder / "coffee.png", folder / name)
    (folder / "bad\r.txt").touch()
    assert main(["search", "a cat", str(folder), "--model", MODEL]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    for name in (r"new\nline.png", r"\udcff.png", "Spaß 🐕.png"):
        assert name in printed.out
    assert printed.err.count("\n") == 1


def test_a_closed_pipe_ends_quietly(folder):
    command = [sys.executable, "-c", "import sys; from jaxclip.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["search", "a cat", str(folder), "--model", MODEL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
