import jax
import pytest
from cases import FOLDER, photos
from PIL import Image

import jaxclip


@pytest.fixture(scope="session")
def model():
    return str(FOLDER / "whole")


@pytest.fixture
def other_model(model, tmp_path):
    """The same, but for its parameters."""
    clip = jaxclip.load(model)
    clip.model = jax.tree.map(lambda parameter: 1.01 * parameter, clip.model)
    clip.save(tmp_path / "other")
    return str(tmp_path / "other")


@pytest.fixture
def folder(tmp_path):
    """Two photos."""
    (tmp_path / "photos").mkdir()
    for name, photo in zip(("chelsea", "coffee"), photos(), strict=True):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a cat\n\nein Café, 2 Äpfel!\ntwo dogs\n", encoding="utf-8")
    return path
