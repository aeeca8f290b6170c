import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import inputs, jit

from jaxclip import losses

ARRAYS = {name: jnp.asarray(array) for name, array in inputs(seed=0, n=8, width=6).items()}
IMAGES, TEXTS = ARRAYS["a"], ARRAYS["b"]
siglip_loss = jit(losses.siglip_loss, static_argnames="reduction")


def test_is_a_binary_decision_for_every_pair():
    """The sum written out, pair by pair."""
    total = 0.0
    for i, image in enumerate(np.asarray(IMAGES, np.float64)):
        for j, text in enumerate(np.asarray(TEXTS, np.float64)):
            cosine = image @ text / np.linalg.norm(image) / np.linalg.norm(text)
            together = 1 / (1 + math.exp(-(math.exp(2.3) * cosine - 3)))
            total -= math.log(together if i == j else 1 - together)
    np.testing.assert_allclose(siglip_loss(IMAGES, TEXTS, 2.3, -3.0), total / 8, rtol=1e-6)
    np.testing.assert_allclose(siglip_loss(IMAGES, TEXTS, 2.3, -3.0, reduction="sum"), total, rtol=1e-6)


def test_at_the_papers_beginning_only_positives_cost():
    """A scale of 10 and a bias of -10: pairs begin as "no", and negatives of cosine 0 cost next to nothing."""
    features = jnp.eye(8)
    each = siglip_loss(features, features, math.log(10), -10.0, reduction="none")
    np.testing.assert_allclose(each, math.log(2) + 7 * math.log1p(math.exp(-10)), rtol=1e-6)


def test_a_small_loss_keeps_its_digits():
    features = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(siglip_loss(features, features, math.log(20), 0.0), 2 * math.exp(-20), rtol=1e-5)


def test_huge_logits_stay_finite():
    loss = jit(jax.value_and_grad(losses.siglip_loss, argnums=(0, 2, 3)))
    value, slopes = loss(IMAGES, -TEXTS, math.log(1e4), -10.0)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.usefixtures("plain_calls")
def test_errors():
    with pytest.raises(ValueError, match=r"logit_bias must be a scalar, got shape \(8,\)"):
        losses.siglip_loss(IMAGES, TEXTS, 2.0, jnp.ones(8))
    with pytest.raises(ValueError, match="logit_bias must be finite, got -inf"):
        losses.siglip_loss(IMAGES, TEXTS, 2.0, -math.inf)
