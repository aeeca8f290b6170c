"""Implementations of CLIP with one mistake each, made by changing the text of the oracle, and what is to be found.

They share nothing with `jaxclip.compare.mistakes`, which is under test.
"""

import contextlib
import inspect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from oracle_cases import oracle
from safetensors.numpy import save_file

from jaxclip.compare import Capture
from jaxclip.compare.inputs import Inputs, example_pixels, example_token_ids
from jaxclip.config import CLIPConfig
from jaxclip.reference import Oracle, model

BLOCK = "text_model.encoder.layers.0"
QUICK, EXACT = ("openai", "metaclip_2"), ("first_eos",)


@dataclass(frozen=True)
class Plant:
    """A mistake: the name, where it first shows, what its cause is called, and the lines to change."""

    name: str
    at: str
    cause: str
    changes: dict[str, str]
    cases: tuple[str, ...] = ("openai", "first_eos", "metaclip_2")
    larger: bool = False

    def __str__(self) -> str:
        return self.name


def linear(condition: str, weight: str = "self.parameter(f'{name}.weight').T", bias: str = "{bias}") -> dict[str, str]:
    """Another weight or bias where the condition on `name` holds."""
    right_weight, right_bias = 'self.parameter(f"{name}.weight").T', 'self.parameter(f"{name}.bias")'
    return {
        f"y = self.product(x, {right_weight})": f"y = self.product(x, ({weight}) if {condition} else {right_weight})",
        f"y + {right_bias} if bias else y": f"(y + {bias.format(bias=right_bias)} if {condition} else y + {right_bias})"
        " if bias else y",
    }


def no_bias(condition: str) -> dict[str, str]:
    return linear(condition, bias="0")


def transposed(condition: str) -> dict[str, str]:
    return linear(condition, weight="self.parameter(f'{name}.weight')")


POOLED = "        text = self.config.text\n        assert text is not None\n        if text.pooling"
BLOCK_LINES = (
    'x = x + self.attention(f"{name}.self_attn", self.layer_norm(f"{name}.layer_norm1", x), mask)',
    'x = x + self.mlp(f"{name}.mlp", self.layer_norm(f"{name}.layer_norm2", x))',
)
HEADS = "self.tower(name).num_attention_heads, -1)"
SCALE = "* self.attention_scale(name)"
EPSILON = "self.tower(name).layer_norm_eps"
ACTIVATION = "ACTIVATIONS[self.tower(name).hidden_act]"
MASK = "np.tri(token_ids.shape[1], dtype=bool)"
CLASS_FIRST = "np.concatenate([class_token, tokens], axis=1) + self.vision_positions(rows, columns)"
VISION_POOLED = 'self.layer_norm("vision_model.post_layernorm", x[:, 0])'
VISION_BLOCK = "vision_model.encoder.layers.0"


def renamed(how: str) -> dict[str, str]:
    """Parameters under other names."""
    return {"if name not in self.tensors:": f"name = name{how}\n        if name not in self.tensors:"}


def pooled(how: str) -> dict[str, str]:
    return {POOLED: f"        return {how}\n{POOLED}"}


