"""How well things are found, on images with known boxes: both methods, beside a box in the middle.

    python scripts/measure_detection.py scenes --model emoji
    python scripts/measure_detection.py coco-mini --model MODEL --embeddings classes.npy --classes classes.json

The folder has images/ and boxes.json: {"boxes": [{"image", "category", "box": [x0, y0, x1, y1]}]} in pixels; boxes
with "iscrowd" are left out. Each image is asked for the categories that it has and for some that it hasn't, which
compete with each other and with `--background`: all other categories, or the default of `jaxclip.detect`.

- pointing: how often the map's maximum is inside a box of the category (the pointing game)
- IoU: the mean, over images and categories, of the IoU of the best box with the nearest true one
- AP50: average precision at an IoU of 0.5, the mean over categories
- found: how often something was found, at the default threshold, of a category that is there
- false: and of one that isn't there
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

import jaxclip
from jaxclip.tasks.boxes import Box
from jaxclip.tasks.class_files import read_embeddings
from jaxclip.tasks.detection import BACKGROUND, THRESHOLDS, Detection

# Low enough for a curve of precision over recall.
LOW = 0.01
ABSENT = 3


def average_precision(found: Iterable[tuple[float, bool]], objects: int) -> float:
    """The area under precision over recall, where precision is the best at this recall or beyond."""
    ranked = sorted(found, key=lambda pair: -pair[0])
    right = np.cumsum([is_right for _, is_right in ranked])
    precision = right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * np.diff(right, prepend=0)).sum() / objects)


def matched(boxes: list[Box], true: list[Box]) -> list[tuple[float, bool]]:
    """Each box's score and whether it is the first to have an IoU of at least 0.5 with one of the true ones."""
    free, found = list(true), []
    for box in boxes:
        nearest = max(free, key=box.iou, default=None)
        hit = nearest is not None and box.iou(nearest) >= 0.5
        if hit:
            free.remove(nearest)
        found.append((box.score, hit))
    return found


class Figures:
    def __init__(self) -> None:
        self.pointing, self.ious, self.there, self.false, self.seconds = [], [], [], [], []
        self.found, self.objects = defaultdict(list), defaultdict(int)

    def add(self, category: str, point: tuple[float, float], boxes: list[Box], true: list[Box]) -> None:
        self.pointing.append(any(box.x0 <= point[0] < box.x1 and box.y0 <= point[1] < box.y1 for box in true))
        self.ious.append(max((boxes[0].iou(box) for box in true), default=0.0) if boxes else 0.0)
        self.found[category] += matched(boxes, true)
        self.objects[category] += len(true)

    def row(self, name: str) -> str:
        precision = np.mean([average_precision(self.found[category], n) for category, n in self.objects.items()])
        false = f"{np.mean(self.false):.3f}" if self.false else ""
        seconds = f"{np.median(self.seconds):.2f}" if self.seconds else ""
        means = " | ".join(f"{value:.3f}" for value in (np.mean(self.pointing), np.mean(self.ious), precision))
        found = f"{np.mean(self.there):.3f}" if self.there else ""
        return f"| {name} | {means} | {found} | {false} | {seconds} |"


def highest(result: Detection, index: int) -> tuple[float, float]:
    cells = result.cells[index]
    row, column = np.unravel_index(cells.argmax(), cells.shape)
    return (column + 0.5) / cells.shape[1] * result.size[0], (row + 0.5) / cells.shape[0] * result.size[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="a folder with images/ and boxes.json")
    parser.add_argument("--model", required=True, help="a checkpoint")
    parser.add_argument("--embeddings", type=Path, help="the categories' embeddings, a row each (.npy, .safetensors)")
    parser.add_argument("--classes", type=Path, help="their names, in a JSON list")
    parser.add_argument("--logit-scale", type=float, help="the logarithm (default: the model's own)")
    parser.add_argument("--background", choices=("categories", "default"), default="categories")
    parser.add_argument("--methods", nargs="+", choices=("dense", "windows"), default=("dense", "windows"))
    parser.add_argument("--resolution", type=float, help="of either method (default: its own)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--images", type=int, help="only so many of them")
    options = parser.parse_args()
    listed = json.loads((options.data / "boxes.json").read_text())["boxes"]
    true: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for one in listed:
        if not one.get("iscrowd"):
            true[one["image"]][one["category"]].append(Box(*one["box"], 1.0))
    clip = jaxclip.load(options.model, towers="vision" if options.embeddings else "both", dtype=options.dtype)
    if options.embeddings:
        names = json.loads(options.classes.read_text())
        vectors = dict(zip(names, read_embeddings(options.embeddings), strict=True))
    else:
        names = sorted({one["category"] for one in listed})
        vectors = dict(zip(names, np.asarray(clip.encode_text(names)), strict=True))
    there = sorted({one["category"] for one in listed})
    rng = np.random.default_rng(0)
    images = sorted(true)[: options.images]
    figures = {name: Figures() for name in ("middle", *options.methods)}
    for image in tqdm(images, disable=None):
        boxes, path = true[image], options.data / "images" / image
        absent = list(rng.permutation([name for name in there if name not in boxes])[:ABSENT])
        prompts = {name: vectors[name] for name in (*boxes, *absent)}
        rest = {name: vector for name, vector in vectors.items() if name not in prompts}
        background = (rest or None) if options.background == "categories" else BACKGROUND
        with Image.open(path) as opened:
            width, height = ImageOps.exif_transpose(opened).size
        for name, there_of in boxes.items():
            middle = Box(width * 0.15, height * 0.15, width * 0.85, height * 0.85, 1.0)
            figures["middle"].add(name, (width / 2, height / 2), [middle], there_of)
        for method in options.methods:
            start = time.perf_counter()
            result = jaxclip.detect(
                clip,
                path,
                prompts,
                method=method,
                background=background,
                threshold=LOW,
                resolution=options.resolution,
                logit_scale=options.logit_scale,
            )
            figures[method].seconds.append(time.perf_counter() - start)
            best = {name: found[0].score if found else 0 for name, found in result.boxes.items()}
            figures[method].there += [best[name] >= THRESHOLDS[method] for name in boxes]
            figures[method].false += [best[name] >= THRESHOLDS[method] for name in absent]
            for index, (name, there_of) in enumerate(boxes.items()):
                figures[method].add(name, highest(result, index), result.boxes[name], there_of)
    print("| method | pointing | IoU | AP50 | found | false | seconds |\n|---|--:|--:|--:|--:|--:|--:|")
    for name, figure in figures.items():
        print(figure.row(name))


if __name__ == "__main__":
    main()
