import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import inputs, jit

from jaxclip import losses
from jaxclip.reference import losses as reference

nt_xent = jit(losses.nt_xent, static_argnames="reduction")
A = inputs(seed=0, n=8, width=6)["a"]


def page(features, tau=0.07):
    """`infonce_loss` of the page on cosine similarity, as it stands there."""
    B2, _ = features.shape
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    sim = z @ z.T / tau
    np.fill_diagonal(sim, -1e9)
    labels = np.array([i + 1 if i % 2 == 0 else i - 1 for i in range(B2)])
    exp_sim = np.exp(sim - sim.max(axis=1, keepdims=True))
    with np.errstate(divide="ignore"):
        log_probs = np.log(exp_sim / exp_sim.sum(axis=1, keepdims=True))
    return -log_probs[np.arange(B2), labels].mean()


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_is_the_pages_loss(tau):
    np.testing.assert_allclose(nt_xent(A, tau), page(np.asarray(A, np.float64), tau), rtol=1e-6)


def test_simclr_learns_toy_data():
    """The page's first example: two noisy views of each thing; a linear encoder learns to look past the noise."""
    keys = jax.random.split(jax.random.key(0), 3)
    things = jax.random.normal(keys[0], (16, 4))

    def views(key):
        noise = 3 * jax.random.normal(key, (16, 2, 4))
        return jnp.concatenate([jnp.stack([things, things], axis=1), noise], axis=2).reshape(32, 8)

    def step(encoder, key):
        batch = views(key)
        loss, slope = jax.value_and_grad(lambda encoder: losses.nt_xent(batch @ encoder, 0.5))(encoder)
        return encoder - 0.5 * slope, loss

    def learn(encoder, keys):
        return jax.lax.scan(step, encoder, keys)

    encoder, values = jit(learn)(0.5 * jax.random.normal(keys[1], (8, 4)), jax.random.split(keys[2], 60))
    assert values[-5:].mean() < values[:5].mean() - 0.5
    assert jnp.linalg.norm(encoder[:4]) > 2 * jnp.linalg.norm(encoder[4:])


def test_labels_of_pairs_are_the_pairs():
    options = {"reduction": "none", "temperature": 0.2}
    of_labels = nt_xent(A, labels=np.array([5, 5, -1, -1, 9, 9, 0, 0]), **options)
    np.testing.assert_allclose(of_labels, nt_xent(A, **options), rtol=1e-6)


def test_labels_need_no_order():
    labels = np.array([0, 1, 2, 0, 1, 0, 2, 0])
    order = np.array([3, 7, 0, 1, 2, 6, 5, 4])
    each = nt_xent(A, 0.2, labels, reduction="none")
    np.testing.assert_allclose(nt_xent(A[order], 0.2, labels[order], reduction="none"), each[order], rtol=1e-6)


def test_a_label_alone_costs_nothing_but_is_a_key():
    labels = np.array([0, 0, 1, 2, 2, 2, 3, 3])
    each = nt_xent(A, 0.2, labels, reduction="none")
    assert each[2] == 0
    np.testing.assert_allclose(nt_xent(A, 0.2, labels), each.sum() / 7, rtol=1e-6)
    # Without row 2 among the keys the others' losses are smaller.
    mask = np.arange(8) != 2
    without = np.delete(nt_xent(A, 0.2, labels, mask=mask, reduction="none"), 2)
    assert (np.delete(each, 2) > without).all()
    np.testing.assert_allclose(nt_xent(A, 0.2, labels), reference.nt_xent(A, 0.2, labels), rtol=1e-6)


def test_all_labels_alone_are_no_loss():
    value, gradient = jit(jax.value_and_grad(losses.nt_xent))(A, 0.2, jnp.arange(8))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("labels", [None, np.arange(8) // 2])
def test_half_a_pair_has_no_positive(labels):
    """Row 3 is padded: row 2 finds nothing, and is still a key for the others."""
    mask = np.arange(8) != 3
    each = nt_xent(A, 0.2, labels, mask=mask, reduction="none")
    assert each[2] == each[3] == 0
    z = np.delete(np.asarray(A, np.float64), 3, axis=0)
    wanted = reference.nt_xent(z, 0.2, np.array([0, 0, 1, 2, 2, 3, 3]))
    np.testing.assert_allclose(nt_xent(A, 0.2, labels, mask=mask), wanted, rtol=1e-6)
    np.testing.assert_allclose(each.sum() / 6, wanted, rtol=1e-6)


def test_a_large_class_keeps_its_digits():
    """The positives are a class's sum less the row's own: of a thousand rows the error is still a cosine's."""
    features = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32) + 2
    labels = np.zeros(1000, np.int32)
    each = nt_xent(features, 0.07, labels, reduction="none")
    z = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    logits = z @ z.T / 0.07
    np.fill_diagonal(logits, -np.inf)
    exact = np.log(np.exp(logits).sum(axis=1)) - (z @ z.sum(axis=0) - 1) / 0.07 / 999
    np.testing.assert_allclose(each, exact, rtol=1e-6)


def test_one_pair_is_certain():
    assert nt_xent(A[:2]) == 0
    assert nt_xent(A[:2], labels=np.zeros(2, np.int32)) == pytest.approx(0, abs=1e-6)


def test_two_views_are_info_nce_with_more_negatives():
    views, others = A[::2], A[1::2]
    negatives = np.stack([np.delete(A, [2 * i, 2 * i + 1], axis=0) for i in range(4)])
    wanted = jit(losses.info_nce, static_argnames="reduction")(views, others, negatives, 0.2, reduction="none")
    np.testing.assert_allclose(nt_xent(A, 0.2, reduction="none")[::2], wanted, rtol=1e-6)


@pytest.mark.usefixtures("plain_calls")
def test_errors():
    with pytest.raises(ValueError, match=r"pairs of views, an even number of rows, got \(7, 6\)"):
        losses.nt_xent(A[:7])
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        losses.nt_xent(A, labels=jnp.ones(8))
    with pytest.raises(ValueError, match=r"labels must have shape \(8,\), got \(4,\)"):
        losses.nt_xent(A, labels=jnp.ones(4, int))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        losses.nt_xent(A, 0)
