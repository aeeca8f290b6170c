"""A whole run, as a config states it: from data and checkpoints to a Hugging Face checkpoint."""

import dataclasses
import errno
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.atomic import write_atomically
from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.clip import Clip
from jaxclip.nn import CLIP
from jaxclip.processing import Tokenizer
from jaxclip.training.augmentation import AUGMENTATIONS
from jaxclip.training.captions import Photos, Source
from jaxclip.training.config import MeshConfig, TrainConfig, differences
from jaxclip.training.data import BadSample, Batches, open_source
from jaxclip.training.evaluation import evaluate_retrieval
from jaxclip.training.features import cache_image_features
from jaxclip.training.log import read_log
from jaxclip.training.loop import fit
from jaxclip.training.model import build_model
from jaxclip.training.optimizer import make_optimizer
from jaxclip.training.sharding import compile_step, make_mesh, place
from jaxclip.training.state import TrainState, is_frozen, named_parameters, with_parameters

# What may be another when a run is gone on with: the weights come out the same, but for rounding.
_FREE = (
    "output",
    "data.held_out",
    "data.held_out_split",
    "data.threads",
    "microbatch",
    "remat",
    "mesh",
    "save_every",
    "log_every",
    "evaluate_every",
    "keep",
)


@dataclass(frozen=True)
class TrainResult:
    """What `train` did.

    - `clip`: a handle of the trained model, with its moving average's parameters where there is one (`averaged`)
    - `folder`: the run's; `model`: the Hugging Face checkpoint in it
    - `steps`: batches, `seconds` since the run began
    - `evaluation`: the last one's, recall by name, or None without held-out data
    - `skipped`: how often a sample couldn't be used, `bad_samples` the first ten of these; of this process
    """

    clip: Clip
    folder: Path
    model: Path
    steps: int
    seconds: float
    averaged: bool
    evaluation: Mapping[str, float] | None
    skipped: int
    bad_samples: list[BadSample]


def train(config: TrainConfig) -> TrainResult:
    """Trains as the config says, in its folder `output`; called again, goes on where it was.

    Besides what `fit` writes there (checkpoints, `log.jsonl`, `curves.png`):

    - `config.toml`: all of the settings, those that weren't given included. A run that was begun with others is not
      gone on with: ValueError names them.
    - `model`: at the end, the trained model as a Hugging Face checkpoint (`jaxclip.load`, transformers'
      `from_pretrained`), float32, the moving average's parameters where there is one. SigLIP's bias has no place in it,
      and is found in the log.
    - `features`: the vectors of a frozen image tower, computed once (`cache_image_features`), where it is trained with
      the pictures as they are. The tower itself is then no part of the checkpoints in between.

    In a run of several processes all call it, after `jax.distributed.initialize`; the first one writes, and all must
    see the folder. Raises as `build_model`, `open_source`, `Batches` and `fit` do.
    """
    source, held_out = _source(config), _held_out(config)
    config = _resolved(config, source)
    folder = Path(config.output)
    _check_same_run(folder, config)
    clip = build_model(config)
    clip = Clip(clip.model, tokenizer=_tokenizer(clip, config), image_processor=clip.image_processor)
    if held_out is not None and (clip.model.text is None or clip.model.vision is None):
        raise ValueError("held-out data are for images and texts, and the model has not both towers: leave them out")
    length = config.data.text_length
    if length is not None and clip.model.text is not None and length > _positions(clip):
        raise ValueError(f"data.text_length is {length}, and the model has {_positions(clip)} positions")
    mesh = _mesh(config)
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() != 0:
        return _train(config, clip, source, held_out, mesh)
    try:
        with FileLock(folder / ".lock", timeout=0):
            write_atomically(folder / "config.toml", config.to_toml().encode())
            return _train(config, clip, source, held_out, mesh)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "another process trains here", str(folder)) from None


