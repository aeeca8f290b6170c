import pytest
from cases import FOLDER

import jaxclip
from jaxclip.compare import capture
from jaxclip.compare.inputs import TEXTS, example_images


@pytest.fixture(scope="session")
def whole():
    """A handle with a tokenizer and an image processor."""
    return jaxclip.load(FOLDER / "whole")


@pytest.fixture(scope="session")
def captured(whole):
    return capture(whole, TEXTS, example_images())
