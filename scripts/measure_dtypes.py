"""Prints how far a model's vectors of photos in lower precision are from its own in float32.

python scripts/measure_dtypes.py MODEL PHOTOS      # a checkpoint with a vision tower, a folder of photos
"""

import argparse
import sys
from itertools import islice

import numpy as np

import jaxclip
from jaxclip.tasks.photos import files_under


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--count", type=int, default=32, help="of photos, the first ones (default: %(default)s)")
    options = parser.parse_args()
    photos = list(islice(files_under(options.photos), options.count))
    if len(photos) < 2:
        sys.exit(f"{options.photos}: at least two photos are wanted")
    vectors = {
        dtype: np.asarray(jaxclip.load(options.model, towers="vision", dtype=dtype).encode_image(photos), np.float64)
        for dtype in ("float32", "tensorfloat32", "bfloat16", "float16")
    }
    exact = vectors.pop("float32")
    print(f"{len(photos)} photos, on {jaxclip.load(options.model, towers='vision').encoder.devices[0].device_kind}\n")
    print("| | worst cosine with itself in float32 | worst error of a cosine of two photos |\n|---|---:|---:|")
    for dtype, lower in vectors.items():
        own = (lower * exact).sum(axis=1) / np.linalg.norm(lower, axis=1) / np.linalg.norm(exact, axis=1)
        print(f"| {dtype} | {own.min():.5f} | {np.abs(lower @ lower.T - exact @ exact.T).max():.1e} |")


if __name__ == "__main__":
    main()
