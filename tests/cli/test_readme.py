"""The README's commands, one after the other, do what is written there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import jaxclip
from jaxclip.cli import main

README = (Path(jaxclip.__file__).parents[1] / "README.md").read_text()


def test_commands(folder, captions, model, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("jaxclip.cli.options.DEFAULT_MODEL", model)
    shutil.copy(folder / "chelsea.png", "query.jpg")
    commands = re.findall(r"^jaxclip (.*)$", README, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        *(
            "embed",
            "search",
            "search",
            "search",
            "similarity",
            "detect",
            "inspect",
            "diff",
            "train",
            "classify",
            "classify",
        )
    ]
    shutil.copytree(folder, "captioned")
    for photo in Path("captioned").glob("*.png"):
        photo.with_suffix(".txt").write_text(photo.stem)
    for photo in folder.glob("*.png"):
        (Path("labelled") / photo.stem).mkdir(parents=True)
        shutil.copy(photo, Path("labelled") / photo.stem)
    printed = []
    for command in commands:
        words = [word.replace("MODEL", model) for word in shlex.split(command, comments=True)]
        arguments = [{"1000": "2", "64": "2"}.get(word, word) for word in words]
        assert main(arguments) == 0, command
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith("index/: 2 photos (added 2")
    assert len(printed[1].splitlines()) == 2
    assert Path(printed[2].split()[2]).name == "chelsea.png"
    assert len(json.loads(printed[3])["hits"]) == 3
    assert printed[4] == "matrix.png and matrix.csv: 3 texts, 2 images\n"
    assert Path("hits.png").read_bytes().startswith(b"\x89PNG")
    assert Path("matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "text" in printed[6]
    assert "Equal within the rounding of float32" in printed[7]
    assert Path("run/model/model.safetensors").exists()
    assert len(printed[9].splitlines()) == 2
    assert printed[10].startswith("labelled: 2 images, 2 classes\n")
    for picture in ("found.png", "classified.png", "confusion.png"):
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
