"""Writes the small checkpoints of `tests/references` and what transformers computes from them.

    pip install -e ".[parity]" && python scripts/write_model_references.py

Each case is a folder in the form in which the reference libraries write it, with `expected.safetensors` beside it: the
inputs, every hidden state and every output of transformers in float32. The parameters are drawn so that no part of the
model is near the identity: a mistake anywhere shows.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torchvision_on_cpu  # noqa: F401 (before transformers)
import transformers
from cases import TEXTS, photos
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    MetaClip2Config,
    MetaClip2Model,
)

TESTS = Path(__file__).parents[1] / "tests"
FOLDER = TESTS / "references"
TOKENIZER = TESTS / "processing" / "references" / "tokenizers" / "transformers_5"

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "bos_token_id": 95,
    "eos_token_id": 90,
}
VISION = {
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 4,
}
TINY_TEXT = {**TEXT, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
PROJECTION = 20


def joint(text: dict | None = None, vision: dict | None = None, **other) -> CLIPConfig:
    return CLIPConfig(
        text_config={**TEXT, **(text or {})},
        vision_config={**VISION, **(vision or {})},
        projection_dim=PROJECTION,
        **other,
    )


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "logit_scale":
            parameter.data = torch.tensor(2.3)
        elif "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.3 * noise
        elif "embedding" in name and parameter.ndim == 2:
            parameter.data = 0.7 * noise
        else:
            parameter.data = noise * (1.5 / parameter[0].numel() ** 0.5)
    return model.eval()


def randomize_before_norms(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Small variances, beside which LayerNorm's epsilon counts (text), and large means, with which E[x²] - E[x]² loses
    its digits (vision; larger ones would cost the reference its own)."""
    model = randomize(model, seed)
    for embedding in (model.text_model.embeddings.token_embedding, model.text_model.embeddings.position_embedding):
        embedding.weight.data *= 0.02
    model.vision_model.embeddings.class_embedding.data += 20
    model.vision_model.embeddings.position_embedding.weight.data += 20
    return model


def ids_for(config) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and a mask of their padding. Ids above the EOS and a 2 stand before it, so that each pooling rule
    finds another token."""
    eos, largest = config.eos_token_id, config.vocab_size - 1
    end = largest if eos == 2 and config.model_type == "clip_text_model" else eos
    ids = torch.tensor(
        [
            [95, 11, 2, 5, 7, 9, 13, end, 0, 0],
            [95, 97, 31, end, end, end, end, end, end, end],
            [95, 2, 3, 4, 6, 97, 8, 10, 12, end],
        ]
    )
    ids[ids == largest] = end
    if end == 2:
        ids[ids == 2] = 40
        ids[0, 7], ids[1, 3:], ids[2, 9] = 2, 2, 2
    mask = torch.ones_like(ids)
    mask[0, 8:], mask[1, 4:] = 0, 0
    return ids, mask


def of_tower(prefix: str, output, features: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = {f"{prefix}.hidden_states.{i}": h for i, h in enumerate(output.hidden_states)}
    tensors[f"{prefix}.last_hidden_state"] = output.last_hidden_state
    if features is None:
        tensors[f"{prefix}.pooled"] = output.pooler_output
    else:
        tensors[f"{prefix}.features"] = features
    return tensors


@torch.no_grad()
def expected(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(1000 + seed)
    text_config = config if hasattr(config, "vocab_size") else getattr(config, "text_config", None)
    vision_config = config if hasattr(config, "patch_size") else getattr(config, "vision_config", None)
    tensors = {}
    if text_config is not None:
        ids, mask = ids_for(text_config)
        positions = (torch.arange(ids.shape[1]) + 1).expand(ids.shape).contiguous()
        tensors |= {"token_ids": ids.int(), "attention_mask": mask.int(), "position_ids": positions.int()}
    if vision_config is not None:
        size, patch = vision_config.image_size, vision_config.patch_size
        pixels = torch.randn((2, 3, size, size), generator=generator)
        other = torch.randn((2, 3, size + 2 * patch + 3, size - patch), generator=generator)
        tensors |= {"pixels": pixels, "other_pixels": other}
    if isinstance(model, CLIPModel | MetaClip2Model):
        text = model.get_text_features(ids, output_hidden_states=True)
        masked = model.get_text_features(ids, mask, positions, output_hidden_states=True)
        vision = model.get_image_features(pixels, output_hidden_states=True)
        resized = model.get_image_features(other, interpolate_pos_encoding=True, output_hidden_states=True)
        whole = model(ids, pixels, return_loss=False)
        tensors |= of_tower("text", text, text.pooler_output)
        tensors |= of_tower("masked_text", masked, masked.pooler_output)
        tensors |= of_tower("vision", vision, vision.pooler_output)
        tensors |= of_tower("other_vision", resized, resized.pooler_output)
        tensors |= {
            "text_features": whole.text_embeds,
            "image_features": whole.image_embeds,
            "logits_per_image": whole.logits_per_image.contiguous(),
        }
    elif text_config is not None:
        output = model(ids, output_hidden_states=True)
        tensors |= of_tower("text", output, getattr(output, "text_embeds", None))
    else:
        output = model(pixels, output_hidden_states=True)
        tensors |= of_tower("vision", output, getattr(output, "image_embeds", None))
    return tensors


def write(
    name: str,
    model: torch.nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    draw: Callable[[torch.nn.Module, int], torch.nn.Module] = randomize,
    then: Callable[[Path], None] = lambda folder: None,
    **save,
) -> None:
    folder, seed = FOLDER / name, sum(name.encode())
    shutil.rmtree(folder, ignore_errors=True)
    model = draw(model, seed).to(dtype)
    model.save_pretrained(folder, **save)
    then(folder)
    tensors = expected(model.float(), seed)
    if then is with_processing:
        tensors |= strings_and_photos(folder)
    # One tensor may be another's memory (the last hidden state of a vision tower).
    tensors = {key: value.clone().contiguous() for key, value in tensors.items()}
    save_file(
        tensors,
        folder / "expected.safetensors",
        metadata={"transformers": transformers.__version__, "torch": torch.__version__},
    )
    print(f"{name:28} {sum(f.stat().st_size for f in folder.iterdir()):>9,} bytes")


def with_processing(folder: Path) -> None:
    """All that `CLIPProcessor` wants, for strings and photos."""
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    CLIPImageProcessorPil(size=20, crop_size=16).save_pretrained(folder)


@torch.no_grad()
def strings_and_photos(folder: Path) -> dict[str, torch.Tensor]:
    """The features that transformers gives the strings and photos of `tests/cases.py`."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)([Image.fromarray(p) for p in photos()], return_tensors="pt")
    return {
        "string_features": model.get_text_features(**tokens).pooler_output,
        "photo_features": model.get_image_features(**pixels).pooler_output,
    }


