"""Data parallelism and FSDP: where each array of a state and of a batch lies. What follows from it (which weights are
gathered when, which gradients are summed over whom) is JAX's business, under plain `jax.jit`.

    mesh = make_mesh(data=-1, fsdp=4)
    state = place(state, mesh)
    step = compile_step(state, objective=objective, optimizer=optimizer)
    for rows in batches:                          # each process its own
        state, metrics = step(state, global_batch(rows, mesh))

A mesh of one's own works as well. The batch's rows are spread over all of its axes, parameters and what the optimizer
keeps of each over the axis "fsdp", where it has one (ZeRO, arXiv 1910.02054, stage 3). Other layouts are other
`NamedSharding`s: make the tree by your own rule in place of `state_shardings`, and all else stays as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxclip.training.objectives import Batch, Metrics
from jaxclip.training.state import TrainState
from jaxclip.training.step import train_step

FSDP = "fsdp"
# Below this many values an array is whole on each device: gathering it would cost more than it holds.
SMALL = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, *, devices: Any = None) -> Mesh:
    """A mesh of the axes "data" and "fsdp" over all devices, or those given; −1 is as many as there are left. Raises
    ValueError where the sizes don't come to the number of devices."""
    devices = jax.devices() if devices is None else list(devices)
    if data == -1 and fsdp == -1:
        raise ValueError("only one of data and fsdp can be -1")
    if data == -1:
        data = len(devices) // max(fsdp, 1)
    if fsdp == -1:
        fsdp = len(devices) // max(data, 1)
    if data * fsdp != len(devices) or data < 1:
        raise ValueError(f"a mesh of {data} × {fsdp} (data × fsdp) doesn't come to {len(devices)} devices")
    return jax.make_mesh((data, fsdp), ("data", FSDP), axis_types=(AxisType.Auto,) * 2, devices=devices)


def parameter_spec(shape: tuple[int, ...], size: int, small: int = SMALL) -> PartitionSpec:
    """Of an array, spread over `size` devices: its largest axis that divides evenly. Whole on each where none does, and
    where it has fewer than `small` values."""
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0 and length > 0]
    if size == 1 or not divisible or np.prod(shape) < small:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == largest else None for axis in range(largest + 1)))


def state_shardings(state: Any, mesh: Mesh, small: int = SMALL) -> Any:
    """The tree of shardings of a state (or of its `jax.eval_shape`, or of any tree of arrays) by `parameter_spec`. What
    has the shape of a parameter goes where the parameter goes: Adam's moments, the EMA, MoCo's key encoder."""
    return jax.tree.map(lambda leaf: _sharding(leaf, mesh, small), state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: rows spread over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def place(state: TrainState, mesh: Mesh, small: int = SMALL) -> TrainState:
    """A state that is the same in every process, spread over the mesh by `state_shardings`. It may share memory with
    the one given, which is not for use once the placed one is donated."""
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, [_placed(leaf, _sharding(leaf, mesh, small)) for leaf in leaves])


def global_batch(rows: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """One batch over the mesh, of the rows that each process has: as many in each, and a multiple of its devices."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(own)) for name, own in rows.items()}


def compile_step(
    state: TrainState, *, compiler_options: dict[str, Any] | None = None, **settings: Any
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` with its settings, compiled by `jax.jit`, the state donated. The new state lies where this one does:
    what `place` spread stays so, and no compiler has to guess. Raises ValueError for a state of another structure."""
    leaves, structure = jax.tree.flatten(state)
    shardings = [leaf.sharding for leaf in leaves]

    def step(leaves: list[Any], batch: Batch) -> tuple[list[Any], Metrics]:
        state, metrics = train_step(jax.tree.unflatten(structure, leaves), batch, **settings)
        return jax.tree.leaves(state), metrics

    compiled = jax.jit(
        step,
        donate_argnums=0,
        # Said of what goes in as well: else a fresh state, which may still lie anywhere, has a program of its own.
        in_shardings=(shardings, None),
        out_shardings=(shardings, None),
        compiler_options=compiler_options,
    )

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        leaves, given = jax.tree.flatten(state)
        if given != structure:
            raise ValueError("the state is of another model, objective or optimizer than what was compiled for")
        leaves, metrics = compiled(leaves, batch)
        return jax.tree.unflatten(structure, leaves), metrics

    return run


def _sharding(leaf: Any, mesh: Mesh, small: int) -> NamedSharding:
    return NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape.get(FSDP, 1), small))


def _placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # device_put doesn't take keys to devices of other processes.
        return jax.random.wrap_key_data(_placed(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
