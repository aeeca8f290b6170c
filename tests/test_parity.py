"""jaxclip against the live transformers, full-size models included: `pytest -m parity`.

Full-size checkpoints have random parameters (`randomize` of scripts/write_model_references.py) and go through files on
disk, as transformers writes them. Run time is about three minutes on two cores, memory under 6 GB.
"""

import copy
import dataclasses
import gc
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage
from cases import CASES, FOLDER, expected, named, relative_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from measure_errors import LIVE, measure, write_live
from PIL import Image

import jaxclip
from jaxclip.checkpoints.load import model_parameters
from jaxclip.checkpoints.names import parameter_names
from jaxclip.cli import main
from jaxclip.config import CLIPConfig
from jaxclip.tasks.zero_shot import TEMPLATES

pytestmark = pytest.mark.parity

# Each at most four times the worst error measured (on x86, two cores), which stands beside it.
LIVE_TOLERANCE = 4e-5  # 1.1e-5 of a tensor's RMS: ViT-B/32's first hidden state, where float64 says that torch is off.
UNIT_TOLERANCE = 8e-7  # 2.2e-7, on unit vectors and their cosines.
PROBABILITY_TOLERANCE = 3.5e-7  # 8.9e-8, of probabilities of classes at a scale of 14.
GRADIENT_TOLERANCE = 2.5e-5  # 7.1e-6 of a gradient's norm: a query bias, a sum over tokens that nearly cancel.

STRINGS = [
    "a photo of a cat",
    "Hello   World!",
    "two dogs running across a frosty field",
    "Ünïcödé — naïve café, 東京 and an emoji 🚀",
    "",
    "it's 12,345.67 o'clock &amp; we'll see\n\ttabs",
    "a very long description " * 20,
]
PHOTOS = ["astronaut.png", "camera.png", "chelsea.png", "coffee.png", "horse.png", "logo.png", "rocket.jpg", "text.png"]
SKIMAGE = Path(skimage.__file__).parent / "data"


def unit(features):
    features = np.asarray(features, np.float64)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def write_processing(folder):
    """OpenAI's vocabulary, from open_clip's wheel, and the settings of ViT-B/32's images."""
    from write_processing_references import openai_merges, vocabulary

    merges = openai_merges()
    vocab = vocabulary(merges)
    assert len(vocab) == 49408
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    preprocessor = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))


