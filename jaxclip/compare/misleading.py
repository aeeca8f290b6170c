"""Where a checkpoint's files say something that readers of them are known to get wrong."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxclip.config import CLIPConfig, TextConfig, TowerConfig, VisionConfig
from jaxclip.processing import ImageProcessor, Tokenizer

# Who trained with which activation, by the owner's name on the Hub: OpenAI's code has QuickGELU alone, and of LAION's
# ViT models no published one was trained with it (open_clip's `pretrained.py`). Others have both kinds: no entry.
_TRAINED_WITH = {"openai": "quick_gelu", "laion": "gelu"}


def warnings_of_config(hub: Mapping[str, Any], config: CLIPConfig, source: str) -> list[str]:
    """What misleads in config.json (`hub`, and as it is read). `source` is the folder or Hub id."""
    towers = {name: tower for name in ("text", "vision") if (tower := getattr(config, name)) is not None}
    told = [line for name, tower in towers.items() for line in _legacy_dict(hub, name, tower)]
    if config.text and config.vision:
        top = config.text.projection_dim
        own = {name: (hub.get(f"{name}_config") or {}).get("projection_dim", top) for name in towers}
        if differing := [f"{name}_config has {width}" for name, width in own.items() if width != top]:
            told.append(f"projection: {' and '.join(differing)}, but the joint model's is the top level's: {top}")
        if config.text.hidden_act != config.vision.hidden_act:
            told.append(
                f"activation: the towers differ, text has {config.text.hidden_act} and vision "
                f"{config.vision.hidden_act}: no CLIP is known to have been trained so"
            )
    for name in filter(None, (source, hub.get("_name_or_path"))):
        owner = str(name).partition("/")[0]
        trained = _TRAINED_WITH.get(owner)
        wrong = [tower for tower in towers if trained and towers[tower].hidden_act != trained]
        if wrong:
            told.append(
                f"activation: {' and '.join(wrong)} {'has' if len(wrong) == 1 else 'have'} "
                f"{towers[wrong[0]].hidden_act}, but {owner}'s models were trained with {trained}, and this is {name!r}"
            )
    if config.text and config.text.pooling == "largest_id":
        told.append(
            "pooling: eos_token_id is 2, OpenAI's legacy mark and no token's id: the text is read off at the largest id"
        )
    return told


def warnings_of_open_clip(
    open_clip: Mapping[str, Any], config: CLIPConfig, processor: ImageProcessor | None
) -> list[str]:
    """Where `open_clip_config.json`, which a repository may have beside config.json, says otherwise of the same
    model."""
    told = []
    trained = "quick_gelu" if _object(open_clip, "model_cfg").get("quick_gelu") else "gelu"
    for name in ("text", "vision"):
        tower = getattr(config, name)
        if tower is not None and tower.hidden_act != trained:
            told.append(f"activation: {name} has {tower.hidden_act}, but open_clip_config.json says {trained}")
    stated = _object(open_clip, "preprocess_cfg")
    for key, name in (("mean", "image_mean"), ("std", "image_std")):
        ours, theirs = getattr(processor, name, None), stated.get(key)
        if ours is not None and isinstance(theirs, list) and not np.allclose(theirs, ours, atol=1e-4):
            told.append(f"preprocessing: {name} is {_numbers(ours)}, but open_clip_config.json says {_numbers(theirs)}")
    return told


def warnings_of_tokenizer(tokenizer: Tokenizer, text: TextConfig) -> list[str]:
    """Where the tokenizer's files and the text tower don't fit together."""
    told = []
    theirs, ours = tokenizer.vocab_size, text.vocab_size
    if theirs > ours:
        told.append(f"tokenizer: it has {theirs:,} tokens, but the model {ours:,}: texts with the others are refused")
    elif theirs < ours:
        told.append(f"tokenizer: it has {theirs:,} tokens, but the model {ours:,}: make sure that it is this model's")
    end = tokenizer.eos_token_id
    if text.pooling == "largest_id" and end != theirs - 1:
        told.append(
            f"pooling: the tokenizer's end of text is {end}, but its largest id {theirs - 1}: a text with a token "
            "above its end is read off at the wrong place"
        )
    if text.pooling == "first_eos" and end != text.eos_token_id:
        told.append(
            f"pooling: the tokenizer ends texts with {end}, but the model looks for {text.eos_token_id}: texts are "
            "refused"
        )
    return told


def warnings_of_image_processor(processor: ImageProcessor, vision: VisionConfig) -> list[str]:
    """Where the image processor doesn't give what the vision tower takes."""
    told, wanted = [], (vision.image_size, vision.image_size)
    fixed = processor.crop_size if processor.do_center_crop else processor.size if processor.do_resize else {}
    got = fixed.get("height"), fixed.get("width")
    if None in got:
        told.append(
            f"preprocessing: images come out in several sizes, but the model takes {wanted[0]} × {wanted[1]} pixels"
        )
    elif got != wanted:
        told.append(
            f"preprocessing: images come out as {got[0]} × {got[1]} pixels, but the model takes {wanted[0]} × "
            f"{wanted[1]}"
        )
    edge = processor.size.get("shortest_edge") if processor.do_resize else None
    if processor.do_center_crop and edge is not None and edge < max(processor.crop_size.values()):
        told.append(
            f"preprocessing: what is cropped ({processor.crop_size['height']} × {processor.crop_size['width']}) is "
            f"larger than what images are resized to ({edge}): their edges are black"
        )
    return told


def warnings_of_dtype(hub: Mapping[str, Any], stored: Iterable[str]) -> list[str]:
    """Where config.json states another dtype than the files have: transformers 5 loads a model in the stated one."""
    stated, stored = hub.get("dtype", hub.get("torch_dtype")), list(stored)
    if stated is None or not stored or stored == [stated]:
        return []
    return [f"dtype: config.json says {stated}, but the files hold {' and '.join(stored)}"]


def warnings_of_logit_scale(logit_scale: float) -> list[str]:
    """Of the stored logarithm, where it can't be one or wasn't held to at most ln 100 (CLIP paper, section 2.5)."""
    # Float16's nearest to ln 100 is 1.4e-3 above it.
    if logit_scale <= np.log(100) + 2e-3:
        return []
    if logit_scale > 10:
        return [f"logit scale: {logit_scale:g} is stored where its logarithm belongs: it would be exp({logit_scale:g})"]
    return [f"logit scale: exp({logit_scale:.4g}) = {np.exp(logit_scale):.4g} is above 100, where training clips it"]


def _legacy_dict(hub: Mapping[str, Any], name: str, tower: TowerConfig) -> list[str]:
    """What `text_config_dict` or `vision_config_dict` changes of what `text_config` or `vision_config` says."""
    plain, legacy = hub.get(f"{name}_config"), hub.get(f"{name}_config_dict")
    if plain is None or legacy is None:
        return []
    changed = [
        f"{field.name} is {value!r}, not {plain[field.name]!r}"
        for field in dataclasses.fields(tower)
        if field.name in plain
        and field.name not in ("projection_dim", "family", "other")
        and (value := getattr(tower, field.name)) != plain[field.name]
    ]
    if not changed:
        return []
    return [f"config: {name}_config_dict overrides {name}_config, with its defaults as well: {', '.join(changed)}"]


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.4g}" for value in np.atleast_1d(values))
