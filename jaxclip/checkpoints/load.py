"""From a checkpoint's tensors to a filled model: a bijection, or one error that says all that is wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.checkpoints.names import Layout, is_exempt, parameter_names, with_prefix
from jaxclip.checkpoints.tensors import Tensor
from jaxclip.config import CLIPConfig
from jaxclip.nn import CLIP, Abstract


def fill_model(
    tensors: Mapping[str, Tensor],
    config: CLIPConfig,
    whole: CLIPConfig,
    *,
    model: Callable[..., CLIP] = CLIP,
    dtype: Any = "float32",
    param_dtype: Any = "float32",
) -> tuple[CLIP, dict[str, np.dtype]]:
    """Makes `model(config, ...)` without values and reads every parameter from `tensors`, one by one.

    `whole` is the checkpoint's own config, of which `config` is all or one tower. Returns the model and the dtype in
    which the file holds each tensor. Raises CheckpointError listing every tensor that is missing, unexpected, of the
    wrong shape or not of numbers, before any is read.
    """
    _check_depth(config, tensors)
    built = model(config, dtype=dtype, param_dtype=param_dtype, rngs=Abstract())
    parameters = model_parameters(built)
    table = parameter_names(config)
    found = _under_table_names(tensors, whole)
    if problems := _mismatches(found, parameters, table, config, whole).lines():
        files = ", ".join(sorted({str(tensor.file) for tensor in found.values()})) or "the checkpoint"
        raise CheckpointError(f"{files} and its config.json don't fit together:\n  " + "\n  ".join(problems))
    stored = {}
    for path, (name, layout) in table.items():
        # NumPy transposes far slower than XLA's transfer, which takes strides as they are.
        parameters[path].set_value(jnp.asarray(layout.ours(found[name].read()), jnp.dtype(param_dtype)))
        stored[name] = found[name].dtype
    return built, stored


def model_parameters(model: nnx.Module) -> dict[str, nnx.Param]:
    """Path → parameter, for all of the model's."""
    return {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}


@dataclass(frozen=True)
class Mismatches:
    """How a checkpoint's tensors and its config.json differ; nothing anywhere means that it loads.

    - `missing`: names; `unexpected`: names with shapes
    - `misfits`: in words, each tensor that is of another shape or dtype, and what a model class has of its own
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]

    def lines(self) -> list[str]:
        return [
            *(f"missing: {name}" for name in self.missing),
            *(f"unexpected: {name}" for name in self.unexpected),
            *self.misfits,
        ]


def mismatches(tensors: Mapping[str, Tensor], config: CLIPConfig) -> Mismatches:
    """What would stop `fill_model` from loading a whole checkpoint, told from the headers. Raises CheckpointError for
    a config.json that asks for more layers than there are tensors."""
    _check_depth(config, tensors)
    parameters = model_parameters(CLIP(config, rngs=Abstract()))
    return _mismatches(_under_table_names(tensors, config), parameters, parameter_names(config), config, config)


def _check_depth(config: CLIPConfig, tensors: Mapping[str, Tensor]) -> None:
    """Before a model of that depth is built."""
    depth = max(tower.num_hidden_layers for tower in (config.text, config.vision) if tower)
    if depth > len(tensors):
        raise CheckpointError(f"config.json asks for {depth} layers, and the files hold only {len(tensors)} tensors")


def _under_table_names(tensors: Mapping[str, Tensor], whole: CLIPConfig) -> dict[str, Tensor]:
    names = with_prefix(tensors, whole)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _mismatches(
    found: Mapping[str, Tensor],
    parameters: Mapping[str, nnx.Param],
    table: Mapping[str, tuple[str, Layout]],
    config: CLIPConfig,
    whole: CLIPConfig,
) -> Mismatches:
    expected = {name for name, _ in table.values()}
    misfits = []
    for path, (name, layout) in table.items():
        if name not in found:
            continue
        tensor = found[name]
        if path not in parameters:
            misfits.append(f"{name} has no place: the model class has no parameter {path}")
            continue
        shape = layout.their_shape(parameters[path].shape)
        if tensor.shape != shape:
            misfits.append(f"shape: {name} is {list(tensor.shape)}, config.json asks for {list(shape)}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            misfits.append(f"dtype: {name} is {tensor.dtype}, not floating point")
    misfits += [
        f"not in the checkpoint: the model class has a parameter {path} of its own (add it after loading)"
        for path in parameters
        if path not in table
    ]
    return Mismatches(
        missing=tuple(name for name, _ in table.values() if name not in found),
        unexpected=tuple(
            f"{name} {list(tensor.shape)}"
            for name, tensor in found.items()
            if name not in expected and not is_exempt(name, config, whole)
        ),
        misfits=tuple(misfits),
    )