@pytest.fixture(scope="session")
def b32_folder(transformers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("b32")
    write_live("ViT-B/32", folder)
    write_processing(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def b32(b32_folder):
    return jaxclip.load(b32_folder)


@pytest.fixture(scope="module")
def b32_reference(transformers, b32_folder):
    yield transformers.CLIPModel.from_pretrained(b32_folder).eval().requires_grad_(False)
    gc.collect()


def opened_photos():
    photos = []
    for name in PHOTOS:
        with Image.open(SKIMAGE / name) as photo:
            photos.append(photo.copy())
    return photos


def channels_first(pixels):
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def tower_errors(ours, theirs, rows=None):
    """The relative error of every hidden state (of the given rows) and of the features of a tower."""
    states = {f"hidden_states.{i}": state.numpy() for i, state in enumerate(theirs.hidden_states)}
    states["last_hidden_state"] = theirs.last_hidden_state.numpy()
    rows = np.ones(theirs.last_hidden_state.shape[:2], bool) if rows is None else rows
    mine = {name.removeprefix("tower."): np.asarray(tensor) for name, tensor in named("tower", ours).items()}
    found = {name: relative_error(mine[name][rows], state[rows]) for name, state in states.items()}
    assert len(found) == 14
    return found | {"features": relative_error(mine["features"], theirs.pooler_output.numpy())}


# The largest first, before other tests' models lie in memory.
@pytest.mark.parametrize("name", sorted(LIVE.keys() - {"ViT-B/32"}, key=lambda name: (name != "ViT-L/14", name)))
def test_every_hidden_state_of_a_full_size_model(transformers, name, tmp_path):
    write_live(name, tmp_path)
    found = measure(tmp_path)
    shutil.rmtree(tmp_path)
    gc.collect()
    assert max(found.values()) < LIVE_TOLERANCE, found


def test_every_hidden_state_of_vit_b_32(b32_folder):
    found = measure(b32_folder)
    assert len(found) > 60
    assert max(found.values()) < LIVE_TOLERANCE, found


def test_strings_and_photos_end_to_end(transformers, b32, b32_reference, b32_folder):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(b32_folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(b32_folder)
    photos = opened_photos()
    tokens = tokenizer(STRINGS, padding=True, truncation=True, return_tensors="pt")
    pixels = processor(photos, return_tensors="pt")["pixel_values"]
    output = b32_reference(**tokens, pixel_values=pixels)

    np.testing.assert_array_equal(b32.tokenizer(STRINGS), tokens["input_ids"].numpy())
    np.testing.assert_array_equal(b32.image_processor(photos), pixels.numpy().transpose(0, 2, 3, 1))
    text_features, image_features = b32.encode_text(STRINGS), b32.encode_image(photos)
    np.testing.assert_allclose(text_features, output.text_embeds.numpy(), rtol=0, atol=UNIT_TOLERANCE)
    np.testing.assert_allclose(image_features, output.image_embeds.numpy(), rtol=0, atol=UNIT_TOLERANCE)
    logits = b32.model(jnp.asarray(b32.tokenizer(STRINGS)), jnp.asarray(b32.image_processor(photos))).logits_per_image
    assert relative_error(logits, output.logits_per_image.numpy()) < LIVE_TOLERANCE
    raw = b32.encode_text(STRINGS, normalize=False), b32.encode_image(photos, normalize=False)
    theirs = b32_reference.get_text_features(**tokens), b32_reference.get_image_features(pixels)
    for features, reference in zip(raw, theirs, strict=True):
        assert relative_error(features, reference.pooler_output.numpy()) < LIVE_TOLERANCE


def test_padding_to_77_by_either_rule(b32, b32_reference):
    import torch

    batch = b32.tokenizer.batch(b32.tokenizer.encode(STRINGS), padding="max_length")
    assert batch.token_ids.shape[1] == 77
    features = {}
    for pad in (49407, 0):
        ids = np.where(batch.attention_mask, batch.token_ids, pad)
        ours = b32.model.text(jnp.asarray(ids))
        theirs = b32_reference.get_text_features(torch.from_numpy(ids).long(), output_hidden_states=True)
        found = tower_errors(ours, theirs)
        assert max(found.values()) < LIVE_TOLERANCE, found
        features[pad] = b32.encode_text(ids)
    np.testing.assert_allclose(features[0], features[49407], rtol=0, atol=UNIT_TOLERANCE)
    np.testing.assert_allclose(features[0], b32.encode_text(STRINGS), rtol=0, atol=UNIT_TOLERANCE)


def test_padding_on_the_left_with_mask_and_positions(b32, b32_reference):
    import torch

    sequences = b32.tokenizer.encode(STRINGS[:-1])
    length = max(map(len, sequences))
    ids = np.array([[0] * (length - len(sequence)) + sequence for sequence in sequences])
    mask = np.array([[0] * (length - len(sequence)) + [1] * len(sequence) for sequence in sequences])
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    ours = b32.model.text(*map(jnp.asarray, (ids, mask, positions)))
    theirs = b32_reference.get_text_features(*map(torch.from_numpy, (ids, mask, positions)), output_hidden_states=True)
    # What stands in the rows of the padding is nobody's: they may look at nothing.
    found = tower_errors(ours, theirs, rows=mask.astype(bool))
    assert max(found.values()) < LIVE_TOLERANCE, found
    right = b32.encode_text(STRINGS[:-1], normalize=False)
    assert relative_error(ours.features, right) < LIVE_TOLERANCE


# (32, 1568) has as many patches as the checkpoint's 7 × 7; (230, 224) its grid, at another size.
@pytest.mark.parametrize("size", [(180, 180), (336, 336), (64, 480), (250, 333), (32, 1568), (230, 224)])
def test_positions_at_another_image_size(b32, b32_reference, size):
    pixels = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    ours = b32.model.vision(jnp.asarray(pixels), interpolate_positions=True)
    theirs = b32_reference.get_image_features(
        channels_first(pixels), interpolate_pos_encoding=True, output_hidden_states=True
    )
    found = tower_errors(ours, theirs)
    assert max(found.values()) < LIVE_TOLERANCE, found


def test_search_ranks_as_a_loop_over_transformers(transformers, b32, b32_reference, b32_folder, tmp_path, capsys):
    photos = sorted([*SKIMAGE.glob("*.png"), *SKIMAGE.glob("*.jpg")])
    assert len(photos) > 20
    for photo in photos:
        shutil.copy(photo, tmp_path)
    query = "a cup of coffee on a table"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(b32_folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(b32_folder)
    wanted = unit(b32_reference.get_text_features(**tokenizer([query], return_tensors="pt")).pooler_output)[0]
    scores = {}
    for photo in photos:
        with Image.open(photo) as image:
            pixels = processor(image, return_tensors="pt")["pixel_values"]
        scores[photo.name] = unit(b32_reference.get_image_features(pixels).pooler_output)[0] @ wanted
    ranking = sorted(scores, key=lambda name: -scores[name])

    result = jaxclip.search(b32, query, tmp_path, top=len(photos))
    assert [hit.item.name for hit in result.hits] == ranking
    for hit in result.hits:
        assert hit.score == pytest.approx(scores[hit.item.name], abs=UNIT_TOLERANCE)

    status = main(["search", query, str(tmp_path), "--model", str(b32_folder), "--top", "5"])
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [Path(path).name for *_, path in printed] == ranking[:5]
    assert [float(score) for _, score, _ in printed] == pytest.approx([scores[name] for name in ranking[:5]], abs=6e-5)


LABELS = ["tabby cat", "cup of coffee", "astronaut", "rocket", "page of text", "horse"]


def test_the_zero_shot_classifier_is_open_clips(transformers, b32, b32_folder):
    import torch
    from benchmark import SHAPES, open_clip_model

    open_clip = pytest.importorskip("open_clip")
    model = open_clip_model(b32_folder, SHAPES["ViT-B/32"])
    tokenizer = open_clip.get_tokenizer(SHAPES["ViT-B/32"].open_clip)
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, LABELS, TEMPLATES)
    np.testing.assert_allclose(jaxclip.zero_shot_classifier(b32, LABELS), theirs.T.numpy(), rtol=0, atol=UNIT_TOLERANCE)
    photos = opened_photos()
    with torch.no_grad():
        images = model.encode_image(channels_first(b32.image_processor(photos)), normalize=True)
        expected = (model.logit_scale.exp() * images @ theirs).softmax(dim=-1)
    result = jaxclip.classify(b32, photos, LABELS)
    np.testing.assert_allclose(result.scores, (images @ theirs).numpy(), rtol=0, atol=UNIT_TOLERANCE)
    np.testing.assert_allclose(result.probabilities, expected.numpy(), rtol=0, atol=PROBABILITY_TOLERANCE)
    del model
    gc.collect()


def test_classify_is_a_loop_over_transformers(transformers, b32, b32_reference, b32_folder):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(b32_folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(b32_folder)
    classes = []
    for names in (["tabby cat", "kitten"], ["cup of coffee"], ["rocket"]):
        prompts = [template.format(name) for name in names for template in TEMPLATES]
        features = [
            b32_reference.get_text_features(**tokenizer([prompt], return_tensors="pt")).pooler_output
            for prompt in prompts
        ]
        classes.append(unit(np.mean([unit(feature)[0] for feature in features], axis=0)))
    photos = opened_photos()
    result = jaxclip.classify(b32, photos, [["tabby cat", "kitten"], "cup of coffee", "rocket"])
    scale = float(b32_reference.logit_scale.exp())
    for photo, scores, probabilities in zip(photos, result.scores, result.probabilities, strict=True):
        pixels = processor(photo, return_tensors="pt")["pixel_values"]
        cosines = np.array(classes) @ unit(b32_reference.get_image_features(pixels).pooler_output)[0]
        np.testing.assert_allclose(scores, cosines, rtol=0, atol=UNIT_TOLERANCE)
        powers = np.exp(scale * (cosines - cosines.max()))
        np.testing.assert_allclose(probabilities, powers / powers.sum(), rtol=0, atol=PROBABILITY_TOLERANCE)


def assert_same_weights(transformers, saved, original):
    """Both folders, read by transformers as what the saved one says it is, hold the same bits."""
    import torch
    from safetensors.torch import load_file

    model_class = getattr(transformers, json.loads((saved / "config.json").read_text())["architectures"][0])
    ours, report = model_class.from_pretrained(saved, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    theirs = model_class.from_pretrained(original, dtype="auto").state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    # Read as config.json's dtype, whatever the file's is: that is to be seen in the file alone.
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {
        tensor.dtype for tensor in theirs.values()
    }
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8)), name
    return model_class


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_was_saved_bit_for_bit(transformers, case, tmp_path):
    jaxclip.load(FOLDER / case).save(tmp_path)
    model_class = assert_same_weights(transformers, tmp_path, FOLDER / case)
    assert [model_class.__name__] == json.loads((FOLDER / case / "config.json").read_text())["architectures"]


@pytest.mark.parametrize("case", ["openai", "heads_64", "heads_80", "metaclip_2"])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_transformers_reads_a_tower_saved_alone(transformers, case, tower, tmp_path):
    import torch

    jaxclip.load(FOLDER / case, towers=tower).save(tmp_path)
    prefix = "MetaClip2" if case == "metaclip_2" else "CLIP"
    alone = getattr(transformers, f"{prefix}{tower.capitalize()}ModelWithProjection")
    model, report = alone.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(report.values()), report
    whole = getattr(transformers, f"{prefix}Model").from_pretrained(FOLDER / case, dtype=torch.float32)
    with torch.no_grad():
        if tower == "text":
            token_ids = torch.from_numpy(expected(case)["token_ids"]).long()
            features, theirs = model(token_ids).text_embeds, whole.get_text_features(token_ids).pooler_output
        else:
            pixels = channels_first(expected(case)["pixels"])
            features, theirs = model(pixels).image_embeds, whole.get_image_features(pixels).pooler_output
    np.testing.assert_array_equal(features, theirs)


@pytest.mark.parametrize("made", ["loaded", "by hand"])
def test_transformers_reads_a_whole_checkpoint_that_was_saved(transformers, b32, b32_folder, made, tmp_path):
    if made == "loaded":
        b32.save(tmp_path)
    else:
        jaxclip.Clip(b32.model, tokenizer=b32.tokenizer, image_processor=b32.image_processor).save(tmp_path)
        # Its files are another kind than those it was made of.
        assert not (tmp_path / "vocab.json").exists()
    assert assert_same_weights(transformers, tmp_path, b32_folder) is transformers.CLIPModel
    photos = opened_photos()
    theirs, ours = (transformers.CLIPProcessor.from_pretrained(folder) for folder in (b32_folder, tmp_path))
    before, after = (p(text=STRINGS, images=photos, padding=True, truncation=True) for p in (theirs, ours))
    for key in ("input_ids", "attention_mask", "pixel_values"):
        np.testing.assert_array_equal(before[key], after[key])
    ids = transformers.CLIPTokenizer.from_pretrained(tmp_path)(STRINGS, padding=True, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, b32.tokenizer(STRINGS))
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)(photos, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixels.transpose(0, 2, 3, 1), b32.image_processor(photos))
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("case", ["openai", "first_eos", "gelu_new", "metaclip_2"])
def test_gradients_of_the_loss(transformers, case):
    import torch

    reference = expected(case)
    ids, pixels = reference["token_ids"][:2], reference["pixels"]
    prefix = "MetaClip2" if case == "metaclip_2" else "CLIP"
    theirs = getattr(transformers, f"{prefix}Model").from_pretrained(FOLDER / case).eval()
    loss = theirs(torch.from_numpy(ids).long(), channels_first(pixels), return_loss=True).loss
    loss.backward()
    expected_gradients = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}

    def clip_loss(model):
        logits = model(jnp.asarray(ids), jnp.asarray(pixels)).logits_per_image
        matching = [jnp.diagonal(jax.nn.log_softmax(logits, axis=axis)) for axis in (0, 1)]
        return -jnp.stack(matching).mean()

    model = jaxclip.load(FOLDER / case).model
    value, gradients = jax.value_and_grad(clip_loss)(model)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    ours = model_parameters(gradients)
    table = parameter_names(model.config)
    assert {name for name, _ in table.values()} == expected_gradients.keys()
    found = {}
    for path, (name, layout) in table.items():
        reference_gradient = expected_gradients[name]
        difference = np.linalg.norm(layout.theirs(np.asarray(ours[path][...])) - reference_gradient)
        # The softmax doesn't feel what is added to all keys: this gradient is 0 but for rounding.
        scale = expected_gradients[name.replace("k_proj.bias", "q_proj.bias")]
        found[name] = difference / np.linalg.norm(scale)
    assert max(found.values()) < GRADIENT_TOLERANCE, found


def some_of(**values):
    """Dicts with some of the keys, in any order of omission."""
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(value) for key, value in values.items()})


