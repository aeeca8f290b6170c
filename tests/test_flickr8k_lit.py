"""The script that trains a text tower on Flickr8k, on a handful of made-up photos."""

import json
import re
import shutil

import flickr8k_lit
import jaxtyping
import pytest
from cases import FOLDER
from training.data_cases import captions_of, paint

import jaxclip
from jaxclip.training import open_source

SPLITS = {"train": range(8), "dev": range(8, 10), "test": range(10, 13)}


@pytest.fixture
def distributed(tmp_path):
    """As Flickr8k is; the captions of a photo that is in no split are there, the photo is not."""
    folder = tmp_path / "flickr8k"
    numbers = [number for split in SPLITS.values() for number in split]
    lines = [
        f"{number:02d}.jpg#{i}\t{caption}" for number in (*numbers, 99) for i, caption in enumerate(captions_of(number))
    ]
    for number in numbers:
        paint(folder / "Flicker8k_Dataset" / f"{number:02d}.jpg", number)
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for split, those in SPLITS.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{number:02d}.jpg\n" for number in those))
    return folder


def test_reads_the_distribution(distributed, tmp_path):
    path = flickr8k_lit.captioned(distributed, tmp_path / "out")
    for split, numbers in SPLITS.items():
        source = open_source(path, split=split)
        samples = [source[i] for i in range(len(source))]
        assert [sample.image for sample in samples] == [
            distributed / "Flicker8k_Dataset" / f"{number:02d}.jpg" for number in numbers
        ]
        assert [sample.captions for sample in samples] == [tuple(captions_of(number)) for number in numbers]
    # What is captioned already is taken as it is.
    shutil.copy(path, distributed / "captions.jsonl")
    assert flickr8k_lit.captioned(distributed, tmp_path / "other") == distributed / "captions.jsonl"
    assert not (tmp_path / "other").exists()


def test_trains_and_evaluates(distributed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flickr8k_lit, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr("jaxclip.training.loop.training_curves", lambda records: None)
    monkeypatch.setattr("jaxclip.training.loop.write_figure", lambda path, figure: None)
    # The suite's check of annotations, which a state of shapes doesn't pass.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    out, whole = tmp_path / "out", str(FOLDER / "whole")
    arguments = [str(distributed), "--vision", whole, "--tokenizer", whole, "--output", str(out), "--dtype", "float32"]
    flickr8k_lit.main([*arguments, "--epochs", "2", "--batch-size", "4", "--width", "16", "--layers", "1"])
    printed = capsys.readouterr().out
    assert f"{out / 'run' / 'model'}: 4 steps of 4" in printed
    log = [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    found = [record["evaluation"] for record in log if "evaluation" in record][-1]
    for shown, name in (("text to image", "text_to_image"), ("image to text", "image_to_text")):
        (row,) = re.findall(rf"\| {shown} \| (.*) \|", printed)
        assert row == " | ".join(f"{found[f'{name}_recall@{k}']:.3f}" for k in (1, 5, 10))
    assert found["text_to_image_recall@5"] == 1  # There are three photos.
    links = sorted((out / "photos").iterdir())
    assert [link.name for link in links] == ["10.jpg", "11.jpg", "12.jpg"]
    hits = jaxclip.search(jaxclip.load(out / "run" / "model"), "photo 10 a", out / "photos").hits
    assert {hit.item.name for hit in hits} == {link.name for link in links}
