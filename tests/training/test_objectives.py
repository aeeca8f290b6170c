"""Each objective: its loss by hand, and that a fixed tiny batch is learned by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_cases import FAST, IMAGES_ALONE, TINY, compiled, model, pairs, views

from jaxclip.losses import KeyQueue, clip_loss, moco_loss, momentum_update, nt_xent, siglip_loss
from jaxclip.training import (
    CLIPObjective,
    MoCoObjective,
    Objective,
    OptimizerConfig,
    SigLIPObjective,
    SimCLRObjective,
    TrainState,
    make_optimizer,
)
from jaxclip.training.state import named_parameters

KEY = jax.random.key(0)


def trained(objective, config, batches, steps, learning_rate=1e-2):
    """The state, and the loss before each step."""
    optimizer, _ = make_optimizer(
        OptimizerConfig(steps=2 * steps, warmup_steps=3, learning_rate=learning_rate, weight_decay=0.0)
    )
    state = TrainState.create(model(config), objective=objective, optimizer=optimizer, key=KEY)
    step, losses = compiled(objective=objective, optimizer=optimizer), []
    for number in range(steps):
        state, metrics = step(state, batches[number % len(batches)])
        losses.append(float(metrics["loss"]))
    return state, losses


def test_clip_learns_a_batch_by_heart():
    _, losses = trained(CLIPObjective(), TINY, [pairs()], 40)
    assert losses[0] > 1.5
    assert losses[-1] < 0.01


def test_siglip_learns_a_batch_by_heart_with_a_bias_outside_of_the_model():
    state, losses = trained(SigLIPObjective(), TINY, [pairs()], 90, learning_rate=2e-2)
    assert losses[0] > 4
    assert losses[-1] < 0.05
    assert state.head["logit_bias"] != -10
    # So that the Hub's format has a place for all that the model holds.
    assert named_parameters(state.model).keys() == named_parameters(model()).keys()


def test_simclr_learns_a_batch_by_heart():
    _, losses = trained(SimCLRObjective(), IMAGES_ALONE, [views()], 25)
    assert losses[0] > 0.1
    assert losses[-1] < 0.01


def test_moco_learns_by_heart_what_is_not_in_the_queue():
    # Two batches in turn and a queue of one: the keys in it are always the other batch's. (Of its own batch, older keys
    # of the same images would be negatives, which can't be told from the key.)
    objective = MoCoObjective(queue_size=8, momentum=0.5)
    state, losses = trained(objective, IMAGES_ALONE, [views(seed=0), views(seed=1)], 40)
    assert max(losses[2:6]) > 0.1
    assert max(losses[-2:]) < 0.01
    assert state.extras["queue"].count == 8


def test_clip_is_clip_loss_and_repeated_captions_are_one():
    batch, clip = pairs(), model()
    images, texts = clip.encode_image(batch["pixels"]), clip.encode_text(batch["token_ids"])
    scale = clip.logit_scale[...]

    def loss(batch, **settings):
        return CLIPObjective(**settings)(clip, None, batch, None, KEY)[0]

    for settings in ({}, {"chunk_size": 3}):
        np.testing.assert_allclose(loss(batch, **settings), clip_loss(images, texts, scale), rtol=1e-5)
    ids = jnp.array([7, 1, 2, 7, 3, 4, 5, 1])
    targets = ids[:, None] == ids[None, :]
    wanted = clip_loss(images, texts, scale, targets)
    np.testing.assert_allclose(loss(batch | {"caption_ids": ids}), wanted, rtol=1e-5)
    assert abs(wanted - clip_loss(images, texts, scale)) > 1e-3
    # Other ids each: the plain loss.
    np.testing.assert_allclose(loss(batch | {"caption_ids": jnp.arange(8)}), loss(batch), rtol=1e-5)


def test_cached_features_take_the_place_of_pixels():
    batch, clip = pairs(), model()
    cached = {"image_features": clip.encode_image(batch["pixels"], normalize=False), "token_ids": batch["token_ids"]}
    head = {"logit_bias": jnp.asarray(-3.0)}
    for objective in (CLIPObjective(), SigLIPObjective()):
        whole, ours = (objective(clip, head, given, None, KEY)[0] for given in (batch, cached))
        np.testing.assert_allclose(ours, whole, rtol=1e-5)


def test_padding_tokens_are_masked():
    batch = pairs()
    padded = {**batch, "token_ids": jnp.pad(batch["token_ids"][:, :5], ((0, 0), (1, 1)), constant_values=49)}
    mask = {"attention_mask": jnp.array([[0, 1, 1, 1, 1, 1, 1]] * 8)}
    losses = [CLIPObjective()(model(), None, given, None, KEY)[0] for given in (padded, padded | mask)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_siglip_is_siglip_loss():
    batch, clip = pairs(), model()
    images, texts = clip.encode_image(batch["pixels"]), clip.encode_text(batch["token_ids"])
    objective = SigLIPObjective(logit_bias=-3.0)
    head, extras = objective.init(clip)
    loss, metrics, extras = objective(clip, head, batch, extras, KEY)
    np.testing.assert_allclose(loss, siglip_loss(images, texts, clip.logit_scale[...], -3.0), rtol=1e-5)
    assert metrics["logit_bias"] == -3
    assert extras is None


def test_simclr_is_nt_xent_of_neighbouring_rows():
    batch, clip = views(), model(IMAGES_ALONE)
    loss = SimCLRObjective(temperature=0.2)(clip, None, batch, None, KEY)[0]
    first, second = (clip.encode_image(batch["views"][:, view]) for view in (0, 1))
    rows = jnp.stack([first, second], axis=1).reshape(16, -1)
    np.testing.assert_allclose(loss, nt_xent(rows, 0.2), rtol=1e-5)


def test_moco_is_moco_loss_and_its_key_encoder_follows():
    batch, clip = views(), model(IMAGES_ALONE)
    objective = MoCoObjective(queue_size=20, momentum=0.75, temperature=0.2)
    _, extras = objective.init(clip)
    extras = {**extras, "key_encoder": jax.tree.map(lambda leaf: 0.9 * leaf, clip.vision)}
    extras["queue"] = KeyQueue.empty(20, 8).enqueue(jax.random.normal(KEY, (15, 8)))
    loss, metrics, new = objective(clip, None, batch, extras, KEY)
    queries = clip.vision(batch["views"][:, 0]).features
    keys = extras["key_encoder"](batch["views"][:, 1]).features
    np.testing.assert_allclose(loss, moco_loss(queries, keys, extras["queue"], 0.2), rtol=1e-5)
    np.testing.assert_allclose(new["queue"].keys, extras["queue"].enqueue(keys).keys, atol=1e-6)
    assert metrics["queue"] == 15
    assert (new["queue"].count, new["queue"].position) == (20, 3)
    followed = objective.after_update(clip, new)["key_encoder"]
    wanted = momentum_update(extras["key_encoder"], clip.vision, 0.75)
    jax.tree.map(np.testing.assert_array_equal, followed, wanted)


def test_views_are_drawn_from_the_key():
    clip, pixels = model(IMAGES_ALONE), pairs()["pixels"]

    def augment(key, image):
        return image + 0.3 * jax.random.normal(key, image.shape)

    @jax.jit
    def losses(key):
        objective = SimCLRObjective(augment=augment)
        drawn = jax.vmap(jax.vmap(augment, (0, None)))(jax.random.split(key, (8, 2)), pixels)
        given = SimCLRObjective()(clip, None, {"views": drawn}, None, key)[0]
        return objective(clip, None, {"pixels": pixels}, None, key)[0], given

    ours, given = losses.lower(KEY).compile(FAST)(KEY)
    np.testing.assert_allclose(ours, given, rtol=1e-6)
    other, _ = losses.lower(KEY).compile(FAST)(jax.random.key(1))
    assert abs(ours - other) > 1e-3


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="must have `views`, got pixels, token_ids"):
        SimCLRObjective()(model(), None, pairs(), None, KEY)
    features = {"image_features": jnp.ones((8, 8)), "token_ids": pairs()["token_ids"]}
    with pytest.raises(ValueError, match="no logit scale"):
        CLIPObjective()(model(TINY.select("text")), None, features, None, KEY)
    with pytest.raises(NotImplementedError):
        Objective()(model(), None, pairs(), None, KEY)
