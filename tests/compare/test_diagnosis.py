"""Deliberately broken implementations, and what is found in them; right ones, and no alarm."""

import dataclasses
import math

import numpy as np
import pytest
from broken import BLOCK, PLANTS, UNKNOWN, VISION_BLOCK, broken, inputs_of, run
from cases import FOLDER
from oracle_cases import oracle

import jaxclip
from jaxclip.compare import Capture, capture, diff
from jaxclip.compare.inputs import Inputs
from jaxclip.compare.rounding import relative_rms
from jaxclip.reference import Oracle


def compared(checkpoint, plant, case, seed, *, precision="float32", keep=lambda name: True):
    made = checkpoint(case, seed)
    inputs = inputs_of(made.config, larger=plant.larger)
    tensors = made.oracle.tensors
    wrong = run(broken(plant), made.config, tensors, inputs, precision)
    wrong = Capture({name: value for name, value in wrong.items() if keep(name)})
    return diff(run(Oracle, made.config, tensors, inputs), wrong, model=made)


@pytest.mark.parametrize(("index", "plant"), list(enumerate(PLANTS)), ids=str)
def test_the_step_and_the_mistake_are_named(checkpoint, index, plant):
    found = compared(checkpoint, plant, plant.cases[index % len(plant.cases)], seed=index % 3)
    assert found.first_divergence.name == plant.at
    first = found.diagnoses[0]
    assert (first.side, first.name) == ("B", plant.at)
    assert plant.cause in first.causes
    assert len(first.causes) == 1 or plant.name in TIES
    # With the mistake the oracle is as near as rounding, and without it far off.
    assert first.residual < 1e-6 < 3 * first.without
    assert all(diagnosis.side == "B" for diagnosis in found.diagnoses)
    assert {name for diagnosis in found.diagnoses for name in diagnosis.explains} <= {row.name for row in found.rows}


# What the data can't tell apart: epsilons far below the variance, and the last of a row of padding from its end.
TIES = {"epsilon 1e-12", "pooled at the last token"}


@pytest.mark.parametrize(("index", "plant"), list(enumerate(UNKNOWN)), ids=str)
def test_no_mistake_is_named_that_was_not_made(checkpoint, index, plant):
    found = compared(checkpoint, plant, plant.cases[index % len(plant.cases)], seed=index % 3)
    assert found.first_divergence.name == plant.at
    assert found.diagnoses[0].name == plant.at
    assert all(diagnosis.causes == () for diagnosis in found.diagnoses)
    assert found.diagnoses[0].residual is None


HIDDEN_STATES = ("embeddings", "layers.0", "layers.1", "layer_norm", "input_ids", "pixel_values")
SPARSE = ["no causal mask", "exact GELU", "tanh GELU for exact", "q bias dropped", "pre_layrnorm skipped",
          "twice the heads", "post-norm", "class token missing"]  # fmt: skip


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant.name in SPARSE], ids=str)
def test_hidden_states_alone_are_enough(checkpoint, plant):
    found = compared(checkpoint, plant, plant.cases[0], seed=1, keep=lambda name: name.endswith(HIDDEN_STATES))
    assert found.first_divergence.name.endswith(HIDDEN_STATES)
    assert found.diagnoses[0].causes == (plant.cause,)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["exact GELU", "no causal mask", "q_proj transposed", "pooled at the first token"])
def test_mistakes_show_in_half_precision(checkpoint, name, precision):
    plant = next(plant for plant in PLANTS if plant.name == name)
    found = compared(checkpoint, plant, "openai", seed=1, precision=precision)
    assert found.precision == precision
    assert found.first_divergence.name == plant.at
    assert plant.cause in found.diagnoses[0].causes
    # Both GELUs are the same to so few digits.
    assert len(found.diagnoses[0].causes) == (2 if name == "exact GELU" else 1)


def test_what_rounding_hides_is_no_alarm(checkpoint):
    plant = next(plant for plant in PLANTS if plant.name == "epsilon 1e-6")
    assert compared(checkpoint, plant, "openai", seed=0, precision="bfloat16").agree


def test_a_small_mistake_in_a_late_block_shows_beyond_what_rounding_has_grown_to(checkpoint):
    """Each step is judged by itself: a mistake of half of what rounding may do to the whole."""
    made = checkpoint("openai")
    inputs = inputs_of(made.config)
    at = "vision_model.encoder.layers.1.mlp.fc2"

    def off(name, value):
        return value * (1 + np.float32(1.5e-6)) if name == at else value

    a = run(Oracle, made.config, made.oracle.tensors, inputs)
    seen = Oracle(made.config, made.oracle.tensors, precision="float32", tap=off)(inputs.token_ids, inputs.pixels)
    # The tap changes what follows; the capture has to hold the same.
    found = diff(a, Capture({**inputs.tensors(), **seen, at: off(at, seen[at])}), model=made)
    row = next(row for row in found.rows if row.name == at)
    assert row.departs == ("B",)
    assert found.first_divergence is row
    assert found.diagnoses[0].name == at
    assert found.diagnoses[0].causes == ()


def test_two_mistakes_are_both_found(checkpoint):
    plants = [
        next(plant for plant in PLANTS if plant.name == name) for name in ("no causal mask", "vision positions rolled")
    ]
    both = dataclasses.replace(plants[0], changes=plants[0].changes | plants[1].changes)
    found = compared(checkpoint, both, "openai", seed=2)
    assert [(each.name, each.causes) for each in found.diagnoses] == [(each.at, (each.cause,)) for each in plants]
    assert f"{BLOCK.replace('.0', '.1')}.self_attn.attn_weights" in found.diagnoses[0].explains


