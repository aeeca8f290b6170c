import io
import json
import re

import numpy as np
import pytest
from broken import BLOCK, PLANTS, broken, inputs_of, run
from PIL import Image

from jaxclip.compare import Capture, assert_close, diff
from jaxclip.compare.report import cells, described, explained, figure, page, to_json, verdict
from jaxclip.reference import Oracle

WEIGHTS = f"{BLOCK}.self_attn.attn_weights"


@pytest.fixture(scope="module")
def right(checkpoint):
    made = checkpoint("openai")
    return run(Oracle, made.config, made.oracle.tensors, inputs_of(made.config))


@pytest.fixture(scope="module")
def wrong(checkpoint):
    made, plant = checkpoint("openai"), next(plant for plant in PLANTS if plant.name == "no causal mask")
    return run(broken(plant), made.config, made.oracle.tensors, inputs_of(made.config))


@pytest.fixture(scope="module")
def apart(checkpoint, right, wrong):
    return diff(right, wrong, model=checkpoint("openai"), notes=("On random pixels: no processor.",))


def test_verdicts(checkpoint, right, apart):
    made = checkpoint("openai")
    inputs = inputs_of(made.config)
    assert verdict(diff(right, right, model=made)) == "Equal: all 58 tensors, bit for bit."
    exact = Capture({**inputs.tensors(), **made.oracle(inputs.token_ids, inputs.pixels)})
    assert re.fullmatch(
        r"Equal within the rounding of float32: all 58 tensors; the furthest apart is \S+, 1 times what rounding does "
        r"to the oracle \(up to 4 times is rounding\)\.",
        verdict(diff(right, exact, model=made)),
    )
    assert "what rounding may do, without a model to judge by" in verdict(diff(right, exact))
    half = run(Oracle, made.config, made.oracle.tensors, inputs, "bfloat16")
    assert verdict(diff(right, half, model=made)).startswith("Equal as bfloat16 would be: all 58 tensors")
    assert re.fullmatch(
        rf"First divergence at {WEIGHTS}: relative RMS [5-9]\.\de-01, where rounding in float32 explains 1\.\de-07\.",
        verdict(apart),
    )
    ids = Capture({**right, "input_ids": right["input_ids"][:, ::-1]})
    assert verdict(diff(right, ids, model=made)) == "First divergence at input_ids: what goes in differs."
    cut = Capture({**right, WEIGHTS: right[WEIGHTS][:, :1]})
    assert verdict(diff(right, cut)) == f"First divergence at {WEIGHTS}: shape 4×2×11×11 in A and 4×1×11×11 in B."


def test_a_departure_that_rounding_hides_is_told(checkpoint, right):
    name = "vision_model.encoder.layers.1.mlp.fc2"
    off = Capture({**right, name: right[name] * np.float32(1 + 6e-7)})
    found = diff(right, off, model=checkpoint("openai"))
    assert verdict(found) == (
        f"First divergence at {name}: the two are no further apart than rounding, but B isn't what follows from its "
        "own tensors before it."
    )


def test_explanations(checkpoint, right, wrong, apart):
    assert re.fullmatch(
        rf"B departs from the specification at {WEIGHTS}: causal mask missing\. With that the oracle reproduces B to "
        r"1\.\de-07; without, it is \d\.\de-0\d from it; rounding explains 1\.\de-07\. It explains block 1 of the text "
        r"tower as well\.",
        explained(apart)[0],
    )
    assert len(explained(apart)) == 1
    assert explained(diff(right, wrong)) == [
        "Why, the oracle can tell: give it the checkpoint (--model MODEL, or model=)."
    ]
    unknown = Capture({**wrong, WEIGHTS: wrong[WEIGHTS] ** 2})
    told = explained(diff(right, unknown, model=checkpoint("openai")))
    assert told[0].endswith("none of the known mistakes reproduces it.")
    pooled = next(plant for plant in PLANTS if plant.name == "pooled at the last token")
    made = checkpoint("openai")
    tied = diff(right, run(broken(pooled), made.config, made.oracle.tensors, inputs_of(made.config)), model=made)
    tie = "one of these, which this data can't tell apart: pooled at the last token; pooled at the last EOS."
    assert tie in explained(tied)[0]
    pixels = Capture({**right, "pixel_values": right["pixel_values"] + 1})
    assert "images that went in (images.0, ...)" in explained(diff(right, pixels, model=made))[-1]
    few = Capture({name: right[name] for name in ("input_ids", "text_embeds")})
    assert explained(diff(right, few))[-1] == (
        "B lacks 56 tensors (text_model.embeddings, text_model.encoder.layers.0.layer_norm1, "
        "text_model.encoder.layers.0.self_attn.q_proj, ...)."
    )
    assert explained(diff(few, right))[-1].startswith("A lacks 56 tensors")


