"""The oracle beside the committed references of `tests/references`, whose names are other than its own."""

import json
from functools import cache

import numpy as np
from cases import FOLDER

from jaxclip.checkpoints import locate, open_tensors, weight_files
from jaxclip.config import CLIPConfig
from jaxclip.reference import Oracle


@cache
def oracle(case: str, precision: str = "float64") -> Oracle:
    """Of a checkpoint in any form, as `jaxclip.checkpoints` reads them."""
    tensors = {name: tensor.read() for name, tensor in open_tensors(weight_files(locate(FOLDER / case))).items()}
    config = CLIPConfig.from_hub(json.loads((FOLDER / case / "config.json").read_text()))
    return Oracle(config, tensors, precision=precision)


def oracle_outputs(oracle: Oracle, reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `cases.outputs` of a model."""
    config, found = oracle.config, {}
    if config.text:
        found |= _named("text", oracle, oracle(reference["token_ids"]))
    if config.vision:
        found |= _named("vision", oracle, oracle(None, reference["pixels"]))
    if config.text and config.vision:
        masked = oracle(reference["token_ids"], None, reference["attention_mask"], reference["position_ids"])
        found |= _named("masked_text", oracle, masked)
        found |= _named("other_vision", oracle, oracle(None, reference["other_pixels"]))
        whole = oracle(reference["token_ids"], reference["pixels"])
        names = {"text_features": "text_embeds", "image_features": "image_embeds", "logits_per_image": None}
        found |= {theirs: whole[ours or theirs] for theirs, ours in names.items()}
    return found


def _named(tower: str, oracle: Oracle, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    text = tower.endswith("text")
    model = "text_model" if text else "vision_model"
    blocks = oracle.layers(model)
    names = {
        "last_hidden_state": "text_model.final_layer_norm" if text else blocks[-1],
        "pooled": "text_model.pooler_output" if text else "vision_model.post_layernorm",
        "features": "text_projection" if text else "visual_projection",
        "hidden_states.0": "text_model.embeddings" if text else "vision_model.pre_layrnorm",
        **{f"hidden_states.{index}": name for index, name in enumerate(blocks, start=1)},
    }
    return {f"{tower}.{theirs}": seen[ours] for theirs, ours in names.items() if ours in seen}
