"""The last block computed at the pooled token alone, against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxclip
from jaxclip.config import TextConfig
from jaxclip.nn import Abstract
from jaxclip.nn.transformer import MLP, Attention, Block, last_state_at, run_blocks, token_at

CONFIG = TextConfig(num_hidden_layers=3, hidden_size=24, intermediate_size=40, num_attention_heads=3)
# Rounding of values near 1: the products have other shapes, so they add in another order.
ULPS = 2e-6


def blocks():
    made = nnx.List([Block(CONFIG, dtype="float32", param_dtype="float32", rngs=Abstract()) for _ in range(3)])
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32), made)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 24)), jnp.float32)


CAUSAL = np.tril(np.ones((1, 1, 7, 7), bool))
PADDED = CAUSAL & (np.arange(7) != np.array([1, 0, 2, 6])[:, None])[:, None, None]


@pytest.mark.parametrize("mask", [None, CAUSAL, PADDED], ids=["no mask", "one for all", "one each"])
@pytest.mark.parametrize("position", [0, 5, np.array([3, 6, 0, 2])], ids=["class token", "fixed", "one each"])
def test_last_state_at_equals_the_plain_path(x, mask, position):
    mask = None if mask is None else jnp.asarray(mask)
    rows = jnp.asarray(np.broadcast_to(position, 4))
    position = position if isinstance(position, int) else rows
    layers = blocks()

    @jax.jit
    def both(layers, x):
        states = run_blocks(layers, x, mask)
        plain = states[-1][jnp.arange(4), rows]
        return plain, last_state_at(position, layers, states, mask), token_at(position, states[-1])

    plain, at, taken = both(layers, x)
    np.testing.assert_allclose(at, plain, rtol=0, atol=ULPS)
    np.testing.assert_array_equal(taken, plain)


def test_gradients_are_the_plain_paths_with_and_without_rematerialisation(x):
    def loss(layers, x, way, remat):
        states = run_blocks(layers, x, jnp.asarray(CAUSAL), remat=remat)
        rows = jnp.array([3, 6, 0, 2])
        if way == "plain":
            return jnp.sum(token_at(rows, states[-1]) ** 3)
        return jnp.sum(last_state_at(rows, layers, states, jnp.asarray(CAUSAL), remat=remat) ** 3)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=(2, 3))
    plain = jax.tree.leaves(gradient(blocks(), x, "plain", False))
    for remat in (False, True):
        ours = jax.tree.leaves(gradient(blocks(), x, "at", remat))
        largest = max(float(jnp.abs(leaf).max()) for leaf in plain)
        for one, other in zip(ours, plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * largest)


def products(function, *arguments) -> float:
    """Floating-point operations of the compiled program."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_who_reads_the_features_alone_does_not_pay_for_the_last_block():
    model = jaxclip.nn.CLIP(
        jaxclip.CLIPConfig(
            text=TextConfig(
                num_hidden_layers=2, hidden_size=32, intermediate_size=128, num_attention_heads=2, vocab_size=60,
                max_position_embeddings=24, eos_token_id=59,
            ),
            vision=jaxclip.VisionConfig(
                num_hidden_layers=2, hidden_size=32, intermediate_size=128, num_attention_heads=2, image_size=20,
                patch_size=4,
            ),
        ),
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    for tower, given in ((model.text, jnp.ones((4, 24), int)), (model.vision, jnp.ones((4, 20, 20, 3)))):
        features = products(lambda tower, given: tower(given).features, tower, given)
        everything = products(lambda tower, given: tower(given), tower, given)
        # Of a block's 12 width² a token, keys and values are 2, which all tokens still need.
        assert features < 0.68 * everything


class Sink(Attention):
    """Also looks at the mean of all tokens."""

    def __call__(self, x, mask=None, *, queries=None, **options):
        return super().__call__(x, mask, **options) + x.mean(axis=1, keepdims=True)


class TokenMixing(MLP):
    def __call__(self, x, **options):
        return super().__call__(x - x.mean(axis=1, keepdims=True), **options)


class Doubled(Block):
    def __call__(self, x, mask=None, **options):
        return 2 * super().__call__(x, mask, **options)


@pytest.mark.parametrize("replaced", ["attention", "mlp", "norm2", "block"])
def test_a_block_of_other_parts_goes_the_plain_way(x, replaced):
    layers = blocks()
    settings = {"dtype": "float32", "param_dtype": "float32", "rngs": nnx.Rngs(9)}
    if replaced == "attention":
        layers[-1].attention = Sink(CONFIG, **settings)
    elif replaced == "mlp":
        layers[-1].mlp = TokenMixing(CONFIG, **settings)
    elif replaced == "norm2":
        layers[-1].norm2 = lambda x: x - x.mean(axis=1, keepdims=True)
    else:
        layers[-1] = Doubled(CONFIG, **settings)
    states = run_blocks(layers, x)
    np.testing.assert_array_equal(last_state_at(2, layers, states), states[-1][:, 2])
