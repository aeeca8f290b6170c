"""AdamW as CLIP is trained with it (arXiv 2103.00020, section 2.5 and table 18), from a few numbers."""

import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay. The defaults are the paper's for its ViTs; its steps are its own affair.

    - `learning_rate`: the highest, reached after `warmup_steps` from 0; then half a cosine down to
      `final_learning_rate` at `steps`, and that from there on
    - `weight_decay`: of what `decays` says
    - `clip_norm`: gradients are scaled down to this global norm; None leaves them
    - `layer_decay`: each block learns by this factor slower than the one above it; 1 leaves them alike
    """

    learning_rate: float = 5e-4
    steps: int
    warmup_steps: int = 2000
    final_learning_rate: float = 0.0
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    clip_norm: float | None = 1.0
    layer_decay: float = 1.0

    def __post_init__(self):
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be from 0 to below steps ({self.steps})")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, got {self.clip_norm}")


def make_optimizer(config: OptimizerConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer, of parameters by name (`TrainState.parameters`), and its learning rate by the step."""
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=config.final_learning_rate,
    )
    optimizer = optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
        scale_by_layer(config.layer_decay),
    )
    return optimizer, schedule


def decays(name: str, value: Any) -> bool:
    """Whether weight decay is for this parameter: for kernels, and not for what has fewer than two axes (biases, the
    norms' scales, the logit scale, the class embedding), as open_clip has it (`open_clip_train/main.py`: `exclude` is
    `p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n`). Nor for embeddings of tokens and
    positions, other than there: a rare token's would shrink at every step that it isn't in."""
    return value.ndim >= 2 and not name.endswith("embedding")


def decay_mask(parameters: dict[str, Any]) -> dict[str, bool]:
    """`decays` of each."""
    return {name: decays(name, value) for name, value in parameters.items()}


def layer_factors(names: Any, decay: float) -> dict[str, float]:
    """What each parameter's update is multiplied by: decay^(depth + 1 − layer), as in BEiT (arXiv 2106.08254).

    Of a tower whose highest trained block is number depth − 1, embeddings and the norm before the blocks are layer 0,
    block n is layer n + 1, and what comes after is layer depth + 1, as is all that is in no tower.
    """
    depths: dict[str, int] = {}
    for name in names:
        if block := _block(name):
            tower, number = block
            depths[tower] = max(depths.get(tower, 0), number + 1)

    def factor(name):
        tower = name.split(".")[0]
        if tower not in depths:
            return 1.0
        depth = depths[tower]
        if block := _block(name):
            return decay ** (depth - block[1])
        return decay ** (depth + 1) if "embedding" in name or ".pre_norm." in name else 1.0

    return {name: factor(name) for name in names}


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies the updates by their `layer_factors`."""
    if decay == 1:
        return optax.identity()

    def update(updates, parameters=None):
        factors = layer_factors(updates, decay)
        return {name: value * jnp.asarray(factors[name], value.dtype) for name, value in updates.items()}

    return optax.stateless(update)


def _block(name: str) -> tuple[str, int] | None:
    """Tower and number of the block that the parameter is in."""
    found = re.match(r"(\w+)\.blocks\.(\d+)\.", name)
    return (found[1], int(found[2])) if found else None
