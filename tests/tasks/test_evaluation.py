import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip.tasks.images import open_dataset
from jaxclip.tasks.index import Index
from jaxclip.tasks.labelled_images import class_names, labelled_vectors
from jaxclip.tasks.zero_shot import zero_shot_classifier

COLORS = {"red_cat": (200, 40, 30), "n01": (30, 180, 60), "blue": (20, 40, 210)}


def paint(path, color, seed):
    noise = np.random.default_rng(seed).integers(-30, 30, (6, 8, 3))
    Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).resize((32, 24)).save(path)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Three classes of seven photos each that a probe can tell apart."""
    root = tmp_path_factory.mktemp("painted")
    for name, color in COLORS.items():
        (root / name).mkdir()
        for seed in range(7):
            paint(root / name / f"{seed}.png", color, seed)
    return root


@pytest.fixture
def root(painted, tmp_path):
    """A copy, and in it what belongs to no class, and two bad files."""
    root = shutil.copytree(painted, tmp_path / "labelled")
    (root / "classes.tsv").write_text("of no class, and not skipped")
    shutil.copy(root / "blue" / "0.png", root / "stray.png")
    (root / ".hidden").mkdir()
    (root / "blue" / "bad.png").write_bytes(b"no photo")
    (root / "n01" / "more").mkdir()
    (root / "n01" / "more" / "bad.png").write_bytes(b"no photo")
    shutil.move(root / "n01" / "0.png", root / "n01" / "more" / "0.png")
    return root


LABELS = {"red_cat": ["cat", "kitten"], "blue": "the sea", "n01": ["tench", "Tinca tinca"], "none": "a cup of coffee"}


def expected(clip, root, labels):
    """Confusions, by hand: rows and columns as `labels`."""
    classes = np.asarray(zero_shot_classifier(clip, labels))
    confusion = np.zeros((len(labels), len(labels)), int)
    for row, name in enumerate(labels):
        for path in sorted((root / name).rglob("[0-9].png")):
            confusion[row, (classes @ np.asarray(clip.encode_image(path))).argmax()] += 1
    return confusion


@pytest.fixture
def encoded(clip, monkeypatch):
    """How many images were encoded."""
    counts, images = [], clip.encoder.images

    def spy(model, pixels, **options):
        counts.append(len(pixels))
        return images(model, pixels, **options)

    monkeypatch.setattr(clip.encoder, "images", spy)
    return counts


@pytest.mark.parametrize("indexed", [False, True])
def test_zero_shot_is_the_loop_by_hand(clip, root, tmp_path, indexed):
    index = tmp_path / "index" if indexed else None
    found = jaxclip.evaluate_zero_shot(clip, root, LABELS, index=index)
    confusion = expected(clip, root, LABELS)
    np.testing.assert_array_equal(found.metrics.confusion, confusion)
    assert confusion.sum() == 21
    assert found.metrics.labels == ["cat", "the sea", "tench", "a cup of coffee"]
    assert found.metrics.top_1 == pytest.approx(confusion.trace() / 21)
    assert found.metrics.per_class.keys() == {"cat", "the sea", "tench"}
    assert {path for path, _ in found.skipped} == {root / "blue" / "bad.png", root / "n01" / "more" / "bad.png"}
    assert found.images_per_second > 0
    assert found.penalties == ()


def test_names_of_folders_and_embeddings_stand_for_labels(clip, painted):
    confusion = expected(clip, painted, {"blue": "blue", "n01": "n01", "red_cat": "red cat"})
    by_name = jaxclip.evaluate_zero_shot(clip, painted)
    np.testing.assert_array_equal(by_name.metrics.confusion, confusion)
    assert by_name.metrics.labels == ["blue", "n01", "red cat"]
    embeddings = zero_shot_classifier(clip, ["blue", "n01", "red cat"])
    for labels in (embeddings, dict(zip(["red_cat", "n01", "blue"], np.asarray(embeddings)[::-1], strict=True))):
        found = jaxclip.evaluate_zero_shot(clip, painted, labels)
        order = [found.metrics.labels.index(name) for name in ("blue", "n01", "red_cat")]
        np.testing.assert_array_equal(found.metrics.confusion[np.ix_(order, order)], confusion)
    plain = jaxclip.evaluate_zero_shot(clip, painted, templates=["{}"])
    words = np.asarray(clip.encode_text(["blue", "n01", "red cat"]))
    blue = np.asarray(clip.encode_image(sorted((painted / "blue").iterdir()))) @ words.T
    np.testing.assert_array_equal(plain.metrics.confusion[0], np.bincount(blue.argmax(axis=1), minlength=3))


@contextmanager
def interrupted_after_two_batches(clip, encoded, monkeypatch):
    images = clip.encoder.images

    def interrupt(model, pixels, **options):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return images(model, pixels, **options)

    with monkeypatch.context() as patch:
        patch.setattr(clip.encoder, "images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_an_index_is_gone_on_with(clip, root, tmp_path, encoded, monkeypatch):
    whole = jaxclip.evaluate_zero_shot(clip, root, LABELS).metrics
    encoded.clear()
    with interrupted_after_two_batches(clip, encoded, monkeypatch):
        jaxclip.evaluate_zero_shot(clip, root, LABELS, index=tmp_path / "index", batch_size=4)
    kept = len(Index.open(tmp_path / "index"))
    assert 0 < kept < 21
    encoded.clear()
    rest = jaxclip.evaluate_zero_shot(clip, root, LABELS, index=tmp_path / "index", batch_size=4)
    assert sum(encoded) == 22 - kept  # The stray photo has a vector in the index as well.
    np.testing.assert_array_equal(rest.metrics.confusion, whole.confusion)
    encoded.clear()
    again = jaxclip.evaluate_zero_shot(clip, root, {**LABELS, "n01": "a fish"}, index=tmp_path / "index")
    assert sum(encoded) == 0
    assert again.images_per_second is None
    assert len(again.skipped) == 2
    assert again.metrics.images == 21


def test_labels_are_checked_before_the_work(clip, root, encoded):
    with pytest.raises(ValueError, match=r"2 of the images' classes have no label: blue, n01\. Name them"):
        jaxclip.evaluate_zero_shot(clip, root, ["red_cat", "dog"])
    with pytest.raises(ValueError, match="the images have 3 classes, and the embeddings 2 rows"):
        jaxclip.evaluate_zero_shot(clip, root, np.ones((2, 20)))
    with pytest.raises(ValueError, match="2 of the images' classes have no label: n01, red_cat"):
        jaxclip.evaluate_linear_probe(clip, root, labels={"blue": "x"})
    with pytest.raises(ValueError, match="have none of the classes blue, n01, red_cat"):
        jaxclip.evaluate_linear_probe(clip, root, train=root / "n01")
    assert encoded == []


def test_what_has_no_classes(clip, tmp_path):
    for make, message in (
        (lambda: None, "no such folder; name one with a sub-folder"),
        (lambda: (tmp_path / "data").mkdir(), "has no sub-folders"),
        (lambda: (tmp_path / "data" / "a").mkdir(), "no image of a class could be read"),
        (lambda: (tmp_path / "data" / "a" / "b.png").write_text("x"), "could be read; .*b.png.*no image format"),
    ):
        make()
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            jaxclip.evaluate_zero_shot(clip, tmp_path / "data")
    with pytest.raises(NotADirectoryError, match=r"b\.png: no folder; name one"):
        class_names(tmp_path / "data" / "a" / "b.png")


def test_linear_probe(clip, painted, tmp_path):
    """Cross-validated, and fitted on other photos, of which one class comes more."""
    crossed = jaxclip.evaluate_linear_probe(clip, painted, labels={"blue": "sea", "n01": "tench", "red_cat": "cat"})
    assert crossed.metrics.top_1 > 0.8
    assert crossed.metrics.labels == ["sea", "tench", "cat"]
    assert crossed.metrics.images == 21
    assert len(crossed.penalties) == 5
    train = tmp_path / "train"
    for name, color in {**COLORS, "another": (120, 120, 120)}.items():
        (train / name).mkdir(parents=True)
        for seed in range(10, 16):
            paint(train / name / f"{seed}.png", color, seed)
    (train / "blue" / "bad.png").write_bytes(b"no photo")
    fitted = jaxclip.evaluate_linear_probe(
        clip, painted, train, index=tmp_path / "index", train_index=tmp_path / "train_index"
    )
    assert fitted.metrics.labels == ["another", "blue", "n01", "red_cat"]
    assert fitted.metrics.confusion[0].sum() == 0
    assert fitted.metrics.top_1 > 0.8
    assert len(fitted.penalties) == 1
    assert [path for path, _ in fitted.skipped] == [train / "blue" / "bad.png"]
    assert (len(Index.open(tmp_path / "index")), len(Index.open(tmp_path / "train_index"))) == (21, 24)


def content(path):
    return {"bytes": path.read_bytes(), "path": None}


@pytest.fixture(scope="module")
def dataset(painted):
    """The same photos in another order of classes, a bad one, one without an image and two without a label."""
    datasets = pytest.importorskip("datasets")
    names = ["n01", "red_cat", "blue"]
    paths = [(painted / name / f"{seed}.png", names.index(name)) for seed in range(7) for name in names]
    images = [content(path) for path, _ in paths]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {
        "image": [*images[:5], {"bytes": b"no photo", "path": None}, *images[5:], None, images[0], images[1]],
        "label": [*(label for _, label in paths[:5]), 1, *(label for _, label in paths[5:]), 0, -1, None],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("indexed", [False, True])
def test_datasets(clip, painted, dataset, tmp_path, indexed):
    index = tmp_path / "index" if indexed else None
    found = jaxclip.evaluate_zero_shot(clip, dataset, LABELS, index=index)
    np.testing.assert_array_equal(found.metrics.confusion, expected(clip, painted, LABELS))
    reasons = dict(found.skipped)
    assert set(reasons) == {5, 22, 23, 24}
    assert "image 5: " in reasons[5]
    assert reasons[23] == reasons[24].replace("24", "23") == "image 23: has no class"
    by_name = jaxclip.evaluate_zero_shot(clip, dataset, index=index)
    assert by_name.metrics.labels == ["n01", "red cat", "blue"]
    assert (by_name.images_per_second is None) == indexed
    probed = jaxclip.evaluate_linear_probe(clip, dataset, index=index)
    assert probed.metrics.top_1 > 0.8


def test_the_index_of_a_dataset_is_gone_on_with_and_no_other_datasets(clip, dataset, tmp_path, encoded, monkeypatch):
    whole = labelled_vectors(clip, dataset)
    encoded.clear()
    with interrupted_after_two_batches(clip, encoded, monkeypatch):
        labelled_vectors(clip, dataset, index=tmp_path / "index", batch_size=4)
    kept = len(Index.open(tmp_path / "index"))
    assert 0 < kept < 21
    encoded.clear()
    rest = labelled_vectors(clip, dataset, index=tmp_path / "index", batch_size=4)
    assert sum(encoded) == 21 - kept
    order, other = np.lexsort(whole.vectors.T), np.lexsort(rest.vectors.T)
    np.testing.assert_allclose(rest.vectors[other], whole.vectors[order], atol=1e-6)
    np.testing.assert_array_equal(rest.targets[other], whole.targets[order])

    with pytest.raises(ValueError, match="has another image 0: name another folder for this dataset"):
        labelled_vectors(clip, dataset.select(range(1, 20)), index=tmp_path / "index")
    with pytest.raises(ValueError, match="has other images as well: name another folder"):
        labelled_vectors(clip, dataset.select(range(10)), index=tmp_path / "index")
    monkeypatch.setattr(dataset.info, "builder_name", "imagenette", raising=False)
    with pytest.raises(ValueError, match="has the root dataset, and this would be imagenette"):
        labelled_vectors(clip, dataset, index=tmp_path / "index")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        labelled_vectors(clip, dataset, index=tmp_path / "other")


def test_columns_of_labels(clip, dataset):
    datasets = pytest.importorskip("datasets")
    two = dataset.add_column("coarse", [0] * len(dataset)).cast_column("coarse", datasets.ClassLabel(names=["thing"]))
    with pytest.raises(ValueError, match=r"one column of ClassLabel, and has 2 \(label, coarse\): name it"):
        class_names(two)
    assert class_names(two, "coarse") == ["thing"]
    assert class_names(two, "label") == ["n01", "red_cat", "blue"]
    with pytest.raises(ValueError, match="'image' is Image"):
        class_names(two, "image")


def test_saved_datasets(dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset.save_to_disk(tmp_path / "one")
    splits = {name: dataset.select(range(n)) for name, n in (("train", 3), ("validation", 2))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "dict")
    datasets.DatasetDict({**splits, "test": dataset.select(range(1))}).save_to_disk(tmp_path / "three")
    datasets.DatasetDict({"a": splits["train"], "b": dataset}).save_to_disk(tmp_path / "odd")
    assert len(open_dataset(str(tmp_path / "one"))) == 25
    assert len(open_dataset(str(tmp_path / "dict"))) == 2
    assert len(open_dataset(str(tmp_path / "three"))) == 1
    assert len(open_dataset(str(tmp_path / "dict"), split="train")) == 3
    for name, options, message in (
        ("odd", {}, "has the splits a, b: name one of them"),
        ("dict", {"split": "test"}, "has the splits train, validation"),
        ("one", {"split": "test"}, "is saved without splits"),
        ("one", {"subset": "320px"}, "a saved dataset has no subsets"),
    ):
        with pytest.raises(ValueError, match=message):
            open_dataset(str(tmp_path / name), **options)


def test_without_datasets_it_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "jaxclip\[datasets\]"'):
        open_dataset("frgfm/imagenette")
