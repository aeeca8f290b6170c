"""The script that measures classification prints what the library finds."""

import json
import re

import measure_zero_shot
import numpy as np
import pytest
from cases import FOLDER
from training.data_cases import paint

import jaxclip

WHOLE = str(FOLDER / "whole")


@pytest.fixture
def photos(tmp_path):
    for number in range(15):
        paint(tmp_path / "photos" / ("cat", "ship", "frog")[number % 3] / f"{number}.png", number)
    return tmp_path / "photos"


def accuracies(printed):
    return dict(re.findall(r"^\| (\w.*?) \|.*\| ([01]\.\d{3}) \|[^|]*\|$", printed, re.MULTILINE))


def test_words_and_the_probe(photos, capsys):
    measure_zero_shot.main([WHOLE, str(photos)])
    found = accuracies(capsys.readouterr().out)
    clip = jaxclip.load(WHOLE)
    assert found == {
        "words, the classes of the photos": f"{jaxclip.evaluate_zero_shot(clip, photos).metrics.top_1:.3f}",
        "linear probe, five folds": f"{jaxclip.evaluate_linear_probe(clip, photos).metrics.top_1:.3f}",
    }


def test_embeddings_of_more_classes(photos, tmp_path, capsys):
    """Of three classes two have an embedding, one of them by another name."""
    names = ["tree", "boat", "cat"]
    clip = jaxclip.load(WHOLE)
    rows = np.asarray(clip.encode_image([next((photos / name).iterdir()) for name in ("frog", "ship", "cat")]))
    np.save(tmp_path / "rows.npy", 3 * rows)
    (tmp_path / "names.json").write_text(json.dumps(names))
    options = ["--embeddings", str(tmp_path / "rows.npy"), "--names", str(tmp_path / "names.json")]
    measure_zero_shot.main([WHOLE, str(photos), *options, "--same", "ship=boat"])
    printed = capsys.readouterr().out
    vectors = {name: np.asarray(clip.encode_image(sorted((photos / name).iterdir()))) for name in ("ship", "cat")}
    for what, among in (("words, the classes of the photos", [1, 2]), ("words, among all", [0, 1, 2])):
        right = [
            among[number] == names.index(called)
            for shown, called in (("ship", "boat"), ("cat", "cat"))
            for number in (vectors[shown] @ rows[among].T).argmax(axis=1).tolist()
        ]
        assert accuracies(printed)[what] == f"{np.mean(right):.3f}"
    assert "| words, among all | 3 | 10 |" in printed
    assert "| linear probe, five folds | 3 | 15 |" in printed
