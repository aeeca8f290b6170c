"""Writes every intermediate of an open_clip model to a file that `jaxclip diff` reads.

    python -c "import jaxclip; from jaxclip.compare import capture; \
        capture(jaxclip.load('MODEL'), ['a cat', 'a dog'], ['cat.jpg', 'dog.jpg']).save('ours.safetensors')"
    python scripts/dump_open_clip.py ViT-B-32-quickgelu openai ours.safetensors theirs.safetensors
    jaxclip diff ours.safetensors theirs.safetensors --model MODEL

The strings and images of the given file go through open_clip's own tokenizer and transform; with `--arrays` its token
ids and pixels are taken as they are, so that preprocessing is left out.
"""

import argparse
import dataclasses

import numpy as np
import torchvision_on_cpu  # noqa: F401 (before open_clip)

import open_clip  # isort: skip
import torch
from openai_modules import capture_openai_modules
from PIL import Image

from jaxclip.compare import load_capture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="open_clip's name of the model")
    parser.add_argument("pretrained", help="open_clip's name of the weights, or a file")
    parser.add_argument("inputs", help="a capture with what goes in")
    parser.add_argument("output", help="a .safetensors or .npz file")
    parser.add_argument("--arrays", action="store_true", help="take token ids and pixels, not strings and images")
    options = parser.parse_args()
    model, _, transform = open_clip.create_model_and_transforms(options.name, pretrained=options.pretrained)
    inputs = load_capture(options.inputs).inputs
    if not options.arrays:
        ids = open_clip.get_tokenizer(options.name)(list(inputs.texts)).numpy().astype(np.int32)
        pixels = torch.stack([transform(Image.fromarray(image)) for image in inputs.images]).numpy()
        inputs = dataclasses.replace(inputs, token_ids=ids, pixels=pixels.transpose(0, 2, 3, 1))
    capture_openai_modules(model.eval(), inputs).save(options.output)


if __name__ == "__main__":
    main()
