"""The traps of CLIP ports: each mistake is made on purpose, and the comparison with the references must show it.

| trap | where it is tested |
|---|---|
| 1 pooling | here; ids without EOS in test_clip.py |
| 2 padding, causal mask | here |
| 3 truncation | processing/test_tokenizer.py |
| 4 cleaning of text | processing/test_tokenizer.py |
| 5 activation | here; the formulas in nn/test_activations.py |
| 6 LayerNorm's epsilon and variance | here |
| 7 heads, widths, legacy dicts, projection_dim | here; test_config.py |
| 8 pre_layrnorm, biases, post_layernorm | here |
| 9 logit scale | here; its initial value in nn/test_clip.py |
| 10 positions at another image size | here; the formula in nn/test_positions.py |
| 11 float16 files | here |
| 12 resizing and cropping | processing/test_image_processor.py |
| 13 kinds of image files | processing/test_image_processor.py, processing/test_decoding.py |
| 14 tiny and very long images | processing/test_image_processor.py |
| 15 no model.safetensors on main | checkpoints/test_files.py |
| 16 shards, lone towers | here; checkpoints/test_load.py |
"""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FOLDER, TOLERANCE, errors, expected, relative_error
from flax import nnx

import jaxclip
from jaxclip import clip, config, nn
from jaxclip.checkpoints import load, names
from jaxclip.clip import fill_model, open_tensors, weight_files
from jaxclip.config import TextConfig
from jaxclip.nn import activations, positions
from jaxclip.nn.text import TextTransformer
from jaxclip.nn.transformer import Linear
from jaxclip.nn.vision import PatchEmbedding, VisionTransformer

GELU, TANH = partial(jax.nn.gelu, approximate=False), partial(jax.nn.gelu, approximate=True)


def code(target, name, value):
    """jaxclip with another value in one place."""
    return lambda patch: patch.setattr(target, name, value)


def wrapped(target, name, wrapper):
    """jaxclip with a function replaced by one that gets the original as its first argument."""
    original = getattr(target, name)
    return code(target, name, lambda *arguments, **options: wrapper(original, *arguments, **options))


def loaded(change):
    """Every model changed after it was loaded."""

    def load_and_change(*arguments, **options):
        model, stored = fill_model(*arguments, **options)
        change(model)
        return model, stored

    return code(clip, "fill_model", load_and_change)


def with_options(**wrong):
    return lambda original, *arguments, **options: original(*arguments, **{**options, **wrong})


def activation(name, function):
    return lambda patch: patch.setitem(activations.ACTIVATIONS, name, function)


def layer_norm(**wrong):
    return wrapped(nnx, "LayerNorm", with_options(**wrong))


def heads(count):
    def make(original, self, tower, **settings):
        original(self, tower, **settings)
        self.heads = count(tower)

    return wrapped(nn.Attention, "__init__", make)


def computed_in(dtype):
    return code(nn.text, "computation", lambda _: (jnp.dtype(dtype), "default"))


by_eos_alone = property(lambda tower: "largest_id" if tower.eos_token_id == 2 else "first_eos")


def last_eos(self, ids):
    return ids.shape[1] - 1 - (ids[:, ::-1] == self.config.eos_token_id).argmax(axis=1)


def without_mask(original, self, ids, mask=None, position_ids=None, **options):
    return original(self, ids, None, position_ids, **options)


def without_positions(original, self, ids, mask=None, position_ids=None, **options):
    return original(self, ids, mask, None, **options)


def queries_times(factor):
    def change(model):
        for block in model.vision.blocks:
            for parameter in (block.attention.query.weight, block.attention.query.bias):
                parameter.set_value(parameter[...] * factor)

    return change


def without(norm):
    return lambda model: setattr(model.vision, norm, lambda x: x)


def normalise_all_tokens(original, self, *given, **options):
    output = original(self, *given, **options)
    return dataclasses.replace(output, last_hidden_state=self.post_norm(output.last_hidden_state))


def logarithm_of_the_scale(model):
    model.logit_scale.set_value(jnp.log(model.logit_scale[...]))


def resized(method, antialias):
    return lambda grid, rows, columns: jax.image.resize(
        grid, (rows, columns, grid.shape[2]), method, antialias=antialias
    )


