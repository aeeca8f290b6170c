"""What an index says of itself."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxclip.atomic import write_atomically

NAME = "manifest.json"
FORMAT = "jaxclip index"
VERSION = 1


@dataclass(frozen=True)
class ModelIdentity:
    """The model that computed an index's vectors.

    - `source`, `revision`: where it was loaded from (for the Hub, the commit), None where nobody knows
    - `dtype`: the computation's
    - `fingerprints`: tower → a hash of its parameters (`jaxclip.tasks.fingerprint`)
    """

    source: str | None
    revision: str | None
    dtype: str
    fingerprints: Mapping[str, str]

    def __str__(self) -> str:
        name = "a model of your own" if self.source is None else repr(self.source)
        marks = ", ".join(f"{tower} {mark[:8]}" for tower, mark in self.fingerprints.items())
        return f"{name} ({f'revision {self.revision}, ' if self.revision else ''}{marks})"


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`.

    - `preprocessing`: as in `preprocessor_config.json`, and whether EXIF orientation counts
    - `width`: numbers in a vector
    - `root`: the folder of the photos
    - `blocks`: name → rows, in the order of the index's rows; files of other blocks are leftovers
    - `next_block`: the number of the next one: no name is used twice, so that readers never mix two
    """

    model: ModelIdentity
    preprocessing: Mapping[str, Any]
    width: int
    root: str
    blocks: Mapping[str, int]
    next_block: int

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises FileNotFoundError where there is no index, and ValueError for a damaged one and one of a newer
        version."""
        path = folder / NAME
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder, so no index")
        if not path.exists():
            raise FileNotFoundError(f"{folder}: no index there (no {NAME}); embed makes one")
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            version = int(content["version"])
            if version <= VERSION:
                return cls(
                    model=ModelIdentity(**content["model"]),
                    preprocessing=dict(content["preprocessing"]),
                    width=int(content["width"]),
                    root=str(content["root"]),
                    blocks={str(block["name"]): int(block["rows"]) for block in content["blocks"]},
                    next_block=int(content["next_block"]),
                )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise damaged(path, error) from error
        raise ValueError(
            f"{folder}: an index of format version {version}, and this jaxclip reads up to {VERSION}: install a newer "
            "one"
        )

    def write(self, folder: Path) -> None:
        blocks = [{"name": name, "rows": rows} for name, rows in self.blocks.items()]
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self), "blocks": blocks}
        write_atomically(folder / NAME, (json.dumps(content, indent=1) + "\n").encode())


def damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"{path}: no part of a whole index ({why}). Remove the folder {path.parent} and embed the photos again"
    )


def is_index(folder: str | os.PathLike) -> bool:
    """Whether the folder is an index, be it one that is damaged or of a newer version."""
    try:
        path = Path(folder, NAME)
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(100)
    except OSError:
        return False
