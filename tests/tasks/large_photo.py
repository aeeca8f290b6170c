"""Prints how many MB detection in a photo of 12 megapixels takes at the most, by each method."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

import jaxclip


def memory(of: str) -> float:
    """In MB, "RSS" what is taken now, "HWM" the most that was."""
    return int(re.search(rf"Vm{of}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


emoji = jaxclip.load("emoji")
taken = []
for method in ("dense", "windows"):
    # What is compiled takes memory as well.
    jaxclip.detect(emoji, photo(400, 300), ["a cat", "a dog"], method=method, resolution=2)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("RSS")
    jaxclip.detect(emoji, photo(4000, 3000), ["a cat", "a dog"], method=method, resolution=2)
    taken.append(memory("HWM") - before)
print(json.dumps(taken))
