"""The oracle: the library's formulas in float64 NumPy, short and written for reading; no JAX, no Flax.

    from jaxclip import reference

    reference.cosine_similarity(a, b)     # (n, d), (m, d) → (n, m)

What `jaxclip.similarity` and `jaxclip.losses` compute fast, safely and differentiably stands here as it stands in the
papers. The tests hold the former to this.
"""

from jaxclip.reference.similarity import (
    angular_distance,
    cosine_distance,
    cosine_similarity,
    covariance,
    dot_product,
    euclidean_distance,
    mahalanobis_distance,
    manhattan_distance,
    normalize,
    squared_euclidean_distance,
    top_k,
)

__all__ = [
    "angular_distance",
    "cosine_distance",
    "cosine_similarity",
    "covariance",
    "dot_product",
    "euclidean_distance",
    "mahalanobis_distance",
    "manhattan_distance",
    "normalize",
    "squared_euclidean_distance",
    "top_k",
]
