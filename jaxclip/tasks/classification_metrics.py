"""How often images are put into the right class, and which classes are taken for which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64


@dataclass(frozen=True)
class Confusion:
    """`count` of the `images` that show `label` were taken for `predicted`."""

    label: str
    predicted: str
    count: int
    images: int


@dataclass(frozen=True)
class ClassificationMetrics:
    """Of images whose classes are known.

    - `labels`: what the classes are called
    - `confusion`: how many images of each class (row) were put into each (column)
    - `top_1`, `top_5`: the part of the images whose class is the best, or among the best five; `top_5` is None where
      there are no more than five classes
    """

    labels: list[str]
    confusion: Int64[np.ndarray, "classes classes"]
    top_1: float
    top_5: float | None

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def per_class(self) -> dict[str, float]:
        """The part of each class's images that were put into it, of the classes that have some. Two classes of one
        name are one here."""
        totals, right = dict.fromkeys(self.labels, 0), dict.fromkeys(self.labels, 0)
        for label, row, hits in zip(self.labels, self.confusion.sum(axis=1), self.confusion.diagonal(), strict=True):
            totals[label] += int(row)
            right[label] += int(hits)
        return {label: right[label] / total for label, total in totals.items() if total}

    @property
    def mean_per_class(self) -> float:
        """The mean over the classes that have images, each with the same weight however many it has."""
        totals = self.confusion.sum(axis=1)
        there = totals > 0
        return float((self.confusion.diagonal()[there] / totals[there]).mean())

    def worst_confusions(self, n: int | None = 10) -> list[Confusion]:
        """The pairs of classes with the most mistakes, most first; all with None. Equal ones come by the part of the
        class that they are, then in the order of the classes."""
        totals = self.confusion.sum(axis=1)
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        rows, columns = np.nonzero(wrong)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        found = [
            Confusion(self.labels[row], self.labels[column], int(wrong[row, column]), int(totals[row]))
            for row, column in pairs
        ]
        return sorted(found, key=lambda pair: (-pair.count, pair.images))[:n]


def classification_metrics(
    scores: Float[np.ndarray, "images classes"], targets: Int64[np.ndarray, " targets"], labels: Sequence[str]
) -> ClassificationMetrics:
    """What `scores` (any number that is the higher the likelier the class) are worth, where image i shows the class
    `targets[i]`. Of equal scores the earlier class's counts as the better. Raises ValueError for no image."""
    if scores.shape != (len(targets), len(labels)) or not scores.size:
        raise ValueError(
            f"scores must have a row for each target and a column for each label, at least one of both: got "
            f"{scores.shape} for {len(targets)} targets and {len(labels)} labels"
        )
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    earlier = np.arange(len(labels)) < targets[:, None]
    ranks = (scores > own).sum(axis=1) + ((scores == own) & earlier).sum(axis=1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (targets, scores.argmax(axis=1)), 1)
    return ClassificationMetrics(
        labels=list(labels),
        confusion=confusion,
        top_1=float((ranks == 0).mean()),
        top_5=float((ranks < 5).mean()) if len(labels) > 5 else None,
    )
