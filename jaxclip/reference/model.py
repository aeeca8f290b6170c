"""CLIP's forward pass in NumPy, to be read beside the paper (arXiv 2103.00020, section 2, and its figure 3).

    oracle = jaxclip.reference.load("folder")        # a checkpoint's; neither JAX nor Flax is imported
    seen = oracle(token_ids, pixels)                 # float64, every intermediate by name, in order of execution
    seen["text_model.encoder.layers.0.self_attn.q_proj"]

The executable specification: no trick for speed, and no code that the model in `jaxclip.nn` has a part in. Parameters
are the checkpoint's tensors by their own names. Each intermediate bears the name of the Hugging Face module
(transformers' `CLIPModel`) whose output it is; what no module puts out has the name of transformers' variable:

| name | shape | what |
|---|---|---|
| `text_model.embeddings` | (texts, tokens, width) | tokens with their positions |
| `vision_model.embeddings` | (images, tokens, width) | the class token, then the patches row by row; with positions |
| `vision_model.pre_layrnorm` | (images, tokens, width) | what enters the first block; spelt so in every checkpoint |
| `….encoder.layers.N.layer_norm1`, `.layer_norm2` | (batch, tokens, width) | before attention and MLP |
| `….encoder.layers.N.self_attn.q_proj`, `.k_proj`, `.v_proj` | (batch, tokens, width) | heads side by side, unscaled |
| `….encoder.layers.N.self_attn.attn_weights` | (batch, heads, queries, keys) | after the softmax |
| `….encoder.layers.N.self_attn.out_proj` | (batch, tokens, width) | what attention adds |
| `….encoder.layers.N.mlp.fc1`, `.activation_fn` | (batch, tokens, MLP width) | the hidden layer, before and after |
| `….encoder.layers.N.mlp.fc2` | (batch, tokens, width) | what the MLP adds |
| `….encoder.layers.N` | (batch, tokens, width) | the block's output |
| `text_model.final_layer_norm` | (texts, tokens, width) | the last hidden state |
| `text_model.pooler_output` | (texts, width) | its row at the token that stands for the text |
| `vision_model.post_layernorm` | (images, width) | the class token of the last block, normed |
| `text_projection`, `visual_projection` | (batch, projection) | features in the joint space |
| `text_embeds`, `image_embeds` | (batch, projection) | of unit length |
| `logits_per_image` | (images, texts) | exp(logit_scale) · cosine |
| `loss` | () | of as many images as texts, each the other's match |
"""

import math
from collections.abc import Callable, Mapping
from types import EllipsisType

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxclip.config import CLIPConfig, TowerConfig
from jaxclip.reference.precision import PRECISIONS

Tokens = Float[np.ndarray, "batch tokens width"]
Features = Float[np.ndarray, "batch projection"]
Mask = Bool[np.ndarray, "#batch 1 tokens tokens"]
Tap = Callable[[str, np.ndarray], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))  # 1 / (1 + exp(-x)) would overflow.


def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x), Φ the normal distribution function (arXiv 1606.08415)."""
    return (x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))) / 2).astype(x.dtype)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The same paper's approximation by a hyperbolic tangent."""
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


# By the names of `hidden_act` in config.json; the one called "gelu" is the exact one.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
}


