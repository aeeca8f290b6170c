"""Similarities and distances as their formulas are written.

All take (n, d) and (m, d) and return (n, m). A zero vector has no direction: its cosine with anything is 0.
"""

import numpy as np
from jaxtyping import Float64

Vectors = Float64[np.ndarray, "n d"]
Matrix = Float64[np.ndarray, "n m"]


def normalize(x: Vectors) -> Vectors:
    """x̂ = x / ‖x‖."""
    x = np.asarray(x, np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length == 0, 1, length)


def dot_product(a: Vectors, b: Vectors) -> Matrix:
    """a·b, not normalised."""
    return np.asarray(a, np.float64) @ np.asarray(b, np.float64).T


def cosine_similarity(a: Vectors, b: Vectors) -> Matrix:
    """cos θ = â·b̂."""
    return normalize(a) @ normalize(b).T


def cosine_distance(a: Vectors, b: Vectors) -> Matrix:
    """1 - cos θ, in [0, 2]."""
    return 1 - cosine_similarity(a, b)


def angular_distance(a: Vectors, b: Vectors) -> Matrix:
    """θ in radians: tan(θ/2) = ‖â - b̂‖ / ‖â + b̂‖, exact at all angles where arccos isn't."""
    a, b = normalize(a), normalize(b)
    zero = np.logical_and.outer(a.any(axis=1), b.any(axis=1)) == 0
    return np.where(zero, np.pi / 2, 2 * np.arctan2(euclidean_distance(a, b), euclidean_distance(a, -b)))


def squared_euclidean_distance(a: Vectors, b: Vectors) -> Matrix:
    """Σ (aᵢ - bᵢ)²."""
    return np.sum(_differences(a, b) ** 2, axis=-1)


def euclidean_distance(a: Vectors, b: Vectors) -> Matrix:
    """‖a - b‖."""
    return np.sqrt(squared_euclidean_distance(a, b))


def manhattan_distance(a: Vectors, b: Vectors) -> Matrix:
    """Σ |aᵢ - bᵢ|."""
    return np.sum(np.abs(_differences(a, b)), axis=-1)


def covariance(samples: Vectors, shrinkage: float = 0.0) -> Float64[np.ndarray, "d d"]:
    """Σ = (x - mean)ᵀ (x - mean) / (n - 1), pulled towards its mean variance: (1 - s) Σ + s tr(Σ)/d I."""
    centred = np.asarray(samples, np.float64) - np.mean(samples, axis=0, dtype=np.float64)
    sigma = centred.T @ centred / (len(centred) - 1)
    return (1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / len(sigma) * np.eye(len(sigma))


def mahalanobis_distance(a: Vectors, b: Vectors, covariance: Float64[np.ndarray, "d d"]) -> Matrix:
    """√((a - b)ᵀ Σ⁻¹ (a - b))."""
    difference = _differences(a, b)
    solved = np.linalg.solve(covariance, difference[..., None])[..., 0]
    return np.sqrt(np.sum(difference * solved, axis=-1))


def top_k(scores: Matrix, k: int) -> tuple[Float64[np.ndarray, "n k"], np.ndarray]:
    """The k highest of each row, falling, and their columns; of equals the first. (Of distances give the negatives.)"""
    columns = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, columns, axis=1), columns


def _differences(a: Vectors, b: Vectors) -> Float64[np.ndarray, "n m d"]:
    return np.asarray(a, np.float64)[:, None] - np.asarray(b, np.float64)[None]
