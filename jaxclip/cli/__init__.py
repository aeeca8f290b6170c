"""The command line, `jaxclip`: parsing and printing only; what a command does, a function of the library does."""

import argparse
import sys
from collections.abc import Sequence

from jaxclip import __version__
from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.cli import search


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, 1 when some input was skipped, 2 when it could not be done."""
    parser = argparse.ArgumentParser(prog="jaxclip", description="CLIP in JAX: search photos by describing them.")
    parser.add_argument("--version", action="version", version=f"jaxclip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    search.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"jaxclip {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"jaxclip {options.command}: interrupted", file=sys.stderr)
        return 130