def test_the_table(right, apart):
    lines = described(apart).splitlines()
    assert lines[0].split() == ["tensor", "shape", "max", "abs", "relative", "RMS", "cosine", "rounding"]
    assert [line.split()[0] for line in lines[1:59]] == list(right)
    assert lines[59:] == ["", "On random pixels: no processor.", verdict(apart), *explained(apart)]
    rows = {row.name: row for row in apart.rows}
    assert cells(rows["loss"])[1] == "scalar"
    assert cells(rows[WEIGHTS])[-1] == "B departs here"
    assert cells(rows["text_model.embeddings"])[2:5] == ("0", "0", "1.00000000")
    only = described(apart, only_different=True).splitlines()
    assert only[1].startswith(WEIGHTS)
    assert len(only) == len(lines) - sum(row.agrees is not False for row in apart.rows)
    a, b = (np.asarray(x, np.float64) for x in (right["text_embeds"], right["text_embeds"] * 2))
    row = next(row for row in diff(right, Capture({**right, "text_embeds": b})).rows if row.name == "text_embeds")
    assert row.maximum == np.abs(a).max()
    assert row.relative_rms == pytest.approx(1)
    assert row.cosine == pytest.approx(1)


def test_json_has_it_all_and_nothing_that_json_lacks(right, apart):
    broken_off = Capture({**right, "loss": np.float32(np.nan), "logits_per_image": right["logits_per_image"][:2]})
    found = json.loads(json.dumps(to_json(diff(right, broken_off)), allow_nan=False))
    assert found["first_divergence"] == "logits_per_image"
    assert found["tensors"][-1]["relative_rms"] is None
    assert found["tensors"][-2]["shape_b"] == [2, 4]
    found = json.loads(json.dumps(to_json(apart), allow_nan=False))
    assert found["agree"] is False
    assert found["identical"] is False
    assert found["precision"] == "float32"
    assert found["judged_by"] == apart.judged_by
    assert found["verdict"] == verdict(apart)
    assert found["diagnoses"][0]["causes"] == ["causal mask missing"]
    assert found["diagnoses"][0]["explains"] == [WEIGHTS, WEIGHTS.replace("layers.0", "layers.1")]
    assert [row["name"] for row in found["tensors"]] == list(right)
    assert found["tensors"][0]["agrees"] is True
    assert found["notes"] == ["On random pixels: no processor."]


def test_assert_close_says_what_the_command_says(checkpoint, right, wrong, apart):
    source = checkpoint("openai").source
    assert_close(right, right, model=source)
    with pytest.raises(AssertionError) as error:
        assert_close(right, wrong, model=source)
    assert str(error.value).splitlines()[-2:] == [verdict(apart), *explained(apart)]
    # The model that a capture names is the one to judge by.
    with pytest.raises(AssertionError, match="causal mask missing"):
        assert_close(Capture(right, source=source), wrong)
    with pytest.raises(AssertionError, match="give it the checkpoint"):
        assert_close(Capture(right, source="/not/on/this/machine"), wrong)


def test_the_picture_and_the_page(apart, right):
    drawn = figure(apart, "mine", "theirs")
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["text tower", "vision tower"]
    labels = [label.get_text() for label in drawn.axes[1].get_xticklabels()]
    assert labels == ["embeddings", "0", "1", "features"]
    lines = {line.get_label(): line for line in drawn.axes[0].get_lines()}
    text = [row for row in apart.rows if row.name.startswith("text")]
    assert list(lines["apart"].get_xdata()) == [i for i, row in enumerate(text) if row.agrees is False]
    np.testing.assert_allclose(lines["apart"].get_ydata()[0], text[5].relative_rms)
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi="figure")
    assert (np.asarray(Image.open(content).convert("RGB")) == (198, 40, 40)).all(axis=-1).sum() > 100
    html = page(apart, "<mine>", "theirs")
    assert html.count("<tr") == 1 + len(apart.rows)
    assert "&lt;mine&gt; against theirs" in html
    assert "<mine>" not in html
    assert "causal mask missing" in html
    assert html.count('class="apart"') == sum(row.agrees is False for row in apart.rows)
    assert "<svg" in html
    # One file: nothing is fetched.
    assert not re.search(r'(?:src|href)="http', html)
