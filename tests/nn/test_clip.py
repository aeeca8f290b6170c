"""The joint model as a pytree, under JAX's transformations and in the hands of optax and orbax."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from cases import FOLDER
from flax import nnx

import jaxclip
from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
from jaxclip.nn import CLIP, Abstract

TINY = CLIPConfig(
    text=TextConfig(num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=2, vocab_size=50,
                    projection_dim=8, eos_token_id=49),
    vision=VisionConfig(num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=2, image_size=8,
                        patch_size=4, projection_dim=8),
)  # fmt: skip
# Eager and compiled programs add in another order: a few float32 ulps of values near 1.
ULPS = 2e-6


def contrastive_loss(model, token_ids, pixels, **options):
    logits = model(token_ids, pixels, **options).logits_per_image
    labels = jnp.arange(logits.shape[0])
    losses = [optax.softmax_cross_entropy_with_integer_labels(m, labels).mean() for m in (logits, logits.T)]
    return sum(losses) / 2


def test_jit_takes_the_model_as_an_argument(model, inputs):
    eager = model(*inputs)
    compiled = jax.jit(lambda model, ids, pixels: model(ids, pixels))(model, *inputs)
    for name in ("text_features", "image_features"):
        np.testing.assert_allclose(getattr(compiled, name), getattr(eager, name), atol=ULPS)
    np.testing.assert_allclose(compiled.logits_per_image, eager.logits_per_image, rtol=1e-5, atol=10 * ULPS)


def test_vmap_over_inputs_and_over_models(model, inputs):
    ids, pixels = inputs
    encode_image, encode_text = jax.jit(model.encode_image), jax.jit(model.encode_text)
    images, texts = encode_image(pixels), encode_text(ids)
    np.testing.assert_allclose(jax.vmap(encode_image)(pixels[:, None])[:, 0], images, atol=ULPS)
    np.testing.assert_allclose(jax.vmap(encode_text)(ids[:, None])[:, 0], texts, atol=ULPS)
    twice = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), model)
    both = jax.vmap(jax.jit(lambda model: model.encode_text(ids)))(twice)
    np.testing.assert_allclose(both[1], texts, atol=ULPS)


def test_gradients_match_float64_finite_differences():
    with jax.enable_x64(True):
        model = CLIP(TINY, dtype="float64", param_dtype="float64", rngs=nnx.Rngs(1))

        # Away from the initial values, which are small enough to hide a term.
        def noise(leaf):
            return 0.2 * jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape))

        model = jax.tree.map(lambda leaf: leaf + noise(leaf), model)
        ids = jnp.array([[1, 5, 49, 0], [1, 7, 9, 49], [1, 30, 2, 49]])
        pixels = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)))
        gradient = jax.jit(jax.grad(contrastive_loss))(model, ids, pixels)
        loss = jax.jit(contrastive_loss)
        leaves, structure = jax.tree.flatten(model)
        step = 1e-6
        for seed in range(4):
            generator = np.random.default_rng(seed)
            direction = [jnp.asarray(generator.normal(size=leaf.shape)) for leaf in leaves]
            moved = (
                jax.tree.unflatten(structure, [x + h * d for x, d in zip(leaves, direction, strict=True)])
                for h in (step, -step)
            )
            there, back = (loss(model, ids, pixels) for model in moved)
            slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), direction, strict=True))
            # Central differences: step² by the third derivative (1e-8 here), and rounding of 1e-16 / step.
            np.testing.assert_allclose((there - back) / (2 * step), slope, rtol=1e-7)
        every = jax.tree.leaves(jax.tree.map(lambda g: bool(jnp.any(g != 0)), gradient))
        # A key bias shifts all of a query's logits alike, which the softmax takes out again; no other may be idle.
        assert sum(every) >= len(every) - 4


def test_rematerialisation_changes_memory_not_values(model, inputs):
    plain, remat = (
        jax.jit(jax.value_and_grad(lambda m, r=r: contrastive_loss(m, inputs[0][:2], inputs[1], remat=r)))
        for r in (False, True)
    )
    np.testing.assert_allclose(remat(model)[0], plain(model)[0], rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(remat(model)[1]), jax.tree.leaves(plain(model)[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.linalg.norm(theirs) + 1e-7)
    kept = [f(model) for f in (lambda m: count_residuals(m, inputs, False), lambda m: count_residuals(m, inputs, True))]
    assert kept[1] < kept[0] / 2


def count_residuals(model, inputs, remat):
    def pull(model):
        return jax.vjp(lambda m: contrastive_loss(m, inputs[0][:2], inputs[1], remat=remat), model)[1]

    pullback = jax.eval_shape(pull, model)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model))
    return sum(leaf.size for leaf in jax.tree.leaves(pullback)) - parameters


def test_an_optax_step_lowers_the_loss(model, inputs):
    optimizer = optax.adam(1e-3)
    ids, pixels = inputs[0][:2], inputs[1]

    @jax.jit
    def step(model, state):
        loss, gradient = jax.value_and_grad(contrastive_loss)(model, ids, pixels)
        updates, state = optimizer.update(gradient, state, model)
        return optax.apply_updates(model, updates), state, loss

    state, losses = optimizer.init(model), []
    trained = model
    for _ in range(5):
        trained, state, loss = step(trained, state)
        losses.append(float(loss))
    assert isinstance(trained, CLIP)
    assert losses[-1] < losses[0] - 0.01


def test_orbax_saves_and_restores_the_state(model, inputs, tmp_path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(model))
        checkpointer.wait_until_finished()
        empty = CLIP(model.config, rngs=Abstract())
        nnx.update(empty, checkpointer.restore(tmp_path / "state", nnx.state(empty)))
    np.testing.assert_array_equal(empty.encode_text(inputs[0]), model.encode_text(inputs[0]))


def test_a_fresh_model_starts_where_the_paper_does():
    model = CLIP(CLIPConfig(), rngs=Abstract())
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == 151_277_313
    model = CLIP(TINY, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jnp.exp(model.logit_scale[...]), 1 / 0.07, rtol=1e-4)
    np.testing.assert_allclose(model.text.token_embedding.embedding[...].std(), 0.02, rtol=0.1)
    np.testing.assert_allclose(model.vision.blocks[0].attention.query.weight[...].std(), 16**-0.5, rtol=0.2)
    np.testing.assert_allclose(model.vision.blocks[0].mlp.fc2.weight[...].std(), (2 * 2 * 16) ** -0.5, rtol=0.2)
    assert not model.text.blocks[1].mlp.fc1.bias[...].any()


def test_an_abstract_model_may_hold_layers_of_any_kind():
    class WithDropout(CLIP):
        def __init__(self, config, *, rngs, **settings):
            super().__init__(config, rngs=rngs, **settings)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    assert isinstance(jaxclip.load(FOLDER / "whole", model=WithDropout).model.dropout, nnx.Dropout)


def test_two_seeds_give_two_models():
    one, other = (CLIP(TINY, rngs=nnx.Rngs(seed)).text.token_embedding.embedding[...] for seed in (0, 1))
    assert jnp.abs(one - other).max() > 0.01


def test_towers_work_alone(inputs):
    text, vision = TINY.text, TINY.vision
    for config, encode, given in (
        (CLIPConfig(text=text, vision=None), "encode_text", jnp.array([[1, 2, 49]])),
        (CLIPConfig(text=None, vision=vision), "encode_image", jnp.ones((1, 8, 8, 3))),
    ):
        model = CLIP(config, rngs=nnx.Rngs(0))
        assert getattr(model, encode)(given).shape == (1, 8)
        with pytest.raises(ValueError, match="tower: its checkpoint doesn't hold one"):
            model(jnp.array([[1, 2, 49]]), jnp.ones((1, 8, 8, 3)))


def test_features_need_a_projection():
    text = dataclasses.replace(TINY.text, projection_dim=None)
    model = CLIP(CLIPConfig(text=text, vision=None), rngs=nnx.Rngs(0))
    ids = jnp.array([[1, 5, 49]])
    assert model.text(ids).features is None
    assert model.text(ids).pooled.shape == (1, 16)
    with pytest.raises(ValueError, match=r"no projection into a joint space: call model\.text"):
        model.encode_text(ids)


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize(model, inputs, normalize):
    for features, raw in (
        (model.encode_text(inputs[0], normalize=normalize), model.text(inputs[0]).features),
        (model.encode_image(inputs[1], normalize=normalize), model.vision(inputs[1]).features),
    ):
        wanted = raw / np.linalg.norm(raw, axis=1, keepdims=True) if normalize else raw
        np.testing.assert_allclose(features, wanted, atol=ULPS)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators_at_full_precision(model, inputs, platform):
    exported = jax.export.export(jax.jit(lambda ids, pixels: model(ids, pixels).logits_per_image), platforms=[platform])
    program = exported(*inputs).mlir_module()
    assert program.count("stablehlo.dot_general") > 20
    assert program.count("precision = [HIGHEST, HIGHEST]") >= program.count("stablehlo.dot_general")
