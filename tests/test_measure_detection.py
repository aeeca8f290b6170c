import json
import sys

import emoji_data
import emoji_scenes
import measure_detection
import numpy as np
import pytest
from PIL import Image

from jaxclip.tasks.boxes import Box


def test_average_precision_by_hand():
    """Right, wrong, right, of four objects: precision 1 up to a recall of 1/4, and 2/3 from there to 2/4."""
    found = [(0.7, False), (0.9, True), (0.5, True)]
    assert measure_detection.average_precision(found, 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert measure_detection.average_precision([], 4) == 0
    assert measure_detection.average_precision([(0.9, True), (0.8, True)], 2) == 1


def test_an_object_is_found_once():
    true = [Box(0, 0, 10, 10, 1), Box(20, 0, 30, 10, 1)]
    boxes = [Box(1, 0, 11, 10, 0.9), Box(0, 0, 10, 10, 0.8), Box(20, 0, 30, 10, 0.7), Box(50, 0, 60, 10, 0.6)]
    assert measure_detection.matched(boxes, true) == [(0.9, True), (0.8, False), (0.7, True), (0.6, False)]


@pytest.fixture(scope="module")
def data():
    """Three emoji: discs on nothing, of a color each."""
    rows, columns = np.mgrid[:128, :128]
    disc = (np.hypot(rows - 63.5, columns - 63.5) < 50)[..., None]
    colors = np.asarray([(255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)], np.uint8)
    emoji = tuple(
        emoji_data.Emoji(f"1F34{n}", "food", name, (), ()) for n, name in enumerate(("pizza", "cake", "apple"))
    )
    return emoji_data.EmojiData(emoji, {"noto": disc * colors[:, None, None]}, {"noto": np.ones(3, bool)})


def test_scenes_have_what_their_boxes_say(data):
    grey = [Image.new("RGB", (400, 300), (120, 120, 120))]
    for number in range(8):
        picture, placed = emoji_scenes.scene(data, grey, np.random.default_rng(number))
        assert 1 <= len(placed) <= 3
        pixels = np.asarray(picture).astype(int)
        for name, (x0, y0, x1, y1) in placed:
            channel = ("pizza", "cake", "apple").index(name)
            there = pixels[..., channel] - np.delete(pixels, channel, axis=-1).max(axis=-1) > 60
            y, x = np.nonzero(there)
            assert abs(np.asarray([x.min(), y.min(), x.max() + 1, y.max() + 1]) - (x0, y0, x1, y1)).max() <= 2


def test_the_script_measures(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    boxes = []
    for number in range(2):
        grey = [Image.new("RGB", (100, 80), (200, 200, 200))]
        picture, placed = emoji_scenes.scene(data, grey, np.random.default_rng(number))
        picture.save(tmp_path / "images" / f"{number}.png")
        boxes += [{"image": f"{number}.png", "category": name, "box": box} for name, box in placed]
    boxes.append({"image": "0.png", "category": "crowd", "box": [0, 0, 5, 5], "iscrowd": 1})
    (tmp_path / "boxes.json").write_text(json.dumps({"boxes": boxes}))
    arguments = ["measure_detection.py", str(tmp_path), "--model", "emoji", "--resolution", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    measure_detection.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    assert [row[1].strip() for row in rows[2:]] == ["middle", "dense", "windows"]
    assert all(0 <= float(cell) <= 1 for row in rows[3:] for cell in row[2:7])
