"""`jaxclip search QUERY PHOTOS --model MODEL`"""

import argparse
import os
import sys
from typing import Any

from jaxclip.cli.printing import printable


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "search",
        help="find photos by describing them",
        description="Ranks the photos of a folder by how well they fit a description. Files that can't be read are "
        "named on the error stream and skipped; the exit status is then 1.",
        epilog='example: jaxclip search "two dogs running across a frosty field" photos/ '
        "--model openai/clip-vit-base-patch32",
    )
    parser.add_argument("query", help="what to look for, in words")
    parser.add_argument("photos", help="a folder, searched with its sub-folders, or one file")
    parser.add_argument(
        "--model",
        default="openai/clip-vit-base-patch32",
        help="a Hugging Face Hub id or a local folder (default: %(default)s)",
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many to print (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    # Here, and not above: `--help` and a mistyped option shouldn't wait for JAX.
    import jaxclip

    if not os.path.exists(options.photos):
        raise FileNotFoundError(f"{options.photos}: no such file or folder")
    result = jaxclip.search(jaxclip.load(options.model), options.query, options.photos, top=options.top)
    for _, reason in result.skipped:
        print(f"skipped: {printable(reason)}", file=sys.stderr)
    if not result.hits:
        print(f"jaxclip search: no photos could be read in {options.photos}", file=sys.stderr)
        return 2
    width = len(str(len(result.hits)))
    for rank, hit in enumerate(result.hits, start=1):
        print(f"{rank:>{width}}  {hit.score:7.4f}  {printable(str(hit.path))}")
    return 1 if result.skipped else 0