def as_torch_file(folder: Path) -> None:
    """As OpenAI's repositories are stored: `pytorch_model.bin` alone, with the buffers of older transformers."""
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(TEXT["max_position_embeddings"])[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_sharded_torch_file(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    renamed = {shard: shard.replace("model", "pytorch_model").replace("safetensors", "bin") for shard in shards}
    for shard in shards:
        torch.save(load_file(folder / shard), folder / renamed[shard])
        (folder / shard).unlink()
    index["weight_map"] = {name: renamed[shard] for name, shard in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2))
    (folder / "model.safetensors.index.json").unlink()


def with_prefix(prefix: str) -> Callable[[Path], None]:
    """As transformers before 5 wrote a lone tower."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        assert not any(name.startswith(prefix) for name in tensors)
        save_file(
            {prefix + name: tensor for name, tensor in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )

    return rewrite


def with_legacy_dicts(folder: Path) -> None:
    """`text_config` and `vision_config` mislead; the legacy dicts and what they leave at its default hold."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for tower, lie in (("text", "gelu_new"), ("vision", "relu")):
        given = config[f"{tower}_config"]
        keys = TEXT if tower == "text" else VISION
        config[f"{tower}_config_dict"] = {key: given[key] for key in keys}
        config[f"{tower}_config"] = {"hidden_act": lie, "hidden_size": 8, "num_attention_heads": 1, "model_type": "x"}
        config[f"{tower}_config"]["layer_norm_eps"] = 0.1
    path.write_text(json.dumps(config, indent=2))


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # The order of a sum, and with it its last bit, depends on the number of threads.
    write("openai", CLIPModel(joint({"eos_token_id": 2})))
    write("first_eos", CLIPModel(joint({"hidden_act": "gelu"}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3})))
    tanh = {"hidden_act": "gelu_new"}
    write("gelu_new", CLIPModel(joint({**TINY_TEXT, **tanh}, {"num_hidden_layers": 1, **tanh})))
    for width, mlp, dtype in ((64, 192, torch.float16), (80, 176, torch.bfloat16), (88, 190, torch.float16)):
        vision = {"hidden_size": 2 * width, "num_attention_heads": 2, "intermediate_size": mlp, "num_hidden_layers": 1}
        write(f"heads_{width}", CLIPModel(joint(TINY_TEXT, vision)), dtype=dtype)
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    write("norms", CLIPModel(joint(TINY_TEXT, narrow)), draw=randomize_before_norms)
    write("sharded", CLIPModel(joint(TINY_TEXT)), max_shard_size="40KB")
    vocabulary = {"vocab_size": 914, "bos_token_id": 912, "eos_token_id": 913}
    write("whole", CLIPModel(joint({**TINY_TEXT, **vocabulary})), dtype=torch.float16, then=with_processing)
    write("torch_file", CLIPModel(joint({**TINY_TEXT, "eos_token_id": 2})), then=as_torch_file)
    write("torch_file_sharded", CLIPModel(joint(TINY_TEXT)), max_shard_size="40KB", then=as_sharded_torch_file)
    write("legacy_config_dict", CLIPModel(joint()), then=with_legacy_dicts)
    write(
        "metaclip_2",
        MetaClip2Model(
            MetaClip2Config(text_config={**TEXT, "eos_token_id": 2}, vision_config=VISION, projection_dim=PROJECTION)
        ),
    )
    text, vision = CLIPTextConfig(**TEXT, projection_dim=18), CLIPVisionConfig(**VISION, projection_dim=22)
    write("text", CLIPTextModel(text))
    write("text_prefixed", CLIPTextModel(text), then=with_prefix("text_model."))
    write("text_projection", CLIPTextModelWithProjection(text))
    write("vision", CLIPVisionModel(vision))
    write("vision_prefixed", CLIPVisionModel(vision), then=with_prefix("vision_model."))
    write("vision_projection", CLIPVisionModelWithProjection(vision))
    total = sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file())
    print(f"{'in all':28} {total:>9,} bytes")


if __name__ == "__main__":
    main()
