import shutil

import numpy as np
import pytest
from cases import FOLDER
from tasks.index_cases import halves, paint, records

import jaxclip
from jaxclip.tasks.blocks import Block
from jaxclip.tasks.index import Index
from jaxclip.tasks.manifest import Manifest, ModelIdentity


@pytest.fixture(scope="session")
def clip():
    return jaxclip.load(FOLDER / "whole")


@pytest.fixture(scope="session")
def twenty(tmp_path_factory):
    """A folder that nobody changes."""
    folder = tmp_path_factory.mktemp("twenty")
    for i in range(20):
        paint(folder / f"{i:02d}.png", seed=i)
    return folder


@pytest.fixture
def photos(twenty, tmp_path):
    """Twenty small photos, no two alike."""
    return shutil.copytree(twenty, tmp_path / "photos")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 rows, so that twenty photos are some."""
    monkeypatch.setattr("jaxclip.tasks.writer.ROWS", 8)


@pytest.fixture
def random_index(tmp_path):
    """Makes an index of random vectors, with blocks of so many rows."""

    def make(*rows: int, width: int = 20) -> Index:
        folder = tmp_path / "random"
        folder.mkdir()
        rng, start, blocks = np.random.default_rng(0), 0, {}
        for number, n in enumerate(rows):
            name = f"{number:06d}"
            Block.write(folder, name, halves(rng, n, width), records(range(start, start + n)))
            blocks[name], start = n, start + n
        model = ModelIdentity(None, None, "float32", {})
        Manifest(model, {}, width, "/root", blocks, len(rows)).write(folder)
        return Index.open(folder)

    return make
