"""Telling models apart by their parameters."""

import hashlib

import numpy as np

from jaxclip.checkpoints.load import model_parameters
from jaxclip.nn import CLIP

# Values read of each parameter. Training changes all of them, so that few are enough; the larger ones are not read.
_SAMPLES = 64


def fingerprints(model: CLIP) -> dict[str, str]:
    """For each tower that the model has, "vision" and "text", the SHA-256 of its parameters' paths, shapes and some of
    their values, and of the settings that they don't show.

    Values are read as float32, at up to 64 places that are spread evenly over each parameter (flattened, channels
    last). The temperature, which is no tower's, changes no vector and doesn't count.
    """
    parameters = sorted(model_parameters(model).items())
    found = {}
    for tower in ("vision", "text"):
        if getattr(model, tower) is None:
            continue
        config = getattr(model, tower).config
        settings = (config.num_attention_heads, config.hidden_act, config.layer_norm_eps)
        digest = hashlib.sha256(repr((*settings, getattr(config, "pooling", None))).encode())
        for path, parameter in parameters:
            if path.split(".")[0] == tower:
                values = np.asarray(parameter[...]).reshape(-1)
                places = np.linspace(0, values.size - 1, min(_SAMPLES, values.size)).astype(np.int64)
                digest.update(f"{path} {tuple(parameter.shape)}\n".encode())
                digest.update(values[places].astype("<f4").tobytes())
        found[tower] = digest.hexdigest()
    return found
