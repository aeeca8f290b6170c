"""Boxes around what stands out in a map, and how boxes agree."""

from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from jaxtyping import Float

from jaxclip.tasks.relevance import interpolated

Number: TypeAlias = int | float

# Steps between two cells: boxes end between cells, too. Odd, so that the cells' own middles are among them.
_FINER = 9
_AWAY, _SHARE = 0.25, 0.6
_LEAST = 1e-30


@dataclass(frozen=True)
class Box:
    """From the upper left corner (x0, y0) to (x1, y1), which is outside; in pixels. The score is from 0 to 1."""

    x0: Number
    y0: Number
    x1: Number
    y1: Number
    score: Number

    @property
    def area(self) -> Number:
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)

    def iou(self, other: "Box") -> Number:
        """Intersection over union, from 0 to 1."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        shared = max(0.0, width) * max(0.0, height)
        union = self.area + other.area - shared
        return shared / union if union else 0.0


def find_boxes(cells: Float[np.ndarray, "rows columns"], size: tuple[int, int], *, threshold: Number) -> list[Box]:
    """What stands out in a map of relevance over an image of `size` (width, height), best first.

    Nothing, where the map reaches `threshold` nowhere. Else the connected parts whose log-relevance is above 60 % of
    the way from the map's lower quartile, which is taken for where the thing isn't, to its maximum; each with the
    highest relevance in it as the score, and only those whose score is `threshold` or more and that are no smaller than
    a cell. (Relevance itself is nearly 0 or 1 in most places: its extent would hang on how sharp it is.) Of two boxes
    that overlap the better one stays (`suppressed`).
    """
    # Here, as it puts a filter of its own before those of `warnings` when it is imported.
    from scipy import ndimage

    rows, columns = cells.shape
    fine = interpolated(np.log(np.maximum(cells, _LEAST)), (rows * _FINER, columns * _FINER))
    highest = fine.max()
    if not highest >= np.log(max(threshold, _LEAST)):
        return []
    away = np.quantile(fine, _AWAY)
    # Beyond what interpolation rounds, in a map that is the same everywhere.
    parts = ndimage.label(fine >= away + _SHARE * (highest - away) - 1e-4)
    labels, count = cast(tuple[np.ndarray, int], parts)
    scores = np.exp(ndimage.maximum(fine, labels, np.arange(1, count + 1)))
    places = cast(list[tuple[slice, slice]], ndimage.find_objects(labels))
    x, y = size[0] / fine.shape[1], size[1] / fine.shape[0]
    found = [
        Box(across.start * x, down.start * y, across.stop * x, down.stop * y, float(score))
        for (down, across), score in zip(places, scores, strict=True)
        if score >= threshold and min(down.stop - down.start, across.stop - across.start) >= _FINER
    ]
    return suppressed(found)


def fuse_windows(
    edges: Float[np.ndarray, "windows 4"], scores: Float[np.ndarray, " windows"], *, threshold: Number
) -> list[Box]:
    """One box for each thing that overlapping windows (x0, y0, x1, y1) show, best first.

    The best window whose score is `threshold` or more takes those with it whose IoU with it is 0.2 or more, whatever
    their scores; their mean, weighted by the scores' squares, is the box, and its score that of the best one. Then the
    best of the rest, but for those of which a third lies in a box, or a third of it in them: windows within a thing and
    around it show the same thing. (Weighted boxes fusion, arXiv 1910.13302.)
    """
    areas = (edges[:, 2:] - edges[:, :2]).prod(axis=1)
    left, found = np.ones(len(scores), bool), []
    for best in np.argsort(-scores, kind="stable"):
        if scores[best] < threshold:
            break
        if left[best]:
            shared = _shared(edges, edges[best])
            near = left & (shared >= 0.2 * (areas + areas[best] - shared))
            # Where all scores are 0 the threshold is, too.
            box = np.average(edges[near], axis=0, weights=scores[near] ** 2 + _LEAST)
            left &= ~near & (_shared(edges, box) < np.minimum(areas, (box[2:] - box[:2]).prod()) / 3)
            x0, y0, x1, y1 = box.tolist()
            found.append(Box(x0, y0, x1, y1, float(scores[best])))
    return found


def _shared(edges: Float[np.ndarray, "windows 4"], one: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " windows"]:
    """The area that each has in common with the one."""
    sides = np.minimum(edges[:, 2:], one[2:]) - np.maximum(edges[:, :2], one[:2])
    return np.maximum(0, sides).prod(axis=1)


def suppressed(boxes: list[Box], overlap: Number = 0.5) -> list[Box]:
    """Best first, without those whose IoU with a better one is above `overlap` (non-maximum suppression)."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(box.iou(better) <= overlap for better in kept):
            kept.append(box)
    return kept
