import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclip.tasks.boxes import Box, find_boxes, fuse_windows, suppressed


def peaks(*places, shape=(20, 30), high=0.9, width=2.0):
    """A map with round peaks at (row, column), in cells."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    bells = [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2)) for y, x in places]
    # The logarithm falls off linearly from the peak, to e^-8 of it.
    return (high * np.exp(8 * (np.max(bells, axis=0) - 1))).astype(np.float32)


def test_iou_by_hand():
    a = Box(0, 0, 10, 10, 1)
    assert a.iou(Box(5, 5, 15, 15, 1)) == pytest.approx(25 / 175)
    assert a.iou(a) == 1
    assert a.iou(Box(10, 0, 20, 10, 1)) == 0
    assert a.iou(Box(2, 2, 4, 7, 1)) == pytest.approx(10 / 100)
    assert Box(3, 3, 3, 3, 1).iou(Box(3, 3, 3, 3, 1)) == 0


def test_the_better_of_two_overlapping_boxes_stays():
    low, high, apart = Box(0, 0, 10, 10, 0.4), Box(1, 1, 11, 11, 0.8), Box(20, 0, 30, 10, 0.6)
    assert suppressed([low, apart, high], 0.5) == [high, apart]
    assert suppressed([low, apart, high], 0.7) == [high, apart, low]
    assert suppressed([], 0.5) == []


def test_windows_of_one_thing_become_one_box_by_hand():
    edges = np.asarray([[10, 10, 20, 20], [12, 10, 22, 20], [11, 11, 15, 15], [0, 0, 40, 40], [18, 10, 28, 20]], float)
    scores = np.asarray([0.8, 0.4, 0.2, 0.1, 0.7])
    # With the best one the second has an IoU of 8 / 12, the others of 0.16, 0.06 and 0.11. In the box, from 10.4 to
    # 20.4, is the whole third and 2.4 tenths of the last; the box is in the fourth.
    box, rest = fuse_windows(edges, scores, threshold=0.1)
    weighted = np.average(edges[:2], axis=0, weights=scores[:2] ** 2)
    np.testing.assert_allclose([box.x0, box.y0, box.x1, box.y1], weighted)
    assert box.score == 0.8
    np.testing.assert_allclose([rest.x0, rest.y0, rest.x1, rest.y1], edges[4])
    assert rest.score == 0.7
    assert fuse_windows(edges, scores, threshold=0.75) == [box]
    assert fuse_windows(edges, scores, threshold=0.81) == []


def test_windows_that_lie_in_a_box_already_made_make_none():
    edges = np.asarray([[10, 0, 20, 10], [14, 0, 24, 10], [17, 0, 27, 10]], float)
    # The box is 12 to 22: of the last window, 3 tenths are in the best one and 5 in the box.
    (box,) = fuse_windows(edges, np.asarray([0.9, 0.9, 0.8]), threshold=0.5)
    assert (box.x0, box.x1, box.score) == pytest.approx((12, 22, 0.9))


def test_windows_without_scores_are_found_where_nothing_is_asked():
    edges = np.asarray([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    assert fuse_windows(edges, np.zeros(2), threshold=0) == [Box(0, 0, 10, 10, 0), Box(20, 0, 30, 10, 0)]


def test_each_peak_has_a_box_around_it_with_its_height_as_the_score():
    cells = np.maximum(peaks((5, 6)), peaks((14, 22), high=0.6))
    first, second = find_boxes(cells, (300, 200), threshold=0.25)
    for box, (y, x), score in ((first, (5, 6), 0.9), (second, (14, 22), 0.6)):
        # A cell is 10 pixels wide; its middle is half of one further.
        assert box.x0 < 10 * x + 5 < box.x1
        assert box.y0 < 10 * y + 5 < box.y1
        assert 10 < box.x1 - box.x0 < 60
        assert box.x1 - box.x0 == pytest.approx(box.y1 - box.y0, abs=3)
        assert box.score == pytest.approx(score, abs=0.01)


def test_what_does_not_reach_the_threshold_is_not_found():
    cells = np.maximum(peaks((5, 6)), peaks((14, 22), high=0.6))
    assert len(find_boxes(cells, (300, 200), threshold=0.7)) == 1
    assert find_boxes(cells, (300, 200), threshold=0.95) == []
    assert find_boxes(np.zeros((4, 4), np.float32), (300, 200), threshold=0.1) == []


def test_where_everything_is_relevant_the_box_is_the_image():
    found = find_boxes(np.full((4, 6), 0.8, np.float32), (90, 60), threshold=0.25)
    assert [(box.x0, box.y0, box.x1, box.y1) for box in found] == [(0, 0, 90, 60)]
    assert found[0].score == pytest.approx(0.8)


def test_maps_with_cells_that_underflow():
    cells = np.zeros((6, 6), np.float32)
    cells[1:3, 1:3] = 0.9
    (box,) = find_boxes(cells, (60, 60), threshold=0.25)
    assert (box.x0, box.y0) == pytest.approx((10, 10), abs=3)
    assert (box.x1, box.y1) == pytest.approx((30, 30), abs=3)


@given(st.integers(3, 9), st.integers(3, 12), st.integers(-3, 3), st.integers(-3, 9), st.integers(1, 400))
def test_boxes_follow_what_moves_and_scale_with_the_image(y, x, down, across, scale):
    size = (30 * scale, 20 * scale)
    still, moved = (
        find_boxes(peaks(place), size, threshold=0.25) for place in ((y + 3, x + 3), (y + down + 3, x + across + 3))
    )
    assert len(still) == len(moved) == 1
    step = scale / 9 + 1e-6 * scale  # Boxes end at ninths of a cell.
    for name, by in (("x0", across), ("x1", across), ("y0", down), ("y1", down)):
        assert math.isclose(getattr(moved[0], name), getattr(still[0], name) + by * scale, abs_tol=step)


def test_specks_smaller_than_a_cell_are_not_found():
    cells = peaks((5, 6), width=0.3)
    assert cells[5, 6] > 0.8
    assert find_boxes(cells, (300, 200), threshold=0.25) == []
    assert len(find_boxes(peaks((5, 6), width=2), (300, 200), threshold=0.25)) == 1
