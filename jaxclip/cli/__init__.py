"""The command line, `jaxclip`: parsing and printing only; what a command does, a function of the library does."""

import io
import os
import sys
from collections.abc import Sequence

from jaxclip import __version__
from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.cli import embed, search, similarity
from jaxclip.cli.options import CommandParser, Parser
from jaxclip.cli.printing import complain


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, 1 when some input was skipped, 2 when it could not be done, 130
    when it was interrupted.

    Without `arguments` it is the process's own command, and keeps what JAX compiles in the user's cache folder.
    """
    parser = Parser(prog="jaxclip", description="CLIP in JAX: search photos by describing them.")
    parser.add_argument("--version", action="version", version=f"jaxclip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    for command in (embed, search, similarity):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    options.own_process = arguments is None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # As stderr: a terminal may have less than Unicode.
    try:
        return options.run(options)
    except BrokenPipeError:
        # The reader of a pipe, `head` say, has seen enough. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        complain(options, error)
        return 2
    except KeyboardInterrupt:
        complain(options, options.interrupted if "interrupted" in options else "interrupted")
        return 130
