"""Writes tests/similarity/references/measures.npz: what SciPy, scikit-learn and torch compute.

    pip install scipy scikit-learn torch
    python scripts/write_similarity_references.py

Inputs are random float32 vectors with the cases that go wrong among them (equal, nearly equal, opposite, zero, long and
short); outputs are float64, of the same numbers in float64.
"""

from pathlib import Path

import numpy as np
import scipy
import sklearn
import torch
from scipy.spatial.distance import cdist
from sklearn.covariance import shrunk_covariance
from sklearn.metrics import pairwise

FILE = Path(__file__).parents[1] / "tests" / "similarity" / "references" / "measures.npz"
SHRINKAGE = 0.1


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(24, 33)), rng.normal(size=(30, 33))
    a *= np.exp(rng.normal(size=(24, 1)))
    b[:6] = a[:6]
    b[6:10] = a[6:10] * (1 + 1e-6 * rng.normal(size=(4, 33)))
    b[10:12] = -a[10:12]
    b[12:14] = 3 * a[12:14]
    a[-1] = b[-1] = 0
    a[-2], b[-2] = a[-2] * 1e4, b[-2] * 1e-4
    return a.astype(np.float32), b.astype(np.float32)


def outputs(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Name in jaxclip.similarity → the reference's (n, m)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    samples = np.concatenate([a[:-2], b[:-2]])
    covariance = shrunk_covariance(np.cov(samples.T), SHRINKAGE)
    return {
        "cosine_similarity": torch.nn.functional.cosine_similarity(
            torch.tensor(a)[:, None], torch.tensor(b)[None], dim=-1, eps=1e-300
        ).numpy(),
        "cosine_distance": pairwise.cosine_distances(a, b),
        "dot_product": pairwise.linear_kernel(a, b),
        "euclidean_distance": cdist(a, b, "euclidean"),
        "squared_euclidean_distance": cdist(a, b, "sqeuclidean"),
        "manhattan_distance": cdist(a, b, "cityblock"),
        "mahalanobis_distance": cdist(a, b, "mahalanobis", VI=np.linalg.inv(covariance)),
    }


def main() -> None:
    a, b = inputs()
    versions = f"scipy {scipy.__version__}, scikit-learn {sklearn.__version__}, torch {torch.__version__}"
    FILE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FILE, a=a, b=b, shrinkage=SHRINKAGE, versions=versions, **outputs(a, b))
    print(f"{FILE}: {FILE.stat().st_size} bytes, {versions}")


if __name__ == "__main__":
    main()
