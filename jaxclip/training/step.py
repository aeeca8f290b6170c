"""One step of training, as a pure function."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxclip.losses import clamp_logit_scale, momentum_update
from jaxclip.training.objectives import Batch, Metrics, Objective
from jaxclip.training.state import Parameters, TrainState, is_frozen, with_parameters


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule | None = None,
    accumulate: int = 1,
    microbatch: int | None = None,
    remat: bool = False,
    ema_decay: float = 0.999,
    max_logit_scale: float = math.log(100),
) -> tuple[TrainState, Metrics]:
    """The state after one update, and scalars to log. Pure; for `jax.jit`, with the state donated:

        step = jax.jit(partial(train_step, objective=objective, optimizer=optimizer), donate_argnums=0)
        state, metrics = step(state, batch)

    - `accumulate`: the gradient is the mean of those of so many parts of the batch, one after the other. Each is a
      contrastive batch of its own, with fewer negatives. Part j has rows j, j + accumulate, … so that of a batch
      sharded over devices each has its share in all. The batch must be a multiple.
    - `microbatch`: encodes at most so many rows at a time and still weighs all pairs of the batch: gradient caching
      (arXiv 2101.06983). Memory as of a small batch, the gradient of the large one, one more forward pass.
    - `remat`: keeps no activations inside the blocks for the backward pass
    - `ema_decay`: ema ← ema_decay · ema + (1 − ema_decay) · model, where the state has one
    - `max_logit_scale`: after the update the logit scale's logarithm is at most this (CLIP, section 2.5)

    Metrics: `loss`, `grad_norm` (before clipping), `finite`, `logit_scale` (exponentiated, before the update),
    `learning_rate` (with `schedule`) and the objective's own. Where loss or gradient isn't finite, `finite` is False
    and the state is the one before the step, all of it.

    Raises ValueError for a batch that isn't a multiple of `accumulate`, and for cached `image_features` of an image
    tower that isn't frozen.
    """
    if "image_features" in batch and state.model.vision is not None and not is_frozen("vision", state.frozen):
        raise ValueError(
            "the batch has image_features in the place of pixels, so that the image tower has no gradient: freeze it, "
            'TrainState.create(..., frozen=("vision",))'
        )
    key = jax.random.fold_in(state.key, state.step)

    def value(parameters, batch, extras, key):
        model, head = with_parameters(state.model, state.head, parameters)
        loss, metrics, extras = objective(model, head, batch, extras, key, microbatch=microbatch, remat=remat)
        return loss, (metrics, extras)

    parameters = state.parameters
    loss, metrics, extras, gradient = _accumulated(value, parameters, batch, state.extras, key, accumulate)
    norm = optax.tree.norm(gradient)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, parameters)
    parameters: Any = optax.apply_updates(parameters, updates)
    if "logit_scale" in parameters:
        parameters["logit_scale"] = clamp_logit_scale(parameters["logit_scale"], max_logit_scale)
    model, head = with_parameters(state.model, state.head, parameters)
    moved = TrainState(
        step=state.step + 1,
        model=model,
        head=head,
        optimizer_state=optimizer_state,
        ema=None if state.ema is None else momentum_update(state.ema, model, ema_decay),
        extras=objective.after_update(model, extras),
        key=state.key,
        frozen=state.frozen,
    )
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    metrics = {**metrics, "loss": loss, "grad_norm": norm, "finite": finite}
    if state.model.logit_scale is not None:
        metrics["logit_scale"] = jnp.exp(state.model.logit_scale[...])
    if schedule is not None:
        metrics["learning_rate"] = jnp.asarray(schedule(state.step))
    return jax.tree.map(partial(jnp.where, finite), moved, state), metrics


def _accumulated(
    value: Callable[..., tuple[Float[Array, ""], tuple[Metrics, Any]]],
    parameters: Parameters,
    batch: Batch,
    extras: Any,
    key: Key[Array, ""],
    parts: int,
) -> tuple[Float[Array, ""], Metrics, Any, Parameters]:
    """Loss, metrics and gradient, each the mean over the batch's parts; and the extras after the last."""
    value_and_grad = jax.value_and_grad(value, has_aux=True)
    if parts == 1:
        (loss, (metrics, extras)), gradient = value_and_grad(parameters, batch, extras, key)
        return loss, metrics, extras, gradient
    lengths = {len(rows) for rows in batch.values()}
    if any(length % parts for length in lengths):
        raise ValueError(f"a batch of {sorted(lengths)} rows can't be accumulated over {parts} equal parts")
    dealt = {name: rows.reshape(-1, parts, *rows.shape[1:]) for name, rows in batch.items()}

    def visit(carry, index):
        total, extras = carry
        part = {name: jax.lax.dynamic_index_in_dim(rows, index, 1, False) for name, rows in dealt.items()}
        (loss, (metrics, extras)), gradient = value_and_grad(parameters, part, extras, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, total, gradient), extras), (loss, metrics)

    start = (jax.tree.map(jnp.zeros_like, parameters), extras)
    (total, extras), logged = jax.lax.scan(visit, start, jnp.arange(parts))
    loss, metrics = jax.tree.map(lambda values: jnp.mean(values, axis=0), logged)
    return loss, metrics, extras, jax.tree.map(lambda gradient: gradient / parts, total)