class Oracle:
    """The forward pass of one checkpoint.

    - `config`: what its `config.json` states
    - `tensors`: its tensors by their own names; those of a lone tower with or without the tower's prefix
    - `precision`: float64, or a lower one of `jaxclip.reference.PRECISIONS` that shows how rounding grows
    - `tap(name, value)` sees every intermediate, and gives back the value to go on with
    """

    def __init__(
        self,
        config: CLIPConfig,
        tensors: Mapping[str, np.ndarray],
        *,
        precision: str = "float64",
        tap: Tap = lambda name, value: value,
    ):
        self.config, self.tensors, self.tap = config, tensors, tap
        self.precision = PRECISIONS[precision]
        self.seen: dict[str, np.ndarray] = {}

    def __call__(
        self,
        token_ids: Int[np.ndarray, "texts tokens"] | None = None,
        pixels: Float[np.ndarray, "images height width channels"] | None = None,
        attention_mask: Int[np.ndarray, "texts tokens"] | Bool[np.ndarray, "texts tokens"] | None = None,
        position_ids: Int[np.ndarray, "#texts tokens"] | None = None,
    ) -> dict[str, np.ndarray]:
        """Every intermediate by name, in order of execution.

        `attention_mask` is 0 at tokens that nobody may look at. Images of another size than the checkpoint's get its
        position embeddings interpolated.
        """
        self.seen = {}
        text = None if token_ids is None else self.text(token_ids, attention_mask, position_ids)
        image = None if pixels is None else self.vision(pixels)
        if text is not None and image is not None:
            self.joint(image, text)
        return self.seen

    # The text transformer (section 2.4): a vector for each token and each position, blocks that look back only, and
    # one token that stands for the text.

    def text(
        self,
        token_ids: Int[np.ndarray, "texts tokens"],
        attention_mask: Int[np.ndarray, "texts tokens"] | Bool[np.ndarray, "texts tokens"] | None = None,
        position_ids: Int[np.ndarray, "#texts tokens"] | None = None,
    ) -> Features | None:
        x = self.text_embeddings(token_ids, position_ids)
        mask = self.text_mask(token_ids, attention_mask)
        for name in self.layers("text_model"):
            x = self.block(name, x, mask)
        return self.text_head(x, token_ids)

    def text_embeddings(
        self, token_ids: Int[np.ndarray, "texts tokens"], position_ids: Int[np.ndarray, "#texts tokens"] | None = None
    ) -> Tokens:
        where = np.arange(token_ids.shape[1])[None] if position_ids is None else position_ids
        name = "text_model.embeddings"
        tokens = self.parameter(f"{name}.token_embedding.weight", token_ids)
        positions = self.parameter(f"{name}.position_embedding.weight", where)
        return self.see(name, tokens + positions)

    def text_mask(self, token_ids: Int[np.ndarray, "texts tokens"], attention_mask: np.ndarray | None) -> Mask:
        """True where a query (second last axis) may look at a key (last axis)."""
        mask = np.tri(token_ids.shape[1], dtype=bool)[None, None]
        return mask if attention_mask is None else mask & np.asarray(attention_mask, bool)[:, None, None, :]

    def text_head(self, x: Tokens, token_ids: Int[np.ndarray, "texts tokens"]) -> Features | None:
        last = self.layer_norm("text_model.final_layer_norm", x)
        pooled = self.see("text_model.pooler_output", last[np.arange(len(last)), self.pooled_position(token_ids)])
        return self.joint_features("text_projection", "text_embeds", pooled)

    def pooled_position(self, token_ids: Int[np.ndarray, "texts tokens"]) -> Int[np.ndarray, " texts"]:
        """Of OpenAI's checkpoints the end of text is the largest id; `TextConfig.pooling` says which rule holds."""
        text = self.config.text
        assert text is not None
        if text.pooling == "largest_id":
            return token_ids.argmax(axis=1)
        return (token_ids == text.eos_token_id).argmax(axis=1)

    # The vision transformer (section 2.4; arXiv 2010.11929): a vector for each patch and each position, a class token
    # in front, which stands for the image, and a LayerNorm before the first block.

    def vision(self, pixels: Float[np.ndarray, "images height width channels"]) -> Features | None:
        x = self.vision_embeddings(pixels)
        x = self.pre_norm(x)
        for name in self.layers("vision_model"):
            x = self.block(name, x, None)
        return self.vision_head(x)

    def vision_embeddings(self, pixels: Float[np.ndarray, "images height width channels"]) -> Tokens:
        name = "vision_model.embeddings"
        kernel = self.parameter(f"{name}.patch_embedding.weight")
        width, channels, patch, _ = kernel.shape
        images, rows, columns = len(pixels), pixels.shape[1] // patch, pixels.shape[2] // patch
        pixels = np.asarray(pixels, self.precision.dtype)[:, : rows * patch, : columns * patch]
        patches = pixels.reshape(images, rows, patch, columns, patch, channels).transpose(0, 1, 3, 5, 2, 4)
        patches = patches.reshape(images, rows * columns, channels * patch * patch)
        tokens = self.product(patches, kernel.reshape(width, -1).T)
        class_token = np.broadcast_to(self.parameter(f"{name}.class_embedding"), (images, 1, width))
        return self.see(name, np.concatenate([class_token, tokens], axis=1) + self.vision_positions(rows, columns))

    def vision_positions(self, rows: int, columns: int) -> Float[np.ndarray, "tokens width"]:
        positions = self.parameter("vision_model.embeddings.position_embedding.weight")
        side = math.isqrt(len(positions) - 1)
        if (rows, columns) == (side, side):
            return positions
        grid = positions[1:].reshape(side, side, -1)
        grid = np.einsum("ri,cj,ijw->rcw", bicubic(side, rows), bicubic(side, columns), grid)
        return np.concatenate([positions[:1], grid.reshape(rows * columns, -1)]).astype(positions.dtype)

    def pre_norm(self, x: Tokens) -> Tokens:
        return self.layer_norm("vision_model.pre_layrnorm", x)

    def vision_head(self, x: Tokens) -> Features | None:
        pooled = self.layer_norm("vision_model.post_layernorm", x[:, 0])
        return self.joint_features("visual_projection", "image_embeds", pooled)

    # Figure 3: both towers' vectors in one space, their cosines times a learned scale, and the loss.

    def joint_features(self, projection: str, name: str, pooled: Float[np.ndarray, "batch width"]) -> Features | None:
        tower = self.config.text if projection == "text_projection" else self.config.vision
        assert tower is not None
        if tower.projection_dim is None:
            return None
        return self.see(name, self.unit_length(self.linear(projection, pooled, bias=False)))

    def unit_length(self, features: Features) -> Features:
        return features / np.linalg.norm(features, axis=-1, keepdims=True)

    def joint(self, image_features: Features, text_features: Features) -> None:
        logits = self.see("logits_per_image", self.logit_scale() * (image_features @ text_features.T))
        if len(image_features) == len(text_features):
            self.see("loss", (self.cross_entropy(logits) + self.cross_entropy(logits.T)) / 2)

    def logit_scale(self) -> np.ndarray:
        """The checkpoint has its logarithm."""
        return np.exp(self.parameter("logit_scale"))

    def cross_entropy(self, logits: Float[np.ndarray, "n n"]) -> np.ndarray:
        """Of the match in each row, which is on the diagonal."""
        shifted = logits - logits.max(axis=1, keepdims=True)
        return (np.log(np.exp(shifted).sum(axis=1)) - np.diagonal(shifted)).mean()

    # The block of both towers (arXiv 1706.03762, with the LayerNorms before attention and MLP).

    def block(self, name: str, x: Tokens, mask: Mask | None) -> Tokens:
        x = x + self.attention(f"{name}.self_attn", self.layer_norm(f"{name}.layer_norm1", x), mask)
        x = x + self.mlp(f"{name}.mlp", self.layer_norm(f"{name}.layer_norm2", x))
        return self.see(name, x)

    def attention(self, name: str, x: Tokens, mask: Mask | None) -> Tokens:
        """softmax(q kᵀ / √head_width) v for each head (section 3.2 there)."""
        batch, tokens, width = x.shape
        query, key, value = (self.split_heads(name, self.linear(f"{name}.{part}_proj", x)) for part in "qkv")
        logits = self.product(query, key.swapaxes(-1, -2)) * self.attention_scale(name)
        if mask is not None:
            logits = np.where(mask, logits, np.finfo(logits.dtype).min)
        weights = self.see(f"{name}.attn_weights", softmax(logits))
        mixed = self.product(weights, value).swapaxes(1, 2).reshape(batch, tokens, width)
        return self.linear(f"{name}.out_proj", mixed)

    def split_heads(self, name: str, x: Tokens) -> Float[np.ndarray, "batch heads tokens head_width"]:
        batch, tokens, _ = x.shape
        return x.reshape(batch, tokens, self.tower(name).num_attention_heads, -1).swapaxes(1, 2)

    def attention_scale(self, name: str) -> float:
        tower = self.tower(name)
        return (tower.hidden_size // tower.num_attention_heads) ** -0.5

    def mlp(self, name: str, x: Tokens) -> Tokens:
        hidden = self.linear(f"{name}.fc1", x)
        hidden = self.see(f"{name}.activation_fn", ACTIVATIONS[self.tower(name).hidden_act](hidden))
        return self.linear(f"{name}.fc2", hidden)

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """(x − mean) / √(variance + ε), scaled and shifted (arXiv 1607.06450)."""
        variance = x.var(axis=-1, keepdims=True)
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + self.tower(name).layer_norm_eps)
        return self.see(name, x * self.parameter(f"{name}.weight") + self.parameter(f"{name}.bias"))

    def linear(self, name: str, x: np.ndarray, *, bias: bool = True) -> np.ndarray:
        """x Wᵀ + b; the projections into the joint space have no b."""
        y = self.product(x, self.parameter(f"{name}.weight").T)
        return self.see(name, y + self.parameter(f"{name}.bias") if bias else y)

    # What all of the above is made of.

    def layers(self, tower: str) -> list[str]:
        return [f"{tower}.encoder.layers.{index}" for index in range(self.tower(tower).num_hidden_layers)]

    def tower(self, name: str) -> TowerConfig:
        """The config of the tower that a module is in."""
        tower = self.config.text if name.startswith("text") else self.config.vision
        assert tower is not None
        return tower

    def parameter(self, name: str, rows: np.ndarray | EllipsisType = ...) -> np.ndarray:
        """A tensor of the checkpoint, or some rows of it."""
        if name not in self.tensors:
            # transformers 5 saves a lone tower without its prefix.
            name = name.removeprefix("text_model.").removeprefix("vision_model.")
        return self.precision.result(self.tensors[name][rows].astype(self.precision.dtype))

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.precision.result(self.precision.operand(a) @ self.precision.operand(b))

    def see(self, name: str, value: np.ndarray) -> np.ndarray:
        value = self.precision.result(np.asarray(value))
        self.seen[name] = value
        return self.tap(name, value)


def softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def bicubic(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """Row i: how much of each old point is in the new point i. Keys' cubic convolution (1981) with a = −0.75, edges
    repeated, no antialiasing: PyTorch's `interpolate(mode="bicubic")`, with which transformers fits positions."""
    weights = np.zeros((new_size, size))
    for new in range(new_size):
        center = (new + 0.5) * size / new_size - 0.5
        for old in range(math.floor(center) - 1, math.floor(center) + 3):
            weights[new, min(max(old, 0), size - 1)] += _cubic(abs(center - old))
    return weights


def _cubic(x: float, a: float = -0.75) -> float:
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4)
