"""Other orders of axes are recognised, put right, and said; what can't be put right is said, too."""

import numpy as np
import pytest
from broken import BLOCK, VISION_BLOCK, inputs_of, run

from jaxclip.compare import Capture, diff
from jaxclip.compare.layout import canonical, common
from jaxclip.reference import Oracle


@pytest.fixture(scope="module")
def right(checkpoint):
    made = checkpoint("first_eos")
    return run(Oracle, made.config, made.oracle.tensors, inputs_of(made.config))


Q, K, V = (f"{VISION_BLOCK}.self_attn.{part}_proj" for part in "qkv")
WEIGHTS = f"{VISION_BLOCK}.self_attn.attn_weights"


def by_head(capture):
    """The three projections of a block in one tensor, head by head."""
    parts = [capture[name].reshape(*capture[name].shape[:-1], 3, 1, 12) for name in (Q, K, V)]
    return np.concatenate(parts, axis=-2).reshape(*capture[Q].shape[:-1], -1)


@pytest.mark.parametrize(
    ("name", "change", "note"),
    [
        (f"{BLOCK}.mlp.fc1", lambda x: x.transpose(1, 0, 2), "B: tokens before batch"),
        (Q, lambda x: x.reshape(4, 17, 3, 12), "B: as 4×17×3×12"),
        (Q, lambda x: x.reshape(4, 17, 3, 12).transpose(0, 2, 1, 3), "B: as 4×3×17×12"),
        (WEIGHTS, lambda x: x.reshape(12, 17, 17), "B: as 12×17×17"),
        ("image_embeds", lambda x: x.T, "B: transposed"),
        ("pixel_values", lambda x: x.transpose(0, 2, 3, 1), "B: channels last"),
        ("vision_model.post_layernorm", lambda x: np.stack([x, 2 * x, -x], axis=1),
         "B: the first of 3 tokens"),
        (WEIGHTS, lambda x: x.mean(axis=1), "averaged over heads"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("judged", [True, False])
def test_the_same_numbers_in_another_layout_agree(checkpoint, right, name, change, note, judged):
    other = Capture({**right, name: change(right[name])})
    found = diff(right, other, model=checkpoint("first_eos") if judged else None)
    row = next(row for row in found.rows if row.name == name)
    assert row.note == note
    assert row.maximum < 1e-6
    assert found.agree
    assert diff(other, right, model=checkpoint("first_eos")).agree


def test_both_kinds_of_fused_projections_are_taken_apart(checkpoint, right):
    without = {name: value for name, value in right.items() if name not in (Q, K, V)}
    for fused, how in ((np.concatenate([right[name] for name in (Q, K, V)], axis=-1), "one after the other"),
                       (by_head(right), "head by head")):  # fmt: skip
        other = Capture({**without, f"{VISION_BLOCK}.self_attn.in_proj": fused})
        found = diff(right, other, model=checkpoint("first_eos"))
        assert found.agree
        rows = {row.name: row for row in found.rows}
        assert [rows[name].note for name in (Q, K, V)] == [f"B: fused with the others in self_attn.in_proj, {how}"] * 3
        assert [rows[name].maximum for name in (Q, K, V)] == [0, 0, 0]
        assert rows[f"{VISION_BLOCK}.self_attn.in_proj"].agrees is None


def test_a_longer_padding_agrees(checkpoint, right):
    made = checkpoint("first_eos")
    inputs = inputs_of(made.config)
    end = made.config.text.eos_token_id
    longer = np.concatenate([inputs.token_ids, np.full((4, 1), end, np.int32)], axis=1)
    other = run(Oracle, made.config, made.oracle.tensors, type(inputs)(token_ids=longer, pixels=inputs.pixels))
    for found in (diff(right, other, model=made), diff(other, right, model=made), diff(right, other)):
        assert found.agree
        note = next(row.note for row in found.rows if row.name == f"{BLOCK}.self_attn.attn_weights")
        assert note == "the first 11 tokens"


def test_missing_and_additional_tensors_are_said_and_no_divergence(checkpoint, right):
    other = {name: value for name, value in right.items() if ".mlp." not in name and "loss" not in name}
    found = diff(right, Capture({**other, "vision_model.stranger": np.zeros(3)}), model=checkpoint("first_eos"))
    assert found.agree
    lacking = {row.name for row in found.rows if row.agrees is None}
    assert lacking == {*(name for name in right if ".mlp." in name), "loss", "vision_model.stranger"}
    assert found.rows[-1].shapes == (None, (3,))


def test_shapes_that_nothing_reconciles_are_a_divergence(checkpoint, right):
    name = f"{BLOCK}.mlp.fc1"
    found = diff(right, Capture({**right, name: right[name][..., :50]}), model=checkpoint("first_eos"))
    assert found.first_divergence.name == name
    assert found.first_divergence.shapes == ((4, 11, 56), (4, 11, 50))
    assert found.first_divergence.maximum is None
    assert found.diagnoses[0].causes == ()


def test_a_square_matrix_is_turned_only_when_that_is_right():
    square = np.random.default_rng(0).normal(size=(5, 5))
    turned, note = canonical(square.T.copy(), square)
    np.testing.assert_array_equal(turned, square)
    assert note == "transposed"
    other = np.random.default_rng(1).normal(size=(5, 5))
    kept, note = canonical(other, square)
    assert kept is other
    assert note == ""


def test_no_common_shape_and_no_common_name():
    assert common(np.zeros((2, 3)), np.zeros((2, 4, 3)), texts=True) is None
    assert common(np.zeros((2, 3)), np.zeros((4, 3)), texts=True) is None
    # Other heads are no other length, and images have no padding.
    assert common(np.zeros((2, 3, 5, 5)), np.zeros((2, 4, 5, 5)), texts=True) is None
    assert common(np.zeros((2, 3, 5)), np.zeros((2, 4, 5)), texts=False) is None
    with pytest.raises(ValueError, match="no tensor in common"):
        diff(Capture({"text_embeds": np.zeros(3)}), Capture({"image_embeds": np.zeros(3)}))


def test_inputs_of_another_model_are_refused(checkpoint, right):
    other = Capture({**right, "input_ids": right["input_ids"] + 10**6})
    with pytest.raises(ValueError, match="the inputs are not for"):
        diff(other, right, model=checkpoint("first_eos"))
