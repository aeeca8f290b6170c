"""Checkpoints of a training run, by orbax: written in the background, whole or not at all, the newest kept."""

import base64
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxclip.training.state import TrainState


class Checkpoints:
    """The checkpoints in a folder, by step. A context manager: leaving it waits for what is still being written.

        with Checkpoints("run/checkpoints", keep=3) as checkpoints:
            if checkpoints.latest_step is not None:
                state, data = checkpoints.restore(state)
            ...
            checkpoints.save(state, data=iterator.get_state())

    A checkpoint has the state's arrays by name, no code and no pickle, and as JSON where each process's data iterator
    was and what else the caller notes. One that isn't complete has another name, and is never restored.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 3):
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step", cleanup_tmp_directories=True),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
        )

    def save(self, state: TrainState, *, data: Any = None, notes: Mapping[str, Any] | None = None) -> None:
        """Begins to write the state, by its step, and returns when its arrays may be donated. In a run of several
        processes all call it.

        `data`: this process's data iterator's state, bytes or what JSON can hold. `notes`: what JSON can hold, the same
        in all processes. A step that is there already is left as it is.

        Raises OSError when it can't be written (a full disk), here or at the next call of `save`, `wait` or `close`:
        what is complete stays as it is.
        """
        step = int(state.step)
        if step in self.steps:
            return
        iterators = _of_all_processes(_encoded(data))
        arrays = _arrays(state)
        size, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(self.folder).free
        if free < size:
            raise OSError(
                errno.ENOSPC,
                f"no room for a checkpoint, which takes {size:,} bytes: {free:,} are free",
                str(self.folder),
            )
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            notes=ocp.args.JsonSave({"data": iterators, "notes": dict(notes or {})}),
        )
        with self._writing():
            self._manager.save(step, args=args, force=True)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Any, dict[str, Any]]:
        """A step's (the latest's) state, this process's `data`, and the `notes`.

        `like` is a state of the same model, objective and optimizer, or its `jax.eval_shape` with shardings: the arrays
        come to lie where its arrays do, however many devices they were saved from. Raises FileNotFoundError where there
        is no such step, ValueError where names or shapes are others, and for `data` of another number of processes.
        """
        step = self.latest_step if step is None else step
        if step not in self.steps:
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.folder}, only {self.steps}")
        notes = self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(like))
        self._check(step, wanted)
        arrays = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))["state"]
        if len(notes["data"]) != jax.process_count():
            raise ValueError(
                f"step {step} was saved by {len(notes['data'])} processes, each with its own place in the data, and "
                f"there are {jax.process_count()} now"
            )
        data = notes["data"][jax.process_index()]
        return _like(like, arrays), _iterator(data), notes["notes"]

    @property
    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, or one being written."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The last of them, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Until all that was saved is written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # tensorstore's are ValueErrors.
            why = str(error).partition("\n")[0]
            raise OSError(f"{self.folder}: a checkpoint could not be written, the earlier are whole: {why}") from error

    def _check(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """One error of all that differs; orbax's own names the first."""
        metadata = self._manager.item_metadata(step)["state"]
        there = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in metadata.items()}
        asked = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
        problems = [f"missing: {name}" for name in sorted(asked.keys() - there.keys())]
        problems += [f"unexpected: {name}" for name in sorted(there.keys() - asked.keys())]
        problems += [
            f"{name} is {there[name]}, expected {asked[name]}"
            for name in sorted(asked.keys() & there.keys())
            if asked[name] != there[name]
        ]
        if problems:
            raise ValueError(
                f"the checkpoint of step {step} is of another model, objective or optimizer:\n" + "\n".join(problems)
            )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _named(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _arrays(state: TrainState) -> dict[str, Any]:
    """Name → array; of random keys what they are made of."""

    def plain(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.Array):
            return jax.random.key_data(leaf)
        shape = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=leaf.sharding)

    return {name: plain(leaf) for name, leaf in _named(state).items()}


def _like(state: TrainState, arrays: Mapping[str, jax.Array]) -> TrainState:
    """`_arrays` undone."""
    leaves = [
        jax.random.wrap_key_data(arrays[name], impl=_key_kind(leaf)) if _is_key(leaf) else arrays[name]
        for name, leaf in _named(state).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _key_kind(leaf: Any) -> Any:
    """Of a key, or of its shape, which `key_impl` alone doesn't take."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _iterator(encoded: Any) -> Any:
    """A data iterator's state from the JSON that `_encoded` made of it."""
    return base64.b64decode(encoded["bytes"]) if encoded["bytes"] is not None else encoded["json"]


def _encoded(data: Any) -> dict[str, Any]:
    """A data iterator's state as JSON."""
    if isinstance(data, bytes):
        return {"bytes": base64.b64encode(data).decode(), "json": None}
    return {"bytes": None, "json": data}


def _of_all_processes(own: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has, in all of them."""
    if jax.process_count() == 1:
        return [own]
    line = np.frombuffer(json.dumps(own).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(line)))
    lines = multihost_utils.process_allgather(np.pad(line, (0, int(lengths.max()) - len(line))))
    return [json.loads(bytes(line[:length])) for line, length in zip(lines, lengths, strict=True)]
