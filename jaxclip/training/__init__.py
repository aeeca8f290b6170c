"""Contrastive training as pure functions on one pytree."""

from jaxclip.training.objectives import CLIPObjective, MoCoObjective, Objective, SigLIPObjective, SimCLRObjective
from jaxclip.training.optimizer import OptimizerConfig, make_optimizer
from jaxclip.training.state import TrainState
from jaxclip.training.step import train_step

__all__ = [
    "CLIPObjective",
    "MoCoObjective",
    "Objective",
    "OptimizerConfig",
    "SigLIPObjective",
    "SimCLRObjective",
    "TrainState",
    "make_optimizer",
    "train_step",
]
