"""Contrastive training as pure functions on one pytree.

    objective = CLIPObjective()
    optimizer, schedule = make_optimizer(OptimizerConfig(steps=10_000))
    state = TrainState.create(model, objective=objective, optimizer=optimizer, key=jax.random.key(0))
    step = compile_step(state, objective=objective, optimizer=optimizer, schedule=schedule)
    for batch in batches:                    # {"pixels": …, "token_ids": …}, see `objectives`
        state, metrics = step(state, batch)

`state.model` is the trained model at any time. `sharding` spreads all this over devices and processes, `Checkpoints`
keeps it, and the whole loop, with a log, curves, evaluations and going on where it was, is

    state = fit(state, batches, step, steps=10_000, folder="run")

Batches come from a folder or tar shards of images with captions:

    source = open_source("flickr8k")         # `CaptionedFolder`, `Photos` or `WebDataset`
    batches = Batches(source, 256, image_processor=clip.image_processor, tokenizer=clip.tokenizer)

(pip install "jaxclip[train]"), `cache_image_features` encodes them once for an image tower that stays as it is, and
`evaluate_retrieval` says how well images and captions find each other. And all of this, from data to a Hugging Face
checkpoint, is

    train(TrainConfig.from_toml("config.toml"))
"""

from jaxclip.training.augmentation import AUGMENTATIONS, Augmentation
from jaxclip.training.captions import CaptionedFolder, Photos, Sample, Source
from jaxclip.training.checkpointing import Checkpoints
from jaxclip.training.config import DataConfig, MeshConfig, ModelConfig, TrainConfig
from jaxclip.training.data import BadSample, Batches, open_source
from jaxclip.training.evaluation import Retrieval, evaluate_retrieval, retrieval
from jaxclip.training.features import cache_image_features
from jaxclip.training.log import read_log
from jaxclip.training.loop import DivergenceError, ResumableBatches, fit
from jaxclip.training.model import build_model
from jaxclip.training.objectives import CLIPObjective, MoCoObjective, Objective, SigLIPObjective, SimCLRObjective
from jaxclip.training.optimizer import OptimizerConfig, make_optimizer
from jaxclip.training.run import TrainResult, train
from jaxclip.training.sharding import batch_sharding, compile_step, global_batch, make_mesh, place, state_shardings
from jaxclip.training.state import TrainState
from jaxclip.training.step import train_step
from jaxclip.training.webdataset import WebDataset

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "BadSample",
    "Batches",
    "CLIPObjective",
    "CaptionedFolder",
    "Checkpoints",
    "DataConfig",
    "DivergenceError",
    "MeshConfig",
    "MoCoObjective",
    "ModelConfig",
    "Objective",
    "OptimizerConfig",
    "Photos",
    "ResumableBatches",
    "Retrieval",
    "Sample",
    "SigLIPObjective",
    "SimCLRObjective",
    "Source",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "WebDataset",
    "batch_sharding",
    "build_model",
    "cache_image_features",
    "compile_step",
    "evaluate_retrieval",
    "fit",
    "global_batch",
    "make_mesh",
    "make_optimizer",
    "open_source",
    "place",
    "read_log",
    "retrieval",
    "state_shardings",
    "train",
    "train_step",
]
