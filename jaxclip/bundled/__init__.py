"""What lies in the package itself: a small model, and the names of the emoji that it was trained on."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent

MODELS = ("emoji",)
"""The names that `jaxclip.load` takes for models in the package; `./emoji` is a folder of that name."""


@dataclass(frozen=True)
class Emoji:
    """An emoji, as Unicode names it.

    - `hexcode`: its code points, as "1F469-200D-1F680"
    - `group`: "animals & nature", and eight more
    - `name`: in lower case, as "woman astronaut"
    - `keywords`: what the bundled model was trained with besides the name
    - `held_out`: keywords that it was never shown for this emoji
    """

    hexcode: str
    group: str
    name: str
    keywords: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def text(self) -> str:
        """The emoji itself."""
        return "".join(chr(int(code, 16)) for code in self.hexcode.split("-"))


def code_points(hexcode: str) -> tuple[int, ...]:
    """Of code points in hexadecimal with hyphens between; without the variation selector, which vendors put in
    different places in their files' names."""
    return tuple(code for code in (int(part, 16) for part in hexcode.split("-")) if code != 0xFE0F)


def model_folder(source: str | os.PathLike[str]) -> Path | None:
    """The folder of a bundled model, None where the name is no such model's."""
    return _FOLDER / source if isinstance(source, str) and source in MODELS else None


def emoji() -> tuple[Emoji, ...]:
    """The emoji in Unicode's order, without skin tones and components."""
    lines = (_FOLDER / "emoji" / "emoji.jsonl").read_text("utf-8").splitlines()
    return tuple(
        Emoji(one["hexcode"], one["group"], one["name"], tuple(one["keywords"]), tuple(one["held_out"]))
        for one in map(json.loads, lines)
    )
