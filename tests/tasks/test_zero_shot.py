import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FOLDER, TEXTS, expected, photos
from PIL import Image

import jaxclip
from jaxclip.tasks.zero_shot import TEMPLATES, classes_of

LABELS = ["cat", ["dog", "puppy"], "cup of coffee"]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_hand(clip, names, templates):
    """A class's embedding, one prompt at a time."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    return unit(np.mean([np.asarray(clip.encode_text(prompt), np.float64) for prompt in prompts], axis=0))


@pytest.fixture(scope="module")
def classes(clip):
    return np.asarray(jaxclip.zero_shot_classifier(clip, LABELS))


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(photo) for photo in photos()]


@pytest.mark.parametrize("templates", [TEMPLATES, ("{}",), ("a {} and a {}", "{}!")])
def test_a_class_is_the_mean_of_its_prompts(clip, templates):
    found = jaxclip.zero_shot_classifier(clip, LABELS, templates)
    assert isinstance(found, jax.Array)
    assert (found.shape, found.dtype) == ((3, 20), jnp.float32)
    for row, names in zip(np.asarray(found), (["cat"], ["dog", "puppy"], ["cup of coffee"]), strict=True):
        np.testing.assert_allclose(row, by_hand(clip, names, templates), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    by_key = jaxclip.zero_shot_classifier(clip, {"x": "cat", "y": ["dog", "puppy"], "z": "cup of coffee"}, templates)
    np.testing.assert_array_equal(by_key, found)


def test_the_mean_is_of_unit_vectors_and_of_names_with_all_templates(clip):
    """Raw features, or the mean of the names' means of unequal weight, would be another embedding."""
    names, templates = ["dog", "puppy"], TEMPLATES[:3]
    found = np.asarray(jaxclip.zero_shot_classifier(clip, [names], templates))[0]
    prompts = [template.replace("{}", name) for name in names for template in templates]
    raw = unit(np.asarray(clip.encode_text(prompts, normalize=False)).mean(axis=0))
    assert np.abs(found - raw).max() > 1e-4
    assert np.abs(found - by_hand(clip, names[:1], templates)).max() > 1e-3


