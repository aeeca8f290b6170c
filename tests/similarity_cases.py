"""What all measures of similarity are compared on with their references, and how far apart two results are."""

from functools import partial

import jax
import numpy as np

MEASURES = [
    "cosine_similarity",
    "cosine_distance",
    "angular_distance",
    "dot_product",
    "euclidean_distance",
    "squared_euclidean_distance",
    "manhattan_distance",
]
# The cosine's distance is 1 - cosine: what takes long to compile is tested of the others.
COMPUTED = [name for name in MEASURES if name != "cosine_distance"]
OF_DIRECTION = MEASURES[:3]
# float32 against float64, in the unit of each measure's docstring (see `error`). Worst measured over 400 draws of
# `mixed`: 3.1e-7 (cosine), 2.8e-7 (angle), 1.4e-7 (dot product), 1.7e-7 (Euclidean), 3.2e-7 (its square), 2.7e-7.
TOLERANCE = dict.fromkeys(MEASURES, 1.1e-6) | {"dot_product": 5e-7, "euclidean_distance": 6.6e-7}
EPS = float(np.finfo(np.float32).eps)
LARGEST = float(np.finfo(np.float32).max)


def error(name, value, expected, a, b):
    """The worst difference: in units of 1 for directions, of ‖a‖ ‖b‖ for products, of the value for distances."""
    assert value.shape == expected.shape
    assert np.isfinite(value).all()
    expected = np.clip(expected, -LARGEST, LARGEST)
    if name in OF_DIRECTION:
        unit = np.ones(expected.shape)
    elif name == "dot_product":
        unit = np.linalg.norm(a, axis=-1)[:, None] * np.linalg.norm(b, axis=-1)
    else:
        unit = expected
    # What is under the smallest normal float may be 0.
    difference = np.maximum(np.abs(np.asarray(value, np.float64) - expected) - np.finfo(np.float32).tiny, 0)
    return np.max(np.divide(difference, unit, out=difference.copy(), where=unit > 0), initial=0)


def exact(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def vectors(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)


# Compiling is most of the tests' time. Not for what is compared with references.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
