"""Writes `tests/losses/references`: what torch, open_clip and optax compute in float64, values and gradients.

    pip install -e ".[parity]" && python scripts/write_loss_references.py

The cases and their inputs, float32 numbers, are those of `tests/loss_cases.py`; the live tests run these functions on
other inputs.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torchvision_on_cpu  # noqa: F401 (before open_clip)
from loss_cases import CASES, FILE, differentiated, inputs
from open_clip.loss import ClipLoss, SigLipLoss
from optax.losses import ntxent
from torch import Tensor
from torch.nn import functional as F


def info_nce(queries: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits)))


def info_nce_against(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: Tensor) -> Tensor:
    queries, keys, negatives = (F.normalize(x, dim=-1) for x in (queries, keys, negatives))
    positive = F.cosine_similarity(queries, keys, dim=1)[:, None]
    negative = torch.einsum("nd,md->nm" if negatives.ndim == 2 else "nd,nmd->nm", queries, negatives)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def without_diagonal(matrix: Tensor) -> Tensor:
    n = len(matrix)
    return matrix[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)


def supervised_contrastive(features: Tensor, temperature: Tensor, labels: Tensor) -> Tensor:
    """The "out" form is a cross-entropy with the positives' mean as soft targets."""
    z = F.normalize(features, dim=1)
    marks = without_diagonal((labels[:, None] == labels[None, :]).to(z.dtype))
    rows = marks.sum(dim=1) > 0
    targets = marks[rows] / marks[rows].sum(dim=1, keepdim=True)
    return F.cross_entropy(without_diagonal(z @ z.T / temperature)[rows], targets)


def nt_xent(features: Tensor, temperature: Tensor) -> Tensor:
    return supervised_contrastive(features, temperature, torch.arange(len(features)) // 2)


def clip(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    return ClipLoss()(F.normalize(images, dim=1), F.normalize(texts, dim=1), logit_scale.exp())


def clip_with_targets(images: Tensor, texts: Tensor, logit_scale: Tensor, targets: Tensor) -> Tensor:
    logits = logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    targets = targets.to(logits.dtype)
    both = ((logits, targets), (logits.T, targets.T))
    return sum(F.cross_entropy(rows, marks / marks.sum(dim=1, keepdim=True)) for rows, marks in both) / 2


def siglip(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    return SigLipLoss()(F.normalize(images, dim=1), F.normalize(texts, dim=1), logit_scale.exp(), logit_bias)


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(a, b)

    return torch.nn.TripletMarginWithDistanceLoss(distance_function=distance, margin=0.3)(anchor, positive, negative)


TORCH: dict[str, Callable[..., Tensor]] = {
    "info_nce": info_nce,
    "info_nce_cold": info_nce,
    "info_nce_shared": info_nce_against,
    "info_nce_own": info_nce_against,
    "nt_xent": nt_xent,
    "nt_xent_labels": supervised_contrastive,
    "clip": clip,
    "clip_soft": clip_with_targets,
    "clip_several": clip_with_targets,
    "siglip": siglip,
    "pairs_cosine": torch.nn.CosineEmbeddingLoss(margin=0.1),
    "pairs_triplet": cosine_triplet,
    "pairs_triplet_euclidean": torch.nn.TripletMarginLoss(margin=0.3, eps=0.0),
}


def expected(case: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reference's value, and its gradient by the name of each argument."""
    names, which = CASES[case][1], differentiated(case, arrays)
    doubles = [arrays[name].astype(np.float64) if arrays[name].dtype.kind == "f" else arrays[name] for name in names]
    if case == "nt_xent_optax":
        with jax.enable_x64(True):
            a, temperature, labels = (jax.numpy.asarray(x) for x in doubles)
            function = jax.value_and_grad(lambda a, t: ntxent(a, labels, t), argnums=(0, 1))
            value, gradients = jax.tree.map(np.asarray, function(a, temperature))
    else:
        tensors = [torch.from_numpy(np.array(x)) for x in doubles]
        loss = TORCH[case](*(x.requires_grad_(i in which) for i, x in enumerate(tensors)))
        value = loss.detach().numpy()
        gradients = [g.numpy() for g in torch.autograd.grad(loss, [tensors[i] for i in which])]
    return {"value": value, **{names[i]: gradient for i, gradient in zip(which, gradients, strict=True)}}


def main() -> None:
    arrays = inputs(seed=0, n=12, width=8)
    written = {f"inputs/{name}": array for name, array in arrays.items()}
    for case in CASES:
        written |= {f"{case}/{name}": array for name, array in expected(case, arrays).items()}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **written)
    versions = {name: version(name) for name in ("torch", "open_clip_torch", "optax", "jax", "numpy")}
    (FILE.parent / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