def _train(config: TrainConfig, clip: Clip, source: Source, held_out: Source | None, mesh: Mesh | None) -> TrainResult:
    folder, steps = Path(config.output), config.steps or 0
    locked = _has_locked_images(config)
    vision, trained = clip.model.vision, _with_vision(clip.model, nnx.data(None)) if locked else clip.model
    optimizer, schedule = make_optimizer(config.optimizer_config(steps))
    state = TrainState.create(
        trained,
        objective=config.objective,
        optimizer=optimizer,
        key=jax.random.key(config.seed),
        frozen=tuple(part for part in config.freeze if not (locked and part.split(".")[0] == "vision")),
        ema=config.ema is not None,
    )
    # Once it is sure that there is something to train.
    features = cache_image_features(clip, source, folder / "features") if locked else None
    held_out_features = cache_image_features(clip, held_out, folder / "features") if locked and held_out else None
    batches = _batches(config, clip, source, features)
    for leaf in jax.tree.leaves(trained):
        leaf.delete()  # The state has copies, and memory may be short.
    if mesh is not None:
        state = place(state, mesh)
    step = compile_step(
        state,
        objective=config.objective,
        optimizer=optimizer,
        schedule=schedule,
        accumulate=config.accumulate,
        microbatch=config.microbatch,
        remat=config.remat,
        ema_decay=config.ema or 0.0,  # Without one there is nothing that it's for.
    )

    def use(state: TrainState) -> None:
        """Gives the handle the state's model: averaged, whole, and in this process."""
        model = _on_one_device(_averaged(state), mesh)
        clip.model = _with_vision(model, vision) if locked else model

    def evaluate(state: TrainState) -> Mapping[str, float]:
        use(state)
        # Of several processes the first does it, and has the log.
        return _recall(clip, held_out, held_out_features) if held_out and jax.process_index() == 0 else {}

    try:
        state = fit(
            state,
            batches,
            step,
            steps=steps,
            folder=folder,
            mesh=mesh,
            save_every=config.save_every,
            log_every=config.log_every,
            evaluate=evaluate if held_out else None,
            evaluate_every=config.evaluate_every if held_out else None,
            keep=config.keep,
        )
    finally:
        batches.close()
    use(state)
    log: list[dict[str, Any]] = []
    if jax.process_index() == 0:
        clip.save(folder / "model")
        log = read_log(folder / "log.jsonl")
    evaluations = [record["evaluation"] for record in log if "evaluation" in record]
    return TrainResult(
        clip=clip,
        folder=folder,
        model=folder / "model",
        steps=steps,
        seconds=log[-1]["seconds"] if log else 0.0,
        averaged=config.ema is not None,
        evaluation=evaluations[-1] if evaluations else None,
        skipped=batches.skipped,
        bad_samples=batches.bad_samples,
    )


def _images_alone(config: TrainConfig) -> bool:
    return "text" in config.objective.unused


def _source(config: TrainConfig) -> Source:
    data = config.data
    if _images_alone(config) and data.split is None and os.path.isdir(data.train):
        return open_source(data.train) if any(Path(data.train).glob("*.tar")) else Photos(data.train)
    return open_source(data.train, split=data.split)


def _held_out(config: TrainConfig) -> Source | None:
    data = config.data
    if data.held_out is None and data.held_out_split is None:
        return None
    return open_source(data.held_out or data.train, split=data.held_out_split)


