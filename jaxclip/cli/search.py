"""`jaxclip search QUERY WHERE`"""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxclip.cli.options import add_model_options, load
from jaxclip.cli.output import PICTURES, check_output, check_spares
from jaxclip.cli.printing import complain, print_ranked, print_skipped
from jaxclip.tasks.captions import is_captions

if TYPE_CHECKING:
    from jaxclip.clip import Clip
    from jaxclip.tasks.index import Index
    from jaxclip.tasks.search import SearchResult


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "search",
        help="find photos by describing them, or by a photo like them",
        usage="jaxclip search [options] (QUERY | --image FILE) WHERE",
        description="Ranks photos, or captions, by how well they fit a description or an image: rank, cosine\n"
        "similarity and path. Files that can't be read are named on the error stream and skipped; the\n"
        "exit status is then 1.",
        epilog="examples:\n"
        '  jaxclip search "two dogs running across a frosty field" photos/ --model openai/clip-vit-base-patch32\n'
        '  jaxclip search "two dogs running across a frosty field" index/ --top 3 -o hits.png\n'
        "  jaxclip search --image query.jpg index/\n"
        "  jaxclip search --image query.jpg captions.txt",
    )
    parser.add_argument("query", metavar="QUERY", nargs="?", help="what to look for, in words")
    parser.add_argument(
        "where",
        metavar="WHERE",
        help="an index that `jaxclip embed` made, a folder of photos (with its sub-folders), one photo, or a .txt file "
        "with a caption on each line",
    )
    parser.add_argument("--image", metavar="FILE", help="what to look for, as an image")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many to print (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FILE", help=f"draw the photos found ({', '.join(PICTURES)})"
    )
    add_model_options(parser, indexed=True)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    if (options.query is None) == (options.image is None):
        options.parser.error(
            'say what to look for and where: "words" WHERE, or --image FILE WHERE'
            if options.query is None
            else "--image stands in place of the words: give one of both"
        )
    for path in (options.image, options.where):
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
    captions = is_captions(options.where)
    if options.output:
        check_output(options.output, PICTURES)
        if captions:
            raise ValueError(f"{options.where} has captions, and -o draws photos: leave -o out")
        check_spares(options.output, files=[options.image] if options.image else [], folder=options.where)

    import jaxclip

    clip, where = _load(options, captions)
    query = str(options.query) if options.image is None else Path(options.image)
    result = jaxclip.search(clip, query, where, top=options.top)
    print_skipped(options, result.skipped)
    if not result.hits:
        complain(options, f"no {'captions' if captions else 'photos could be read'} in {options.where}")
        return 2
    if options.output:
        _draw(options, result)  # Before printing, which the reader of a pipe may cut short.
    if options.json:
        print(json.dumps(_document(options, clip, result), indent=1))
    else:
        heading = "caption" if captions else "photo"
        print_ranked([hit.score for hit in result.hits], [str(hit.item) for hit in result.hits], heading=heading)
    return options.status


def _load(options: argparse.Namespace, captions: bool) -> "tuple[Clip, Index | str]":
    """The model, with the towers that are needed and no other, and what is searched."""
    from jaxclip.tasks.index import Index
    from jaxclip.tasks.manifest import is_index

    asked: Literal["text", "vision"] = "vision" if options.image else "text"
    if is_index(options.where):
        index = Index.open(options.where)
        if options.output:
            check_spares(options.output, folder=index.root)
        made_by = index.model
        if made_by.source is None and options.model is None:
            raise ValueError(f"{options.where}: does not say which model made it: name it with --model")
        clip = load(options, towers=asked, model=made_by.source, revision=made_by.revision, dtype=made_by.dtype)
        return clip, index
    return load(options, towers=asked if asked == ("text" if captions else "vision") else "both"), options.where


def _document(options: argparse.Namespace, clip: "Clip", result: "SearchResult") -> dict[str, Any]:
    """ASCII when written: a file's name that is no UTF-8 has lone surrogates, as `os.fsdecode` makes them."""
    return {
        "query": {"text": options.query} if options.image is None else {"image": options.image},
        "where": options.where,
        "model": {"source": clip.source, "revision": clip.revision},
        "hits": [
            {"rank": rank, "score": hit.score, "item": str(hit.item)} for rank, hit in enumerate(result.hits, start=1)
        ],
        "skipped": [{"item": str(path), "reason": reason} for path, reason in result.skipped],
    }


def _draw(options: argparse.Namespace, result: "SearchResult") -> None:
    from jaxclip.plotting import contact_sheet, write_figure

    figure = contact_sheet(
        [Path(hit.item) for hit in result.hits],
        [hit.score for hit in result.hits],
        title=options.query if options.image is None else Path(options.image).name,
        query=options.image,
    )
    write_figure(options.output, figure)
