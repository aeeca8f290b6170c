"""Differences between all pairs of vectors, a block at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Numbers in a block's (rows, columns, d) differences: 8 MiB of float32, and 64 rows or more of usual widths.
_BUDGET = 2**21


def over_blocks(
    function: Callable[..., Float[Array, "rows columns"]],
    by_row: tuple[Float[Array, "n d"], ...],
    by_column: tuple[Float[Array, "m d"], ...],
    by_pair: tuple[Float[Array, "n m"], ...] = (),
    *,
    wanted: Bool[Array, "n m"] | None = None,
) -> Float[Array, "n m"]:
    """`function(*by_row, *by_column, *by_pair)` on blocks of rows and columns, put together to (n, m).

    Where `wanted` is given, blocks with nothing wanted are skipped and zero. Nothing inside a block is kept for the
    backward pass, which computes it anew, so that no memory grows with n m d in either direction.
    """
    (n, d), m = by_row[0].shape, by_column[0].shape[0]
    if n == 0 or m == 0:
        return jnp.zeros((n, m), by_row[0].dtype)
    columns = min(m, max(64, _BUDGET // max(1, d * min(n, 64))))
    rows = min(n, max(1, _BUDGET // max(1, d * columns)))
    function = jax.checkpoint(function)

    def one(row: tuple[Array, ...], column: tuple[Array, ...], pair: tuple[Array, ...], go: Array | None) -> Array:
        if go is None:
            return function(*row, *column, *pair)
        return jax.lax.cond(
            go.any(), function, lambda *_: jnp.zeros((rows, columns), by_row[0].dtype), *row, *column, *pair
        )

    if rows == n and columns == m:
        return one(by_row, by_column, by_pair, wanted)
    row_blocks = tuple(_split(x, rows) for x in by_row)
    column_blocks = tuple(_split(x, columns) for x in by_column)
    pair_blocks = tuple(_split_both(x, rows, columns) for x in by_pair)
    go_blocks = None if wanted is None else _split_both(wanted, rows, columns)

    def along_columns(inputs: tuple) -> Array:
        row, pairs, go = inputs
        return jax.lax.map(lambda inner: one(row, *inner), (column_blocks, pairs, go))

    blocks = jax.lax.map(along_columns, (row_blocks, pair_blocks, go_blocks))
    whole = blocks.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * rows, -1)
    return whole[:n, :m]


def _split(x: Array, size: int) -> Array:
    """(n, d) → (blocks, size, d), filled up with zeros."""
    padded = jnp.pad(x, ((0, -x.shape[0] % size), (0, 0)))
    return padded.reshape(-1, size, x.shape[1])


def _split_both(x: Array, rows: int, columns: int) -> Array:
    """(n, m) → (row blocks, column blocks, rows, columns), filled up with zeros."""
    padded = jnp.pad(x, ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns)))
    return padded.reshape(padded.shape[0] // rows, rows, -1, columns).transpose(0, 2, 1, 3)
