"""Captioned folders in every layout."""

import csv
import json
import os

import pytest
from training.data_cases import captioned, captions_of, paint

from jaxclip.training.captions import CaptionedFolder, Photos, Sample

FOUR = ["a.png", "b.jpg", "more/c.webp", "more/d.e.png"]


def lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(FOUR):
        paint(tmp_path / name, number)
    return tmp_path


def expected(folder):
    return [Sample(name, folder / name, tuple(captions_of(number))) for number, name in enumerate(FOUR)]


@pytest.mark.parametrize("image", ["image", "file", "file_name"])
@pytest.mark.parametrize("caption", ["captions", "caption", "text"])
def test_json_lines_with_lists(photos, image, caption):
    records = [{image: name, caption: captions_of(number), "other": 1} for number, name in enumerate(FOUR)]
    (photos / "captions.jsonl").write_text("\ufeff" + lines(*records).replace("\n", "\n\n"), "utf-8")
    assert list(CaptionedFolder(photos)) == list(CaptionedFolder(photos / "captions.jsonl")) == expected(photos)


def test_lines_of_one_image_are_one_sample(photos):
    records = [{"image": name, "caption": captions_of(i)[j]} for j in range(3) for i, name in enumerate(FOUR)]
    (photos / "captions.jsonl").write_text(lines(*records))
    assert list(CaptionedFolder(photos)) == expected(photos)


@pytest.mark.parametrize("names", [("image", "caption"), ("file_name", "text")])
def test_csv(photos, names):
    with open(photos / "captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["number", *names])
        rows.writerows([i, name, text] for i, name in enumerate(FOUR) for text in captions_of(i))
        rows.writerow([9, FOUR[0], 'said, "so"\nand so'])
    samples = list(CaptionedFolder(photos))
    assert samples[1:] == expected(photos)[1:]
    assert samples[0].captions == (*captions_of(0), 'said, "so"\nand so')


def test_text_beside_each_image(photos):
    for number, name in enumerate(FOUR):
        (photos / name).with_suffix(".txt").write_text("\n\n".join([*captions_of(number), "  "]))
    assert list(CaptionedFolder(photos)) == expected(photos)


def test_a_split(photos):
    records = [{"file": name, "captions": ["x"], "split": "train" if i else "test"} for i, name in enumerate(FOUR)]
    (photos / "captions.jsonl").write_text(lines(*records))
    assert [sample.id for sample in CaptionedFolder(photos, split="train")] == FOUR[1:]
    assert len(CaptionedFolder(photos)) == 4
    with pytest.raises(ValueError, match=r"no line of the split 'dev'; it has \['test', 'train'\]"):
        CaptionedFolder(photos, split="dev")


def test_blank_captions_are_none(photos):
    records = {"image": "a.png", "captions": ["", " x "]}, {"image": "b.jpg", "text": " "}
    (photos / "captions.jsonl").write_text(lines(*records))
    assert [sample.captions for sample in CaptionedFolder(photos)] == [("x",), ()]


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("captions.jsonl", "", ValueError, "captions.jsonl: no captions in it"),
        ("captions.jsonl", '{"image": "a.png"}\n', ValueError, "line 1: it has 'image', but none of 'captions'"),
        ("captions.jsonl", '\n{"text": "x"}\n', ValueError, "line 2: it has 'text', but none of 'image', 'file'"),
        ("captions.jsonl", '{"text": "x", "image": null}\n', ValueError, r"line 1: captions without an image \(None\)"),
        (
            "captions.jsonl",
            '{"image": "a.png", "text": 3}\n',
            ValueError,
            "line 1: captions must be a string or a list",
        ),
        ("captions.jsonl", "[1]\n", ValueError, "line 1: a JSON list, not an object"),
        ("captions.jsonl", "{\n", ValueError, "line 1: not JSON"),
        ("captions.jsonl", lines({"image": "z.png", "text": "x"}), FileNotFoundError, "1 of its images are missing"),
        ("captions.csv", "image,caption\n", ValueError, "captions.csv: no captions in it"),
        ("captions.csv", "image,caption\na.png,x,y\n", ValueError, "line 2: not 2 columns; quote commas"),
        ("captions.csv", "image,caption\na.png\n", ValueError, "line 2: not 2 columns"),
        ("captions.csv", "image,words\na.png,x\n", ValueError, "line 2: it has 'image', 'words', but none of"),
        ("captions.csv", "image,caption\n,x\n", ValueError, r"line 2: captions without an image \(''\)"),
        ("a.txt", "x", ValueError, "3 images are without a .txt of their name, the first is 'b.jpg'"),
        ("z.txt", "x", ValueError, "1 captions are without an image of their name, the first is 'z.txt'"),
        ("other", "x", ValueError, "no captions.jsonl or captions.csv and no .txt beside an image there"),
    ],
)
def test_what_can_not_be_read(photos, name, text, error, message):
    (photos / name).write_text(text)
    with pytest.raises(error, match=message):
        CaptionedFolder(photos)


def test_other_errors(photos, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        CaptionedFolder(photos / "none")
    with pytest.raises(ValueError, match=r"neither .jsonl nor .csv"):
        CaptionedFolder(photos / "a.png")
    with pytest.raises(ValueError, match="no image there"):
        CaptionedFolder(tmp_path_factory.mktemp("empty"))
    for name in ("captions.jsonl", "captions.csv"):
        (photos / name).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"both captions.jsonl and captions.csv"):
        CaptionedFolder(photos)
    for name in ("captions.jsonl", "captions.csv"):
        with pytest.raises(ValueError, match=f"{name}: no UTF-8 text"):
            CaptionedFolder(photos / name)


def test_text_files_that_mean_two_images_or_a_split(photos):
    for name in FOUR:
        (photos / name).with_suffix(".txt").write_text("x")
    with pytest.raises(ValueError, match="have no split"):
        CaptionedFolder(photos, split="train")
    paint(photos / "a.jpg", 9)
    with pytest.raises(ValueError, match="several images have one name"):
        CaptionedFolder(photos)


def test_photos_alone(photos):
    (photos / "notes.txt").write_text("x")
    assert list(Photos(photos)) == [Sample(name, photos / name, ()) for name in FOUR]
    with pytest.raises(ValueError, match="no image there"):
        Photos(photos / "notes.txt")


def test_the_fingerprint_is_of_the_images(tmp_path):
    folder = captioned(tmp_path / "data", 3)
    before = CaptionedFolder(folder).fingerprint()
    text = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(text.replace("photo", "picture"))
    assert CaptionedFolder(folder).fingerprint() == before
    (folder / "captions.jsonl").write_text("".join(sorted(text.splitlines(keepends=True), reverse=True)))
    assert CaptionedFolder(folder).fingerprint() != before
    (folder / "captions.jsonl").write_text(text)
    os.utime(folder / "images/01.png", ns=(0, 1))
    assert CaptionedFolder(folder).fingerprint() != before
    assert Photos(folder).fingerprint() == Photos(folder).fingerprint() != before
