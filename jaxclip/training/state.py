"""All that a training run carries from step to step, as one pytree."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from jaxclip.nn import CLIP
from jaxclip.training.objectives import Objective

Parameters = dict[str, Any]
HEAD = "head."


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What `train_step` takes and gives back, and what a checkpoint holds. A pytree: jit, shard, donate, save it.

    - `step`: the updates made so far
    - `model`: with float32 parameters, the masters of whatever dtype it computes in (`CLIP(config, dtype="bfloat16")`)
    - `head`: parameters that the objective learns besides the model's (SigLIP's bias), or None. They are no part of
      the model, so that it stays one which `Clip.save` can write in the Hub's format.
    - `optimizer_state`: optax's, for a dict of the trained parameters by name
    - `ema`: the model with the moving average of its parameters, or None
    - `extras`: what else the objective carries (MoCo's key encoder and queue), or None
    - `key`: of the run; step n draws from `fold_in(key, n)`
    - `frozen`: parts that are not trained, by the beginning of their parameters' names: "vision", "text.blocks.0"
    """

    step: Int[Array, ""]
    model: CLIP
    head: Any
    optimizer_state: Any
    ema: CLIP | None
    extras: Any
    key: Key[Array, ""]
    frozen: tuple[str, ...] = field(metadata={"static": True}, default=())

    @classmethod
    def create(
        cls,
        model: CLIP,
        *,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        key: Key[Array, ""],
        frozen: tuple[str, ...] = (),
        ema: bool = False,
    ) -> "TrainState":
        """At step 0. What the objective has no use for (the text tower, in SimCLR) is frozen as well.

        The model is copied: the step that donates the state leaves the caller's as it is. Under `jax.jit` with
        `out_shardings` the state is born sharded. Raises ValueError for a frozen part that the model hasn't got, when
        nothing is left to train, and for trained parameters that aren't at least float32.
        """
        names = named_parameters(model)
        for part in frozen:
            if not any(_belongs(name, part) for name in names):
                raise ValueError(f"the model has no parameters of the name {part!r}, which shall be frozen")
        frozen = (*frozen, *(part for part in objective.unused if part not in frozen))
        head, extras = objective.init(model)
        parameters = trained_parameters(model, head, frozen)
        if not any(not name.startswith(HEAD) for name in parameters):
            raise ValueError(f"nothing is left of the model to train: frozen are {', '.join(frozen)}")
        if narrow := sorted(name for name, value in parameters.items() if value.dtype.itemsize < 4):
            raise ValueError(
                f"{narrow[0]} and {len(narrow) - 1} more are {parameters[narrow[0]].dtype}: train float32 parameters, "
                "which small updates don't get lost in, and set the computation's dtype instead"
            )

        def copy(tree):
            return jax.tree.map(jnp.copy, tree)

        return cls(
            step=jnp.zeros((), jnp.int32),
            model=copy(model),
            head=copy(head),
            optimizer_state=copy(optimizer.init(parameters)),
            ema=copy(model) if ema else None,
            extras=copy(extras),
            key=jnp.copy(key),
            frozen=frozen,
        )

    @property
    def parameters(self) -> Parameters:
        """The parameters that are trained, by name: the model's by their path, the head's after "head."."""
        return trained_parameters(self.model, self.head, self.frozen)


def named_parameters(tree: Any) -> Parameters:
    """Name → array, of all `nnx.Param`s of a model; of a tree without modules, of all its arrays."""
    return {name: _value(leaf) for name, leaf in _leaves(tree) if _is_parameter(leaf)}


def trained_parameters(model: CLIP, head: Any, frozen: tuple[str, ...]) -> Parameters:
    """Name → array, of all that is not frozen."""
    names = {name: value for name, value in named_parameters(model).items() if not is_frozen(name, frozen)}
    return names | {HEAD + name: value for name, value in named_parameters(head).items()}


def with_parameters(model: CLIP, head: Any, parameters: Parameters) -> tuple[CLIP, Any]:
    """Model and head with these parameters, and their own where no others are given."""
    of_head = {name.removeprefix(HEAD): value for name, value in parameters.items() if name.startswith(HEAD)}
    return _replaced(model, parameters), _replaced(head, of_head)


def is_frozen(name: str, frozen: tuple[str, ...]) -> bool:
    """Whether the parameter is one of the frozen parts', or within one."""
    return any(_belongs(name, part) for part in frozen)


def _belongs(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _is_parameter(leaf: Any) -> bool:
    # A module's other variables (counters, random keys, running means) are no business of an optimizer.
    return isinstance(leaf, nnx.Param) or not _is_variable(leaf)


def _value(leaf: Any) -> Any:
    return leaf.get_value() if _is_variable(leaf) else leaf


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _replaced(tree: Any, parameters: Parameters) -> Any:
    def replace(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in parameters or not _is_parameter(leaf):
            return leaf
        return leaf.replace(parameters[name]) if _is_variable(leaf) else parameters[name]

    return jax.tree_util.tree_map_with_path(replace, tree, is_leaf=_is_variable)
