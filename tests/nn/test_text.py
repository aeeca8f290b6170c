import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip.config import TextConfig
from jaxclip.nn import TextTransformer

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
         "vocab_size": 60, "max_position_embeddings": 10, "projection_dim": 8}  # fmt: skip


@pytest.fixture(scope="module")
def text():
    return TextTransformer(TextConfig(**SMALL, eos_token_id=50), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("settings", "position"),
    [({"eos_token_id": 50}, 3), ({"eos_token_id": 2}, 5), ({"eos_token_id": 2, "family": "metaclip_2"}, 1)],
)
def test_which_token_is_pooled(settings, position):
    text = TextTransformer(TextConfig(**SMALL, **settings), rngs=nnx.Rngs(0))
    output = text(jnp.array([[49, 2, 7, 50, 8, 55, 50]]))
    np.testing.assert_allclose(output.pooled[0], output.last_hidden_state[0, position], atol=2e-6)


def test_a_row_without_eos_is_pooled_at_its_first_token(text):
    output = text(jnp.array([[49, 2, 7]]))
    np.testing.assert_allclose(output.pooled[0], output.last_hidden_state[0, 0], atol=2e-6)


@pytest.mark.parametrize("padding", [0, 50, 31])
def test_right_padding_does_not_change_what_is_pooled(text, padding):
    ids = jnp.array([[49, 7, 9, 50]])
    padded = jnp.concatenate([ids, jnp.full((1, 6), padding)], axis=1)
    np.testing.assert_allclose(text(padded).features, text(ids).features, atol=1e-6)
    np.testing.assert_allclose(text(padded).last_hidden_state[:, :4], text(ids).last_hidden_state, atol=1e-6)


def test_no_token_sees_a_later_one(text):
    ids = jnp.array([[49, 7, 9, 11, 50]])
    changed = text(ids.at[0, 3].set(12)).last_hidden_state - text(ids).last_hidden_state
    assert not changed[0, :3].any()
    assert changed[0, 3:].any(axis=1).all()


def test_left_padding_with_mask_and_positions(text):
    ids = jnp.array([[49, 7, 9, 50]])
    padded = jnp.concatenate([jnp.full((1, 3), 5), ids], axis=1)
    mask, positions = jnp.array([[0, 0, 0, 1, 1, 1, 1]]), jnp.array([[0, 0, 0, 0, 1, 2, 3]])
    for attention_mask in (mask, mask.astype(bool)):
        np.testing.assert_allclose(text(padded, attention_mask, positions).features, text(ids).features, atol=1e-6)
    assert jnp.abs(text(padded, None, positions).features - text(ids).features).max() > 1e-3


def test_too_long_raises_while_tracing(text):
    with pytest.raises(ValueError, match="token_ids are 11 long, but this model has 10 positions"):
        jax.jit(lambda ids: text(ids).pooled).trace(jax.ShapeDtypeStruct((1, 11), jnp.int32))


def test_ids_outside_the_vocabulary_give_nan(text):
    assert jnp.isnan(text(jnp.array([[49, 60, 50]])).features).all()


def test_one_without_a_batch_axis_is_named(text):
    # Unwrapped, because in tests jaxtyping would see the shape first.
    with pytest.raises(ValueError, match=r"token_ids must be of shape \(batch, tokens\), got \(3,\)"):
        TextTransformer.__call__.__wrapped__(text, jnp.array([49, 7, 50]))
