"""From a model to the files of a Hugging Face checkpoint, written atomically."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxclip.checkpoints.load import model_parameters
from jaxclip.checkpoints.names import parameter_names
from jaxclip.nn import CLIP


def save_model(model: CLIP, folder: Path, stored: Mapping[str, np.dtype]) -> None:
    """Writes `config.json` and `model.safetensors` with the Hub's names and layouts.

    A tensor that `stored` names goes back in the dtype that it has there, bit for bit if it wasn't changed; others
    keep the parameter's. Raises ValueError for a parameter that the format has no name for.
    """
    table, parameters = parameter_names(model.config), model_parameters(model)
    strangers = sorted(parameters.keys() - table.keys())
    if strangers:
        raise ValueError(f"a Hugging Face CLIP checkpoint has no place for the parameters {', '.join(strangers)}")
    tensors = {}
    for path, (name, layout) in table.items():
        value = np.asarray(parameters[path][...])
        tensors[name] = np.asarray(layout.theirs(value), stored.get(name, value.dtype), order="C")
    # transformers refuses a file whose metadata don't name the framework; "pt" is what it writes itself.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model.config.to_hub())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A fresh folder to write to, whose files take their places in `folder` when the block ends without an error.

    Until then nothing of `folder` is touched; a failure (a full disk, Ctrl-C) leaves it as it was. Other files of an
    existing folder stay.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; a checkpoint is saved to a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that moving is renaming on one file system.
    staging = target.resolve().parent / f".{target.name}.{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        yield staging
        if target.exists():
            for file in staging.iterdir():
                os.replace(file, target / file.name)
        else:
            os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
