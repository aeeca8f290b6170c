"""The table from the Hub's tensor names and layouts to our parameters' paths, and back.

One dialect, Hugging Face's `CLIPModel`. A lone tower's file has the same names, from transformers 5 on without the
tower's prefix: `with_prefix` puts it back.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jaxclip.config import CLIPConfig


@dataclass(frozen=True)
class Layout:
    """How the axes of a tensor of the file are ordered in ours: ours = transpose(theirs, axes)."""

    axes: tuple[int, ...] | None = None

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def theirs(self, tensor: np.ndarray) -> np.ndarray:
        return tensor if self.axes is None else tensor.transpose(np.argsort(self.axes))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.axes is None else tuple(shape[axis] for axis in np.argsort(self.axes))


AS_IS = Layout()
CONVOLUTION = Layout((2, 3, 1, 0))  # (out, in, height, width) → (height, width, in, out)

_TEXT = (
    ("text_model.embeddings.token_embedding.weight", "text.token_embedding.embedding", AS_IS),
    ("text_model.embeddings.position_embedding.weight", "text.position_embedding.embedding", AS_IS),
    ("text_model.final_layer_norm.weight", "text.final_norm.scale", AS_IS),
    ("text_model.final_layer_norm.bias", "text.final_norm.bias", AS_IS),
)
_TEXT_PROJECTION = ("text_projection.weight", "text.projection.weight", AS_IS)
_VISION = (
    ("vision_model.embeddings.class_embedding", "vision.class_embedding", AS_IS),
    ("vision_model.embeddings.patch_embedding.weight", "vision.patch_embedding.kernel", CONVOLUTION),
    ("vision_model.embeddings.position_embedding.weight", "vision.position_embedding", AS_IS),
    ("vision_model.pre_layrnorm.weight", "vision.pre_norm.scale", AS_IS),
    ("vision_model.pre_layrnorm.bias", "vision.pre_norm.bias", AS_IS),
    ("vision_model.post_layernorm.weight", "vision.post_norm.scale", AS_IS),
    ("vision_model.post_layernorm.bias", "vision.post_norm.bias", AS_IS),
)
_VISION_PROJECTION = ("visual_projection.weight", "vision.projection.weight", AS_IS)
_BLOCK = (
    ("layer_norm1.weight", "norm1.scale", AS_IS),
    ("layer_norm1.bias", "norm1.bias", AS_IS),
    ("self_attn.q_proj.weight", "attention.query.weight", AS_IS),
    ("self_attn.q_proj.bias", "attention.query.bias", AS_IS),
    ("self_attn.k_proj.weight", "attention.key.weight", AS_IS),
    ("self_attn.k_proj.bias", "attention.key.bias", AS_IS),
    ("self_attn.v_proj.weight", "attention.value.weight", AS_IS),
    ("self_attn.v_proj.bias", "attention.value.bias", AS_IS),
    ("self_attn.out_proj.weight", "attention.out.weight", AS_IS),
    ("self_attn.out_proj.bias", "attention.out.bias", AS_IS),
    ("layer_norm2.weight", "norm2.scale", AS_IS),
    ("layer_norm2.bias", "norm2.bias", AS_IS),
    ("mlp.fc1.weight", "mlp.fc1.weight", AS_IS),
    ("mlp.fc1.bias", "mlp.fc1.bias", AS_IS),
    ("mlp.fc2.weight", "mlp.fc2.weight", AS_IS),
    ("mlp.fc2.bias", "mlp.fc2.bias", AS_IS),
)
_LOGIT_SCALE = ("logit_scale", "logit_scale", AS_IS)

# Buffers that older transformers saved and that hold nothing but 0, 1, 2, ...: the only names that are ignored.
_BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

_TOWER_PREFIXES = {"text": ("text_model.", "text_projection."), "vision": ("vision_model.", "visual_projection.")}


def parameter_names(config: CLIPConfig) -> dict[str, tuple[str, Layout]]:
    """Our parameters' paths → (the Hub's name, the layout), for a model of this config, in order of execution."""
    rows = []
    for tower, table, projection in (
        (config.text, _TEXT, _TEXT_PROJECTION),
        (config.vision, _VISION, _VISION_PROJECTION),
    ):
        if tower is None:
            continue
        theirs, ours = table[0][0].split(".")[0], table[0][1].split(".")[0]
        rows += table
        rows += [
            (f"{theirs}.encoder.layers.{layer}.{name}", f"{ours}.blocks.{layer}.{path}", layout)
            for layer in range(tower.num_hidden_layers)
            for name, path, layout in _BLOCK
        ]
        if tower.projection_dim is not None:
            rows.append(projection)
    if config.text and config.vision:
        rows.append(_LOGIT_SCALE)
    return {path: (name, layout) for name, path, layout in rows}


def with_prefix(names: Iterable[str], config: CLIPConfig) -> dict[str, str]:
    """The file's names → the table's. A lone tower may be stored without its prefix (transformers 5)."""
    names = list(names)
    if config.text and config.vision:
        return {name: name for name in names}
    prefix, projection = _TOWER_PREFIXES["text" if config.text else "vision"]
    if any(name.startswith(prefix) for name in names):
        return {name: name for name in names}
    return {name: name if name.startswith(projection) else prefix + name for name in names}


def is_exempt(name: str, config: CLIPConfig, whole: CLIPConfig) -> bool:
    """Whether a tensor may stay unread when `config` is the part that was asked for of the `whole` checkpoint."""
    if name in _BUFFERS:
        return True
    left_out = [tower for tower in _TOWER_PREFIXES if getattr(whole, tower) and not getattr(config, tower)]
    return any(name.startswith(_TOWER_PREFIXES[tower]) for tower in left_out) or (
        bool(left_out) and name == _LOGIT_SCALE[0]
    )