def _resolved(config: TrainConfig, source: Source) -> TrainConfig:
    """With what follows from the rest said, and every path whole: the same from any folder, and with other defaults."""
    steps = config.steps or (config.epochs or 0) * len(source) // config.batch_size
    if steps < 1:
        raise ValueError(f"{config.epochs} epochs of {len(source)} samples make no batch of {config.batch_size}")
    default = "simclr" if _images_alone(config) else "none" if is_frozen("vision", config.freeze) else "clip"
    data = dataclasses.replace(
        config.data,
        train=os.path.abspath(config.data.train),
        held_out=config.data.held_out and os.path.abspath(config.data.held_out),
        augmentation=config.data.augmentation or default,
    )
    places = {name: _whole(getattr(config.model, name)) for name in ("checkpoint", "text", "vision")}
    optimizer = dataclasses.asdict(config.optimizer_config(steps))
    del optimizer["steps"]
    return dataclasses.replace(
        config,
        output=os.path.abspath(config.output),
        model=dataclasses.replace(config.model, **places),
        data=data,
        optimizer=optimizer,
        tokenizer=_whole(config.tokenizer),
        image_processor=_whole(config.image_processor),
        steps=steps,
        epochs=None,
        evaluate_every=config.evaluate_every or max(1, steps // 10),
    )


def _whole(place: Any) -> Any:
    """A folder's path; a Hub id, the sizes of a tower and None are whole already."""
    return os.path.abspath(place) if isinstance(place, str) and os.path.isdir(place) else place


def _check_same_run(folder: Path, config: TrainConfig) -> None:
    if not any(re.fullmatch(r"step_\d+", path.name) for path in (folder / "checkpoints").glob("*")):
        return  # There is nothing to go on with.
    try:
        theirs = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: has checkpoints without a config.toml, of no run of this kind") from None
    if found := differences(config.to_table(), theirs, without=_FREE):
        raise ValueError(
            f"{folder}: the run there was begun with other settings ({'; '.join(found)}): go on with the same, or "
            "train in another folder. Where it is the same all the same (data that moved), change its config.toml"
        )


def _positions(clip: Clip) -> int:
    return clip.model.tower("text").config.max_position_embeddings


def _tokenizer(clip: Clip, config: TrainConfig) -> Tokenizer | None:
    if clip.model.text is None:
        return None
    try:
        return clip.tokenizer
    except CheckpointError:
        if _images_alone(config):
            return None  # Nobody asks for it, and the result has none either.
        raise


def _mesh(config: TrainConfig) -> Mesh | None:
    devices, processes = len(jax.devices()), jax.process_count()
    if config.batch_size % devices:
        raise ValueError(f"batch_size ({config.batch_size}) must be a multiple of the number of devices ({devices})")
    if devices == processes == 1 and config.mesh == MeshConfig():
        return None
    return make_mesh(config.mesh.data, config.mesh.fsdp)


def _has_locked_images(config: TrainConfig) -> bool:
    """Whether an image has the same features whenever it comes."""
    locked = is_frozen("vision", config.freeze) and config.data.augmentation == "none"
    return locked and not _images_alone(config)


def _batches(config: TrainConfig, clip: Clip, source: Source, features: np.ndarray | None) -> Batches:
    alone, augmentation = _images_alone(config), config.data.augmentation
    if isinstance(augmentation, str):
        augmentation = AUGMENTATIONS.get(augmentation)
    return Batches(
        source,
        config.batch_size // jax.process_count(),
        image_processor=clip.image_processor if features is None else None,
        tokenizer=None if alone else clip.tokenizer,
        image_features=features,
        augmentation=augmentation,
        views=2 if alone else 1,
        text_length=config.data.text_length,
        seed=config.seed,
        threads=config.data.threads,
    )


def _averaged(state: TrainState) -> CLIP:
    """The model, with the moving average of what was trained: what was not is the same to the bit."""
    if state.ema is None:
        return state.model
    averages = named_parameters(state.ema)
    trained = {name: averages[name] for name in state.parameters if name in averages}
    return with_parameters(state.model, None, trained)[0]


def _on_one_device(model: CLIP, mesh: Mesh | None) -> CLIP:
    if mesh is None:
        return model
    replicated = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))(model)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicated)


def _same(tree: Any) -> Any:
    return tree


def _with_vision(model: CLIP, vision: Any) -> CLIP:
    """The same model with another image tower, or none."""
    other = jax.tree.map(lambda leaf: leaf, model)
    other.vision = vision
    return other


def _recall(clip: Clip, held_out: Source, image_features: np.ndarray | None) -> dict[str, float]:
    found = evaluate_retrieval(clip, held_out, image_features=image_features)
    ways = {"text_to_image": found.text_to_image, "image_to_text": found.image_to_text}
    return {f"{way}_recall@{k}": value for way, recall in ways.items() for k, value in recall.items()}
