"""Cutting any number of inputs into the few shapes that programs are compiled for, on the host."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, Shaped

Item = TypeVar("Item")
Result = TypeVar("Result")

# Multiples of 8, which TPUs lay out in full, close together where most captions are. The model's own number of
# positions comes after the last.
_LENGTHS = (8, 16, 24, 32, 48)


def text_length(longest: int, positions: int) -> int:
    """The fewest tokens, of a few fixed numbers and at most `positions`, that hold a text of `longest` tokens."""
    return next((length for length in _LENGTHS if longest <= length < positions), positions)


def batch_sizes(largest: int) -> tuple[int, ...]:
    """The sizes that batches have, from `largest` down to 1: each about a quarter of the one before."""
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // 4))
    return tuple(sizes)


def split(n: int, sizes: Sequence[int]) -> list[tuple[slice, int]]:
    """`n` rows as slices with the size that each is to be padded to.

    The largest size first; what is left takes the smallest that it fills by more than three quarters.
    """
    pieces, start = [], 0
    while start < n:
        left = n - start
        size = min((size for size in sizes if left <= size < left / 0.75), default=None)
        size = size or max(size for size in sizes if size <= left)
        pieces.append((slice(start, min(n, start + size)), size))
        start += size
    return pieces


def padded(rows: Shaped[np.ndarray, "n *shape"], size: int) -> Shaped[np.ndarray, "size *shape"]:
    """The rows with copies of the last one after them: of real data, so that nothing in them overflows."""
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.broadcast_to(rows[-1:], (size - len(rows), *rows.shape[1:]))])


def by_length(lengths: Int[np.ndarray, " n"], sizes: Sequence[int]) -> list[tuple[Int[np.ndarray, "_"], int]]:
    """Rows sorted by length and split into batches: each batch's row numbers and the size to be padded to."""
    order = np.argsort(lengths, kind="stable")
    return [(order[rows], size) for rows, size in split(len(lengths), sizes)]


def groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each when the one after it has been drawn: what was started is waited for when more was started."""
    iterator = iter(items)
    for before in iterator:
        for item in iterator:
            yield before
            before = item
        yield before


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None, waiting: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Each item with what the function made of it, or the Exception that it raised: in order, computed by `workers`
    threads (by default one for each processor that this process may use) while the consumer is busy.

    At most `waiting` results are computed or kept ahead of the consumer; then the threads rest, and no more is drawn
    from `items`. A consumer that stops early leaves no thread behind.
    """

    def attempt(item: Item) -> Result | Exception:
        try:
            return function(item)
        except Exception as error:
            return error

    iterator = iter(items)
    pool = ThreadPoolExecutor(workers or processors(), thread_name_prefix="jaxclip")
    try:
        pending: deque[tuple[Item, Any]] = deque()
        while True:
            pending.extend((item, pool.submit(attempt, item)) for item in islice(iterator, waiting - len(pending)))
            if not pending:
                return
            item, future = pending.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
