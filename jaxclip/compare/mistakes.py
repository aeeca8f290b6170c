"""The mistakes that ports of CLIP are known to make, each as the oracle with one thing changed.

Written apart from the specification, so that this stays readable, and as a port would make them: another line of
`config.json`, other parameters, another step.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from types import EllipsisType

import numpy as np

from jaxclip.compare.names import block_of
from jaxclip.compare.resampling import LINEAR, NEAREST, Kernel, cubic, resampling_matrix
from jaxclip.compare.retrace import JOINT, TEXT_HEAD, VISION_HEAD
from jaxclip.config import TowerConfig
from jaxclip.reference import Oracle
from jaxclip.reference.model import ACTIVATIONS, Features, Mask, Tap, Tokens, softmax


@dataclass(frozen=True)
class Mistake:
    """What it is called, and the oracle that makes it."""

    cause: str
    kind: type[Oracle] = Oracle
    text: Callable[[TowerConfig], TowerConfig] = lambda tower: tower
    vision: Callable[[TowerConfig], TowerConfig] = lambda tower: tower

    def oracle(self, right: Oracle, precision: str, tap: Tap) -> Oracle:
        towers = {
            name: change(tower)
            for name, change in (("text", self.text), ("vision", self.vision))
            if (tower := getattr(right.config, name))
        }
        config = dataclasses.replace(right.config, **towers)
        return self.kind(config, right.tensors, precision=precision, tap=tap)


def mistakes(oracle: Oracle, segments: Iterable[str]) -> Iterator[Mistake]:
    """Those that these parts of the forward pass can have, none of them twice."""
    seen = set()
    for segment in segments:
        for mistake in _of_segment(oracle, segment):
            if mistake.cause not in seen:
                seen.add(mistake.cause)
                yield mistake


def _of_segment(oracle: Oracle, segment: str) -> Iterator[Mistake]:
    if segment == JOINT:
        yield from _of_the_logits()
    elif segment == "text_model.embeddings":
        yield from _of_text_embeddings()
    elif segment == "vision_model.embeddings":
        yield from _of_vision_embeddings()
    elif segment == "vision_model.pre_layrnorm":
        yield Mistake("vision_model.pre_layrnorm skipped", _without_norm("vision_model.pre_layrnorm"))
        yield from _of_norms(oracle, ["vision_model.pre_layrnorm"])
    elif segment in (TEXT_HEAD, VISION_HEAD):
        yield from _of_a_head(oracle, segment)
    else:
        yield from _of_a_block(oracle, segment)


# Parameters: a tensor taken for another, turned, or left out.


def _with_parameters(change: Callable[[Oracle, str, np.ndarray], np.ndarray]) -> type[Oracle]:
    class Changed(Oracle):
        def parameter(self, name: str, rows: np.ndarray | EllipsisType = ...) -> np.ndarray:
            return change(self, name, super().parameter(name, rows))

    return Changed


def _left_out(*ends: str) -> type[Oracle]:
    return _with_parameters(lambda oracle, name, value: 0 * value if name.endswith(ends) else value)


def _turned(*ends: str) -> type[Oracle]:
    """Transposed where a matrix is square; elsewhere read in the order in which the transposed one would lie."""

    def change(oracle: Oracle, name: str, value: np.ndarray) -> np.ndarray:
        if value.ndim != 2 or not name.endswith(tuple(f"{end}.weight" for end in ends)):
            return value
        return value.T if value.shape[0] == value.shape[1] else value.reshape(value.shape[::-1]).T

    return _with_parameters(change)


def _of_weights(names: tuple[str, ...], together: dict[str, tuple[str, ...]]) -> Iterator[Mistake]:
    for name, ends in {**{name: (name,) for name in names}, **together}.items():
        weights = f"{name}.weight" if len(ends) == 1 else f"the weights of {name}"
        yield Mistake(f"{weights} transposed", _turned(*ends))


def _of_biases(names: tuple[str, ...], together: dict[str, tuple[str, ...]]) -> Iterator[Mistake]:
    for name, ends in {**{name: (name,) for name in names}, **together}.items():
        biases = f"{name}.bias" if len(ends) == 1 else f"the biases of {name}"
        yield Mistake(f"{biases} left out", _left_out(*(f"{end}.bias" for end in ends)))


# LayerNorms.


def _with_epsilon(value: float) -> Callable[[TowerConfig], TowerConfig]:
    return lambda tower: dataclasses.replace(tower, layer_norm_eps=value)


def _without_norm(skipped: str) -> type[Oracle]:
    class Skipped(Oracle):
        def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
            return self.see(name, x) if name == skipped else super().layer_norm(name, x)

    return Skipped


class _SampleVariance(Oracle):
    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        x = centred / np.sqrt(x.var(axis=-1, keepdims=True, ddof=1) + self.tower(name).layer_norm_eps)
        return self.see(name, x * self.parameter(f"{name}.weight") + self.parameter(f"{name}.bias"))


class _RootMeanSquareNorm(Oracle):
    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + self.tower(name).layer_norm_eps)
        return self.see(name, x * self.parameter(f"{name}.weight") + self.parameter(f"{name}.bias"))


def _of_norms(oracle: Oracle, names: list[str]) -> Iterator[Mistake]:
    right = oracle.tower(names[0]).layer_norm_eps
    for value in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12):
        if value != right:
            change = _with_epsilon(value)
            yield Mistake(f"LayerNorm's epsilon {value:g} instead of {right:g}", text=change, vision=change)
    yield Mistake("LayerNorm with the variance of a sample, over n − 1", _SampleVariance)
    yield Mistake("LayerNorm without subtracting the mean", _RootMeanSquareNorm)
    for name in names:
        inner = name.rpartition(".")[2]
        yield Mistake(f"{inner}.bias left out", _left_out(f"{inner}.bias"))
        scale = _with_parameters(
            lambda oracle, tensor, value, end=f"{inner}.weight": value * 0 + 1 if tensor.endswith(end) else value
        )
        yield Mistake(f"{inner}.weight left out", scale)


# What goes into the first block.


class _PositionsFromOne(Oracle):
    def parameter(self, name: str, rows: np.ndarray | EllipsisType = ...) -> np.ndarray:
        if name.endswith("position_embedding.weight") and not isinstance(rows, EllipsisType):
            rows = np.minimum(rows + 1, len(self.tensors[name]) - 1)
        return super().parameter(name, rows)


class _PositionsFromMinusOne(Oracle):
    def parameter(self, name: str, rows: np.ndarray | EllipsisType = ...) -> np.ndarray:
        if name.endswith("position_embedding.weight") and not isinstance(rows, EllipsisType):
            rows = np.maximum(rows - 1, 0)
        return super().parameter(name, rows)


def _of_text_embeddings() -> Iterator[Mistake]:
    yield Mistake("position embeddings not added", _left_out("position_embedding.weight"))
    yield Mistake("position embeddings off by one, from 1 on", _PositionsFromOne)
    yield Mistake("position embeddings off by one, the first twice", _PositionsFromMinusOne)


def _rolled(by: int) -> type[Oracle]:
    class Rolled(Oracle):
        def vision_positions(self, rows: int, columns: int) -> np.ndarray:
            return np.roll(super().vision_positions(rows, columns), by, axis=0)

    return Rolled


def _interpolated(kernel: Kernel, antialias: bool) -> type[Oracle]:
    class Interpolated(Oracle):
        def vision_positions(self, rows: int, columns: int) -> np.ndarray:
            positions = self.parameter("vision_model.embeddings.position_embedding.weight")
            side = round((len(positions) - 1) ** 0.5)
            if (rows, columns) == (side, side):
                return positions
            along = [resampling_matrix(side, size, kernel, antialias=antialias) for size in (rows, columns)]
            grid = np.einsum("ri,cj,ijw->rcw", *along, positions[1:].reshape(side, side, -1))
            return np.concatenate([positions[:1], grid.reshape(rows * columns, -1)]).astype(positions.dtype)

    return Interpolated


class _VisionTokens(Oracle):
    """With the parts of the embeddings at hand."""

    def vision_embeddings(self, pixels: np.ndarray) -> Tokens:
        whole, name = _Seen(self).vision_embeddings(pixels), "vision_model.embeddings"
        patch = self.parameter(f"{name}.patch_embedding.weight").shape[-1]
        rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
        positions = self.vision_positions(rows, columns)
        return self.see(name, self.arranged(whole - positions, positions, rows, columns))

    def arranged(self, tokens: Tokens, positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
        raise NotImplementedError


class _Seen(Oracle):
    """The same oracle, unseen."""

    def __init__(self, other: Oracle):
        super().__init__(other.config, other.tensors)
        self.precision = other.precision


class _NoClassToken(_VisionTokens):
    def arranged(self, tokens: Tokens, positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return (tokens + positions)[:, 1:]


class _NoClassTokenNorItsPlace(_VisionTokens):
    def arranged(self, tokens: Tokens, positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return tokens[:, 1:] + positions[:-1]


class _ClassTokenLast(_VisionTokens):
    def arranged(self, tokens: Tokens, positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return np.roll(tokens, -1, axis=1) + positions


class _ClassTokenAndItsPositionLast(_VisionTokens):
    def arranged(self, tokens: Tokens, positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return np.roll(tokens + positions, -1, axis=1)


class _ColumnByColumn(_VisionTokens):
    def arranged(self, tokens: Tokens, positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
        grid = tokens[:, 1:].reshape(len(tokens), rows, columns, -1).swapaxes(1, 2)
        return np.concatenate([tokens[:, :1], grid.reshape(tokens[:, 1:].shape)], axis=1) + positions


def _of_vision_embeddings() -> Iterator[Mistake]:
    yield Mistake("position embeddings not added", _left_out("position_embedding.weight"))
    yield Mistake("position embeddings off by one, the class token's last", _rolled(-1))
    yield Mistake("position embeddings off by one, the last in front", _rolled(1))
    yield Mistake("class embedding left out, its token 0 but for the position", _left_out("class_embedding"))
    yield Mistake("class token missing", _NoClassToken)
    yield Mistake("class token missing, and its position the first patch's", _NoClassTokenNorItsPlace)
    yield Mistake("class token last", _ClassTokenLast)
    yield Mistake("class token last, with its position", _ClassTokenAndItsPositionLast)
    yield Mistake("patches column by column", _ColumnByColumn)
    for how, kernel, antialias in (
        ("bicubically with a = −0.5", cubic(-0.5), False),
        ("bicubically with a = −0.5 and antialiasing", cubic(-0.5), True),
        ("bicubically with a = −0.75 and antialiasing", cubic(-0.75), True),
        ("bilinearly", LINEAR, False),
        ("bilinearly with antialiasing", LINEAR, True),
        ("by the nearest", NEAREST, False),
    ):
        yield Mistake(f"position embeddings interpolated {how}", _interpolated(kernel, antialias))
    yield Mistake("height and width of the patch embedding swapped", _with_parameters(_kernel_turned))
    yield Mistake("red and blue of the patch embedding swapped", _with_parameters(_kernel_of_bgr))


def _kernel_turned(oracle: Oracle, name: str, value: np.ndarray) -> np.ndarray:
    return value.swapaxes(2, 3) if name.endswith("patch_embedding.weight") else value


def _kernel_of_bgr(oracle: Oracle, name: str, value: np.ndarray) -> np.ndarray:
    return value[:, ::-1] if name.endswith("patch_embedding.weight") else value


# Attention and MLP.


def _masked(mask: Callable[[np.ndarray], Mask]) -> type[Oracle]:
    class Masked(Oracle):
        def text_mask(self, token_ids: np.ndarray, attention_mask: np.ndarray | None) -> Mask:
            seen = mask(token_ids)[None, None]
            return seen if attention_mask is None else seen & np.asarray(attention_mask, bool)[:, None, None, :]

    return Masked


class _PaddingMasked(Oracle):
    def text_mask(self, token_ids: np.ndarray, attention_mask: np.ndarray | None) -> Mask:
        own = np.arange(token_ids.shape[1]) <= self.pooled_position(token_ids)[:, None]
        return super().text_mask(token_ids, attention_mask) & own[:, None, None, :]


class _PaddingNotMasked(Oracle):
    def text_mask(self, token_ids: np.ndarray, attention_mask: np.ndarray | None) -> Mask:
        return super().text_mask(token_ids, None)


def _of_the_mask() -> Iterator[Mistake]:
    yield Mistake("causal mask missing", _masked(lambda ids: np.ones((ids.shape[1], ids.shape[1]), bool)))
    yield Mistake("causal mask off by one: one token ahead is seen", _masked(lambda ids: np.tri(ids.shape[1], k=1) > 0))
    yield Mistake(
        "causal mask off by one: a token doesn't see itself", _masked(lambda ids: np.tri(ids.shape[1], k=-1) > 0)
    )
    yield Mistake("causal mask the wrong way round", _masked(lambda ids: np.tri(ids.shape[1]).T > 0))
    yield Mistake("padding masked", _PaddingMasked)
    yield Mistake("padding not masked", _PaddingNotMasked)


def _scaled(factor: Callable[[TowerConfig], float]) -> type[Oracle]:
    class Scaled(Oracle):
        def attention_scale(self, name: str) -> float:
            return factor(self.tower(name))

    return Scaled


def _head_width(tower: TowerConfig) -> int:
    return tower.hidden_size // tower.num_attention_heads


def _taken_for(order: tuple[str, ...]) -> type[Oracle]:
    """Queries, keys and values with each other's parameters."""
    other = {f"{ours}_proj": f"{theirs}_proj" for ours, theirs in zip("qkv", order, strict=True)}

    class Taken(Oracle):
        def parameter(self, name: str, rows: np.ndarray | EllipsisType = ...) -> np.ndarray:
            path, _, kind = name.rpartition(".")
            module, _, part = path.rpartition(".")
            return super().parameter(f"{module}.{other[part]}.{kind}" if part in other else name, rows)

    return Taken


