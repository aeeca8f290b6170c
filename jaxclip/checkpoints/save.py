"""From a model to the files of a Hugging Face checkpoint, written atomically."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.checkpoints.files import WEIGHTS
from jaxclip.checkpoints.load import model_parameters
from jaxclip.checkpoints.names import parameter_names
from jaxclip.checkpoints.tensors import INDEX_SUFFIX, read_index
from jaxclip.nn import CLIP


def save_model(model: CLIP, folder: Path, stored: Mapping[str, np.dtype]) -> None:
    """Writes `config.json` and `model.safetensors` with the Hub's names and layouts.

    A tensor that `stored` names goes back in the dtype that it has there, bit for bit if it wasn't changed; others
    keep the parameter's, and where all do, the config states none. Raises ValueError for parameters that the format has
    no name for or that the model's config asks for in vain, and for a value that overflows its stored dtype.
    """
    table, parameters = parameter_names(model.config), model_parameters(model)
    if strangers := sorted(parameters.keys() - table.keys()):
        raise ValueError(f"a Hugging Face CLIP checkpoint has no place for the parameters {', '.join(strangers)}")
    if missing := sorted(table.keys() - parameters.keys()):
        raise ValueError(f"the model lacks parameters that its config asks for: {', '.join(missing)}")
    tensors = {}
    for path, (name, layout) in table.items():
        value = np.asarray(parameters[path][...])
        dtype = stored.get(name, value.dtype)
        with np.errstate(over="ignore"):
            tensors[name] = np.asarray(layout.theirs(value), dtype, order="C")
        if np.isfinite(tensors[name]).sum() < np.isfinite(value).sum():
            raise ValueError(
                f"{path} has values up to {np.abs(value).max():.3g}, more than {dtype}, in which the checkpoint it was "
                "loaded from stores it, can hold: save it from a handle of its own, jaxclip.Clip(clip.model, ...)"
            )
    # transformers refuses a file whose metadata don't name the framework; "pt" is what it writes itself.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_hub()
    if not stored:
        # It may have been read beside another file, and transformers would load this one in the dtype that it states;
        # without one it takes the file's.
        for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
            part.pop("dtype", None)
            part.pop("torch_dtype", None)
    write_json(folder / "config.json", config)
    # safetensors lets nobody but the owner read its files.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing_checkpoint(folder: str | os.PathLike, *, others: Iterable[str]) -> Iterator[Path]:
    """A fresh folder to write a checkpoint to, whose files take their places in `folder` when the block ends without an
    error; a failure within the block leaves `folder` as it was.

    Each file is replaced at once, the weights last. Weights of an earlier checkpoint, and those of the `others` (its
    tokenizer, say) that weren't written, are removed then, since they would be read with or before the new ones.
    Raises NotADirectoryError and IsADirectoryError where something else is in the way.
    """
    target = Path(folder)
    if target.is_symlink() and not target.exists():
        raise NotADirectoryError(f"{target} is a link to {os.readlink(target)!r}, which is not there")
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; a checkpoint is saved to a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that moving is renaming on one file system.
    staging = target.resolve().parent / f".{target.name}.{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        yield staging
        if not target.exists():
            os.rename(staging, target)
            return
        written = sorted(staging.iterdir(), key=lambda file: (file.suffix == ".safetensors", file.name))
        if blocked := [file.name for file in written if (target / file.name).is_dir()]:
            raise IsADirectoryError(f"{target} has folders named {', '.join(blocked)}; remove or rename them")
        stale = {*_weights(target), *others} - {file.name for file in written}
        for file in written:
            os.replace(file, target / file.name)
        for name in stale:
            (target / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _weights(folder: Path) -> set[str]:
    """The names of all weights in a folder that a loader would find."""
    names: set[str] = {*WEIGHTS}
    for name in WEIGHTS:
        if name.endswith(INDEX_SUFFIX) and (folder / name).is_file():
            with contextlib.suppress(CheckpointError):  # A damaged index leads to no shards.
                names |= set(read_index(folder / name).values())
    return names
