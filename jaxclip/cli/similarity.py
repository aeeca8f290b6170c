"""`jaxclip similarity --texts FILE --images FOLDER`"""

import argparse
import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip.atomic import write_atomically
from jaxclip.cli.options import add_model_options, load
from jaxclip.cli.output import PICTURES, check_output, check_spares
from jaxclip.cli.printing import complain, print_skipped, printable

if TYPE_CHECKING:
    from jaxclip.tasks.similarity_matrix import SimilarityMatrix


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "similarity",
        help="compare every text with every image",
        description="Prints the cosine similarity of every text and every image as CSV: a line for each text, a\n"
        "column for each image. Files that can't be read are named on the error stream and skipped; the\n"
        "exit status is then 1.",
        epilog="examples:\n"
        "  jaxclip similarity --texts captions.txt --images photos/ > matrix.csv\n"
        "  jaxclip similarity --texts captions.txt --images photos/ -o matrix.png",
    )
    parser.add_argument("--texts", required=True, metavar="FILE", help="a text on each line, UTF-8")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="a folder, with its sub-folders, or one file")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help=f"write the numbers to FILE.csv, or draw a heat map ({', '.join(PICTURES)}) and write them beside it",
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    for path in (options.texts, options.images):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
    if options.output:
        check_output(options.output, (*PICTURES, ".csv"))
        check_output(_numbers(options.output), (".csv",))
        for path in (options.output, _numbers(options.output)):
            check_spares(path, files=[options.texts], folder=options.images)

    import jaxclip
    from jaxclip.tasks.captions import captions_in

    texts = list(captions_in(options.texts))
    if not texts:
        raise ValueError(f"{options.texts}: there is no text in it")
    matrix = jaxclip.similarity_matrix(load(options), texts, options.images)
    print_skipped(options, matrix.skipped)
    if not matrix.images:
        complain(options, f"no photos could be read in {options.images}")
        return 2
    if options.output is None:
        print(_csv(matrix), end="")
    else:
        _write(options.output, matrix)
    return options.status


def _csv(matrix: "SimilarityMatrix") -> str:
    """As few digits as tell a float32 from its neighbours."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["text", *map(str, matrix.images)])
    writer.writerows([text, *map(str, row)] for text, row in zip(matrix.texts, matrix.values, strict=True))
    return lines.getvalue()


def _numbers(path: Path) -> Path:
    """Where they are written, beside a picture or alone."""
    return path if path.suffix.lower() == ".csv" else path.with_suffix(".csv")


def _write(path: Path, matrix: "SimilarityMatrix") -> None:
    numbers = _numbers(path)
    # A name that is no UTF-8 has escapes in place of its bytes.
    write_atomically(numbers, _csv(matrix).encode(errors="backslashreplace"))
    written = str(numbers)
    if path.suffix.lower() in PICTURES:
        from jaxclip.plotting import similarity_heat_map, write_figure

        write_figure(path, similarity_heat_map(matrix.values, matrix.texts, matrix.images))
        written = f"{path} and {numbers}"
    print(f"{printable(written)}: {len(matrix.texts)} texts, {len(matrix.images)} images")
