"""The contrastive losses in NumPy, float64: written to be read beside the papers, with no trick for speed or memory.

The oracle of `jaxclip.losses`, whose functions of the same names say what the arguments mean. Each gives the mean.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxclip.reference.similarity import normalize


def infonce_loss(features: ArrayLike, tau: float = 0.07) -> float:
    """InfoNCE over 2B views, of which features[2i] and features[2i+1] are two of the same: `nt_xent` by its formula.

    ℓᵢⱼ = −log( exp(sim(zᵢ, zⱼ)/τ) / Σ_{k≠i} exp(sim(zᵢ, zₖ)/τ) ), averaged over the 2B rows.
    """
    z = _unit(features)
    similarity = z @ z.T / tau
    np.fill_diagonal(similarity, -np.inf)
    rows = np.arange(len(z))
    return float(-_log_softmax(similarity)[rows, rows ^ 1].mean())


def info_nce(
    queries: ArrayLike, keys: ArrayLike, negatives: ArrayLike | None = None, temperature: float = 0.07
) -> float:
    """Query i has key i as its positive; its negatives are the other keys, or (m, d) or (n, m, d) vectors if given."""
    queries, keys = _unit(queries), _unit(keys)
    if negatives is None:
        return float(-np.diag(_log_softmax(queries @ keys.T / temperature)).mean())
    negatives = np.broadcast_to(_unit(negatives), (len(queries), *np.shape(negatives)[-2:]))
    positive = np.einsum("nd,nd->n", queries, keys)[:, None]
    logits = np.concatenate([positive, np.einsum("nd,nmd->nm", queries, negatives)], axis=1) / temperature
    return float(-_log_softmax(logits)[:, 0].mean())


def nt_xent(features: ArrayLike, temperature: float = 0.07, labels: ArrayLike | None = None) -> float:
    """Supervised contrastive loss, "out" form (arXiv 2004.11362, equation 2); without labels, `infonce_loss`.

    The mean is over the rows that have a positive; 0 where none has.
    """
    if labels is None:
        return infonce_loss(features, temperature)
    labels = np.asarray(labels)
    z = _unit(features)
    similarity = z @ z.T / temperature
    np.fill_diagonal(similarity, -np.inf)
    log_probability = _log_softmax(similarity)
    losses = []
    for i, label in enumerate(labels):
        positives = [j for j in range(len(z)) if j != i and labels[j] == label]
        if positives:
            losses.append(-log_probability[i, positives].mean())
    return float(np.mean(losses)) if losses else 0.0


def clip_loss(
    image_features: ArrayLike, text_features: ArrayLike, logit_scale: float, targets: ArrayLike | None = None
) -> float:
    """The symmetric cross-entropy of CLIP (arXiv 2103.00020, figure 3); `logit_scale` is a logarithm.

    `targets[i, j]` is the weight of text j for image i, up to a factor: rows are normalised for one direction and
    columns for the other. The mean of a direction is over the rows (columns) that hold a target.
    """
    logits = np.exp(np.float64(logit_scale)) * _unit(image_features) @ _unit(text_features).T
    weights = np.eye(len(logits)) if targets is None else np.asarray(targets, np.float64)
    return (_cross_entropy(logits, weights) + _cross_entropy(logits.T, weights.T)) / 2


def siglip_loss(image_features: ArrayLike, text_features: ArrayLike, logit_scale: float, logit_bias: float) -> float:
    """The sigmoid loss (arXiv 2303.15343, algorithm 1): over all pairs, divided by the number of images."""
    logits = np.exp(np.float64(logit_scale)) * _unit(image_features) @ _unit(text_features).T + logit_bias
    signs = 2 * np.eye(len(logits)) - 1
    return float(np.logaddexp(0, -signs * logits).sum() / len(logits))


def cosine_embedding_loss(a: ArrayLike, b: ArrayLike, labels: ArrayLike, margin: float = 0.0) -> float:
    """1 − cos for pairs labelled 1, max(0, cos − margin) for pairs labelled −1."""
    cosine = (_unit(a) * _unit(b)).sum(axis=-1)
    return float(np.where(np.asarray(labels) == 1, 1 - cosine, np.maximum(0, cosine - margin)).mean())


def triplet_loss(anchor: ArrayLike, positive: ArrayLike, negative: ArrayLike, margin: float = 0.2) -> float:
    """max(0, d(anchor, positive) − d(anchor, negative) + margin) by the cosine distance (arXiv 1503.03832)."""
    anchor, positive, negative = _unit(anchor), _unit(positive), _unit(negative)
    difference = (anchor * negative).sum(axis=-1) - (anchor * positive).sum(axis=-1)
    return float(np.maximum(0, difference + margin).mean())


def _unit(vectors: ArrayLike) -> NDArray[np.float64]:
    vectors = np.asarray(vectors, np.float64)
    return normalize(vectors.reshape(-1, vectors.shape[-1])).reshape(vectors.shape)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _cross_entropy(logits: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Of the rows with weights, which are normalised to a distribution."""
    rows = weights.sum(axis=1) > 0
    targets = weights[rows] / weights[rows].sum(axis=1, keepdims=True)
    return float(-(targets * _log_softmax(logits)[rows]).sum(axis=1).mean()) if rows.any() else 0.0