# Widths that all the head counts divide, the defaults (8 and 12) included.
TOWER = {
    "hidden_size": [48, 96, 768],
    "intermediate_size": [1, 190],
    "num_hidden_layers": [1, 24],
    "num_attention_heads": [1, 4, 16],
    "hidden_act": ["gelu", "quick_gelu"],
    "layer_norm_eps": [1e-5, 1e-6, 0.1],
    "attention_dropout": [0.0, 0.1],
    "dropout": [0.0],
    "torch_dtype": ["float16"],
    "unknown": ["x", None],
}
TEXT = some_of(
    **TOWER,
    projection_dim=[None, 1, 7, 768],
    vocab_size=[99, 49408],
    max_position_embeddings=[12, 77],
    eos_token_id=[0, 2, 90, 49407],
    model_type=["clip_text_model"],
)
VISION = some_of(
    **TOWER,
    projection_dim=[1, 7, 768],
    image_size=[180, 224],
    patch_size=[14, 32],
    num_channels=[1, 3],
    model_type=["clip_vision_model"],
)
JOINT = st.fixed_dictionaries(
    {"model_type": st.sampled_from(["clip", "metaclip_2"])},
    optional={
        "text_config": st.none() | TEXT,
        "vision_config": st.none() | VISION,
        "text_config_dict": st.none() | TEXT,
        "vision_config_dict": st.none() | VISION,
        "projection_dim": st.sampled_from([1, 7, 640]),
        "logit_scale_init_value": st.sampled_from([2.6592, 1.0, 4]),
        "initializer_factor": st.sampled_from([1.0, 0.5]),
        "unknown": st.sampled_from(["x", None]),
    },
)