PLANTS = [
    Plant("exact GELU", f"{BLOCK}.mlp.activation_fn", "exact GELU instead of QuickGELU",
          {ACTIVATION: "ACTIVATIONS['gelu']"}, QUICK),
    Plant("tanh GELU for QuickGELU", f"{BLOCK}.mlp.activation_fn",
          "GELU by its tanh approximation instead of QuickGELU", {ACTIVATION: "ACTIVATIONS['gelu_new']"}, QUICK),
    Plant("tanh GELU for exact", f"{BLOCK}.mlp.activation_fn", "GELU by its tanh approximation instead of exact GELU",
          {ACTIVATION: "ACTIVATIONS['gelu_new']"}, EXACT),
    Plant("QuickGELU for exact", f"{BLOCK}.mlp.activation_fn", "QuickGELU instead of exact GELU",
          {ACTIVATION: "ACTIVATIONS['quick_gelu']"}, EXACT),
    Plant("epsilon 1e-6", f"{BLOCK}.layer_norm1", "LayerNorm's epsilon 1e-06 instead of 1e-05", {EPSILON: "1e-6"}),
    Plant("epsilon 1e-12", f"{BLOCK}.layer_norm1", "LayerNorm's epsilon 1e-12 instead of 1e-05", {EPSILON: "1e-12"}),
    Plant("epsilon 1e-5 for 1e-3", "vision_model.pre_layrnorm", "LayerNorm's epsilon 1e-05 instead of 0.001",
          {EPSILON: "1e-5"}, EXACT),
    Plant("post-norm", f"{BLOCK}.layer_norm1", "LayerNorms after attention and MLP instead of before (post-norm)",
          dict(zip(BLOCK_LINES, (
              'x = self.layer_norm(f"{name}.layer_norm1", x + self.attention(f"{name}.self_attn", x, mask))',
              'x = self.layer_norm(f"{name}.layer_norm2", x + self.mlp(f"{name}.mlp", x))'), strict=True))),
    Plant("no causal mask", f"{BLOCK}.self_attn.attn_weights", "causal mask missing",
          {MASK: "np.ones((token_ids.shape[1],) * 2, bool)"}),
    Plant("mask one ahead", f"{BLOCK}.self_attn.attn_weights", "causal mask off by one: one token ahead is seen",
          {MASK: "np.tri(token_ids.shape[1], k=1, dtype=bool)"}),
    Plant("mask one behind", f"{BLOCK}.self_attn.attn_weights",
          "causal mask off by one: a token doesn't see itself",
          {MASK: "(np.tri(token_ids.shape[1], k=-1, dtype=bool))"}),
    Plant("padding masked", f"{BLOCK}.self_attn.attn_weights", "padding masked",
          {"mask = self.text_mask(token_ids, attention_mask)": "mask = self.text_mask(token_ids, np.arange("
           "token_ids.shape[1]) <= self.pooled_position(token_ids)[:, None])"}),
    Plant("twice the heads", f"{BLOCK}.self_attn.attn_weights", "4 heads of width 8 instead of 2 of width 16",
          {HEADS: f"2 * {HEADS}", SCALE: f"{SCALE} * 2 ** 0.5"}),
    Plant("one head", f"{BLOCK}.self_attn.attn_weights", "1 heads of width 32 instead of 2 of width 16",
          {HEADS: "1, -1)", SCALE: "* x.shape[-1] ** -0.5"}),
    Plant("queries unscaled", f"{BLOCK}.self_attn.attn_weights", "queries not scaled", {SCALE: ""}),
    Plant("queries scaled twice", f"{BLOCK}.self_attn.attn_weights", "queries scaled twice", {SCALE: f"{SCALE} ** 2"}),
    Plant("queries scaled by the width", f"{BLOCK}.self_attn.attn_weights",
          "queries scaled by the whole width instead of a head's", {SCALE: "* x.shape[-1] ** -0.5"}),
    Plant("q and k used for each other", f"{BLOCK}.self_attn.attn_weights", "k, q, v used in the place of q, k, v",
          {'for part in "qkv")': 'for part in "kqv")'}),
    Plant("v and q used for each other", f"{BLOCK}.self_attn.attn_weights", "v, k, q used in the place of q, k, v",
          {'for part in "qkv")': 'for part in "vkq")'}),
    Plant("parameters of q and k swapped", f"{BLOCK}.self_attn.q_proj",
          "q, k, v computed with the parameters of k, q, v",
          renamed(".replace('.q_proj', '.?').replace('.k_proj', '.q_proj').replace('.?', '.k_proj')")),
    Plant("parameters of q, k, v moved on", f"{BLOCK}.self_attn.q_proj",
          "q, k, v computed with the parameters of k, v, q",
          renamed(".replace('.q_proj', '.?').replace('.v_proj', '.q_proj').replace('.k_proj', '.v_proj')"
                  ".replace('.?', '.k_proj')")),
    Plant("q_proj transposed", f"{BLOCK}.self_attn.q_proj", "self_attn.q_proj.weight transposed",
          transposed('name.endswith("q_proj")')),
    Plant("out_proj transposed", f"{BLOCK}.self_attn.out_proj", "self_attn.out_proj.weight transposed",
          transposed('name.endswith("out_proj")')),
    Plant("all square weights transposed", f"{BLOCK}.self_attn.q_proj", "the weights of attention transposed",
          transposed('"self_attn" in name')),
    Plant("fc1 reshaped", f"{BLOCK}.mlp.fc1", "mlp.fc1.weight transposed",
          linear('name.endswith("fc1")', weight="self.parameter(f'{name}.weight').reshape(x.shape[-1], -1)")),
    Plant("q bias dropped", f"{BLOCK}.self_attn.q_proj", "self_attn.q_proj.bias left out",
          no_bias('name.endswith("q_proj")')),
    Plant("q, k, v biases dropped", f"{BLOCK}.self_attn.q_proj", "the biases of q, k and v left out",
          no_bias('name.endswith(("q_proj", "k_proj", "v_proj"))')),
    Plant("out bias dropped in one block", "text_model.encoder.layers.1.self_attn.out_proj",
          "self_attn.out_proj.bias left out", no_bias('name == "text_model.encoder.layers.1.self_attn.out_proj"')),
    Plant("fc2 bias dropped in vision", f"{VISION_BLOCK}.mlp.fc2", "mlp.fc2.bias left out",
          no_bias('name.startswith("vision") and name.endswith("fc2")')),
    Plant("text positions from 1", "text_model.embeddings", "position embeddings off by one, from 1 on",
          {"np.arange(token_ids.shape[1])[None] if position_ids": "np.arange(token_ids.shape[1])[None] + 1 if "
           "position_ids"}),
    Plant("text positions not added", "text_model.embeddings", "position embeddings not added",
          {"tokens + positions": "tokens"}),
    Plant("vision positions not added", "vision_model.embeddings", "position embeddings not added",
          {CLASS_FIRST: "np.concatenate([class_token, tokens], axis=1)"}),
    Plant("vision positions rolled", "vision_model.embeddings",
          "position embeddings off by one, the class token's last",
          {CLASS_FIRST: "np.concatenate([class_token, tokens], axis=1) + np.roll(self.vision_positions(rows, columns), "
           "-1, axis=0)"}),
    Plant("positions with a = -0.5", "vision_model.embeddings",
          "position embeddings interpolated bicubically with a = −0.5", {"a: float = -0.75": "a: float = -0.5"},
          larger=True),
    Plant("positions bilinear", "vision_model.embeddings", "position embeddings interpolated bilinearly",
          {"return (a + 2) * x**3 - (a + 3) * x**2 + 1": "return 1 - x",
           "return a * (x**3 - 5 * x**2 + 8 * x - 4)": "return 0"}, larger=True),
    Plant("class token missing", "vision_model.embeddings", "class token missing",
          {CLASS_FIRST: f"({CLASS_FIRST})[:, 1:]"}),
    Plant("class token missing with its place", "vision_model.embeddings",
          "class token missing, and its position the first patch's",
          {CLASS_FIRST: "tokens + self.vision_positions(rows, columns)[:-1]"}),
    Plant("class embedding dropped", "vision_model.embeddings",
          "class embedding left out, its token 0 but for the position", {CLASS_FIRST: CLASS_FIRST.replace(
              "[class_token,", "[class_token * 0,")}),
    Plant("patches column by column", "vision_model.embeddings", "patches column by column",
          {"rows * columns, channels * patch * patch)": "rows * columns, channels * patch * patch).reshape(images, "
           "rows, columns, -1).swapaxes(1, 2).reshape(images, rows * columns, -1)"}),
    Plant("BGR kernel", "vision_model.embeddings", "red and blue of the patch embedding swapped",
          {"kernel.reshape(width, -1).T": "kernel[:, ::-1].reshape(width, -1).T"}),
    Plant("pre_layrnorm skipped", f"{VISION_BLOCK}.layer_norm1", "vision_model.pre_layrnorm skipped",
          {"x = self.pre_norm(x)": "pass"}),
    Plant("final_layer_norm skipped", "text_model.pooler_output", "text_model.final_layer_norm skipped",
          {'self.layer_norm("text_model.final_layer_norm", x)': "x"}),
    Plant("post_layernorm skipped", "visual_projection", "vision_model.post_layernorm skipped",
          {VISION_POOLED: "x[:, 0]"}),
    Plant("pooled at the last token", "text_model.pooler_output", "pooled at the last token",
          pooled("np.full(len(token_ids), token_ids.shape[1] - 1)")),
    Plant("pooled at the first token", "text_model.pooler_output", "pooled at the first token",
          pooled("np.zeros(len(token_ids), int)")),
    Plant("pooled at the largest id", "text_model.pooler_output", "pooled at the largest id",
          pooled("token_ids.argmax(axis=1)"), ("first_eos", "metaclip_2")),
    Plant("pooled at id 2", "text_model.pooler_output", "pooled at the first id 2, config.json's eos_token_id",
          pooled("(token_ids == 2).argmax(axis=1)"), ("openai",)),
    Plant("mean of the tokens", "vision_model.post_layernorm", "mean of all tokens instead of the class token",
          {VISION_POOLED: 'self.layer_norm("vision_model.post_layernorm", x.mean(axis=1))'}),
    Plant("mean of the normed patches", "vision_model.post_layernorm",
          "mean of the patches instead of the class token, after the norm",
          {f"pooled = {VISION_POOLED}": 'pooled = self.see("vision_model.post_layernorm", self.layer_norm('
           '"vision_model.post_layernorm", x)[:, 1:].mean(axis=1))'}),
    Plant("text projection skipped", "text_embeds", "text_projection skipped",
          {"self.linear(projection, pooled, bias=False)": 'pooled if projection == "text_projection" else self.linear('
           "projection, pooled, bias=False)"}),
    Plant("features not normalised", "text_embeds", "features not normalised",
          {"return features / np.linalg.norm(features, axis=-1, keepdims=True)": "return features"}),
    Plant("logit scale a logarithm", "logits_per_image", "logit scale not exponentiated",
          {'np.exp(self.parameter("logit_scale"))': 'self.parameter("logit_scale")'}),
    Plant("no residual of attention", f"{BLOCK}.layer_norm2", "what attention puts out not added to what goes in",
          {BLOCK_LINES[0]: BLOCK_LINES[0].replace("x + self", "self")}),
]  # fmt: skip


