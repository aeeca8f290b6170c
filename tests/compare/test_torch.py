"""Captures of transformers and open_clip, right and patched: `pytest -m parity`."""

import dataclasses
import math

import numpy as np
import pytest
from broken import inputs_of
from cases import FOLDER

import jaxclip
from jaxclip.cli import main
from jaxclip.compare import Capture, capture, diff, load_capture
from jaxclip.compare.checkpoint import Checkpoint
from jaxclip.compare.torch_model import capture_transformers, load_transformers

pytestmark = pytest.mark.parity

BLOCK = "text_model.encoder.layers.0"


@pytest.fixture(scope="module")
def ours():
    """Captures of jaxclip by case, and their inputs."""
    made = {}

    def of(case):
        if case not in made:
            checkpoint = Checkpoint(str(FOLDER / case))
            inputs = inputs_of(checkpoint.config)
            clip = jaxclip.load(FOLDER / case)
            made[case] = checkpoint, inputs, capture(clip, token_ids=inputs.token_ids, pixels=inputs.pixels)
        return made[case]

    return of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", ["openai", "first_eos", "metaclip_2"])
def test_right_runs_of_transformers_and_of_ours_raise_no_alarm(transformers, ours, case, dtype):
    checkpoint, inputs, right = ours(case)
    theirs = capture_transformers(load_transformers(checkpoint.source, dtype=dtype), inputs)
    mine = right
    if dtype != "float32":
        mine = capture(jaxclip.load(FOLDER / case, dtype=dtype), token_ids=inputs.token_ids, pixels=inputs.pixels)
    for one, other in ((right, theirs), (mine, theirs)):
        found = diff(one, other, model=checkpoint)
        assert found.agree, [(row.name, row.relative_rms, row.departs) for row in found.rows if row.agrees is False]
        assert all(row.agrees is not None for row in found.rows)
        assert found.precision == dtype


@pytest.mark.parametrize("case", ["text", "text_projection", "vision", "vision_projection"])
def test_lone_towers(transformers, case, capsys):
    assert main(["diff", str(FOLDER / case), f"torch:{FOLDER / case}"]) == 0
    assert "Equal within the rounding of float32" in capsys.readouterr().out


def test_the_command_runs_transformers_with_its_own_processing(transformers, capsys):
    assert main(["diff", f"oracle:{FOLDER / 'whole'}", f"torch:{FOLDER / 'whole'}"]) == 0
    printed = capsys.readouterr().out
    assert "Equal within the rounding of float32: all 47 tensors" in printed


def test_gradients(transformers, ours):
    for case in ("openai", "first_eos"):
        checkpoint, inputs, _ = ours(case)
        mine = capture(jaxclip.load(FOLDER / case), token_ids=inputs.token_ids, pixels=inputs.pixels, gradients=True)
        theirs = capture_transformers(load_transformers(checkpoint.source), inputs, gradients=True)
        found = diff(mine, theirs, model=checkpoint)
        assert found.agree, [(row.name, row.relative_rms) for row in found.rows if row.agrees is False]
        assert sum(row.name.startswith("gradients.") and row.agrees is True for row in found.rows) == len(
            checkpoint.oracle.tensors
        )
        wrong = {n: -v if n.endswith("q_proj.bias") and n.startswith("gradients") else v for n, v in theirs.items()}
        found = diff(mine, Capture(wrong), model=checkpoint)
        assert found.first_divergence.name.startswith("gradients.text_model.encoder.layers.0.self_attn.q_proj.bias")


def patched(name):
    """Mistakes made in transformers' own modules."""

    def change(model):
        import torch

        blocks = [*model.text_model.encoder.layers, *model.vision_model.encoder.layers]
        with torch.no_grad():
            if name == "activation":
                for block in blocks:
                    block.mlp.activation_fn = torch.nn.GELU()
            elif name == "tanh":
                for block in blocks:
                    block.mlp.activation_fn = torch.nn.GELU(approximate="tanh")
            elif name == "epsilon":
                for module in model.modules():
                    if isinstance(module, torch.nn.LayerNorm):
                        module.eps = 1e-6
            elif name == "scale":
                for block in blocks:
                    block.self_attn.scale = 1.0
            elif name == "heads":
                for block in model.text_model.encoder.layers:
                    block.self_attn.head_dim, block.self_attn.scale = 8, 8**-0.5
            elif name == "bias":
                for block in blocks:
                    block.self_attn.k_proj.bias.zero_()
            elif name == "transposed":
                model.vision_model.encoder.layers[1].self_attn.v_proj.weight.copy_(
                    model.vision_model.encoder.layers[1].self_attn.v_proj.weight.T.clone()
                )
            elif name == "pre_layrnorm":
                model.vision_model.pre_layrnorm = torch.nn.Identity()
            elif name == "pooling":
                model.text_model.eos_token_id = 95
            elif name == "positions":
                model.text_model.embeddings.position_embedding.weight.copy_(
                    model.text_model.embeddings.position_embedding.weight.roll(-1, 0)
                )
            elif name == "logit_scale":
                model.logit_scale.copy_(model.logit_scale.log())
            elif name == "class_token":
                model.vision_model.embeddings.class_embedding.zero_()

    return change


