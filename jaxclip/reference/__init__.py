"""The oracle: the model and the library's formulas in float64 NumPy, short and written for reading; no JAX, no Flax.

    from jaxclip import reference

    reference.cosine_similarity(a, b)                     # (n, d), (m, d) → (n, m)
    reference.load("checkpoint/")(token_ids, pixels)      # every intermediate of CLIP by name (`reference.model`)

What `jaxclip.nn`, `jaxclip.similarity` and `jaxclip.losses` compute fast, safely and differentiably stands here as it
stands in the papers. The tests hold the former to this.
"""

from jaxclip.reference.checkpoint import load
from jaxclip.reference.losses import (
    clip_loss,
    cosine_embedding_loss,
    info_nce,
    infonce_loss,
    nt_xent,
    siglip_loss,
    triplet_loss,
)
from jaxclip.reference.model import Oracle
from jaxclip.reference.precision import PRECISIONS, Precision
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
    "PRECISIONS",
    "Oracle",
    "Precision",
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
    "load",
    "mahalanobis_distance",
    "manhattan_distance",
    "normalize",
    "nt_xent",
    "siglip_loss",
    "squared_euclidean_distance",
    "top_k",
    "triplet_loss",
]
