"""Writes every intermediate of OpenAI's own CLIP to a file that `jaxclip diff` reads.

    pip install git+https://github.com/openai/CLIP.git
    python scripts/dump_openai_clip.py ViT-B/32 ours.safetensors theirs.safetensors
    jaxclip diff ours.safetensors theirs.safetensors --model openai/clip-vit-base-patch32

As scripts/dump_open_clip.py. Computes in float32, on the CPU.
"""

import argparse
import dataclasses

import numpy as np
import torch
from openai_modules import capture_openai_modules
from PIL import Image

from jaxclip.compare import load_capture


def main() -> None:
    import clip

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="OpenAI's name of the model, or a file")
    parser.add_argument("inputs", help="a capture with what goes in")
    parser.add_argument("output", help="a .safetensors or .npz file")
    parser.add_argument("--arrays", action="store_true", help="take token ids and pixels, not strings and images")
    options = parser.parse_args()
    model, transform = clip.load(options.name, device="cpu")
    inputs = load_capture(options.inputs).inputs
    if not options.arrays:
        ids = clip.tokenize(list(inputs.texts), truncate=True).numpy().astype(np.int32)
        pixels = torch.stack([transform(Image.fromarray(image)) for image in inputs.images]).numpy()
        inputs = dataclasses.replace(inputs, token_ids=ids, pixels=pixels.transpose(0, 2, 3, 1))
    capture_openai_modules(model.float().eval(), inputs).save(options.output)


if __name__ == "__main__":
    main()
