"""`jaxclip demo`"""

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip.cli.options import load
from jaxclip.cli.printing import printable

if TYPE_CHECKING:
    from jaxclip.clip import Clip
    from jaxclip.tasks.emoji import EmojiPicture

PHRASES = ("birthday cake", "a happy cat", "red heart", "rain", "winter sports", "going to the moon")
TOP = 8
# To classify: pictures by their names, and what they might be.
PICTURED = ("tiger face", "pizza", "fire engine", "broken heart", "violin")
LABELS = ("animal", "food", "vehicle", "feeling", "musical instrument")


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="search emoji by describing them, with the bundled model, without a network",
        usage="jaxclip demo [options] [PHRASE ...]",
        description="Searches the pictures of Twemoji for a handful of phrases, or those given, and, on a terminal,\n"
        "for what you type; sorts some of them into classes, and draws contact sheets of the hits and a heat\n"
        "map of similarities. The model comes with jaxclip and knows emoji alone: for photos see\n"
        "`jaxclip search --help`.",
        epilog='examples:\n  jaxclip demo\n  jaxclip demo "two dogs" "a broken heart" -o pictures',
    )
    parser.add_argument("phrases", metavar="PHRASE", nargs="*", help="what to look for")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=Path("jaxclip-demo"),
        metavar="FOLDER",
        help="where the pictures go (default: %(default)s)",
    )
    parser.set_defaults(run=run, parser=parser, model="emoji", revision=None, dtype=None)


def run(options: argparse.Namespace) -> int:
    from jaxclip.plotting import require_matplotlib
    from jaxclip.tasks.emoji import twemoji

    require_matplotlib()
    pictures = twemoji()
    options.output.mkdir(parents=True, exist_ok=True)
    clip = load(options)
    start = time.perf_counter()
    images = clip.encode_image([picture.path for picture in pictures])
    print(f"{len(pictures):,} emoji of Twemoji in {time.perf_counter() - start:.1f} s")
    phrases = options.phrases or list(PHRASES)
    found = _search(clip, phrases, pictures, images)
    _classify(clip, pictures)
    _draw(options.output, clip, phrases, found)
    for phrase in _typed():
        _search(clip, [phrase], pictures, images)
    return 0


def _search(
    clip: "Clip", phrases: Sequence[str], pictures: "Sequence[EmojiPicture]", images: Any
) -> "list[list[tuple[EmojiPicture, float]]]":
    """The best pictures for each phrase, printed as well."""
    from jaxclip.similarity import top_k

    best = top_k(clip.encode_text(phrases), images, TOP)
    found = []
    for phrase, indices, scores in zip(phrases, best.indices.tolist(), best.values.tolist(), strict=True):
        hits = [(pictures[index], score) for index, score in zip(indices, scores, strict=True)]
        print(f"\n{printable(phrase)}")
        for picture, score in hits:
            print(f"  {score:6.3f}  {picture.emoji.text}  {picture.emoji.name}")
        found.append(hits)
    return found


def _classify(clip: "Clip", pictures: "Sequence[EmojiPicture]") -> None:
    from jaxclip.tasks.zero_shot import classify

    named = {picture.emoji.name: picture for picture in pictures}
    # The words alone: the default templates say "a photo of", and the model knows emoji only.
    found = classify(clip, [named[name].path for name in PICTURED], LABELS, templates=["{}"])
    print(f"\nwhich of {', '.join(LABELS)}?")
    for name, [(label, probability)] in zip(PICTURED, found.top(), strict=True):
        print(f"  {named[name].emoji.text}  {name}: {label} ({probability:.0%})")


def _draw(folder: Path, clip: "Clip", phrases: Sequence[str], found: "list[list[tuple[EmojiPicture, float]]]") -> None:
    import numpy as np

    from jaxclip.plotting import contact_sheet, similarity_heat_map, write_figure

    for phrase, hits in zip(phrases, found, strict=True):
        paths, scores = [picture.path for picture, _ in hits], [score for _, score in hits]
        names = [picture.emoji.name for picture, _ in hits]
        path = folder / f"{re.sub(r'[^0-9a-z]+', '-', phrase.lower()).strip('-') or 'phrase'}.png"
        write_figure(path, contact_sheet(paths, scores, names=names, title=phrase))
    firsts = [hits[0][0] for hits in found]
    paths, names = [picture.path for picture in firsts], [picture.emoji.name for picture in firsts]
    values = np.asarray(clip.encode_text(phrases) @ clip.encode_image(paths).T)
    write_figure(folder / "similarity.png", similarity_heat_map(values, phrases, paths, names=names))
    print(f"\npictures of the hits, and similarity.png: {printable(str(folder))}{'/' if folder.name else ''}")


def _typed() -> Iterator[str]:
    """What the person types, line by line, until an empty one; nothing where nobody types."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return
    print("\nWhat are you looking for? (Enter alone ends)")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if not line:
            return
        yield line
