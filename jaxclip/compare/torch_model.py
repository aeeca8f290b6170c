"""The same capture of transformers' model, for `torch:MODEL`. Needs torch and transformers, which jaxclip itself
doesn't."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from jaxclip.compare.capture import Capture
from jaxclip.compare.inputs import Inputs
from jaxclip.compare.names import GRADIENTS, is_tensor

# Of a lone tower without a projection, whose modules' paths lack the tower.
_PREFIXES = {"TextModel": "text_model.", "VisionModel": "vision_model."}


def load_transformers(source: str, *, dtype: str = "float32") -> Any:
    """transformers' model of a folder or Hub id, of the class that its config names. Raises ImportError where torch
    or transformers is missing."""
    torch, transformers = _modules()
    architecture = transformers.AutoConfig.from_pretrained(source).architectures[0]
    # Only eager attention shows its weights.
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": "eager"}
    return getattr(transformers, architecture).from_pretrained(source, **settings).eval()


def processed_by_transformers(source: str, inputs: Inputs, *, longest: int | None = None) -> Inputs:
    """With what transformers' own tokenizer and image processor make of the strings and images, where there are any.
    `longest` is the model's number of positions."""
    transformers = _modules()[1]
    made: dict[str, Any] = {}
    if inputs.texts is not None:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(source)
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "np"}
        made["token_ids"] = tokenizer(list(inputs.texts), **options)["input_ids"].astype(np.int32)
    if inputs.images is not None:
        processor = transformers.CLIPImageProcessorPil.from_pretrained(source)
        made["pixels"] = processor(list(inputs.images), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    return dataclasses.replace(inputs, **made)


def capture_transformers(model: Any, inputs: Inputs, *, gradients: bool = False, source: str | None = None) -> Capture:
    """Every intermediate of a model of transformers: what hooks see of its modules, and what it returns.

    `inputs` holds token ids or pixels, or both. `gradients` adds those of its loss, which needs as many of one as of
    the other.
    """
    torch = _modules()[0]
    given = {name: value for name, value in inputs.tensors().items() if "." not in name}
    arguments = {
        name: torch.from_numpy(np.array(value, np.float32 if name == "pixel_values" else np.int64))
        for name, value in given.items()
    }
    if "pixel_values" in arguments:
        vision = getattr(model.config, "vision_config", model.config)
        arguments["pixel_values"] = arguments["pixel_values"].to(model.dtype)
        size = given["pixel_values"].shape[2:]
        arguments["interpolate_pos_encoding"] = size != (vision.image_size, vision.image_size)
    both = "input_ids" in given and "pixel_values" in given
    seen: dict[str, Any] = {}
    prefix = next((prefix for end, prefix in _PREFIXES.items() if type(model).__name__.endswith(end)), "")
    hooks = [module.register_forward_hook(_hook(seen, prefix + path)) for path, module in model.named_modules() if path]
    if prefix:
        hooks.append(model.register_forward_hook(_hook(seen, prefix.rstrip("."))))
    try:
        with torch.set_grad_enabled(gradients):
            if both:
                square = len(given["input_ids"]) == len(given["pixel_values"])
                output = model(**arguments, return_loss=square)
                for name in ("text_embeds", "image_embeds", "logits_per_image", *(["loss"] if square else [])):
                    seen[name] = output[name]
            elif hasattr(model, "logit_scale"):
                tower = model.get_text_features if "input_ids" in given else model.get_image_features
                tower(**arguments)
            else:
                model(**arguments)
    finally:
        for hook in hooks:
            hook.remove()
    if gradients:
        model.zero_grad()
        seen["loss"].backward()
        seen |= {GRADIENTS + prefix + name: parameter.grad for name, parameter in model.named_parameters()}
    tensors = {name: _array(value) for name, value in seen.items()}
    return Capture({**inputs.tensors(), **tensors}, source=source)


def _hook(seen: dict[str, Any], name: str) -> Callable[..., None]:
    def see(module: Any, arguments: Any, output: Any) -> None:
        if name.endswith("self_attn"):
            seen[f"{name}.attn_weights"] = output[1]
        elif name == "text_model":
            seen["text_model.pooler_output"] = output.pooler_output
        elif is_tensor(name):
            seen[name] = output

    return see


def _array(tensor: Any) -> np.ndarray:
    """bfloat16, which NumPy hasn't got, by way of float32."""
    tensor = tensor.detach()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def _modules() -> tuple[Any, Any]:
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"torch:MODEL is transformers' model, and {name} is not installed: pip install torch transformers"
            )
    return importlib.import_module("torch"), importlib.import_module("transformers")
