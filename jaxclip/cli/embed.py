"""`jaxclip embed PHOTOS -o INDEX --model MODEL`"""

import argparse
import os
import time
from typing import Any

from jaxclip.cli.options import add_model_options, load
from jaxclip.cli.printing import print_skipped, printable


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "embed",
        help="index photos, so that searching them is quick",
        description="Computes the vectors of all photos under a folder and keeps them in another folder, the index.\n"
        "Run again, it does what is new: added, changed and removed photos. Interrupted, it goes on\n"
        "where it was. Files that can't be read are named on the error stream; the exit status is then 1.",
        epilog="example: jaxclip embed photos/ -o index/ --model openai/clip-vit-base-patch32",
    )
    parser.add_argument("photos", metavar="PHOTOS", help="a folder, with its sub-folders")
    parser.add_argument("-o", dest="index", metavar="INDEX", required=True, help="the index's folder, made if need be")
    add_model_options(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="photos at a time (default: what suits the device)")
    parser.set_defaults(run=run, kept="what was done is kept: run it again to go on")


def run(options: argparse.Namespace) -> int:
    if not os.path.isdir(options.photos):
        raise NotADirectoryError(f"{options.photos}: no such folder")
    import jaxclip

    # Both towers: the index tells by its marks of both whether a query is encoded by the same model.
    clip = load(options)
    start = time.perf_counter()
    result = jaxclip.embed_folder(clip, options.photos, options.index, batch_size=options.batch_size)
    seconds = time.perf_counter() - start
    print_skipped(options, result.skipped)
    new = result.added + result.changed
    counts = f"added {result.added}, changed {result.changed}, removed {result.removed}, unchanged {result.unchanged}"
    rate = f"; {new / seconds:.1f} photos a second" if new else ""
    print(f"{printable(options.index)}: {len(result.index)} photos ({counts}){rate}")
    return options.status
