"""Telling models apart by their parameters."""

import hashlib
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32

from jaxclip.checkpoints.load import model_parameters
from jaxclip.nn import CLIP

# Values read of each parameter. Training changes all of them, so that few are enough; the larger ones are not read.
_SAMPLES = 64


def fingerprints(model: CLIP) -> dict[str, str]:
    """For each tower that the model has, "vision" and "text", the SHA-256 of its parameters' paths, shapes and some of
    their values, and of the settings that they don't show.

    Values are read as float32, at up to 64 places that are spread evenly over each parameter (flattened, channels
    last), and only those leave the device. They are the parameters' as loaded: half-precision ones (`param_dtype`) are
    other values, so another model, where the file has more digits. The temperature, which is no tower's, changes no
    vector and doesn't count.
    """
    parameters = sorted(model_parameters(model).items())
    found = {}
    for tower in ("vision", "text"):
        if getattr(model, tower) is None:
            continue
        config = getattr(model, tower).config
        names = ("num_attention_heads", "hidden_act", "layer_norm_eps", "pooling", "eos_token_id")
        digest = hashlib.sha256(repr([getattr(config, name, None) for name in names]).encode())
        values = {path: parameter[...] for path, parameter in parameters if path.split(".")[0] == tower}
        for (path, value), sample in zip(values.items(), _samples(list(values.values())), strict=True):
            digest.update(f"{path} {value.shape}\n".encode())
            digest.update(np.asarray(sample).astype("<f4").tobytes())
        found[tower] = digest.hexdigest()
    return found


def _samples(values: list[Array]) -> list[Float32[np.ndarray, " n"]]:
    return jax.device_get([_on_host(value) if _is_here(value) else _on_device(value) for value in values])


def _is_here(value: Array) -> bool:
    """Whether NumPy reads it where it lies, without a copy."""
    return not isinstance(value, jax.Array) or [device.platform for device in value.devices()] == ["cpu"]


def _on_host(value: Array) -> Float32[np.ndarray, " n"]:
    return np.asarray(value)[_places(value.shape)].reshape(-1).astype(np.float32)


def _on_device(value: Array) -> Float32[Array, " n"]:
    sharding = value.sharding
    # Of a mesh's explicit axes JAX asks where the result shall lie.
    everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    return _gathered(value, _places(value.shape), everywhere)


@partial(jax.jit, static_argnums=2)
def _gathered(
    value: Array,
    places: tuple[Int32[Array, " n"] | Int32[np.ndarray, " n"], ...],
    sharding: NamedSharding | None,
) -> Float32[Array, " n"]:
    return value.at[places].get(out_sharding=sharding).reshape(-1).astype(np.float32)


def _places(shape: tuple[int, ...]) -> tuple[Int32[np.ndarray, " n"], ...]:
    """One array an axis: no number is too large for int32, however many values there are."""
    if not shape:
        return ()
    size = int(np.prod(shape))
    flat = np.linspace(0, size - 1, min(_SAMPLES, size)).astype(np.int64)
    return tuple(axis.astype(np.int32) for axis in np.unravel_index(flat, shape))
