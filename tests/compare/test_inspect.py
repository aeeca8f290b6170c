import dataclasses
import importlib
import json
import shutil
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, FOLDER
from safetensors.numpy import load_file, save_file

import jaxclip
from jaxclip.checkpoints.load import model_parameters
from jaxclip.checkpoints.names import parameter_names
from jaxclip.checkpoints.tensors import Tensor
from jaxclip.compare import inspect
from jaxclip.compare.inspect import read_values
from jaxclip.config import CLIPConfig
from jaxclip.nn import CLIP, Abstract


@pytest.fixture
def folder(tmp_path):
    """A copy of a whole checkpoint, without the one warning that it has, to spoil."""
    copy = shutil.copytree(FOLDER / "whole", tmp_path / "checkpoint")
    for tower in ("text_config", "vision_config"):
        reconfigure(copy, **{f"{tower}.projection_dim": 20})
    return copy


def reconfigure(folder, file="config.json", **changes):
    """Sets keys of a JSON file, "a.b" one of an object's, or removes those that are `...`."""
    content = json.loads((folder / file).read_text())
    for key, value in changes.items():
        place = content
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    (folder / file).write_text(json.dumps(content))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_all_facts_of_a_whole_checkpoint(folder):
    size = (folder / "model.safetensors").stat().st_size
    assert inspect(folder).to_json() == {
        "source": str(folder),
        "revision": None,
        "family": "clip",
        "architecture": "CLIPModel",
        "name": None,
        "towers": {
            "text": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
                "projection_dim": 20,
                "vocab_size": 914,
                "max_position_embeddings": 12,
                "eos_token_id": 913,
                "pooling": "first_eos",
                "parameters": 17128,
            },
            "vision": {
                "hidden_size": 36,
                "intermediate_size": 52,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "head_dim": 12,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
                "projection_dim": 20,
                "image_size": 16,
                "patch_size": 4,
                "grid_size": 4,
                "num_channels": 3,
                "parameters": 21848,
            },
        },
        "parameters": 17128 + 21848 + 1,
        "dtypes": {"float16": 38977},
        "size": size,
        "sharded": False,
        "files": [{"name": "model.safetensors", "size": size, "tensors": 62}],
        "image_processor": {
            **json.loads((folder / "preprocessor_config.json").read_text()),
            "rescale_factor": 1 / 255,
        },
        "tokenizer": {
            "vocab_size": 914,
            "bos_token_id": 912,
            "eos_token_id": 913,
            "pad_token_id": 913,
            "max_length": 12,
        },
        "mismatches": {"missing": (), "unexpected": (), "misfits": ()},
        "values": None,
        "problems": [],
        "warnings": [],
    }


@pytest.mark.parametrize("case", CASES)
def test_every_committed_checkpoint_has_no_problem_and_its_parameters(case):
    found = inspect(FOLDER / case, values=True)
    assert found.problems == ()
    parameters = model_parameters(jaxclip.load(FOLDER / case).model)
    for name in ("text", "vision", "logit_scale"):
        sizes = [node[...].size for path, node in parameters.items() if path.split(".")[0] == name]
        assert found.parameters.get(name, 0) == sum(sizes)
    assert sum(found.parameters.values()) == sum(found.dtypes.values())
    assert sum(file.tensors for file in found.files) >= len(parameters)
    stored = [path for path in (FOLDER / case).iterdir() if path.name.startswith(("model", "pytorch"))]
    assert {file.name: file.size for file in found.files} == {path.name: path.stat().st_size for path in stored}
    assert found.sharded == (len(stored) == 4)


@pytest.mark.parametrize(
    ("case", "architecture", "projection", "pooling"),
    [
        ("text", "CLIPTextModel", None, "first_eos"),
        ("text_projection", "CLIPTextModelWithProjection", 18, "first_eos"),
        ("vision", "CLIPVisionModel", None, None),
        ("vision_projection", "CLIPVisionModelWithProjection", 22, None),
        ("metaclip_2", "MetaClip2Model", 20, "first_eos"),
        ("openai", "CLIPModel", 20, "largest_id"),
    ],
)
def test_families_and_lone_towers(case, architecture, projection, pooling):
    facts = inspect(FOLDER / case).to_json()
    assert facts["architecture"] == architecture
    assert facts["family"] == ("metaclip_2" if case == "metaclip_2" else "clip")
    alone = case.partition("_")[0]
    assert set(facts["towers"]) == ({alone} if alone in ("text", "vision") else {"text", "vision"})
    assert {tower["projection_dim"] for tower in facts["towers"].values()} == {projection}
    assert facts["towers"].get("text", {}).get("pooling") == pooling


