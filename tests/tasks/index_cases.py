"""What the tests of indexes are made of."""

import os

import numpy as np
from PIL import Image

from jaxclip.tasks.blocks import Record
from jaxclip.tasks.index import Index


def paint(path, seed: int) -> None:
    """A small photo of its own, with a time of its own, however coarse the file system's clock is."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC).save(path)
    os.utime(path, ns=(0, 1_700_000_000_000_000_000 + seed))


def halves(rng, n: int, width: int = 20) -> np.ndarray:
    """Random rows of which four entries are ±1/2 and the others 0: unit vectors whose products are multiples of 1/4,
    without rounding and with many ties."""
    places = np.argsort(rng.random((n, width)), axis=1)[:, :4]
    vectors = np.zeros((n, width), np.float32)
    np.put_along_axis(vectors, places, rng.choice([-0.5, 0.5], (n, 4)).astype(np.float32), axis=1)
    return vectors


def records(numbers) -> list[Record]:
    return [Record(f"{number}.png", number, number) for number in numbers]


def contents(index: Index) -> dict:
    """Path → vector; each path is there once."""
    vectors = np.concatenate([*index.vectors(), np.empty((0, index.width), np.float32)])
    paths = index.paths
    assert len(paths) == len(set(paths)) == len(vectors) == len(index)
    return dict(zip(paths, vectors, strict=True))


def assert_same(ours: Index, theirs: Index) -> None:
    """Same photos and vectors, in whatever order."""
    mine, others = contents(ours), contents(theirs)
    assert mine.keys() == others.keys()
    for path, vector in mine.items():
        np.testing.assert_allclose(vector, others[path], atol=1e-6)
