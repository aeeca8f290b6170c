import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.nn.positions import interpolate_positions

GRID = np.random.default_rng(0).normal(size=(5, 5, 3)).astype(np.float32)


def loop(grid, rows, columns, a=-0.75):
    """torch's bicubic, point by point (aten/src/ATen/native/UpSample.h: align_corners=False, no antialiasing)."""

    def kernel(t):
        t = abs(t)
        if t <= 1:
            return ((a + 2) * t - (a + 3)) * t * t + 1
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a if t < 2 else 0.0

    def taps(size, new, i):
        source = (i + 0.5) * size / new - 0.5
        first = int(np.floor(source))
        return [(min(max(first + k, 0), size - 1), kernel(source - first - k)) for k in (-1, 0, 1, 2)]

    out = np.zeros((rows, columns, grid.shape[2]))
    for r in range(rows):
        for c in range(columns):
            for i, u in taps(grid.shape[0], rows, r):
                for j, v in taps(grid.shape[1], columns, c):
                    out[r, c] += u * v * grid[i, j]
    return out


@pytest.mark.parametrize("size", [(5, 5), (7, 7), (4, 9), (1, 1), (12, 3)])
def test_equals_the_loop(size):
    np.testing.assert_allclose(interpolate_positions(jnp.asarray(GRID), *size), loop(GRID, *size), atol=1e-6)


def test_the_same_size_is_the_same_grid():
    np.testing.assert_array_equal(interpolate_positions(jnp.asarray(GRID), 5, 5), GRID)