@pytest.mark.parametrize(
    ("case", "name", "at", "cause"),
    [
        ("openai", "activation", f"{BLOCK}.mlp.activation_fn", "exact GELU instead of QuickGELU"),
        ("first_eos", "tanh", f"{BLOCK}.mlp.activation_fn", "GELU by its tanh approximation instead of exact GELU"),
        ("openai", "epsilon", f"{BLOCK}.layer_norm1", "LayerNorm's epsilon 1e-06 instead of 1e-05"),
        ("metaclip_2", "scale", f"{BLOCK}.self_attn.attn_weights", "queries not scaled"),
        ("openai", "heads", f"{BLOCK}.self_attn.attn_weights", "4 heads of width 8 instead of 2 of width 16"),
        ("openai", "bias", f"{BLOCK}.self_attn.k_proj", "self_attn.k_proj.bias left out"),
        ("openai", "transposed", "vision_model.encoder.layers.1.self_attn.v_proj",
         "self_attn.v_proj.weight transposed"),
        ("openai", "pre_layrnorm", "vision_model.pre_layrnorm", "vision_model.pre_layrnorm skipped"),
        ("first_eos", "pooling", "text_model.pooler_output", "pooled at the first token"),
        ("openai", "positions", "text_model.embeddings", "position embeddings off by one, from 1 on"),
        ("openai", "logit_scale", "logits_per_image", "logit scale not exponentiated"),
        ("openai", "class_token", "vision_model.embeddings",
         "class embedding left out, its token 0 but for the position"),
    ],
)  # fmt: skip
def test_mistakes_in_transformers_modules_are_named(transformers, ours, case, name, at, cause):
    checkpoint, inputs, right = ours(case)
    model = load_transformers(checkpoint.source)
    patched(name)(model)
    found = diff(right, capture_transformers(model, inputs), model=checkpoint)
    assert found.first_divergence.name == at
    assert (found.diagnoses[0].side, found.diagnoses[0].name, found.diagnoses[0].causes) == ("B", at, (cause,))
    assert found.diagnoses[0].residual < 5e-7


def test_padding_that_transformers_masks(transformers, ours):
    checkpoint, inputs, right = ours("first_eos")
    ends = checkpoint.oracle.pooled_position(inputs.token_ids)
    mask = (np.arange(inputs.token_ids.shape[1]) <= ends[:, None]).astype(np.int32)
    model = load_transformers(checkpoint.source)
    masked = capture_transformers(model, dataclasses.replace(inputs, attention_mask=mask))
    found = diff(right, Capture({n: v for n, v in masked.items() if n != "attention_mask"}), model=checkpoint)
    assert found.first_divergence.name == f"{BLOCK}.self_attn.attn_weights"
    assert found.diagnoses[0].causes == ("padding masked",)
    assert all(row.agrees for row in found.rows if row.name in ("text_embeds", "text_model.pooler_output"))


def open_clip_model(checkpoint):
    """open_clip's, of the small checkpoint's shape and weights."""
    import open_clip
    import torch

    text, vision, tensors = checkpoint.config.text, checkpoint.config.vision, checkpoint.oracle.tensors
    model = open_clip.CLIP(
        text.projection_dim,
        open_clip.model.CLIPVisionCfg(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            head_width=vision.hidden_size // vision.num_attention_heads,
            mlp_ratio=(vision.intermediate_size + 0.5) / vision.hidden_size,
            patch_size=vision.patch_size,
            image_size=vision.image_size,
        ),
        open_clip.model.CLIPTextCfg(
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            width=text.hidden_size,
            heads=text.num_attention_heads,
            layers=text.num_hidden_layers,
            mlp_ratio=(text.intermediate_size + 0.5) / text.hidden_size,
        ),
        quick_gelu=text.hidden_act == "quick_gelu",
    )
    theirs = {
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T,
        "logit_scale": tensors["logit_scale"],
        "visual.class_embedding": tensors["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": tensors["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T,
    }
    pairs = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm",
             "visual.ln_post": "vision_model.post_layernorm"}  # fmt: skip
    for ours, tower, config in (("transformer", "text_model", text), ("visual.transformer", "vision_model", vision)):
        for index in range(config.num_hidden_layers):
            own, name = f"{ours}.resblocks.{index}", f"{tower}.encoder.layers.{index}"
            for a, b in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"),
                         ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                pairs[f"{own}.{a}"] = f"{name}.{b}"
            for kind in ("weight", "bias"):
                parts = [tensors[f"{name}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                theirs[f"{own}.attn.in_proj_{kind}"] = np.concatenate(parts)
    for own, name in pairs.items():
        theirs |= {f"{own}.{kind}": tensors[f"{name}.{kind}"] for kind in ("weight", "bias")}
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in theirs.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (set(missing), unexpected) == ({"attn_mask"}, []) or not missing
    return model.eval()


@pytest.mark.parametrize("case", ["openai", "gelu_new"])
def test_open_clip(transformers, ours, case, tmp_path):
    pytest.importorskip("open_clip")
    from openai_modules import capture_openai_modules

    checkpoint, inputs, right = ours(case)
    theirs = capture_openai_modules(open_clip_model(checkpoint), inputs)
    theirs.save(tmp_path / "theirs.safetensors")
    found = diff(right, load_capture(tmp_path / "theirs.safetensors"), model=checkpoint)
    lacking = {row.name for row in found.rows if row.agrees is None}
    assert lacking == {"text_model.pooler_output", "loss"}
    notes = {row.name: row.note for row in found.rows}
    assert notes["vision_model.post_layernorm"] == "B: the first of 17 tokens"
    if case == "openai":
        assert found.agree, [(row.name, row.relative_rms) for row in found.rows if row.agrees is False]
    else:  # open_clip's GELU is the exact one, and this case pools at an EOS that isn't the largest id.
        assert found.diagnoses[0].causes == ("exact GELU instead of GELU by its tanh approximation",)
        assert ("pooled at the largest id",) in [each.causes for each in found.diagnoses]
    assert math.isfinite(found.rows[0].maximum)
