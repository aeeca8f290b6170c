"""Captures models whose modules are called as OpenAI called them: openai/CLIP's and open_clip's."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jaxclip.compare import Capture
from jaxclip.compare.inputs import Inputs

# Modules of a tower, and of each of its blocks, by the Hugging Face modules' names (`jaxclip.reference.model`).
TOWERS = {
    "text_model": ("transformer", {"ln_final": "final_layer_norm"}),
    "vision_model": ("visual.transformer", {"visual.ln_pre": "pre_layrnorm", "visual.ln_post": "post_layernorm"}),
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.gelu": "mlp.activation_fn",
    "mlp.c_proj": "mlp.fc2",
}


@torch.no_grad()
def capture_openai_modules(model: Any, inputs: Inputs) -> Capture:
    """Every intermediate that hooks can see of `encode_text` and `encode_image`.

    The text's pooled row is no module's output and is left out. Queries, keys and values are computed once more from
    what goes into the attention, which computes them in one product with the scores; so are, from the features and with
    the model's scale, the unit vectors and the logits, since the model would run once more for these.
    """
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    modules = dict(model.named_modules())
    for tower, (transformer, others) in TOWERS.items():
        hooks += [modules[ours].register_forward_hook(_see(seen, f"{tower}.{name}")) for ours, name in others.items()]
        blocks = modules[f"{transformer}.resblocks"]
        for index, block in enumerate(blocks):
            name = f"{tower}.encoder.layers.{index}"
            hooks.append(block.register_forward_hook(_see(seen, name)))
            for ours, theirs in BLOCK.items():
                hooks.append(block.get_submodule(ours).register_forward_hook(_see(seen, f"{name}.{theirs}")))
            hooks.append(block.attn.register_forward_pre_hook(_wants_weights, with_kwargs=True))
            hooks.append(block.attn.register_forward_hook(_see_attention(seen, f"{name}.self_attn")))
        if tower == "text_model":
            hooks.append(blocks[0].register_forward_pre_hook(_see_input(seen, f"{tower}.embeddings")))
    hooks.append(modules["visual.ln_pre"].register_forward_pre_hook(_see_input(seen, "vision_model.embeddings")))
    # These models take texts of one length alone, padded with 0.
    missing = model.positional_embedding.shape[0] - inputs.token_ids.shape[1]
    token_ids = torch.from_numpy(np.pad(np.asarray(inputs.token_ids, np.int64), ((0, 0), (0, missing))))
    inputs = dataclasses.replace(inputs, token_ids=token_ids.numpy().astype(np.int32))
    pixels = torch.from_numpy(np.ascontiguousarray(inputs.pixels.transpose(0, 3, 1, 2), np.float32))
    try:
        seen["text_projection"] = model.encode_text(token_ids)
        seen["visual_projection"] = model.encode_image(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    for name, features in (("text_embeds", "text_projection"), ("image_embeds", "visual_projection")):
        seen[name] = torch.nn.functional.normalize(seen[features], dim=-1)
    seen["logits_per_image"] = model.logit_scale.exp() * seen["image_embeds"] @ seen["text_embeds"].T
    return Capture({**inputs.tensors(), **{name: tensor.float().numpy() for name, tensor in seen.items()}})


def _see(seen: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def hook(module: Any, arguments: Any, output: Any) -> None:
        seen[name] = output.clone()

    return hook


def _see_input(seen: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def hook(module: Any, arguments: Any) -> None:
        seen[name] = arguments[0].clone()

    return hook


def _wants_weights(module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return arguments, {**options, "need_weights": True, "average_attn_weights": False}


def _see_attention(seen: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def hook(module: Any, arguments: Any, output: Any) -> None:
        fused = torch.nn.functional.linear(arguments[0], module.in_proj_weight, module.in_proj_bias)
        for part, value in zip("qkv", fused.chunk(3, dim=-1), strict=True):
            seen[f"{name}.{part}_proj"] = value
        seen[f"{name}.out_proj"], seen[f"{name}.attn_weights"] = output

    return hook