def test_the_other_side_is_found_as_well(checkpoint):
    made = checkpoint("openai")
    inputs = inputs_of(made.config)
    plant = next(plant for plant in PLANTS if plant.name == "queries unscaled")
    right, wrong = (run(kind, made.config, made.oracle.tensors, inputs) for kind in (Oracle, broken(plant)))
    found = diff(wrong, right, model=made)
    assert [(each.side, each.causes) for each in found.diagnoses] == [("A", (plant.cause,))]
    # The same mistake on both sides: they agree.
    assert diff(wrong, wrong, model=made).agree


def test_a_mistake_in_one_block_is_not_said_to_be_in_all(checkpoint):
    plant = next(plant for plant in PLANTS if plant.name == "out bias dropped in one block")
    found = compared(checkpoint, plant, "openai", seed=0)
    assert found.diagnoses[0].explains == (plant.at,)
    plant = next(plant for plant in PLANTS if plant.name == "exact GELU")
    explains = compared(checkpoint, plant, "openai", seed=0).diagnoses[0].explains
    assert explains == tuple(
        f"{tower}.encoder.layers.{index}.mlp.activation_fn"
        for tower in ("text_model", "vision_model")
        for index in (0, 1)
    )


def test_padding_that_was_not_masked(checkpoint):
    """A was given a mask, and B ignores it."""
    made = checkpoint("first_eos")
    plain = inputs_of(made.config)
    ends = made.oracle.pooled_position(plain.token_ids)
    mask = (np.arange(plain.token_ids.shape[1]) <= ends[:, None]).astype(np.int32)
    masked = dataclasses.replace(plain, attention_mask=mask)
    right = run(Oracle, made.config, made.oracle.tensors, masked)
    ignored = Capture({**right, **run(Oracle, made.config, made.oracle.tensors, plain)})
    assert "attention_mask" in ignored
    found = diff(right, ignored, model=made)
    assert found.first_divergence.name == f"{BLOCK}.self_attn.attn_weights"
    assert found.diagnoses[0].causes == ("padding not masked",)


@pytest.mark.parametrize("precision", ["tensorfloat32", "tensorfloat32, cut off", "bfloat16 products"])
def test_products_of_lower_precision_are_recognised(checkpoint, precision):
    made = checkpoint("openai", 1)
    inputs = inputs_of(made.config)
    right, rough = (run(Oracle, made.config, made.oracle.tensors, inputs, p) for p in ("float32", precision))
    found = diff(right, rough, model=made)
    assert found.precision == precision
    assert found.agree
    plant = next(plant for plant in PLANTS if plant.name == "no causal mask")
    found = compared(checkpoint, plant, "openai", 1, precision=precision)
    assert found.precision == precision
    assert found.diagnoses[0].causes == (plant.cause,)
    assert found.first_divergence.name == plant.at


# All nine beside transformers' in the parity suite.
@pytest.mark.parametrize(
    ("case", "dtype"), [("openai", "bfloat16"), ("first_eos", "float16"), ("metaclip_2", "float32")]
)
def test_right_runs_raise_no_alarm(checkpoint, case, dtype):
    made = checkpoint(case)
    inputs = inputs_of(made.config)
    ours = capture(jaxclip.load(made.source, dtype=dtype), token_ids=inputs.token_ids, pixels=inputs.pixels)
    exact = Capture({**inputs.tensors(), **made.oracle(inputs.token_ids, inputs.pixels)})
    found = diff(ours, exact, model=made)
    assert found.agree, [row.name for row in found.rows if row.agrees is False]
    assert found.precision == dtype
    assert not found.identical
    assert all(row.agrees is not None for row in found.rows)
    assert diff(exact, ours).agree  # By general tolerances, without an oracle.


def test_where_no_step_departs_nothing_is_diagnosed(checkpoint):
    """Sides that were given something else, and both right."""
    made = checkpoint("openai")
    one, other = (inputs_of(made.config, larger=larger) for larger in (False, True))
    other = Inputs(token_ids=one.token_ids[::-1].copy(), pixels=one.pixels)
    sides = [run(Oracle, made.config, made.oracle.tensors, inputs) for inputs in (one, other)]
    found = diff(*sides, model=made)
    assert found.first_divergence.name == "input_ids"
    assert [each.name for each in found.diagnoses] == ["input_ids"]
    assert found.diagnoses[0].causes == ()


def test_what_is_not_finite_is_a_divergence(checkpoint):
    made = checkpoint("openai")
    right = run(Oracle, made.config, made.oracle.tensors, inputs_of(made.config))
    broken_at = f"{VISION_BLOCK}.mlp.fc1"
    wrong = Capture({**right, broken_at: np.where(right[broken_at] > 2, np.nan, right[broken_at])})
    found = diff(right, wrong, model=made)
    assert found.first_divergence.name == broken_at
    assert found.first_divergence.note == "B not finite"
    assert math.isnan(found.first_divergence.relative_rms)
    assert found.diagnoses[0].causes == ()
    assert found.diagnoses[0].without == math.inf


def test_transformers_own_hidden_states_agree_on_every_committed_reference():
    """Of what was computed by torch when the references were written: the third way, beside jaxclip and the oracle."""
    from cases import CASES, expected
    from oracle_cases import oracle_outputs

    for case in CASES:
        reference = expected(case)
        exact = oracle_outputs(oracle(case), reference)
        rounded = oracle_outputs(oracle(case, "float32"), reference)
        for name in exact.keys() & reference.keys():
            grown = relative_rms(rounded[name] - exact[name], exact[name])
            error = relative_rms(reference[name] - exact[name], exact[name])
            assert error <= 4 * max(grown, 2**-25), (case, name)
    assert FOLDER.exists()
