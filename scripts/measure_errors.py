"""Prints how far jaxclip is from transformers: the worst relative error of each family of checkpoints.

    python scripts/measure_errors.py             # the committed checkpoints of tests/references; needs no torch
    python scripts/measure_errors.py --dtype bfloat16
    python scripts/measure_errors.py --live      # and full-size ones (pip install -e ".[parity]", 6 GB of memory and
                                                 # 2 GB of disk, a few minutes)

An error is the largest difference from the reference's tensor in units of its root mean square. The full-size
checkpoints have random parameters, drawn so that no part of the model is near the identity.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cases import CASES, FOLDER, errors

import jaxclip

# transformers' class, and its config's arguments. Towers that would not fit a test have fewer layers than the
# published models; their widths are true.
_H14 = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "patch_size": 14}
LIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-B/32": ("CLIPModel", {}),
    "ViT-L/14": (
        "CLIPModel",
        {
            "projection_dim": 768,
            "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "patch_size": 14,
            },
        },
    ),
    "ViT-H/14, 6 layers": (
        "CLIPVisionModelWithProjection",
        {**_H14, "num_hidden_layers": 6, "hidden_act": "gelu", "projection_dim": 1024},
    ),
    "ViT-g/14, 2 layers": (
        "CLIPVisionModelWithProjection",
        {
            **_H14,
            "hidden_size": 1408,
            "intermediate_size": 6144,
            "num_hidden_layers": 2,
            "hidden_act": "gelu",
            "projection_dim": 1024,
        },
    ),
    "ViT-bigG/14, 2 layers": (
        "CLIPVisionModelWithProjection",
        {
            **_H14,
            "hidden_size": 1664,
            "intermediate_size": 8192,
            "num_hidden_layers": 2,
            "hidden_act": "gelu",
            "projection_dim": 1280,
        },
    ),
    "MetaCLIP 2 H/14, 2 layers": (
        "MetaClip2Model",
        {
            "projection_dim": 1024,
            "text_config": {
                "vocab_size": 5000,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 2,
                "num_attention_heads": 16,
                "bos_token_id": 0,
                "eos_token_id": 2,
            },
            "vision_config": {**_H14, "num_hidden_layers": 2},
        },
    ),
}


def write_live(name: str, folder: Path) -> None:
    """Writes a checkpoint of `LIVE` and, as `expected.safetensors`, what transformers computes from it."""
    import torchvision_on_cpu  # noqa: F401 (before transformers)
    import transformers
    from safetensors.torch import save_file
    from write_model_references import expected, randomize

    class_name, arguments = LIVE[name]
    model_class = getattr(transformers, class_name)
    model = randomize(model_class(model_class.config_class(**arguments)), seed=len(name))
    model.save_pretrained(folder)
    tensors = {key: tensor.clone().contiguous() for key, tensor in expected(model, seed=len(name)).items()}
    save_file(tensors, folder / "expected.safetensors")
    # torch's modules are cycles of references: without this the weights stay until some later collection.
    del model
    gc.collect()


def measure(folder: Path, dtype: str = "float32") -> dict[str, float]:
    """The relative error of each tensor of the folder's `expected.safetensors`."""
    return errors(jaxclip.load(folder, dtype=dtype).model, str(folder))


def row(name: str, found: Mapping[str, float]) -> str:
    def worst(*parts: str) -> str:
        of = [error for tensor, error in found.items() if any(part in tensor for part in parts)]
        return f"{max(of):.1e}" if of else ""

    columns = ("hidden_state", (".pooled", ".features"), ("text_features", "image_features"), "logits")
    cells = [worst(*([column] if isinstance(column, str) else column)) for column in columns]
    return f"| {name:26} | " + " | ".join(f"{cell:>9}" for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", action="store_true", help="full-size models too, against the installed transformers")
    parser.add_argument("--dtype", default="float32", help="jaxclip's computation (default: %(default)s)")
    options = parser.parse_args()
    print(f"| {'checkpoint':26} | {'states':9} | {'features':9} | {'unit':9} | {'logits':9} |")
    print("|" + "-" * 28 + ("|" + "-" * 10 + ":") * 4 + "|")
    for case in CASES:
        print(row(case, measure(FOLDER / case, options.dtype)), flush=True)
    for name in LIVE if options.live else ():
        with tempfile.TemporaryDirectory() as folder:
            write_live(name, Path(folder))
            print(row(name, measure(Path(folder), options.dtype)), flush=True)


if __name__ == "__main__":
    main()
