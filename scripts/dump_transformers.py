"""Writes every intermediate of a model of transformers to a file that `jaxclip diff` reads.

    python scripts/dump_transformers.py openai/clip-vit-base-patch32 ours.safetensors theirs.safetensors
    jaxclip diff ours.safetensors theirs.safetensors --model openai/clip-vit-base-patch32

As scripts/dump_open_clip.py; `jaxclip diff MODEL torch:MODEL` does it without a file.
"""

import argparse

import torchvision_on_cpu  # noqa: F401 (before transformers)

from jaxclip.compare import load_capture
from jaxclip.compare.torch_model import capture_transformers, load_transformers, processed_by_transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hub id or folder")
    parser.add_argument("inputs", help="a capture with what goes in")
    parser.add_argument("output", help="a .safetensors or .npz file")
    parser.add_argument("--arrays", action="store_true", help="take token ids and pixels, not strings and images")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    options = parser.parse_args()
    model, inputs = load_transformers(options.model, dtype=options.dtype), load_capture(options.inputs).inputs
    if not options.arrays:
        text = getattr(model.config, "text_config", model.config)
        inputs = processed_by_transformers(
            options.model, inputs, longest=getattr(text, "max_position_embeddings", None)
        )
    capture_transformers(model, inputs, source=options.model).save(options.output)


if __name__ == "__main__":
    main()
