"""The one way to look inside a model: a function that every named intermediate passes through.

    seen = {}
    output = model.vision(pixels, tap=jaxclip.nn.record(seen))
    seen["blocks.3.attention.weights"]        # (batch, heads, queries, keys)

A tap takes a name and a value and gives back the value that the model goes on with, so it can also replace one (an
ablation, a steering vector). Inside `jax.jit` return what was recorded; what nobody reads costs nothing there.

A module's output bears the module's own path, and a few values that are no module's output have a name of their own:

| name | shape | what |
|---|---|---|
| `embeddings` | (batch, tokens, width) | tokens or patches with their positions; vision: the class token first |
| `pre_norm` (vision) | (batch, tokens, width) | what enters the first block |
| `blocks.N` | (batch, tokens, width) | the block's output |
| `blocks.N.norm1`, `blocks.N.norm2` | (batch, tokens, width) | the LayerNorms before attention and MLP |
| `blocks.N.attention.query`, `.key`, `.value` | (batch, tokens, width) | heads side by side, queries unscaled |
| `blocks.N.attention.weights` | (batch, heads, queries, keys) | after the softmax |
| `blocks.N.attention.out` | (batch, tokens, width) | what attention adds to the residual stream |
| `blocks.N.mlp.fc1`, `.activation`, `.fc2` | (batch, tokens, MLP width or width) | `fc2` is what the MLP adds |
| `final_norm` (text) | (batch, tokens, width) | the last hidden state |
| `pooled` | (batch, width) | the row that stands for the whole text or image; vision: after the post-LayerNorm |
| `projection` | (batch, projection width) | the features in the joint space, not normalised |

Called on the joint model the names begin with `text.` or `vision.`, and there are `text_features`, `image_features`
(unit length) and `logits_per_image` besides.
"""

from collections.abc import Callable

from jaxtyping import Array

Tap = Callable[[str, Array], Array]


def no_tap(name: str, value: Array) -> Array:
    """Looks at nothing: the default."""
    return value


def record(into: dict[str, Array]) -> Tap:
    """A tap that keeps every intermediate in the given dict, in order of execution."""

    def tap(name: str, value: Array) -> Array:
        into[name] = value
        return value

    return tap


def scoped(tap: Tap, scope: str) -> Tap:
    """The same tap for a part of the model: names get the part's own in front."""
    if tap is no_tap:
        return tap
    return lambda name, value: tap(f"{scope}.{name}", value)
