"""The model to be trained: towers from checkpoints, towers from scratch, and the tokenizer and image processor."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.checkpoints.files import locate
from jaxclip.clip import IMAGE_PROCESSOR_FILES, Clip, load, read_image_processor
from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
from jaxclip.nn import CLIP, Abstract, TextTransformer, VisionTransformer
from jaxclip.processing import TOKENIZER_FILES, ImageProcessor, Tokenizer
from jaxclip.training.config import TrainConfig
from jaxclip.training.objectives import SigLIPObjective


def build_model(config: TrainConfig) -> Clip:
    """A handle of the model that a run begins with, float32 parameters and all.

    Parameters that come from no checkpoint follow from `config.seed`. Raises `CheckpointError` for checkpoints that
    can't be read, and ValueError for parts that don't fit together: towers without a common joint space, a tokenizer
    with other ids than the text tower's, images of another size than the image tower's.
    """
    model = config.model
    clip = _of_towers(config) if model.checkpoint is None else load(model.checkpoint, dtype=config.dtype)
    text, vision = clip.model.text, clip.model.vision
    for tower, there in (("text", text), ("vision", vision)):
        if there is None and tower not in config.objective.unused:
            raise ValueError(
                f"{type(config.objective).__name__} trains a {tower} tower, and the model has none: give it one in "
                f"[model.{tower}]"
            )
    if text is not None and config.tokenizer is not None:
        clip.tokenizer = _tokenizer(config.tokenizer, text.config.max_position_embeddings)
    if vision is not None and config.image_processor is not None:
        clip.image_processor = _image_processor(config.image_processor)
    if text is not None and "text" not in config.objective.unused:
        _check_tokenizer(clip.tokenizer, text.config)
    if vision is not None:
        _check_image_processor(clip.image_processor, vision.config)
    return clip


def _of_towers(config: TrainConfig) -> Clip:
    model = config.model
    loaded: dict[str, Clip] = {}
    for tower in ("text", "vision"):
        source = getattr(model, tower)
        if isinstance(source, str):
            loaded[tower] = load(source, towers=tower, dtype=config.dtype)
    towers: dict[str, Any] = {tower: getattr(clip.model, tower).config for tower, clip in loaded.items()}
    for tower, its in towers.items():
        if its.projection_dim is None:
            raise ValueError(f"{getattr(model, tower)}: this {tower} tower has no projection into a joint space")
        if model.projection_dim not in (None, its.projection_dim):
            raise ValueError(
                f"model.projection_dim is {model.projection_dim}, and that of {getattr(model, tower)} is "
                f"{its.projection_dim}: leave it out"
            )
    widths = [its.projection_dim for its in towers.values()]
    common = {
        "projection_dim": widths[0] if widths else model.projection_dim or 512,
        "family": next((its.family for its in towers.values()), "clip"),
    }
    image_processor = tokenizer = None
    if isinstance(model.vision, Mapping):
        towers["vision"] = VisionConfig(**_completed(model.vision), **common)
        size = towers["vision"].image_size
        image_processor = ImageProcessor.from_hub({"size": size, "crop_size": size})
    elif "vision" in loaded and config.image_processor is None:
        image_processor = loaded["vision"].image_processor
    if isinstance(model.text, Mapping):
        if config.tokenizer is None:
            raise ValueError(
                "a text tower from scratch needs a tokenizer: name the folder or Hub id of a checkpoint that has one, "
                'as in tokenizer = "openai/clip-vit-base-patch32"'
            )
        # Of this one only the ids count: the towers' positions are known when there is a tower.
        ids = _tokenizer(config.tokenizer, TextConfig.max_position_embeddings)
        special = {"bos_token_id": ids.bos_token_id, "pad_token_id": ids.pad_token_id}
        given = {"vocab_size": ids.vocab_size, "eos_token_id": ids.eos_token_id, **_completed(model.text)}
        towers["text"] = TextConfig(**given, other=special, **common)
    elif "text" in loaded and config.tokenizer is None:
        tokenizer = loaded["text"].tokenizer
    whole = CLIPConfig(
        text=towers.get("text"), vision=towers.get("vision"), logit_scale_init_value=_logit_scale(config)
    )
    # Nothing is made at random only to be replaced.
    built, rngs = CLIP(whole, dtype=config.dtype, rngs=Abstract()), nnx.Rngs(config.seed)
    for tower, kind in (("text", TextTransformer), ("vision", VisionTransformer)):
        if tower in loaded:
            setattr(built, tower, getattr(loaded[tower].model, tower))
        elif tower in towers:
            setattr(built, tower, kind(towers[tower], dtype=config.dtype, rngs=rngs))
    if built.logit_scale is not None:
        built.logit_scale.set_value(jnp.asarray(whole.logit_scale_init_value, jnp.float32))
    return Clip(built, tokenizer=tokenizer, image_processor=image_processor)


def _completed(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """With an MLP four times as wide and heads of 64, as all of the paper's transformers have them."""
    if "hidden_size" not in sizes:
        return dict(sizes)
    width = sizes["hidden_size"]
    return {"intermediate_size": 4 * width, "num_attention_heads": max(1, width // 64), **sizes}


def _logit_scale(config: TrainConfig) -> float:
    if config.model.logit_scale_init_value is not None:
        return config.model.logit_scale_init_value
    return math.log(10) if isinstance(config.objective, SigLIPObjective) else CLIPConfig.logit_scale_init_value


def _tokenizer(source: str, positions: int) -> Tokenizer:
    files = locate(source)
    found = {name: path for name in TOKENIZER_FILES if (path := files.find(name))}
    if not found:
        raise files.missing(*TOKENIZER_FILES)
    try:
        return Tokenizer.from_files(found, max_length=positions)
    except (ValueError, FileNotFoundError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _image_processor(source: str) -> ImageProcessor:
    files = locate(source)
    found = {name: path for name in IMAGE_PROCESSOR_FILES if (path := files.find(name))}
    if not found:
        raise files.missing(*IMAGE_PROCESSOR_FILES)
    return read_image_processor(found)


def _check_tokenizer(tokenizer: Tokenizer, text: TextConfig) -> None:
    """That the model has an embedding for each id, and reads a text off at the tokenizer's EOS."""
    largest = tokenizer.vocab_size - 1
    eos = largest if text.pooling == "largest_id" else text.eos_token_id
    if largest >= text.vocab_size or tokenizer.eos_token_id != eos:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids and ends texts with {tokenizer.eos_token_id}, and the text "
            f"tower has {text.vocab_size} and reads them off at {eos}: take the tokenizer that belongs to it"
        )


def _check_image_processor(processor: ImageProcessor, vision: VisionConfig) -> None:
    size = processor.crop_size if processor.do_center_crop else processor.size
    if {size.get("height"), size.get("width")} != {vision.image_size}:
        raise ValueError(
            f"the image processor gives images of {dict(size)}, and the image tower takes {vision.image_size} × "
            f"{vision.image_size} pixels"
        )