def four_times_as_wide(original, self, tower, **settings):
    original(self, dataclasses.replace(tower, intermediate_size=4 * tower.hidden_size), **settings)


def with_bias(original, self, tower, **settings):
    original(self, tower, **settings)
    self.bias = nnx.Param(jnp.zeros(tower.hidden_size))


def of_the_first_shard(files):
    """The tensors of the other shards at random, as a port leaves them that doesn't look for more than one file."""
    tensors, random = open_tensors(files), np.random.default_rng(0)
    first = min(tensor.file for tensor in tensors.values())

    def at_random(tensor):
        return dataclasses.replace(tensor, load=lambda: random.normal(0, 0.02, tensor.shape).astype(tensor.dtype))

    return {name: tensor if tensor.file == first else at_random(tensor) for name, tensor in tensors.items()}


def trap(number, mistake, case, tensor, step_in):
    return pytest.param(case, tensor, step_in, id=f"{number} {mistake}")


@pytest.mark.parametrize(
    ("case", "tensor", "step_in"),
    [
        trap(1, "first 2, not largest id", "openai", "text.features", code(TextConfig, "pooling", "first_eos")),
        trap(1, "largest id, not EOS", "first_eos", "text.features", code(TextConfig, "pooling", "largest_id")),
        trap(1, "CLIP's rule for MetaCLIP 2", "metaclip_2", "text.features", code(TextConfig, "pooling", by_eos_alone)),
        trap(1, "last EOS, not first", "first_eos", "text.features",
             code(TextTransformer, "pooled_position", last_eos)),
        trap(2, "text sees its future", "first_eos", "text.features", code(jnp, "tril", lambda mask: mask)),
        trap(2, "attention_mask ignored", "first_eos", "masked_text.last_hidden_state",
             wrapped(TextTransformer, "__call__", without_mask)),
        trap(2, "position_ids ignored", "first_eos", "masked_text.features",
             wrapped(TextTransformer, "__call__", without_positions)),
        trap(5, "gelu for quick_gelu", "openai", "image_features", activation("quick_gelu", GELU)),
        trap(5, "quick_gelu for gelu", "first_eos", "image_features", activation("gelu", activations.quick_gelu)),
        trap(5, "tanh for gelu", "first_eos", "image_features", activation("gelu", TANH)),
        trap(5, "gelu for tanh", "gelu_new", "vision.last_hidden_state", activation("gelu_new", GELU)),
        trap(6, "Flax's epsilon", "norms", "text.features", layer_norm(epsilon=1e-6)),
        trap(6, "epsilon not the config's", "first_eos", "vision.features", layer_norm(epsilon=1e-5)),
        trap(6, "fast variance", "norms", "vision.features", layer_norm(use_fast_variance=True)),
        trap(7, "64-wide heads", "openai", "vision.features", heads(lambda tower: max(1, tower.hidden_size // 64))),
        trap(7, "44-wide heads", "heads_88", "vision.features", heads(lambda tower: 2 * tower.num_attention_heads)),
        trap(7, "scale of 64-wide heads", "heads_80", "vision.features", loaded(queries_times((80 / 64) ** 0.5))),
        trap(7, "legacy dict without its defaults", "legacy_config_dict", "vision.features",
             code(config, "_tower_of", lambda hub, name, _: {**hub[f"{name}_config"], **hub[f"{name}_config_dict"]})),
        trap(8, "no pre_layrnorm", "openai", "vision.hidden_states.0", loaded(without("pre_norm"))),
        trap(8, "no post_layernorm", "openai", "vision.features", loaded(without("post_norm"))),
        trap(8, "post_layernorm on all tokens", "openai", "vision.last_hidden_state",
             wrapped(VisionTransformer, "__call__", normalise_all_tokens)),
        trap(9, "logit scale not exponentiated", "openai", "logits_per_image", loaded(logarithm_of_the_scale)),
        trap(9, "features not normalised", "openai", "logits_per_image", code(nn.clip, "_unit_length", lambda x: x)),
        trap(10, "a = -0.5", "openai", "other_vision.features",
             code(positions, "_keys_kernel", partial(positions._keys_kernel, a=-0.5))),
        trap(10, "antialiasing", "openai", "other_vision.features",
             code(nn.vision, "interpolate_positions", resized("cubic", antialias=True))),
        trap(10, "bilinear", "openai", "other_vision.features",
             code(nn.vision, "interpolate_positions", resized("linear", antialias=False))),
        trap(11, "float16 kept", "heads_64", "text.features", computed_in("float16")),
        trap(11, "bfloat16 kept", "heads_80", "text.features", computed_in("bfloat16")),
        trap(16, "first shard alone", "sharded", "logits_per_image", code(clip, "open_tensors", of_the_first_shard)),
        trap(16, "first shard alone", "torch_file_sharded", "logits_per_image",
             code(clip, "open_tensors", of_the_first_shard)),
    ],
)  # fmt: skip
def test_the_references_show_it(case, tensor, step_in, monkeypatch):
    assert max(without_a_mistake(case).values()) < TOLERANCE
    step_in(monkeypatch)
    assert errors(jaxclip.load(FOLDER / case).model, case)[tensor] > 10 * TOLERANCE


@cache
def without_a_mistake(case):
    return errors(jaxclip.load(FOLDER / case).model, case)


@pytest.mark.parametrize(
    ("case", "problem", "step_in"),
    [
        trap(7, "legacy dict ignored", "legacy_config_dict", "shape: text_model.embeddings.token_embedding.weight",
             code(config, "_tower_of", lambda hub, name, _: hub[f"{name}_config"])),
        trap(7, "the towers' own projection_dim", "openai", "shape: text_projection.weight",
             wrapped(config, "_tower_from_hub", with_options(projection_dim=512))),
        trap(7, "MLPs four times as wide", "heads_88", "shape: vision_model.encoder.layers.0.mlp.fc1.weight",
             wrapped(nn.MLP, "__init__", four_times_as_wide)),
        trap(8, "pre_layernorm", "openai", "missing: vision_model.pre_layernorm.weight",
             code(names, "_VISION", [(name.replace("layrnorm", "layernorm"), *row) for name, *row in names._VISION])),
        trap(8, "projections with a bias", "openai", "parameter text.projection.bias",
             wrapped(Linear, "__init__", with_options(use_bias=True))),
        trap(8, "patch embedding with a bias", "openai", "parameter vision.patch_embedding.bias",
             wrapped(PatchEmbedding, "__init__", with_bias)),
        trap(16, "first shard alone", "sharded", "missing: logit_scale",
             code(clip, "weight_files", lambda files: weight_files(files)[2:3])),
        trap(16, "a lone tower's names as they are", "text", "missing: text_model.final_layer_norm.weight",
             code(load, "with_prefix", lambda found, _: {name: name for name in found})),
    ],
)  # fmt: skip
def test_loading_refuses_it(case, problem, step_in, monkeypatch):
    jaxclip.load(FOLDER / case)
    step_in(monkeypatch)
    with pytest.raises(jaxclip.CheckpointError) as error:
        jaxclip.load(FOLDER / case)
    assert problem in str(error.value)


def cut_and_repadded(case):
    """How far the features of two texts are from the reference's when cut to the longest, and when padded otherwise."""
    reference = expected(case)
    ids, features = reference["token_ids"][:2], reference["text.features"][:2]
    other_padding = ids.copy()
    other_padding[0, 8:], other_padding[1, 4:] = 90, 0
    model = jaxclip.load(FOLDER / case).model
    return [
        relative_error(model.encode_text(jnp.asarray(given), normalize=False), features)
        for given in (ids[:, :8], other_padding)
    ]


@pytest.mark.parametrize("case", ["openai", "first_eos"])
def test_2_what_stands_after_the_end_of_a_text_is_not_seen(case, monkeypatch):
    assert max(cut_and_repadded(case)) < TOLERANCE
    monkeypatch.setattr(jnp, "tril", lambda mask: mask)
    assert min(cut_and_repadded(case)) > 10 * TOLERANCE


def test_8_patches_need_the_post_layernorm():
    reference = expected("openai")
    tokens, features = jnp.asarray(reference["vision.last_hidden_state"]), reference["vision.features"]
    model = jaxclip.load(FOLDER / "openai").model
    assert relative_error(model.vision.project(tokens)[:, 0], features) < TOLERANCE
    without("post_norm")(model)
    assert relative_error(model.vision.project(tokens)[:, 0], features) > 10 * TOLERANCE
