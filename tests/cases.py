"""The committed checkpoints of `tests/references` and how far a model is from what transformers computed from them."""

from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import jaxclip

FOLDER = Path(__file__).parent / "references"
CASES = sorted(folder.name for folder in FOLDER.glob("*/"))
JOINT = [name for name in CASES if not name.startswith(("text", "vision"))]

# Encoded by the case "whole", which has a tokenizer and a preprocessor. The last is cut to the 12 positions.
TEXTS = [
    "two dogs running across a frosty field",
    "a cat",
    "",
    "Ein Café, 2 Äpfel!",
    "the quick brown fox jumps over the lazy dog and runs far away from here",
]

# The worst error over all cases is 6.0e-6 of a tensor's RMS (case "norms"); the mistakes of test_traps.py show as ten
# times the tolerance or more.
TOLERANCE = 2e-5


def photos() -> list[np.ndarray]:
    """scikit-image's: uint8, two sizes, neither square."""
    from skimage import data

    return [data.chelsea(), data.coffee()]


def expected(case: str) -> dict[str, np.ndarray]:
    """Inputs and outputs; pixels channels last."""
    tensors = load_file(FOLDER / case / "expected.safetensors")
    return {k: v.transpose(0, 2, 3, 1) if k.endswith("pixels") else v for k, v in tensors.items()}


def relative_error(ours, theirs) -> float:
    """The largest difference, in units of the reference's root mean square."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{ours.shape} against the reference's {theirs.shape}"
    return float(np.abs(ours - theirs).max() / np.sqrt((theirs**2).mean()))


def errors(model, case: str) -> dict[str, float]:
    """The relative error of every hidden state and output that the reference has."""
    return errors_of(outputs(model, expected(case)), case)


def errors_of(ours: dict[str, jnp.ndarray], case: str) -> dict[str, float]:
    """The same, of `outputs`."""
    inputs = {"token_ids", "attention_mask", "position_ids", "pixels", "other_pixels"}
    reference = {name: tensor for name, tensor in expected(case).items() if not name.startswith(("string", "photo"))}
    compared = {name: relative_error(ours[name], theirs) for name, theirs in reference.items() if name not in inputs}
    assert len(compared) >= 5
    return compared


@cache
def loaded_outputs(case: str) -> dict[str, jnp.ndarray]:
    """`outputs` of a checkpoint as it is, computed once for all tests."""
    return outputs(jaxclip.load(FOLDER / case).model, expected(case))


def outputs(model, reference: dict[str, np.ndarray]) -> dict[str, jnp.ndarray]:
    """What the model makes of the reference's inputs, under the reference's names."""
    reference = {name: jnp.asarray(tensor) for name, tensor in reference.items()}
    ours = {}
    if model.text is not None:
        ours |= named("text", model.text(reference["token_ids"]))
    if model.vision is not None:
        ours |= named("vision", model.vision(reference["pixels"]))
    if model.text is not None and model.vision is not None:
        masked = model.text(reference["token_ids"], reference["attention_mask"], reference["position_ids"])
        ours |= named("masked_text", masked)
        ours |= named("other_vision", model.vision(reference["other_pixels"], interpolate_positions=True))
        whole = model(reference["token_ids"], reference["pixels"])
        ours |= {k: getattr(whole, k) for k in ("text_features", "image_features", "logits_per_image")}
    return ours


def named(tower: str, output) -> dict:
    tensors = {f"{tower}.{name}": getattr(output, name) for name in ("features", "pooled", "last_hidden_state")}
    return tensors | {f"{tower}.hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