B32 = {"model_type": "clip", "projection_dim": 512}
L14 = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
    },
}


@pytest.mark.parametrize(
    ("hub", "name", "text", "vision"),
    [
        # OpenAI's: 151,277,313 and 427,944,193 in all.
        (B32, "ViT-B/32", 63_428_096, 87_849_216),
        (L14, "ViT-L/14@336px", 123_650_304, 304_293_888),
    ],
)
def test_full_size_models_by_their_headers_alone(tmp_path, hub, name, text, vision):
    """The file's numbers are a hole: it takes no space on the disk, and no time."""
    config = CLIPConfig.from_hub(hub)
    parameters = model_parameters(CLIP(config, rngs=Abstract()))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for path, (tensor, layout) in parameter_names(config).items():
        shape = layout.their_shape(parameters[path].shape)
        start, end = end, end + 2 * int(np.prod(shape))
        header[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    (tmp_path / "config.json").write_text(json.dumps(hub))
    found = inspect(tmp_path)
    assert found.name == name
    assert found.parameters == {"text": text, "vision": vision, "logit_scale": 1}
    assert found.dtypes == {"float16": text + vision + 1}
    assert found.size == 8 + len(content) + 2 * (text + vision + 1)
    assert found.problems == found.warnings == ()


@pytest.mark.parametrize(
    ("width", "depth", "patch", "size", "name"),
    [
        (768, 12, 16, 224, "ViT-B/16"),
        (1024, 24, 14, 224, "ViT-L/14"),
        (1280, 32, 14, 378, "ViT-H/14@378px"),
        (1408, 40, 14, 224, "ViT-g/14"),
        (1664, 48, 14, 224, "ViT-bigG/14"),
        (768, 11, 16, 224, None),
    ],
)
def test_names_of_sizes(width, depth, patch, size, name):
    given = {"hidden_size": width, "num_hidden_layers": depth, "patch_size": patch, "image_size": size}
    config = CLIPConfig.from_hub(
        {
            "model_type": "clip_vision_model",
            "architectures": ["CLIPVisionModel"],
            "num_attention_heads": 1,
            **given,
        }
    )
    assert dataclasses.replace(inspect(FOLDER / "vision"), config=config).name == name
    assert inspect(FOLDER / "text").name is None


def test_all_that_stops_it_from_loading_is_a_problem(folder):
    def spoil(tensors):
        del tensors["logit_scale"]
        tensors["visual_projection.bias"] = np.zeros(20, np.float16)
        tensors["text_projection.weight"] = tensors["text_projection.weight"].T.copy()
        tensors["vision_model.pre_layrnorm.bias"] = np.zeros(36, np.int32)
        tensors["text_model.embeddings.position_ids"] = np.arange(12)[None]  # A buffer: no parameter, and no dtype.

    rewrite(folder, spoil)
    found = inspect(folder, values=True)
    assert found.mismatches.missing == ("logit_scale",)
    assert found.mismatches.unexpected == ("visual_projection.bias [20]",)
    assert found.mismatches.misfits == (
        "shape: text_projection.weight is [16, 20], config.json asks for [20, 16]",
        "dtype: vision_model.pre_layrnorm.bias is int32, not floating point",
    )
    told = ["missing: logit_scale", "unexpected: visual_projection.bias [20]", *found.mismatches.misfits]
    assert list(found.problems[:4]) == told
    with pytest.raises(jaxclip.CheckpointError) as raised:
        jaxclip.load(folder)
    assert str(raised.value).splitlines()[1:] == [f"  {line}" for line in told]
    assert set(found.dtypes) == {"float16", "int32"}
    assert found.parameters == {"text": 17128, "vision": 21848}


def _write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "problem", "known"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json", {"weights"}),
        (_write("config.json", b"{"), "config.json: expected JSON", {"weights"}),
        (lambda folder: reconfigure(folder, **{"text_config.hidden_act": "tanh"}), "unknown activation", {"weights"}),
        (lambda folder: reconfigure(folder, model_type="siglip"), "model_type is 'siglip'", {"weights"}),
        (
            lambda folder: reconfigure(folder, **{"text_config.num_hidden_layers": 999}),
            "asks for 999 layers",
            {"config", "weights"},
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors", {"config"}),
        (_write("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "Git LFS pointer", {"config"}),
        (_write("model.safetensors", b"\x08\0\0\0\0\0\0\0{}"), "is no whole safetensors file", {"config"}),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_a_problem_and_the_rest_is_told(folder, spoil, problem, known):
    spoil(folder)
    found = inspect(folder)
    assert len(found.problems) == 1
    assert problem in found.problems[0]
    assert (found.config is not None) == ("config" in known)
    assert (found.dtypes == {"float16": 38977}) == ("weights" in known)
    assert found.mismatches is None
    assert found.to_json()["architecture"] == ("CLIPModel" if "config" in known else None)


def test_a_missing_shard_is_a_problem(tmp_path):
    shutil.copytree(FOLDER / "sharded", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    found = inspect(tmp_path)
    assert len(found.problems) == 1
    assert "has no model-00002-of-00003.safetensors" in found.problems[0]
    assert found.files == ()


def test_nothing_to_inspect_raises(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(jaxclip.CheckpointError, match=r"has no config\.json|there is no folder"):
            inspect(source)
    with pytest.raises(jaxclip.CheckpointError, match="has no subfolder 'text_encoder'"):
        inspect(tmp_path, subfolder="text_encoder")


def test_subfolders_and_the_hubs_cache(tmp_path, monkeypatch):
    shutil.copytree(FOLDER / "text_projection", tmp_path / "pipeline" / "text_encoder")
    assert inspect(tmp_path / "pipeline", subfolder="text_encoder").to_json()["architecture"].startswith("CLIPText")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "cache" / "models--laion--a", "1" * 40
    shutil.copytree(FOLDER / "whole", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = inspect("laion/a")
    assert (found.source, found.revision) == ("laion/a", commit)
    assert found.parameters["vision"] == 21848
    assert any("laion's models were trained with gelu, and this is 'laion/a'" in told for told in found.warnings)
    with pytest.raises(jaxclip.CheckpointError, match="is not in the cache"):
        inspect("laion/b")


def two_more_tokens(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    for number in (914, 915):
        content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": f"<{number}>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))


def open_clip_config(folder, *, mean=(0.5, 0.5, 0.5), **model):
    content = {"model_cfg": model, "preprocess_cfg": {"mean": mean, "std": [0.26862954, 0.26130258, 0.27577711]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def text_config(folder):
    return json.loads((folder / "config.json").read_text())["text_config"]


PREPROCESSOR, OPENAI_MEAN = "preprocessor_config.json", (0.48145466, 0.4578275, 0.40821073)
GELU = {"text_config.hidden_act": "gelu", "vision_config.hidden_act": "gelu"}


@pytest.mark.parametrize(
    ("spoil", "warnings"),
    [
        (
            lambda folder: reconfigure(folder, **{"text_config.eos_token_id": 2}),
            [
                "pooling: eos_token_id is 2, OpenAI's legacy mark and no token's id: the text is read off at the "
                "largest id"
            ],
        ),
        (
            lambda folder: reconfigure(folder, **{"text_config.eos_token_id": 5}),
            ["pooling: the tokenizer ends texts with 913, but the model looks for 5: texts are refused"],
        ),
        (
            two_more_tokens,
            ["tokenizer: it has 916 tokens, but the model 914: texts with the others are refused"],
        ),
        (
            lambda folder: (two_more_tokens(folder), reconfigure(folder, **{"text_config.eos_token_id": 2})),
            [
                "pooling: eos_token_id is 2, OpenAI's legacy mark and no token's id: the text is read off at the "
                "largest id",
                "tokenizer: it has 916 tokens, but the model 914: texts with the others are refused",
                "pooling: the tokenizer's end of text is 913, but its largest id 915: a text with a token above its "
                "end is read off at the wrong place",
            ],
        ),
        (
            lambda folder: reconfigure(folder, **{"vision_config.hidden_act": "gelu"}),
            [
                "activation: the towers differ, text has quick_gelu and vision gelu: no CLIP is known to have been "
                "trained so"
            ],
        ),
        (
            lambda folder: reconfigure(folder, _name_or_path="openai/clip-vit-base-patch32", **GELU),
            [
                "activation: text and vision have gelu, but openai's models were trained with quick_gelu, and this is "
                "'openai/clip-vit-base-patch32'"
            ],
        ),
        (lambda folder: reconfigure(folder, _name_or_path="openai/clip-vit-base-patch32"), []),
        (
            lambda folder: reconfigure(folder, _name_or_path="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
            [
                "activation: text and vision have quick_gelu, but laion's models were trained with gelu, and this is "
                "'laion/CLIP-ViT-H-14-laion2B-s32B-b79K'"
            ],
        ),
        (lambda folder: reconfigure(folder, _name_or_path="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", **GELU), []),
        (lambda folder: open_clip_config(folder, mean=OPENAI_MEAN, quick_gelu=True), []),
        (lambda folder: (open_clip_config(folder, mean=OPENAI_MEAN), reconfigure(folder, **GELU)), []),
        (
            lambda folder: open_clip_config(folder),
            [
                "activation: text has quick_gelu, but open_clip_config.json says gelu",
                "activation: vision has quick_gelu, but open_clip_config.json says gelu",
                "preprocessing: image_mean is 0.4815 0.4578 0.4082, but open_clip_config.json says 0.5 0.5 0.5",
            ],
        ),
        (
            lambda folder: reconfigure(folder, PREPROCESSOR, crop_size=12),
            ["preprocessing: images come out as 12 × 12 pixels, but the model takes 16 × 16"],
        ),
        (
            lambda folder: reconfigure(folder, PREPROCESSOR, do_center_crop=False),
            ["preprocessing: images come out in several sizes, but the model takes 16 × 16 pixels"],
        ),
        (
            lambda folder: reconfigure(folder, PREPROCESSOR, do_center_crop=False, size={"height": 16, "width": 16}),
            [],
        ),
        (
            lambda folder: reconfigure(folder, PREPROCESSOR, size=12),
            [
                "preprocessing: what is cropped (16 × 16) is larger than what images are resized to (12): their edges "
                "are black"
            ],
        ),
        (
            lambda folder: reconfigure(folder, text_config_dict={**text_config(folder), "hidden_act": "gelu"}),
            [
                "config: text_config_dict overrides text_config, with its defaults as well: hidden_act is 'gelu', not "
                "'quick_gelu'",
                "activation: the towers differ, text has gelu and vision quick_gelu: no CLIP is known to have been "
                "trained so",
            ],
        ),
        (
            lambda folder: reconfigure(folder, text_config_dict=text_config(folder)),
            [],
        ),
        (
            lambda folder: reconfigure(folder, **{"text_config.projection_dim": 512}),
            ["projection: text_config has 512, but the joint model's is the top level's: 20"],
        ),
        (
            lambda folder: reconfigure(folder, dtype=..., torch_dtype="float32"),
            ["dtype: config.json says float32, but the files hold float16"],
        ),
        (
            lambda folder: reconfigure(folder, PREPROCESSOR, image_processor_type="ViTImageProcessor"),
            [
                "preprocessing: photos can't be encoded: {folder}/preprocessor_config.json: the file describes a "
                "ViTImageProcessor, not one of CLIPImageProcessor, CLIPImageProcessorFast, CLIPImageProcessorPil, "
                "CLIPFeatureExtractor"
            ],
        ),
        (
            lambda folder: reconfigure(folder, "tokenizer.json", **{"model.type": "Unigram"}),
            [
                "tokenizer: strings can't be encoded: {folder}/tokenizer.json: a Unigram model, but CLIP's is a "
                "byte-level BPE (MetaCLIP 2, SigLIP and other relatives bring tokenizers of their own, which are not "
                "read here)"
            ],
        ),
        (
            _write("open_clip_config.json", b"[]"),
            ["{folder}/open_clip_config.json: expected a JSON object, got []. Download the file again."],
        ),
    ],
)  # fmt: skip
def test_what_misleads_is_told_and_nothing_else(folder, spoil, warnings):
    spoil(folder)
    found = inspect(folder)
    assert list(found.warnings) == [told.replace("{folder}", str(folder)) for told in warnings]
    assert found.problems == ()
    jaxclip.load(folder)


def test_a_tokenizer_of_fewer_tokens_than_the_model(folder):
    def grow(tensors):
        name = "text_model.embeddings.token_embedding.weight"
        tensors[name] = np.concatenate([tensors[name], tensors[name][:10]])

    rewrite(folder, grow)
    reconfigure(folder, **{"text_config.vocab_size": 924})
    assert inspect(folder).warnings == (
        "tokenizer: it has 914 tokens, but the model 924: make sure that it is this model's",
    )


def test_values_are_read_when_asked_for(folder):
    def spoil(tensors):
        tensors["visual_projection.weight"][0, :3] = np.nan
        tensors["text_projection.weight"][1, 1] = -np.inf
        tensors["text_projection.weight"][1, 2] = np.inf
        for name in ("vision_model.embeddings.class_embedding", "text_model.final_layer_norm.bias"):
            tensors[name][...] = 0

    rewrite(folder, spoil)
    assert inspect(folder).problems == ()
    found = inspect(folder, values=True)
    assert found.values.nan == {"visual_projection.weight": 3}
    assert found.values.infinite == {"text_projection.weight": 2}
    assert set(found.values.zero) == {"vision_model.embeddings.class_embedding", "text_model.final_layer_norm.bias"}
    assert found.problems == (
        "values: visual_projection.weight has 3 NaN",
        "values: text_projection.weight has 2 infinite numbers",
        "values: vision_model.embeddings.class_embedding holds nothing but zeros",
    )
    assert found.warnings == (
        "values: 1 bias holds nothing but zeros, as before any training (text_model.final_layer_norm.bias)",
    )


@pytest.mark.parametrize(
    ("stored", "warning"),
    [
        (np.log(100), None),
        (2.6592, None),
        (100, "logit scale: 100 is stored where its logarithm belongs: it would be exp(100)"),
        (4.7, "logit scale: exp(4.699) = 109.9 is above 100, where training clips it"),
    ],
)
def test_logit_scale(folder, stored, warning):
    rewrite(folder, lambda tensors: tensors.update(logit_scale=np.full((), stored, np.float16)))
    found = inspect(folder, values=True)
    assert found.values.logit_scale == np.float16(stored)
    assert found.warnings == (() if warning is None else (warning,))


def test_values_of_any_dtype_in_the_memory_of_the_largest_tensor():
    size, dtype = 1 << 22, np.dtype(ml_dtypes.bfloat16)

    def load():
        numbers = np.ones(size, dtype)
        numbers[-1] = np.nan
        return numbers

    tensors = [Tensor(f"{i}", (size,), dtype, Path("x"), load) for i in range(6)]
    tracemalloc.start()
    values = read_values(tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values.nan == {f"{i}": 1 for i in range(6)}
    # Twice the 8 MiB while one goes and the next one comes, and a boolean for each number.
    assert peak < 3.5 * size * dtype.itemsize


def test_a_file_that_changes_meanwhile(folder, monkeypatch):
    open_tensors = jaxclip.checkpoints.open_tensors

    def open_and_cut(files):
        tensors = open_tensors(files)
        with open(folder / "model.safetensors", "r+b") as file:
            file.truncate(1000)
        return tensors

    # By the module's name: the package has the function under it.
    monkeypatch.setattr(importlib.import_module("jaxclip.compare.inspect"), "open_tensors", open_and_cut)
    with pytest.raises(jaxclip.CheckpointError, match="cannot be read"):
        inspect(folder, values=True)