def broken(plant: Plant) -> type[Oracle]:
    """The oracle's own source, changed."""
    source = inspect.getsource(model)
    for old, new in plant.changes.items():
        assert source.count(old) == 1, f"{plant}: {old!r} is {source.count(old)} times in the oracle's source"
        source = source.replace(old, new)
    names: dict = {"__name__": "broken"}
    exec(compile(source, f"<{plant}>", "exec"), names)
    return names["Oracle"]


@cache
def redrawn(case: str, seed: int) -> tuple[CLIPConfig, dict[str, np.ndarray]]:
    """A committed checkpoint's config, and its parameters, or others of their kind."""
    made, generator = oracle(case), np.random.default_rng(seed)
    tensors = dict(made.tensors)
    if seed:
        for name, value in tensors.items():
            if value.ndim:
                drawn = value.mean() + value.std() * generator.normal(size=value.shape)
                tensors[name] = drawn.astype(np.float32)
    return made.config, tensors


def inputs_of(config: CLIPConfig, *, larger: bool = False) -> Inputs:
    pixels = example_pixels(config)
    if larger:
        pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)[:, :, : pixels.shape[2] - 4]
    return Inputs(token_ids=example_token_ids(config), pixels=pixels)


def write_checkpoint(folder: Path, config: CLIPConfig, tensors: dict[str, np.ndarray]) -> None:
    (folder / "config.json").write_text(json.dumps(config.to_hub()))
    save_file(tensors, folder / "model.safetensors")


