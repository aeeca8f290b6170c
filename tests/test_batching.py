import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclip.batching import ahead, batch_sizes, by_length, groups, one_behind, padded, split, text_length


def test_batches_have_a_few_sizes():
    assert batch_sizes(64) == (64, 16, 4, 1)
    assert batch_sizes(32) == (32, 8, 2, 1)
    assert batch_sizes(1) == (1,)
    assert all(len(batch_sizes(n)) <= 7 for n in range(1, 4097))


@given(n=st.integers(0, 500), largest=st.integers(1, 100))
def test_a_split_covers_all_rows_once_with_little_padding(n, largest):
    sizes = batch_sizes(largest)
    pieces = split(n, sizes)
    assert [row for rows, _ in pieces for row in range(n)[rows]] == list(range(n))
    assert all(size in sizes and rows.stop - rows.start <= size for rows, size in pieces)
    assert sum(size for _, size in pieces) < n / 0.75 + (n == 0)
    assert len(pieces) <= n // largest + 4 * len(sizes)


@pytest.mark.parametrize(
    ("longest", "positions", "length"), [(1, 77, 8), (8, 77, 8), (9, 77, 16), (49, 77, 77), (77, 77, 77), (7, 12, 8),
                                         (9, 12, 12), (3, 5, 5), (8, 8, 8)]
)  # fmt: skip
def test_text_length_is_the_shortest_that_holds_it(longest, positions, length):
    assert text_length(longest, positions) == length


@given(st.lists(st.integers(1, 77), max_size=300))
def test_by_length_takes_every_row_once_from_short_to_long(lengths):
    lengths = np.array(lengths, int)
    batches = by_length(lengths, batch_sizes(16))
    order = [int(row) for rows, _ in batches for row in rows]
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) >= 0).all()


def test_padding_repeats_the_last_row():
    np.testing.assert_array_equal(padded(np.array([[1, 2], [3, 4]]), 4), [[1, 2], [3, 4], [3, 4], [3, 4]])
    rows = np.ones((3, 2))
    assert padded(rows, 3) is rows


def test_groups_and_one_behind():
    assert list(groups(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    drawn = []
    given_out = []
    for item in one_behind(drawn.append(i) or i for i in range(3)):
        given_out.append((item, len(drawn)))
    assert given_out == [(0, 2), (1, 3), (2, 3)]
    assert list(one_behind([])) == []


def test_ahead_keeps_the_order_and_gives_errors_in_their_place():
    def slow_first(n):
        time.sleep(0.02 if n == 0 else 0)
        if n == 3:
            raise ValueError("three")
        return n * n

    results = list(ahead(slow_first, iter(range(6)), workers=3, waiting=4))
    assert [item for item, _ in results] == list(range(6))
    assert [result for _, result in results if not isinstance(result, Exception)] == [0, 1, 4, 16, 25]
    assert str(results[3][1]) == "three"


def test_ahead_rests_when_the_consumer_does_and_leaves_no_thread_behind():
    drawn, others = [], set(threading.enumerate())

    def endless():
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    stream = ahead(lambda n: n, endless(), workers=2, waiting=5)
    for _ in range(3):
        next(stream)
    assert len(drawn) == 3 + 5 - 1
    stream.close()
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("jaxclip")]


def test_ahead_works_in_parallel():
    both = threading.Barrier(2, timeout=10)
    assert [result for _, result in ahead(lambda _: both.wait() >= 0, range(4), workers=2, waiting=4)] == [True] * 4