def _used_in_order(order: tuple[str, ...]) -> type[Oracle]:
    """Queries, keys and values computed as they should be, and then taken for each other."""

    class Used(Oracle):
        def attention(self, name: str, x: Tokens, mask: Mask | None) -> Tokens:
            right = {part: self.linear(f"{name}.{part}_proj", x) for part in "qkv"}
            query, key, value = (self.split_heads(name, right[part]) for part in order)
            logits = self.product(query, key.swapaxes(-1, -2)) * self.attention_scale(name)
            if mask is not None:
                logits = np.where(mask, logits, np.finfo(logits.dtype).min)
            weights = self.see(f"{name}.attn_weights", softmax(logits))
            return self.linear(f"{name}.out_proj", self.product(weights, value).swapaxes(1, 2).reshape(x.shape))

    return Used


class _FusedByHead(Oracle):
    """The three projections in one tensor, written one after the other and read head by head."""

    def parameter(self, name: str, rows: np.ndarray | EllipsisType = ...) -> np.ndarray:
        value = super().parameter(name, rows)
        for index, part in enumerate("qkv"):
            if f".{part}_proj." in name:
                whole = [Oracle.parameter(self, name.replace(f".{part}_proj.", f".{each}_proj.")) for each in "qkv"]
                heads = self.tower(name).num_attention_heads
                by_head = np.concatenate(whole).reshape(heads, 3, -1, *value.shape[1:])
                return by_head[:, index].reshape(value.shape)
        return value


