"""The best of what was compared with a query."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class Hit:
    """A photo's path, or a caption, and the cosine of its vector and the query's, from -1 to 1."""

    item: Path | str
    score: float


class Best:
    """The `top` highest scores of all that went by, with what they belong to; equal ones in the order of coming."""

    def __init__(self, top: int):
        self.top = top
        self._scores = np.empty(0, np.float32)
        self._items: list[Any] = []

    def add(self, items: Sequence[Any], scores: Float32[np.ndarray, " n"]) -> None:
        everything, scores = [*self._items, *items], np.concatenate([self._scores, scores])
        order = np.argsort(-scores, kind="stable")[: self.top]
        self._scores, self._items = scores[order], [everything[place] for place in order]

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        """Items with their scores, best first."""
        return zip(self._items, self._scores.tolist(), strict=True)

    def hits(self) -> list[Hit]:
        return [Hit(item, score) for item, score in self]
