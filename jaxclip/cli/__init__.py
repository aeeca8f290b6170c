"""The command line, `jaxclip`: parsing and printing only; what a command does, a function of the library does."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from jaxclip import __version__
from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.cli import classify, demo, detect, diff, embed, inspect, search, similarity, train
from jaxclip.cli.options import CommandParser, Parser
from jaxclip.cli.printing import complain, notes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, 1 when some input was skipped, 2 when it could not be done, 130
    when it was interrupted.

    Without `arguments` it is the process's own command, and keeps what JAX compiles in the user's cache folder.
    """
    parser = Parser(prog="jaxclip", description="CLIP in JAX: photos and texts, searched, indexed and compared.")
    parser.add_argument("--version", action="version", version=f"jaxclip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    for command in (demo, embed, search, similarity, classify, detect, diff, inspect, train):
        command.add_to(commands)
    try:
        options = parser.parse_args(arguments)
    except SystemExit:  # After --help, too.
        failure = _finish_output()
        if failure and not isinstance(failure, BrokenPipeError):
            parser.exit(2, f"jaxclip: the output could not be written: {failure}\n")
        raise
    options.own_process = arguments is None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # As stderr: a terminal may have less than Unicode.
    status = _run(options)
    failure = _finish_output()
    if failure and status in (0, 1) and not isinstance(failure, BrokenPipeError):
        complain(options, f"the output could not be written: {failure}")
        return 2
    return status


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options)
    except BrokenPipeError as error:
        # The reader of a pipe, `head` say, has seen enough, and the work was done: its status is known from then on.
        if "status" in options:
            return options.status
        complain(options, error)
        return 2
    # JAX's errors (out of memory, no such backend) are RuntimeErrors.
    except (CheckpointError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        complain(options, error)
        return 2
    except KeyboardInterrupt as error:
        why = [*notes(error)] or [options.kept if "kept" in options else None]
        complain(options, "; ".join(["interrupted", *filter(None, why)]))
        return 130


def _finish_output() -> OSError | None:
    """Writes what is still buffered. Where that fails, says why, and drops it: Python would try once more when it ends,
    complain, and change the exit status."""
    try:
        print(end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
