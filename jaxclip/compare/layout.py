"""The same numbers in another order of axes: recognised and put right, so that only what differs is a difference."""

from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np

from jaxclip.compare.names import block_of
from jaxclip.compare.rounding import relative_rms

# What others call a product of the three projections in one.
_FUSED = ("self_attn.in_proj", "self_attn.qkv", "self_attn.qkv_proj", "self_attn.c_attn", "self_attn.to_qkv")
_ORDERS = {
    (1, 0): "transposed",
    (1, 0, 2): "tokens before batch",
    (0, 3, 1, 2): "channels last",
    (0, 2, 3, 1): "channels first",
}
# Less than this is the same tensor, however much is wrong inside.
_CLOSE = 0.05


def canonical(value: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, str]:
    """The value with the shape of another, of all the ways to read it the one that comes closest; and what was done,
    "" for nothing. Left as it is where there is no way."""
    if value.shape == like.shape:
        error = _distance(value, like)
        if error < _CLOSE or value.ndim < 2:
            return value, ""
    else:
        error = np.inf
    ways = [(_distance(found, like), how, found) for how, found in _readings(value, like.shape)]
    best = min(ways, key=lambda way: way[0], default=None)
    # Of equal shapes another order must be the better one beyond doubt.
    if best is None or (value.shape == like.shape and not (best[0] < _CLOSE and best[0] < error / 10)):
        return value, ""
    return best[2], best[1]


def _readings(value: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    for order in permutations(range(value.ndim)):
        moved, identity = value.transpose(order), order == tuple(range(value.ndim))
        if identity and value.shape == shape:
            continue
        if moved.shape == shape:
            yield _ORDERS.get(order, f"axes in the order {', '.join(map(str, order))}"), moved
        elif value.size == np.prod(shape) and value.ndim != len(shape):
            yield f"as {'×'.join(map(str, value.shape))}", moved.reshape(shape)
    if value.ndim == len(shape) + 1 and value.shape[:1] + value.shape[2:] == shape:
        yield f"the first of {value.shape[1]} tokens", value[:, 0]


def split_fused(tensors: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str]]:
    """Queries, keys and values, by name, of blocks that have them in one tensor, and how they lay in it: one after the
    other, or head by head."""
    found: dict[str, tuple[np.ndarray, str]] = {}
    for name, fused in tensors.items():
        block = block_of(name)
        if block is None or block[2] not in _FUSED:
            continue
        parts = [f"{name.removesuffix(block[2])}self_attn.{part}_proj" for part in "qkv"]
        if (
            any(part in tensors or part not in like for part in parts)
            or fused.shape[-1] != 3 * like[parts[0]].shape[-1]
        ):
            continue
        heads = like[f"{name.removesuffix(block[2])}self_attn.attn_weights"].shape[1]
        split = {"one after the other": np.split(fused, 3, axis=-1)}
        by_head = fused.reshape(*fused.shape[:-1], heads, 3, -1)
        split["head by head"] = [by_head[..., part, :].reshape(*fused.shape[:-1], -1) for part in range(3)]
        error = {how: _distance(several[0], like[parts[0]]) for how, several in split.items()}
        how = min(error, key=lambda how: error[how])
        note = f"fused with the others in {block[2]}, {how}"
        found |= {part: (value, note) for part, value in zip(parts, split[how], strict=True)}
    return found


def common(a: np.ndarray, b: np.ndarray, *, texts: bool) -> tuple[np.ndarray, np.ndarray, str] | None:
    """What can be compared of two tensors of different shapes, and what was done to it, or None. `texts` may be padded
    to different lengths: what comes later, a token doesn't see."""
    if a.shape == b.shape:
        return a, b, ""
    for one, other, swapped in ((a, b, False), (b, a, True)):
        if one.ndim == 4 and other.shape == (one.shape[0], *one.shape[2:]):
            mean = one.mean(axis=1)
            return (other, mean, "averaged over heads") if swapped else (mean, other, "averaged over heads")
    differ = [axis for axis in range(a.ndim) if a.ndim == b.ndim and a.shape[axis] != b.shape[axis]]
    lengths = {(a.shape[axis], b.shape[axis]) for axis in differ}
    if texts and len(lengths) == 1 and (differ == [2, 3] or (differ == [1] and a.ndim < 4)):
        least = min(min(lengths))
        cut = tuple(slice(least) if axis in differ else slice(None) for axis in range(a.ndim))
        return a[cut], b[cut], f"the first {least} tokens"
    return None


def _distance(value: np.ndarray, like: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return relative_rms(np.asarray(value, np.float64) - like, like)