def run(kind: type[Oracle], config, tensors, inputs: Inputs, precision: str = "float32") -> Capture:
    made = kind(config, tensors, precision=precision)
    # Features that were not projected may be of two widths, and have no logits.
    with contextlib.suppress(ValueError):
        made(inputs.token_ids, inputs.pixels, inputs.attention_mask)
    return Capture({**inputs.tensors(), **made.seen})


# Mistakes that are not among the known ones: nothing may be named for them.
UNKNOWN = [
    Plant("QuickGELU with 1.7", f"{BLOCK}.mlp.activation_fn", "", {"sigmoid(1.702 * x)": "sigmoid(1.7 * x)"}, QUICK),
    Plant("epsilon 3e-6", f"{BLOCK}.layer_norm1", "", {EPSILON: "3e-6"}, ("openai", "metaclip_2")),
    Plant("LayerNorm's weight plus 1", f"{BLOCK}.layer_norm1", "",
          {'x * self.parameter(f"{name}.weight") +': 'x * (1 + self.parameter(f"{name}.weight")) +'}),
    Plant("queries scaled by 0.9", f"{BLOCK}.self_attn.attn_weights", "", {SCALE: f"{SCALE} * 0.9"}),
    Plant("softmax over the queries", f"{BLOCK}.self_attn.attn_weights", "",
          {"softmax(logits)": "softmax(logits.swapaxes(-1, -2)).swapaxes(-1, -2)"}),
    Plant("positions backwards", "text_model.embeddings", "",
          {"np.arange(token_ids.shape[1])[None] if position_ids": "np.arange(token_ids.shape[1])[None, ::-1] if "
           "position_ids"}),
    Plant("fc1 one per cent off", f"{BLOCK}.mlp.fc1", "",
          linear('name.endswith("fc1")', weight="1.01 * self.parameter(f'{name}.weight').T")),
    Plant("a head left out", f"{BLOCK}.self_attn.out_proj", "",
          {"mixed = self.product(weights, value)": "mixed = (self.product(weights, value) * (np.arange(value.shape[1]) "
           "> 0)[:, None, None])"}),
    Plant("another block's MLP", f"{BLOCK}.mlp.fc1", "",
          renamed(".replace('layers.0.mlp', 'layers.1.mlp')")),
    Plant("pooled at the second token", "text_model.pooler_output", "", pooled("np.ones(len(token_ids), int)")),
    Plant("logit scale halved", "logits_per_image", "",
          {'np.exp(self.parameter("logit_scale"))': 'np.exp(self.parameter("logit_scale")) / 2'}),
    Plant("two mistakes in one step", f"{BLOCK}.self_attn.q_proj", "",
          linear('name.endswith("q_proj")', weight="self.parameter(f'{name}.weight')", bias="0")),
]  # fmt: skip
