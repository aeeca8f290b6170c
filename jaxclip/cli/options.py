"""What the commands have in common: how arguments are read, and which model is loaded."""

import argparse
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from jaxclip.cli.printing import complain, printable

if TYPE_CHECKING:
    from jaxclip.clip import Clip

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
_PLAIN = "\0 "  # Before a word that is no option whatever it begins with; no shell can pass it.
DTYPES = ("float32", "tensorfloat32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


class CommandParser(Parser):
    """Takes options anywhere, between two positional arguments as well."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self._inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._inside:  # `parse_known_intermixed_args` comes back here.
            return super().parse_known_args(args, namespace)
        if "--" in args:
            # argparse forgets what these words stand behind. A word with a space in it is no option to it.
            end = args.index("--")
            args = [*args[:end], *(_PLAIN + word for word in args[end + 1 :])]
        self._inside = True
        try:
            found, rest = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False
        for name, value in vars(found).items():
            if isinstance(value, str):
                setattr(found, name, value.removeprefix(_PLAIN))
        return found, [word.removeprefix(_PLAIN) for word in rest]


def add_model_options(parser: argparse.ArgumentParser, *, indexed: bool = False) -> None:
    """The options that say which model it is; `indexed` where an index may say so."""
    otherwise = "the index's, or else " if indexed else ""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a Hugging Face Hub id, a local folder, or emoji, the bundled model (default: "
        f"{otherwise}{DEFAULT_MODEL})",
    )
    parser.add_argument("--revision", help="a branch, tag or commit of the Hub")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"what is computed with (default: {otherwise}float32); the others are faster on GPUs and TPUs",
    )


def add_logit_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--logit-scale",
        type=float,
        metavar="LOG",
        help="the logarithm of what cosines are multiplied by (default: the model's own; a lone image tower has none)",
    )


def load(
    options: argparse.Namespace,
    *,
    towers: Literal["both", "text", "vision"] = "both",
    model: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
) -> "Clip":
    """The model that the options name, or else the one that is given here, or else the default."""
    # Here, and not above: `--help` and a mistyped option shouldn't wait for JAX.
    import jaxclip

    keep_compiled(options)
    return jaxclip.load(
        options.model or model or DEFAULT_MODEL,
        revision=options.revision or (None if options.model else revision),
        dtype=options.dtype or dtype or "float32",
        towers=towers,
    )


def keep_compiled(options: argparse.Namespace) -> None:
    """Keeps compiled programs for the next process, where this one is the command's own."""
    import jaxclip

    if options.own_process:
        try:
            jaxclip.enable_compilation_cache()
        except OSError as error:
            complain(options, f"programs are compiled anew each time: no cache folder ({error})")
