"""From a checkpoint's folder to the oracle."""

import json
import os
from pathlib import Path

from safetensors.numpy import load_file

from jaxclip.config import CLIPConfig
from jaxclip.reference.model import Oracle


def load(folder: str | os.PathLike[str], *, precision: str = "float64") -> Oracle:
    """The oracle of a folder with `config.json` and `model.safetensors`, or its shards with their index.

    `precision` as `Oracle` has it. Raises FileNotFoundError where one of these is missing: `Oracle(config, tensors)`
    takes tensors from anywhere. Raises ValueError for a config that isn't CLIP's.
    """
    path = Path(folder)
    config = CLIPConfig.from_hub(json.loads((path / "config.json").read_text("utf-8")))
    index = path / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.exists():
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(path / shard).items()}
    return Oracle(config, tensors, precision=precision)
