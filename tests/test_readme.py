"""Every Python example of the README runs, in order, as one session; its commands are those that exist."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import FOLDER, photos
from PIL import Image

import jaxclip
from jaxclip.cli import main

README = (Path(jaxclip.__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def photo_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, photo in zip(("cat", "coffee"), photos(), strict=True):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        for path in (f"{name}.jpg", f"photos/{name}.jpg", f"labelled/{name}/{name}.jpg"):
            Image.fromarray(photo).save(path)
    return tmp_path / "photos"


def test_python_examples(photo_folder):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    source = "\n".join(blocks)
    # The small checkpoint in place of OpenAI's, and its joint space's width and image sizes with it.
    assert source.count('"openai/clip-vit-base-patch32"') == 2
    source = source.replace('"openai/clip-vit-base-patch32"', repr(str(FOLDER / "whole"))).replace("448", "32")
    names = {}
    exec(source, names)
    assert names["texts"].shape == names["photos"].shape == (2, 20)
    assert names["found"].images == [Path("cat.jpg"), Path("coffee.jpg")]
    assert names["found"].labels == ["cat", "cup of coffee"]
    assert names["embeddings"].shape == (2, 20)
    assert names["result"].relevance.shape == (2, *photos()[0].shape[:2])
    assert set(names["windows"].boxes) == {"a fluffy cat"}
    assert isinstance(names["gradient"], jaxclip.nn.CLIP)
    locked = names["locked_gradient"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(locked.vision))
    assert any(leaf.any() for leaf in jax.tree.leaves(locked.text))
    assert (photo_folder.parent / "folder" / "model.safetensors").exists()
    assert np.isfinite(names["metrics"]["loss"])
    assert int(names["state"].step) == 1


def test_the_search_command(photo_folder, capsys):
    command = next(line for line in README.splitlines() if "bin/jaxclip search" in line)
    arguments = shlex.split(command.partition("bin/jaxclip ")[2])
    swap = {"PHOTOS": str(photo_folder), "MODEL": str(FOLDER / "whole")}
    assert main([swap.get(argument, argument) for argument in arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_demo_command(photo_folder, capsys):
    command = next(line for line in README.splitlines() if "bin/jaxclip demo" in line)
    assert main(shlex.split(command.partition("bin/jaxclip ")[2])) == 0
    cake = capsys.readouterr().out.split("\nbirthday cake\n")[1].splitlines()
    assert "birthday cake" in "".join(cake[:8])
    assert (photo_folder.parent / "jaxclip-demo" / "birthday-cake.png").exists()
