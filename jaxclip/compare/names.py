"""Which tensors a capture holds: the names of `jaxclip.reference.model`, and those of what goes in.

| name | shape | what |
|---|---|---|
| `texts.N` | (bytes) | uint8: the N-th text in UTF-8 |
| `images.N` | (height, width, 3) | uint8: the N-th image, RGB |
| `input_ids` | (texts, tokens) | token ids, as the text tower gets them |
| `attention_mask`, `position_ids` | (texts, tokens) | where they were given |
| `pixel_values` | (images, channels, height, width) | normalised pixels, as the vision tower gets them |
| `gradients.PARAMETER` | the parameter's | of the loss, by the checkpoint's name of the parameter, in its layout |

All but `input_ids` or `pixel_values` may be missing, and without these two a capture is only worth its table.
"""

import re
from collections.abc import Iterable

INPUTS = ("input_ids", "attention_mask", "position_ids", "pixel_values")
GRADIENTS = "gradients."

# jaxclip's names (`jaxclip.nn.tap`) → the Hugging Face modules'.
_OF_A_BLOCK = {
    "norm1": "layer_norm1",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.weights": "self_attn.attn_weights",
    "attention.out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.activation": "mlp.activation_fn",
    "mlp.fc2": "mlp.fc2",
}
_OF_THE_MODEL = {
    "text.embeddings": "text_model.embeddings",
    "text.final_norm": "text_model.final_layer_norm",
    "text.pooled": "text_model.pooler_output",
    "text.projection": "text_projection",
    "text_features": "text_embeds",
    "vision.embeddings": "vision_model.embeddings",
    "vision.pre_norm": "vision_model.pre_layrnorm",
    "vision.pooled": "vision_model.post_layernorm",
    "vision.projection": "visual_projection",
    "image_features": "image_embeds",
    "logits_per_image": "logits_per_image",
}
_ORDER = [
    *INPUTS[:-1], "text_model.embeddings", "text_model.encoder", "text_model.final_layer_norm",
    "text_model.pooler_output", "text_projection", "text_embeds",
    INPUTS[-1], "vision_model.embeddings", "vision_model.pre_layrnorm", "vision_model.encoder",
    "vision_model.post_layernorm", "visual_projection", "image_embeds",
    "logits_per_image", "loss",
]  # fmt: skip
_BLOCK_ORDER = [*_OF_A_BLOCK.values(), ""]
_BLOCK = re.compile(r"((?:text|vision)_model\.encoder)\.layers\.(\d+)\.?(.*)")


def module_name(tap_name: str) -> str:
    """The Hugging Face module's name of what a tap of the joint model sees."""
    if tap_name in _OF_THE_MODEL:
        return _OF_THE_MODEL[tap_name]
    tower, _, index, *part = tap_name.split(".", 3)
    return ".".join([f"{tower}_model.encoder.layers.{index}", *(_OF_A_BLOCK[name] for name in part)])


def block_of(name: str) -> tuple[str, int, str] | None:
    """Tower ("text_model"), number and inner name ("" for the block's own output) of what belongs to a block."""
    found = _BLOCK.fullmatch(name)
    return (found[1].removesuffix(".encoder"), int(found[2]), found[3]) if found else None


def is_tensor(name: str) -> bool:
    """Whether it is one of the names that `jaxclip.reference.model` lists."""
    return not name.endswith("encoder") and name not in INPUTS and 0 <= _place(name)[0] < len(_ORDER)


def in_order(names: Iterable[str]) -> list[str]:
    """In order of execution: strings and images first, strangers and gradients last."""
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, int, int, str]:
    block = _BLOCK.fullmatch(name)
    if block and block[3] in _BLOCK_ORDER:
        return _ORDER.index(block[1]), int(block[2]), _BLOCK_ORDER.index(block[3]), ""
    if name in _ORDER:
        return _ORDER.index(name), 0, 0, ""
    if raw := re.fullmatch(r"(texts|images)\.(\d+)", name):
        return -1, int(raw[2]), 0, raw[1]
    return len(_ORDER) + name.startswith(GRADIENTS), 0, 0, name
