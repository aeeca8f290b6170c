import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxclip
from jaxclip.cli import main


def test_embeds_and_then_only_what_is_new(folder, model, capsys):
    index = folder.parent / "index"
    command = ["embed", str(folder), "-o", str(index), "--model", model]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{index}: 2 photos (added 2, changed 0, removed 0, unchanged 0); ")
    assert printed.out.endswith(" photos a second\n")
    assert printed.err == ""
    vectors = np.concatenate(list(jaxclip.Index.open(index).vectors()))
    expected = jaxclip.load(model).encode_image([folder / "chelsea.png", folder / "coffee.png"])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)

    assert main(command) == 0
    assert capsys.readouterr().out == f"{index}: 2 photos (added 0, changed 0, removed 0, unchanged 2)\n"

    (folder / "coffee.png").rename(folder / "tea.png")
    os.utime(folder / "chelsea.png", (1, 1))
    assert main([*command, "--batch-size", "1"]) == 0
    assert "2 photos (added 1, changed 1, removed 1, unchanged 0)" in capsys.readouterr().out


def test_skipped_files_are_named_and_the_status_says_so(folder, model, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "empty.png").touch()
    assert main(["embed", str(folder), "-o", str(folder.parent / "index"), "--model", model]) == 1
    printed = capsys.readouterr()
    assert "2 photos (added 2," in printed.out
    lines = printed.err.splitlines()
    assert [line.startswith("skipped: ") for line in lines] == [True, True]
    assert "broken.jpg" in lines[0]
    assert "empty.png" in lines[1]


def test_another_model_is_refused(folder, model, other_model, capsys):
    command = ["embed", str(folder), "-o", str(folder.parent / "index"), "--model"]
    assert main([*command, model]) == 0
    capsys.readouterr()
    assert main([*command, other_model]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"the index was made with {model!r}" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("photos", "options", "message"),
    [
        ("nowhere", [], "nowhere: no such folder"),
        ("photos", ["--model", "./nowhere"], "no folder './nowhere'"),
        ("photos", ["--batch-size", "0"], "batch_size must be at least 1"),
        ("empty", [], "no photo there that could be read"),
        ("photos/coffee.png", [], "no such folder"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_status_2(folder, model, capsys, photos, options, message):
    (folder.parent / "empty").mkdir()
    index = folder.parent / "index"
    assert main(["embed", str(folder.parent / photos), "-o", str(index), "--model", model, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip embed: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not index.exists()


def test_ctrl_c_says_that_the_work_is_kept(folder, model, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxclip.tasks.index.embed_folder", interrupt)
    assert main(["embed", str(folder), "-o", str(folder.parent / "index"), "--model", model]) == 130
    assert capsys.readouterr().err == ("jaxclip embed: interrupted; what was done is kept: run it again to go on\n")


@pytest.mark.parametrize(
    ("error", "status", "first"),
    [(KeyboardInterrupt(), 130, "interrupted; "), (ValueError("no"), 2, "no\njaxclip embed: ")],
)
def test_what_could_not_be_kept_is_said(folder, model, capsys, monkeypatch, error, status, first):
    def fail(*_, **__):
        raise error

    error.add_note("what was encoded could not be saved: the disk is full")
    monkeypatch.setattr("jaxclip.tasks.index.embed_folder", fail)
    assert main(["embed", str(folder), "-o", str(folder.parent / "index"), "--model", model]) == status
    assert capsys.readouterr().err == f"jaxclip embed: {first}what was encoded could not be saved: the disk is full\n"


def test_an_index_finds_its_model_from_any_folder(folder, model, monkeypatch):
    monkeypatch.chdir(Path(model).parent)
    assert main(["embed", str(folder), "-o", str(folder.parent / "index"), "--model", "./whole"]) == 0
    monkeypatch.chdir(folder)
    assert main(["search", "a cat", str(folder.parent / "index")]) == 0


def test_help_and_a_missing_option(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["embed", "--help"])
    assert exited.value.code == 0
    assert "example: jaxclip embed photos/ -o index/" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exited:
        main(["embed", "photos"])
    assert exited.value.code == 2
    assert capsys.readouterr().err == (
        "jaxclip embed: the following arguments are required: -o (see jaxclip embed --help)\n"
    )


def test_help_waits_for_no_jax():
    code = "import sys; from jaxclip.cli import main\ntry: main(['search', '--help'])\nexcept SystemExit: pass\n"
    code += "print({'jax', 'matplotlib', 'PIL'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "set()"
