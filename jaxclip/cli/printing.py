"""What every command prints with."""

import argparse
import shutil
import sys
from collections.abc import Sequence


def printable(text: str) -> str:
    """The text on one line and in any encoding's reach: line breaks, control characters and bytes that are no text, as
    file names may hold them, become backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def complain(options: argparse.Namespace, what: object) -> None:
    """One line on the error stream that says which command it is from, and one for each note of an exception."""
    # XLA describes a GPU's whole memory behind the first line, and Python's own MemoryError says nothing.
    first = str(what).partition("\n")[0] if isinstance(what, RuntimeError) else str(what)
    if isinstance(what, BaseException) and not first:
        first = type(what).__name__
    for line in (first, *(notes(what) if isinstance(what, BaseException) else ())):
        print(f"jaxclip {options.command}: {printable(line)}", file=sys.stderr)


def notes(error: BaseException) -> list[str]:
    """What was added to an exception, but for what JAX adds about its tracebacks."""
    return [note for note in getattr(error, "__notes__", ()) if not note.startswith("-----")]


def print_skipped(options: argparse.Namespace, skipped: Sequence[tuple[object, str]]) -> None:
    """Names what was skipped, once the work is done, and keeps the exit status that follows from it in the options."""
    options.status = 1 if skipped else 0
    for _, reason in skipped:
        print(f"skipped: {printable(reason)}", file=sys.stderr)


def print_ranked(scores: Sequence[float], items: Sequence[str], *, heading: str) -> None:
    """Rank, score and item, a line for each. On a terminal under a heading and no wider than it; elsewhere whole."""
    rank_width = len(str(len(items)))
    room = None
    if sys.stdout and sys.stdout.isatty():
        rank_width = max(rank_width, len("rank"))
        room = max(20, shutil.get_terminal_size().columns - rank_width - 11)
        print(f"{'rank':>{rank_width}}  {'score':>7}  {heading}")
    for rank, (score, item) in enumerate(zip(scores, items, strict=True), start=1):
        text = printable(item)
        print(f"{rank:>{rank_width}}  {score:7.4f}  {text if room is None else shortened(text, room)}")


def shortened(text: str, columns: int) -> str:
    """At most so many columns of a terminal, with "…" for the middle: a path's end says more than that."""
    from rich.cells import cell_len

    if cell_len(text) <= columns:
        return text
    kept = len(text)
    while kept and cell_len(text[: kept // 3]) + cell_len(text[len(text) - (kept - kept // 3) :]) >= columns:
        kept -= 1
    return f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"
