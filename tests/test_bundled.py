"""The model in the package, by the figures of its card."""

import re
from pathlib import Path

import emoji_data
import numpy as np
import pytest
import train_emoji

import jaxclip
from jaxclip import bundled
from jaxclip.checkpoints import CheckpointError

FOLDER = Path(bundled.__file__).parent / "emoji"
# Of a recall: rounding of the card's three digits, and what another CPU's last digits turn around.
TOLERANCE = 0.003


@pytest.fixture(scope="module")
def clip():
    return jaxclip.load("emoji")


@pytest.fixture(scope="module")
def card():
    """Style → the figures that the card states."""
    rows = re.findall(r"^\| ([\w-]+)(?:, never seen)? \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", CARD, re.M)
    return {style: [float(value.replace(",", "")) for value in values] for style, *values in rows}


CARD = (FOLDER / "README.md").read_text("utf-8")


@pytest.mark.parametrize("style", ["twemoji", "openmoji"])
def test_recall_is_what_the_card_says(clip, card, style, tmp_path, monkeypatch):
    # The names are in the package, so that nothing is fetched.
    monkeypatch.setattr(emoji_data, "names", lambda cache: bundled.emoji())
    data = emoji_data.load(tmp_path, (style,))
    found = train_emoji.recall(clip, data, style)
    assert card[style][0] == data.drawn[style].sum()
    names = ("name@1", "name@10", "keyword@10")
    np.testing.assert_allclose([found[name] for name in names], card[style][1:], atol=TOLERANCE)


def test_the_file_is_small():
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000


def test_it_wins_over_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    clip = jaxclip.load("emoji", towers="text")
    assert clip.source == "emoji"
    assert clip.encode_text("a cat").shape == (256,)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        jaxclip.load("./emoji")


def test_it_has_no_revisions():
    with pytest.raises(CheckpointError, match="no revisions"):
        jaxclip.load("emoji", revision="main")


def test_an_index_remembers_it_by_name(clip, tmp_path, monkeypatch):
    from jaxclip.tasks.emoji import twemoji

    (tmp_path / "photos").mkdir()
    for picture in twemoji()[:3]:
        (tmp_path / "photos" / picture.path.name).write_bytes(picture.path.read_bytes())
    (tmp_path / "emoji").mkdir()
    monkeypatch.chdir(tmp_path)
    index = jaxclip.embed_folder(clip, "photos", "index").index
    assert index.model.source == "emoji"
    jaxclip.Index.open("index").check(jaxclip.load("emoji"))


def test_names():
    emoji = bundled.emoji()
    assert len({one.hexcode for one in emoji}) == len(emoji) == 1914
    astronaut = next(one for one in emoji if one.name == "woman astronaut")
    assert (astronaut.text, astronaut.group) == ("👩‍🚀", "people & body")
    assert not any(set(one.keywords) & set(one.held_out) for one in emoji)
    assert bundled.code_points("0023-FE0F-20E3") == bundled.code_points("23-20e3") == (0x23, 0x20E3)


@pytest.mark.parity
def test_transformers_gives_the_same_vectors(clip, transformers):
    import torch

    from jaxclip.tasks.emoji import twemoji

    model = transformers.CLIPModel.from_pretrained(FOLDER).float().eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(FOLDER)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(FOLDER)
    texts = ["a cat", "flag: south georgia & south sandwich islands", "Müde?! 123"]
    pictures = [picture.path for picture in twemoji()[::400]]
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        text = model.get_text_features(**tokens).pooler_output
        image = model.get_image_features(**processor(_opened(pictures), return_tensors="pt")).pooler_output
    for found, features in ((clip.encode_text(texts), text), (clip.encode_image(pictures), image)):
        expected = torch.nn.functional.normalize(features, dim=-1).numpy()
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-6)


def _opened(paths):
    from PIL import Image

    return [Image.open(path) for path in paths]
