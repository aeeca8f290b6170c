"""The oracle itself: against formulas worked out by hand, and the committed outputs of torch, open_clip and optax."""

import math

import numpy as np
import pytest
from loss_cases import CASES, committed

from jaxclip.reference import losses

ORTHOGONAL = np.eye(4) * np.array([[1.0], [2.0], [0.5], [7.0]])


def test_orthogonal_vectors_by_hand():
    """A positive of cosine 1 against three of cosine 0, or all of cosine 0."""
    certain = math.log(1 + 3 * math.exp(-1 / 0.2))
    assert losses.info_nce(ORTHOGONAL, ORTHOGONAL, temperature=0.2) == pytest.approx(certain, rel=1e-12)
    assert losses.info_nce(ORTHOGONAL[:1], ORTHOGONAL[:1], ORTHOGONAL[1:], 0.2) == pytest.approx(certain, rel=1e-12)
    assert losses.clip_loss(ORTHOGONAL, ORTHOGONAL, math.log(5)) == pytest.approx(certain, rel=1e-12)
    assert losses.infonce_loss(ORTHOGONAL) == pytest.approx(math.log(3), rel=1e-12)
    assert losses.nt_xent(ORTHOGONAL, 0.1, np.zeros(4, int)) == pytest.approx(math.log(3), rel=1e-12)
    assert losses.nt_xent(ORTHOGONAL, 0.1, np.arange(4)) == 0
    decision = math.log1p(math.exp(-3)) + 3 * math.log1p(math.exp(-2))
    assert losses.siglip_loss(ORTHOGONAL, ORTHOGONAL, math.log(5), -2.0) == pytest.approx(decision, rel=1e-12)
    assert losses.cosine_embedding_loss(ORTHOGONAL, ORTHOGONAL[::-1], np.array([1, -1, 1, -1]), -0.5) == pytest.approx(
        0.75
    )
    assert losses.triplet_loss(ORTHOGONAL, ORTHOGONAL[::-1], ORTHOGONAL, 0.2) == pytest.approx(1.2)


ORACLES = {
    "info_nce": lambda a, b, t: losses.info_nce(a, b, temperature=t),
    "info_nce_cold": lambda a, b, t: losses.info_nce(a, b, temperature=t),
    "info_nce_shared": losses.info_nce,
    "info_nce_own": losses.info_nce,
    "nt_xent": losses.nt_xent,
    "nt_xent_optax": losses.nt_xent,
    "nt_xent_labels": losses.nt_xent,
    "clip": losses.clip_loss,
    "clip_soft": losses.clip_loss,
    "clip_several": losses.clip_loss,
    "siglip": losses.siglip_loss,
    "pairs_cosine": lambda a, b, s: losses.cosine_embedding_loss(a, b, s, 0.1),
    "pairs_triplet": lambda a, b, c: losses.triplet_loss(a, b, c, 0.3),
}


@pytest.mark.parametrize("case", ORACLES)
def test_equals_the_committed_references(case):
    arrays, expected = committed(case)
    # Both are float64; torch's cosines of pairs are guarded by an epsilon of 1e-12.
    found = ORACLES[case](*(arrays[name] if arrays[name].ndim else float(arrays[name]) for name in CASES[case][1]))
    np.testing.assert_allclose(found, expected["value"], rtol=1e-11)


def test_no_targets_are_no_loss():
    assert losses.clip_loss(ORTHOGONAL, ORTHOGONAL, 1.0, np.zeros((4, 4))) == 0
