"""What a run says of itself, a JSON object a line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxclip.atomic import write_atomically


class TrainingLog:
    """`log.jsonl` of a run, begun, or gone on with after the line of step `upto`: what comes later there is cut off.

    Every line is strictly valid JSON; what is no finite number is null. `writes=False` writes and cuts nothing: of
    several processes one does.
    """

    def __init__(self, path: str | os.PathLike, *, upto: int, writes: bool = True):
        self.path, self.writes = Path(path), writes
        if not writes:
            return
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in self.records() if record["step"] <= upto]
        content = "".join(lines).encode()
        if not self.path.exists() or self.path.read_bytes() != content:
            write_atomically(self.path, content)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a line. Raises OSError, naming the file, where it can't be written."""
        if not self.writes:
            return
        line = json.dumps(_valid(record), allow_nan=False) + "\n"
        try:
            # Opened for each: nothing is left in a buffer for a kill to take, nor for a full disk to refuse later.
            with open(self.path, "ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def records(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return read_log(self.path) if self.path.exists() else []


def read_log(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`, without a last one that a kill or a full disk cut short. Raises ValueError, naming
    the line, for any other that is no JSON object with a step."""
    records = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # After the last line break: nothing, or what was cut short.
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError(f"its step is {record['step']!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: line {number} is none of a training log ({error}); put the file aside to go on without it"
            ) from error
        records.append(record)
    return records


def _valid(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _valid(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
