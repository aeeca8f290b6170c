"""The oracle: the library's formulas in float64 NumPy, short and written for reading; no JAX, no Flax.

    from jaxclip import reference

    reference.cosine_similarity(a, b)     # (n, d), (m, d) → (n, m)

What `jaxclip.similarity` and `jaxclip.losses` compute fast, safely and differentiably stands here as it stands in the
papers. The tests hold the former to this.
"""

from jaxclip.reference.losses import (
    clip_loss,
    cosine_embedding_loss,
    info_nce,
    infonce_loss,
    nt_xent,
    siglip_loss,
    triplet_loss,
)
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
    "clip_loss",
    "cosine_distance",
    "cosine_embedding_loss",
    "cosine_similarity",
    "covariance",
    "dot_product",
    "euclidean_distance",
    "info_nce",
    "infonce_loss",
    "mahalanobis_distance",
    "manhattan_distance",
    "normalize",
    "nt_xent",
    "siglip_loss",
    "squared_euclidean_distance",
    "top_k",
    "triplet_loss",
]
