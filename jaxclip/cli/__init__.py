"""The command line, `jaxclip`: parsing and printing only; what a command does, a function of the library does."""

import argparse
import os
import sys
from collections.abc import Sequence

from jaxclip import __version__
from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.cli import search
from jaxclip.cli.printing import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, 1 when some input was skipped, 2 when it could not be done."""
    parser = argparse.ArgumentParser(prog="jaxclip", description="CLIP in JAX: search photos by describing them.")
    parser.add_argument("--version", action="version", version=f"jaxclip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    search.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:
        # The reader of a pipe, `head` say, has seen enough. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CheckpointError, OSError, ValueError) as error:
        print(f"jaxclip {options.command}: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"jaxclip {options.command}: interrupted", file=sys.stderr)
        return 130
