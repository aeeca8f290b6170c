"""Little captioned photos."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def paint(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    """A photo of its own: PNG keeps its pixels as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def captions_of(number: int) -> list[str]:
    return [f"photo {number} {word}" for word in ("a", "b", "c")]


def captioned(folder: Path, n: int) -> Path:
    """`n` photos with three captions each."""
    lines = []
    for number in range(n):
        paint(folder / "images" / f"{number:02d}.png", number)
        lines.append(json.dumps({"file": f"images/{number:02d}.png", "captions": captions_of(number)}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder
