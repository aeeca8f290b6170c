"""The interpolations that images and position embeddings are resized with, right ones and wrong ones."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

Kernel = tuple[Callable[[np.ndarray], np.ndarray], float]
"""A function of the distance in old points, and beyond which distance it is 0."""


def cubic(a: float) -> Kernel:
    """Keys' cubic convolution. Pillow, TensorFlow and JAX have a = −0.5; PyTorch and OpenCV a = −0.75, but PyTorch
    −0.5 where it antialiases."""

    def kernel(x: np.ndarray) -> np.ndarray:
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        return np.where(x <= 1, near, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))

    return kernel, 2.0


LINEAR: Kernel = (lambda x: np.maximum(1 - x, 0), 1.0)
NEAREST: Kernel = (lambda x: (x <= 0.5).astype(float), 0.5)


def resampling_matrix(size: int, new_size: int, kernel: Kernel, *, antialias: bool) -> Float[np.ndarray, "new_size _"]:
    """Row i: how much of each old point is in the new point i.

    Where an image shrinks, antialiasing widens the kernel to as many old points as the new one stands for. Without it
    edges are repeated; with it weights beyond an edge are left out and the others made up to 1.
    """
    function, support = kernel
    step = size / new_size
    stretch = max(step, 1.0) if antialias else 1.0
    beyond = math.ceil(support * stretch) + 1
    centers = (np.arange(new_size) + 0.5) * step - 0.5
    weights = function(np.abs(np.arange(-beyond, size + beyond) - centers[:, None]) / stretch)
    inside = weights[:, beyond : beyond + size].copy()
    if not antialias:
        inside[:, 0] += weights[:, :beyond].sum(axis=1)
        inside[:, -1] += weights[:, beyond + size :].sum(axis=1)
    return inside / inside.sum(axis=1, keepdims=True)


def resized(
    image: Shaped[np.ndarray, "_ _ channels"], height: int, width: int, kernel: Kernel, *, antialias: bool
) -> Float[np.ndarray, "{height} {width} channels"]:
    rows = resampling_matrix(image.shape[0], height, kernel, antialias=antialias)
    columns = resampling_matrix(image.shape[1], width, kernel, antialias=antialias)
    return np.einsum("ij,jkc,lk->ilc", rows, np.asarray(image, np.float64), columns, optimize=True)
