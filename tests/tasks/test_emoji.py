import pytest
from PIL import Image

from jaxclip.bundled import emoji
from jaxclip.tasks.emoji import twemoji


def test_every_emoji_has_its_picture():
    pictures = twemoji()
    assert [picture.emoji for picture in pictures] == list(emoji())
    keycap = next(picture for picture in pictures if picture.emoji.name == "keycap: #")
    assert keycap.path.name == "23-20e3.png"
    with Image.open(keycap.path) as image:
        assert image.size == (72, 72)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"jaxclip\[demo\]\""):
        twemoji()
