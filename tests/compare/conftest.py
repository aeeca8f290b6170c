import pytest
from broken import redrawn, write_checkpoint
from cases import FOLDER

import jaxclip
from jaxclip.compare import capture
from jaxclip.compare.checkpoint import Checkpoint
from jaxclip.compare.inputs import TEXTS, example_images


@pytest.fixture(scope="session")
def whole():
    """A handle with a tokenizer and an image processor."""
    return jaxclip.load(FOLDER / "whole")


@pytest.fixture(scope="session")
def captured(whole):
    return capture(whole, TEXTS, example_images())


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Of a case and a seed, read from a folder."""
    opened = {}

    def open_checkpoint(case: str, seed: int = 0) -> Checkpoint:
        if (case, seed) not in opened:
            folder = tmp_path_factory.mktemp(f"{case}-{seed}")
            write_checkpoint(folder, *redrawn(case, seed))
            opened[case, seed] = Checkpoint(str(folder))
        return opened[case, seed]

    return open_checkpoint