def parsed(transformers, hub):
    classes = {"clip": transformers.CLIPConfig, "metaclip_2": transformers.MetaClip2Config}
    for family, prefix in (("clip", "CLIP"), ("metaclip_2", "MetaClip2")):
        for tower in ("text", "vision"):
            classes[f"{family}_{tower}_model"] = getattr(transformers, f"{prefix}{tower.capitalize()}Config")
    return classes[hub["model_type"]].from_dict(copy.deepcopy(hub))


def assert_same_tower(ours, theirs):
    for field in dataclasses.fields(ours):
        if field.name not in ("family", "other", "projection_dim"):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


@settings(deadline=None, max_examples=200)
@given(hub=JOINT)
def test_a_joint_config_is_read_as_transformers_reads_it(transformers, hub):
    ours, theirs = CLIPConfig.from_hub(hub), parsed(transformers, hub)
    for reference in (theirs, parsed(transformers, ours.to_hub())):
        assert_same_tower(ours.text, reference.text_config)
        assert_same_tower(ours.vision, reference.vision_config)
        assert ours.text.projection_dim == ours.vision.projection_dim == reference.projection_dim
        assert ours.logit_scale_init_value == reference.logit_scale_init_value
    assert CLIPConfig.from_hub(theirs.to_dict()) == ours
    assert CLIPConfig.from_hub(parsed(transformers, ours.to_hub()).to_dict()) == ours
    # What the model doesn't read is kept too. A legacy dict is left out: its defaults silence what only the other has.
    if hub.get("text_config_dict") is hub.get("vision_config_dict") is None:
        again, before = (config.to_dict() for config in (parsed(transformers, ours.to_hub()), theirs))
        for config in (again, before):
            config.pop("architectures")
            for tower in ("text_config", "vision_config"):
                config[tower].pop("projection_dim")
        assert again == before


@settings(deadline=None, max_examples=200)
@given(
    tower=st.tuples(st.just("text"), TEXT) | st.tuples(st.just("vision"), VISION),
    family=st.sampled_from([("clip", "CLIP"), ("metaclip_2", "MetaClip2")]),
    suffix=st.sampled_from(["", "WithProjection"]),
)
def test_a_lone_towers_config_is_read_as_transformers_reads_it(transformers, tower, family, suffix):
    (kind, given_keys), (model_type, prefix) = tower, family
    hub = {
        **given_keys,
        "model_type": f"{model_type}_{kind}_model",
        "architectures": [f"{prefix}{kind.capitalize()}Model{suffix}"],
    }
    theirs = parsed(transformers, hub)
    assume(not suffix or theirs.projection_dim is not None)
    ours = CLIPConfig.from_hub(hub)
    again = parsed(transformers, ours.to_hub())
    for reference in (theirs, again):
        assert_same_tower(getattr(ours, kind), reference)
        assert getattr(ours, kind).projection_dim == (reference.projection_dim if suffix else None)
    assert again.to_dict() == theirs.to_dict()
    assert CLIPConfig.from_hub(again.to_dict()) == ours
