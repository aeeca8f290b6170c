"""`jaxclip diff A B`"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip.atomic import write_atomically
from jaxclip.cli.options import DTYPES, keep_compiled
from jaxclip.cli.output import PICTURES, check_output
from jaxclip.cli.printing import printable

if TYPE_CHECKING:
    from jaxclip.compare import Diff


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "diff",
        help="say whether two implementations agree, where they first part, and why",
        description="Runs both on the same texts and images and compares every intermediate tensor, judged by what\n"
        "rounding does to a float64 oracle. Where they part, the oracle tries the known mistakes and names\n"
        "the one that reproduces what is wrong. The exit status is 0 when they agree, 1 when they don't, and\n"
        "2 when they could not be compared.",
        epilog="A and B are one of\n"
        "  MODEL          a Hub id or folder, run by jaxclip\n"
        "  oracle:MODEL   run by the oracle, in float64 NumPy\n"
        "  torch:MODEL    run by transformers, if it is installed\n"
        "  FILE           tensors by name (.safetensors or .npz): jaxclip.compare.names lists the names\n\n"
        "examples:\n"
        "  jaxclip diff openai/clip-vit-base-patch32 oracle:openai/clip-vit-base-patch32\n"
        "  jaxclip diff oracle:checkpoint/ mine.safetensors -o report.html",
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--model", metavar="MODEL", help="the checkpoint to judge by, where A and B are files")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="what jaxclip computes with (default: float32)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help=f"write a report (.html), or draw how the error grows ({', '.join(PICTURES)})",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.output:
        check_output(options.output, (*PICTURES, ".html"))
        for side in (options.a, options.b):
            if options.output.exists() and Path(side).exists() and options.output.samefile(side):
                raise ValueError(f"{options.output}: is an input, and would be overwritten: name another file")

    from jaxclip.compare import diff
    from jaxclip.compare.report import to_json
    from jaxclip.compare.sources import open_sides

    keep_compiled(options)
    a, b, model, notes = open_sides(options.a, options.b, model=options.model, dtype=options.dtype)
    found = diff(a, b, model=model, notes=tuple(notes))
    options.status = 0 if found.agree else 1
    if options.output:
        _write(options.output, found, options.a, options.b)
    if options.json:
        print(json.dumps(to_json(found), indent=1))
    else:
        _print(found)
    return options.status


def _write(path: Path, found: "Diff", a: str, b: str) -> None:
    from jaxclip.compare.report import figure, page
    from jaxclip.plotting import require_matplotlib, write_figure

    require_matplotlib()
    if path.suffix.lower() == ".html":
        write_atomically(path, page(found, a, b).encode(errors="backslashreplace"))
    else:
        write_figure(path, figure(found, a, b))


def _print(found: "Diff") -> None:
    from jaxclip.compare.report import COLUMNS, cells, described, explained, verdict

    if not (sys.stdout and sys.stdout.isatty()):
        print(described(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index in (0, 1, 6) else "right", no_wrap=index < 6)
    for row in found.rows:
        style = {True: "green", False: "red", None: "dim"}[row.agrees]
        table.add_row(*map(printable, cells(row)), style=style)
    console = Console(highlight=False, markup=False)
    console.print(table)
    print()
    for note in found.notes:
        console.print(printable(note))
    console.print(verdict(found), style="bold green" if found.agree else "bold red")
    for line in explained(found):
        console.print(printable(line))
