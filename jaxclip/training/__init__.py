"""Contrastive training as pure functions on one pytree.

    objective = CLIPObjective()
    optimizer, schedule = make_optimizer(OptimizerConfig(steps=10_000))
    state = TrainState.create(model, objective=objective, optimizer=optimizer, key=jax.random.key(0))
    step = compile_step(state, objective=objective, optimizer=optimizer, schedule=schedule)
    for batch in batches:                    # {"pixels": …, "token_ids": …}, see `objectives`
        state, metrics = step(state, batch)

`state.model` is the trained model at any time. `sharding` spreads all this over devices and processes, `Checkpoints`
keeps it.
"""

from jaxclip.training.checkpointing import Checkpoints
from jaxclip.training.objectives import CLIPObjective, MoCoObjective, Objective, SigLIPObjective, SimCLRObjective
from jaxclip.training.optimizer import OptimizerConfig, make_optimizer
from jaxclip.training.sharding import batch_sharding, compile_step, global_batch, make_mesh, place, state_shardings
from jaxclip.training.state import TrainState
from jaxclip.training.step import train_step

__all__ = [
    "CLIPObjective",
    "Checkpoints",
    "MoCoObjective",
    "Objective",
    "OptimizerConfig",
    "SigLIPObjective",
    "SimCLRObjective",
    "TrainState",
    "batch_sharding",
    "compile_step",
    "global_batch",
    "make_mesh",
    "make_optimizer",
    "place",
    "state_shardings",
    "train_step",
]
