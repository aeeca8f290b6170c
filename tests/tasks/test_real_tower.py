"""Photos by OpenAI's ViT-B/16 image tower, where one is at hand: JAXCLIP_TOWER names its checkpoint, JAXCLIP_CLASSES a
JSON list of everyday classes and JAXCLIP_EMBEDDINGS the model's embeddings of them, a row each (.npy)."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import skimage.data

import jaxclip
from jaxclip.tasks.class_files import read_embeddings

VARIABLES = ("JAXCLIP_TOWER", "JAXCLIP_CLASSES", "JAXCLIP_EMBEDDINGS")
pytestmark = pytest.mark.skipif(not all(map(os.environ.get, VARIABLES)), reason=f"wants {', '.join(VARIABLES)}")


@pytest.fixture(scope="module")
def tower():
    return jaxclip.load(os.environ["JAXCLIP_TOWER"], towers="vision")


@pytest.fixture(scope="module")
def classes():
    names = json.loads(Path(os.environ["JAXCLIP_CLASSES"]).read_text())
    return dict(zip(names, read_embeddings(os.environ["JAXCLIP_EMBEDDINGS"]), strict=True))


def test_photos_get_their_classes(tower, classes):
    wanted = {"chelsea": "cat", "coffee": "cup", "astronaut": "person", "grass": "grass"}
    photos = [getattr(skimage.data, name)() for name in wanted]
    result = jaxclip.classify(tower, photos, classes, logit_scale=math.log(100))
    assert [result.labels[best] for best in result.probabilities.argmax(axis=1)] == list(wanted.values())


def test_a_cup_is_where_it_is(tower, classes):
    prompts = {name: classes[name] for name in ("cup", "cat")}
    background = {name: vector for name, vector in classes.items() if name not in prompts}
    photo = skimage.data.coffee()
    found = jaxclip.detect(tower, photo, prompts, background=background, logit_scale=math.log(100))
    assert found.boxes["cat"] == []
    row, column = np.unravel_index(found.relevance[0].argmax(), photo.shape[:2])
    # What the cup takes of the photo.
    assert 173 < column < 408
    assert 18 < row < 308
