"""A tiny model to train and batches for it, for the tests of `jaxclip.training`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
from jaxclip.nn import CLIP
from jaxclip.training import train_step

SIZES = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
TINY = CLIPConfig(
    text=TextConfig(**SIZES, vocab_size=50, projection_dim=8, eos_token_id=49, max_position_embeddings=8),
    vision=VisionConfig(**SIZES, image_size=8, patch_size=4, projection_dim=8),
)
IMAGES_ALONE = TINY.select("vision")
# Without most of the compiler's optimisations a step is there in half the time.
FAST = {"xla_backend_optimization_level": 0}


@cache
def model(config=TINY, **settings):
    return CLIP(config, rngs=nnx.Rngs(0), **settings)


def pairs(n=8, seed=0):
    """Images and texts, of which each is another."""
    generator = np.random.default_rng(seed)
    ids = np.concatenate([generator.integers(1, 49, (n, 5)), np.full((n, 1), 49)], axis=1)
    return {
        "pixels": jnp.asarray(generator.normal(size=(n, 8, 8, 3)), jnp.float32),
        "token_ids": jnp.asarray(ids, jnp.int32),
    }


def views(n=8, seed=0):
    """Two views of each image."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(n, 1, 8, 8, 3)) + 0.1 * generator.normal(size=(n, 2, 8, 8, 3))
    return {"views": jnp.asarray(images, jnp.float32)}


def compiled(**settings):
    return jax.jit(partial(train_step, **settings), compiler_options=FAST)


def difference(ours, theirs):
    """Of two trees of arrays, relative to the second's norm."""
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, ours, theirs)) / optax.tree.norm(theirs))


def assert_same_bits(ours, theirs):
    ours, theirs = jax.tree_util.tree_flatten_with_path(ours), jax.tree_util.tree_flatten_with_path(theirs)
    assert ours[1] == theirs[1]
    for (path, a), (_, b) in zip(ours[0], theirs[0], strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