def test_our_templates_are_some_and_each_has_a_place_for_the_name():
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 5
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_probabilities_are_a_softmax_of_scaled_cosines(clip, classes, pictures):
    result = jaxclip.classify(clip, pictures, LABELS)
    cosines = unit(np.asarray(clip.encode_image(pictures, normalize=False), np.float64)) @ classes.T
    powers = np.exp(float(jnp.exp(clip.model.logit_scale[...])) * cosines)
    np.testing.assert_allclose(result.scores, cosines, atol=1e-6)
    np.testing.assert_allclose(result.probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert result.labels == ["cat", "dog", "cup of coffee"]
    assert (result.images, result.skipped) == ([0, 1], [])
    assert np.ptp(result.probabilities) > 0.01

    sharper = jaxclip.classify(clip, pictures, LABELS, logit_scale=math.log(1000))
    powers = np.exp(1000 * (cosines - cosines.max(axis=1, keepdims=True)))
    np.testing.assert_allclose(sharper.probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-3)


def test_probabilities_of_the_reference(clip, pictures):
    """transformers' features of the same strings and photos, as they were committed."""
    reference = expected("whole")
    named = [i for i, text in enumerate(TEXTS) if text]  # A class has a name.
    cosines = unit(reference["photo_features"]) @ unit(reference["string_features"][named]).T
    result = jaxclip.classify(clip, pictures, [TEXTS[i] for i in named], templates=["{}"])
    np.testing.assert_allclose(result.scores, cosines, atol=1e-5)
    scale = float(jnp.exp(clip.model.logit_scale[...]))
    np.testing.assert_allclose(result.probabilities, jax.nn.softmax(scale * cosines), atol=1e-5)


def test_top(clip, pictures):
    result = jaxclip.classify(clip, pictures, LABELS)
    for best, row in zip(result.top(2), result.probabilities, strict=True):
        order = np.argsort(-row)
        assert [label for label, _ in best] == [result.labels[i] for i in order[:2]]
        assert [part for _, part in best] == pytest.approx(row[order[:2]].tolist())
    assert [len(best) for best in result.top(99)] == [3, 3]
    assert [len(best) for best in result.top()] == [1, 1]


def test_embeddings_stand_in_place_of_labels(clip, classes, pictures):
    by_words = jaxclip.classify(clip, pictures, LABELS)
    long = 7 * classes.astype(np.float16)
    for labels, names in (
        (classes, ["0", "1", "2"]),
        (jnp.asarray(classes), ["0", "1", "2"]),
        (long, ["0", "1", "2"]),
        (dict(zip("abc", long, strict=True)), ["a", "b", "c"]),
    ):
        found = jaxclip.classify(clip, pictures, labels, templates=["no place for a name"])
        assert found.labels == names
        np.testing.assert_allclose(found.scores, by_words.scores, atol=1e-3)  # float16's.
    made = classes_of(clip, {"x": "cat"})
    assert (made.keys, made.labels) == (["x"], ["cat"])
    np.testing.assert_allclose(jaxclip.classify(clip, pictures, made).scores, by_words.scores[:, :1], atol=1e-6)


def test_a_lone_image_tower_takes_embeddings_and_a_scale(pictures):
    clip = jaxclip.load(FOLDER / "vision_projection")
    clip.image_processor = jaxclip.load(FOLDER / "whole").image_processor
    embeddings = np.random.default_rng(0).normal(size=(3, 22))
    with pytest.raises(ValueError, match=r"no logit_scale, as it has one tower.*ln 100 = 4\.6052"):
        jaxclip.classify(clip, pictures, embeddings)
    result = jaxclip.classify(clip, pictures, embeddings, logit_scale=math.log(100))
    cosines = np.asarray(clip.encode_image(pictures)) @ unit(embeddings).T
    np.testing.assert_allclose(result.scores, cosines, atol=1e-6)
    np.testing.assert_allclose(result.probabilities, jax.nn.softmax(100 * cosines), atol=1e-4)
    with pytest.raises(ValueError, match="no text tower"):
        jaxclip.classify(clip, pictures, ["cat"], logit_scale=4.6)


@pytest.fixture
def folder(tmp_path, pictures):
    """The two photos, once on their side and turned back by EXIF, and what is no photo."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures[0].save(tmp_path / "photos" / "chelsea.png")
    pictures[1].rotate(90, expand=True).save(tmp_path / "photos" / "more" / "coffee.png", exif=turned)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def test_images_from_anywhere(clip, folder, pictures):
    scores = jaxclip.classify(clip, pictures, LABELS).scores
    paths = [folder / "chelsea.png", folder / "more" / "coffee.png"]
    for images, rows, names in (
        (folder, [0, 1], paths),
        (str(folder), [0, 1], paths),
        (paths[1], [1], paths[1:]),
        (
            [paths[1], pictures[0], np.asarray(pictures[1]), str(folder / "more")],
            [1, 0, 1, 1],
            [paths[1], 1, 2, paths[1]],
        ),
        (pictures[1], [1], [0]),
        (np.asarray(pictures[0]), [0], [0]),
        ((picture for picture in pictures), [0, 1], [0, 1]),
        (np.stack([np.asarray(pictures[0])] * 2), [0, 0], [0, 1]),
    ):  # fmt: skip
        found = jaxclip.classify(clip, images, LABELS)
        assert found.images == names
        np.testing.assert_allclose(found.scores, scores[rows], atol=1e-6)
        assert [path for path, _ in found.skipped] == ([folder / "notes.txt"] if names == paths else [])


def test_what_can_not_be_read_is_skipped_and_named(clip, folder, pictures):
    broken = (folder / "chelsea.png").read_bytes()[:500]
    found = jaxclip.classify(clip, [folder / "notes.txt", pictures[0], broken], LABELS)
    assert found.images == [1]
    assert [name for name, _ in found.skipped] == [folder / "notes.txt", 2]
    assert "no image format" in found.skipped[0][1]
    assert found.skipped[1][1].startswith("image 2: ")
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        jaxclip.classify(clip, [folder / "nowhere"], LABELS)
    nothing = jaxclip.classify(clip, folder / "notes.txt", LABELS)
    assert (nothing.probabilities.shape, nothing.top()) == ((0, 3), [])


def test_a_dataset_of_images(clip, folder, pictures):
    datasets = pytest.importorskip("datasets")
    contents = [(folder / "chelsea.png").read_bytes(), b"no photo", (folder / "more" / "coffee.png").read_bytes()]
    data = {"photo": [{"bytes": content, "path": None} for content in contents], "text": ["a", "b", "c"]}
    features = datasets.Features({"photo": datasets.Image(), "text": datasets.Value("string")})
    found = jaxclip.classify(clip, datasets.Dataset.from_dict(data, features=features), LABELS)
    assert found.images == [0, 2]
    assert [name for name, _ in found.skipped] == [1]
    np.testing.assert_allclose(found.scores, jaxclip.classify(clip, pictures, LABELS).scores, atol=1e-6)
    on_disk = datasets.Dataset.from_dict({"photo": [str(folder / "chelsea.png")]})
    found = jaxclip.classify(clip, on_disk.cast_column("photo", datasets.Image()), LABELS)
    assert (found.images, found.skipped) == ([0], [])
    with pytest.raises(ValueError, match=r"needs one column of Image, and has 0 .* Its columns: photo \(Value\)"):
        jaxclip.classify(clip, on_disk, LABELS)


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        ("cat", {}, TypeError, "labels are a list of class names: put 'cat' into one"),
        ([], {}, ValueError, "labels is empty"),
        ({}, {}, ValueError, "labels is empty"),
        (["cat", []], {}, ValueError, r"a class is a name or some names, got \[\]"),
        (["cat", " "], {}, ValueError, "a class is a name or some names, got ' '"),
        (["cat"], {"templates": "a {}"}, TypeError, "templates are a list of prompts"),
        (["cat"], {"templates": []}, ValueError, "a template has {} where"),
        (["cat"], {"templates": ["a {}", "a photo"]}, ValueError, "got 'a photo'"),
        (["cat"], {"logit_scale": 100.0}, ValueError, "for a scale of 100 pass 4.6052, got 100"),
        (["cat"], {"logit_scale": math.nan}, ValueError, "logit_scale is the logarithm"),
        (["cat", "\ud800"], {}, ValueError, "lone surrogate"),
        (np.ones((2, 19)), {}, ValueError, r"must be \(classes, 20\) for this model, got \(2, 19\)"),
        (np.zeros((2, 20)), {}, ValueError, "the embedding of class 0 is zero or not finite"),
        (np.full((2, 20), np.nan), {}, ValueError, "the embedding of class 0 is zero or not finite"),
    ],
)
def test_what_is_no_class_raises(clip, pictures, labels, options, error, message):
    with pytest.raises(error, match=message):
        jaxclip.classify(clip, pictures, labels, **options)


def test_any_number_of_classes(clip, monkeypatch):
    """More than one window of prompts, and each class in its place."""
    monkeypatch.setattr("jaxclip.streaming._WINDOW", 1)
    names = [f"thing {i}" for i in range(150)]
    found = np.asarray(jaxclip.zero_shot_classifier(clip, names, ["{}"]))
    some = [0, 1, 63, 64, 127, 128, 149]
    np.testing.assert_allclose(found[some], clip.encode_text([names[i] for i in some]), atol=1e-6)