class _PostNorm(Oracle):
    def block(self, name: str, x: Tokens, mask: Mask | None) -> Tokens:
        x = self.layer_norm(f"{name}.layer_norm1", x + self.attention(f"{name}.self_attn", x, mask))
        x = self.layer_norm(f"{name}.layer_norm2", x + self.mlp(f"{name}.mlp", x))
        return self.see(name, x)


class _NoResidualOfAttention(Oracle):
    def block(self, name: str, x: Tokens, mask: Mask | None) -> Tokens:
        x = self.attention(f"{name}.self_attn", self.layer_norm(f"{name}.layer_norm1", x), mask)
        x = x + self.mlp(f"{name}.mlp", self.layer_norm(f"{name}.layer_norm2", x))
        return self.see(name, x)


class _NoResidualOfMLP(Oracle):
    def block(self, name: str, x: Tokens, mask: Mask | None) -> Tokens:
        x = x + self.attention(f"{name}.self_attn", self.layer_norm(f"{name}.layer_norm1", x), mask)
        return self.see(name, self.mlp(f"{name}.mlp", self.layer_norm(f"{name}.layer_norm2", x)))


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
_MLP = ("mlp.fc1", "mlp.fc2")


def _of_a_block(oracle: Oracle, segment: str) -> Iterator[Mistake]:
    block = block_of(segment)
    assert block is not None
    tower = oracle.tower(segment)
    yield from _of_norms(oracle, [f"{segment}.layer_norm1", f"{segment}.layer_norm2"])
    yield Mistake("LayerNorms after attention and MLP instead of before (post-norm)", _PostNorm)
    if block[0] == "text_model":
        yield from _of_the_mask()
    for heads in range(1, tower.hidden_size // 2 + 1):
        if tower.hidden_size % heads == 0 and heads != tower.num_attention_heads:
            right = f"{tower.num_attention_heads} of width {_head_width(tower)}"
            cause = f"{heads} heads of width {tower.hidden_size // heads} instead of {right}"
            change = _with_heads(heads)
            yield Mistake(cause, text=change) if block[0] == "text_model" else Mistake(cause, vision=change)
    yield Mistake("queries not scaled", _scaled(lambda tower: 1.0))
    yield Mistake("queries scaled twice", _scaled(lambda tower: 1 / _head_width(tower)))
    yield Mistake("queries scaled by the whole width instead of a head's", _scaled(lambda t: t.hidden_size**-0.5))
    for order in permutations("qkv"):
        if order != tuple("qkv"):
            yield Mistake(f"q, k, v computed with the parameters of {', '.join(order)}", _taken_for(order))
            yield Mistake(f"{', '.join(order)} used in the place of q, k, v", _used_in_order(order))
    yield Mistake("q, k, v fused one after the other and read head by head", _FusedByHead)
    together = {"attention": _ATTENTION, "q, k and v": _ATTENTION[:3], "attention and MLP": (*_ATTENTION, *_MLP)}
    yield from _of_weights((*_ATTENTION, *_MLP), together)
    yield from _of_biases((*_ATTENTION, *_MLP), {**together, "the MLP": _MLP})
    yield from _of_activations(tower.hidden_act)
    yield Mistake("what attention puts out not added to what goes in", _NoResidualOfAttention)
    yield Mistake("what the MLP puts out not added to what goes in", _NoResidualOfMLP)


def _with_heads(heads: int) -> Callable[[TowerConfig], TowerConfig]:
    return lambda tower: dataclasses.replace(tower, num_attention_heads=heads)


def _of_activations(right: str) -> Iterator[Mistake]:
    called = {
        "quick_gelu": "QuickGELU",
        "gelu": "exact GELU",
        "gelu_new": "GELU by its tanh approximation",
        "relu": "ReLU",
        "silu": "SiLU",
    }
    for name, words in called.items():
        if ACTIVATIONS[name] is not ACTIVATIONS[right]:

            def change(tower: TowerConfig, name: str = name) -> TowerConfig:
                return dataclasses.replace(tower, hidden_act=name)

            own = next((called[other] for other in called if ACTIVATIONS[other] is ACTIVATIONS[right]), right)
            yield Mistake(f"{words} instead of {own}", text=change, vision=change)


# What follows the last block.


class _NoProjection(Oracle):
    def joint_features(self, projection: str, name: str, pooled: np.ndarray) -> Features | None:
        return self.see(name, self.unit_length(pooled))


class _NotNormalised(Oracle):
    def unit_length(self, features: Features) -> Features:
        return features


def _text_pooled(position: Callable[[Oracle, np.ndarray], np.ndarray]) -> type[Oracle]:
    class Pooled(Oracle):
        def pooled_position(self, token_ids: np.ndarray) -> np.ndarray:
            return position(self, token_ids)

    return Pooled


class _TextMean(Oracle):
    def text_head(self, x: Tokens, token_ids: np.ndarray) -> Features | None:
        last = self.layer_norm("text_model.final_layer_norm", x)
        pooled = self.see("text_model.pooler_output", last.mean(axis=1))
        return self.joint_features("text_projection", "text_embeds", pooled)


def _vision_pooled(pooled: Callable[[Tokens], np.ndarray]) -> type[Oracle]:
    class Pooled(Oracle):
        def vision_head(self, x: Tokens) -> Features | None:
            normed = self.layer_norm("vision_model.post_layernorm", pooled(x))
            return self.joint_features("visual_projection", "image_embeds", normed)

    return Pooled


def _vision_pooled_after(pooled: Callable[[Tokens], np.ndarray]) -> type[Oracle]:
    class Pooled(Oracle):
        def vision_head(self, x: Tokens) -> Features | None:
            normed = pooled(_Seen(self).layer_norm("vision_model.post_layernorm", x))
            normed = self.see("vision_model.post_layernorm", normed)
            return self.joint_features("visual_projection", "image_embeds", normed)

    return Pooled


def _first(token_ids: np.ndarray, wanted: int) -> np.ndarray:
    return (token_ids == wanted).argmax(axis=1)


def _of_a_head(oracle: Oracle, segment: str) -> Iterator[Mistake]:
    text = segment == TEXT_HEAD
    norm = "text_model.final_layer_norm" if text else "vision_model.post_layernorm"
    yield Mistake(f"{norm} skipped", _without_norm(norm))
    yield from _of_norms(oracle, [norm])
    if text:
        config = oracle.config.text
        assert config is not None
        yield Mistake("pooled at the last token", _text_pooled(lambda oracle, ids: np.full(len(ids), ids.shape[1] - 1)))
        yield Mistake("pooled at the first token", _text_pooled(lambda oracle, ids: np.zeros(len(ids), int)))
        yield Mistake("pooled at the largest id", _text_pooled(lambda oracle, ids: ids.argmax(axis=1)))
        yield Mistake(
            f"pooled at the first id {config.eos_token_id}, config.json's eos_token_id",
            _text_pooled(lambda oracle, ids: _first(ids, config.eos_token_id)),
        )
        yield Mistake("pooled at the last EOS", _text_pooled(_at_the_last_end))
        yield Mistake("pooled one token before the EOS", _text_pooled(_before_the_end))
        yield Mistake("mean of all tokens instead of one", _TextMean)
    else:
        for what, pooled in (
            ("pooled at the last token", lambda x: x[:, -1]),
            ("pooled at the first patch", lambda x: x[:, 1]),
            ("mean of all tokens instead of the class token", lambda x: x.mean(axis=1)),
            ("mean of the patches instead of the class token", lambda x: x[:, 1:].mean(axis=1)),
        ):
            yield Mistake(what, _vision_pooled(pooled))
            if "mean" in what:
                yield Mistake(f"{what}, after the norm", _vision_pooled_after(pooled))
    projection = "text_projection" if text else "visual_projection"
    yield Mistake(f"{projection} skipped", _NoProjection)
    yield Mistake(f"{projection}.weight transposed", _turned(projection))
    yield Mistake("features not normalised", _NotNormalised)


def _at_the_last_end(oracle: Oracle, token_ids: np.ndarray) -> np.ndarray:
    ends = token_ids[np.arange(len(token_ids)), Oracle.pooled_position(oracle, token_ids)]
    return token_ids.shape[1] - 1 - (token_ids[:, ::-1] == ends[:, None]).argmax(axis=1)


def _before_the_end(oracle: Oracle, token_ids: np.ndarray) -> np.ndarray:
    return np.maximum(Oracle.pooled_position(oracle, token_ids) - 1, 0)


def _logit_scale(change: Callable[[np.ndarray], np.ndarray]) -> type[Oracle]:
    class Scale(Oracle):
        def logit_scale(self) -> np.ndarray:
            return np.asarray(change(self.parameter("logit_scale")))

    return Scale


def _of_the_logits() -> Iterator[Mistake]:
    yield Mistake("logit scale not exponentiated", _logit_scale(lambda scale: scale))
    yield Mistake("logit scale not applied", _logit_scale(lambda scale: np.ones_like(scale)))
    yield Mistake("cosines divided by the logit scale", _logit_scale(lambda scale: np.exp(-scale)))
