"""The oracle, fed with a capture's own tensors: what each of them should be, given those before it."""

from collections.abc import Callable, Mapping

import numpy as np

from jaxclip.compare.inputs import Inputs
from jaxclip.compare.names import block_of
from jaxclip.config import CLIPConfig
from jaxclip.reference import Oracle
from jaxclip.reference.model import Tap

TEXT_HEAD, VISION_HEAD, JOINT = "text_head", "vision_head", "joint"
_SEGMENTS = {
    **dict.fromkeys(
        ("text_model.final_layer_norm", "text_model.pooler_output", "text_projection", "text_embeds"), TEXT_HEAD
    ),
    **dict.fromkeys(("vision_model.post_layernorm", "visual_projection", "image_embeds"), VISION_HEAD),
    **dict.fromkeys(("logits_per_image", "loss"), JOINT),
}
# The tensor that a segment hands on, where it isn't called as the segment.
OUTPUTS = {TEXT_HEAD: "text_embeds", VISION_HEAD: "image_embeds"}


class _Reached(Exception):
    """What was asked for is there."""


def segment_of(name: str) -> str:
    """The part of the forward pass that computes a tensor: embeddings, a block, what follows the last block, or what
    compares both towers."""
    block = block_of(name)
    return f"{block[0]}.encoder.layers.{block[1]}" if block else _SEGMENTS.get(name, name)


def segments(config: CLIPConfig, inputs: Inputs) -> list[str]:
    """All parts of the forward pass on these inputs, in order of execution."""
    text, vision = config.text if inputs.token_ids is not None else None, config.vision
    vision = vision if inputs.pixels is not None else None
    found = []
    if text:
        layers = [f"text_model.encoder.layers.{index}" for index in range(text.num_hidden_layers)]
        found += ["text_model.embeddings", *layers, TEXT_HEAD]
    if vision:
        layers = [f"vision_model.encoder.layers.{index}" for index in range(vision.num_hidden_layers)]
        found += ["vision_model.embeddings", "vision_model.pre_layrnorm", *layers, VISION_HEAD]
    return [*found, JOINT] if text and vision else found


def retrace(
    make: Callable[[Tap], Oracle],
    tensors: Mapping[str, np.ndarray],
    inputs: Inputs,
    *,
    segment: str | None = None,
    until: str | None = None,
) -> dict[str, np.ndarray]:
    """What the oracle makes of each tensor from what `tensors` holds of those before it, by name.

    `make` gives the oracle (or one with a mistake) for a tap. `segment` retraces one part alone, with what leads to it
    from the last output of a part that is there; `until` stops at a tensor. What can't be computed, because shapes
    don't fit, is missing.
    """

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name == until:
            raise _Reached
        given = tensors.get(name)
        if given is None:
            return value
        # Sequences of another length go on as they are; of another width or number of heads they could not.
        fits = given.shape == value.shape or (given.ndim == value.ndim == 3 and given.shape[2] == value.shape[2])
        return np.asarray(given, value.dtype) if fits else value

    oracle = make(tap)
    trace = _Trace(oracle, tensors, inputs)
    for name in segments(oracle.config, inputs) if segment is None else [segment]:
        try:
            # A capture may hold anything, NaN and infinities as well.
            with np.errstate(all="ignore"):
                trace.run(name)
        except _Reached:
            break
        except (ValueError, IndexError):
            continue
    return oracle.seen


class _Trace:
    def __init__(self, oracle: Oracle, tensors: Mapping[str, np.ndarray], inputs: Inputs):
        self.oracle, self.tensors, self.inputs = oracle, tensors, inputs
        self.order = segments(oracle.config, inputs)
        self.outputs: dict[str, np.ndarray | None] = {}

    def output(self, segment: str) -> np.ndarray | None:
        """What a part hands on: the capture's, or computed."""
        name = OUTPUTS.get(segment, segment)
        if name in self.tensors:
            return self.tensors[name].astype(self.oracle.precision.dtype)
        return self.outputs[segment] if segment in self.outputs else self.run(segment)

    def run(self, segment: str) -> np.ndarray | None:
        self.outputs[segment] = output = self._run(segment)
        return output

    def _run(self, segment: str) -> np.ndarray | None:
        oracle, inputs = self.oracle, self.inputs
        if segment == "text_model.embeddings":
            assert inputs.token_ids is not None
            return oracle.text_embeddings(inputs.token_ids, inputs.position_ids)
        if segment == "vision_model.embeddings":
            assert inputs.pixels is not None
            return oracle.vision_embeddings(inputs.pixels)
        if segment == JOINT:
            image, text = self.output(VISION_HEAD), self.output(TEXT_HEAD)
            if image is not None and text is not None:
                oracle.joint(image, text)
            return None
        x = self.output(self.order[self.order.index(segment) - 1])
        assert x is not None
        if segment == "vision_model.pre_layrnorm":
            return oracle.pre_norm(x)
        if segment == VISION_HEAD:
            return oracle.vision_head(x)
        if segment == TEXT_HEAD:
            assert inputs.token_ids is not None
            return oracle.text_head(x, inputs.token_ids)
        mask = None
        if segment.startswith("text_model"):
            assert inputs.token_ids is not None
            mask = oracle.text_mask(inputs.token_ids, inputs.attention_mask)
        return oracle.block(segment, x, mask)
