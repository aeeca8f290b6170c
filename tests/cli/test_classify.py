import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import FOLDER
from PIL import Image

import jaxclip
from jaxclip.cli import main


@pytest.fixture
def templates(tmp_path):
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n{}\n")
    return tmp_path / "templates.txt"


@pytest.fixture
def labels(tmp_path):
    (tmp_path / "labels.txt").write_text("c1\tcat, kitten\ntable\nc3\tcup of coffee\n")
    return tmp_path / "labels.txt"


NAMES = {"c1": ["cat", "kitten"], "table": "table", "c3": "cup of coffee"}


def test_prints_the_best_classes_of_each_photo(folder, model, capsys):
    assert main(["classify", str(folder), "--labels", "cat, dog,cup of coffee", "--top", "2", "--model", model]) == 0
    printed = capsys.readouterr()
    result = jaxclip.classify(jaxclip.load(model), folder, ["cat", "dog", "cup of coffee"])
    wanted = [
        "\t".join([str(path), *(cell for label, part in best for cell in (label, f"{part:.4f}"))])
        for path, best in zip(result.images, result.top(2), strict=True)
    ]
    assert printed.out.splitlines() == wanted
    assert len(wanted) == 2
    assert printed.err == ""


def test_several_places_synonyms_and_templates(folder, model, labels, templates, capsys):
    photos = [str(folder / "coffee.png"), str(folder)]
    options = ["--labels-file", str(labels), "--templates-file", str(templates), "--json", "--model", model]
    (folder / "bad.png").write_bytes(b"no photo")
    assert main(["classify", *photos, *options]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    result = jaxclip.classify(jaxclip.load(model), photos, NAMES, templates=["a photo of a {}.", "{}"])
    assert document["model"] == {"source": model, "revision": None}
    assert document["labels"] == ["cat", "table", "cup of coffee"]
    assert [image["item"] for image in document["images"]] == [photos[0], str(folder / "chelsea.png"), photos[0]]
    for image, best, scores in zip(document["images"], result.top(3), result.scores, strict=True):
        assert [(found["label"], found["probability"]) for found in image["classes"]] == [
            (label, pytest.approx(part, abs=1e-6)) for label, part in best
        ]
        for found in image["classes"]:
            assert found["score"] == pytest.approx(scores[document["labels"].index(found["label"])], abs=1e-6)
    assert document["skipped"] == [{"item": str(folder / "bad.png"), "reason": result.skipped[0][1]}]
    assert printed.err.startswith("skipped: ")


def test_embeddings_and_a_lone_image_tower(folder, labels, tmp_path, capsys):
    model = shutil.copytree(FOLDER / "vision_projection", tmp_path / "tower")
    shutil.copy(FOLDER / "whole" / "preprocessor_config.json", model)
    embeddings = np.random.default_rng(0).normal(size=(3, 22)).astype(np.float32)
    np.save(tmp_path / "classes.npy", embeddings)
    options = ["--labels-file", str(labels), "--embeddings", str(tmp_path / "classes.npy"), "--model", str(model)]
    assert main(["classify", str(folder), *options]) == 2
    assert "no logit_scale, as it has one tower" in capsys.readouterr().err
    assert main(["classify", str(folder), *options, "--logit-scale", "4.6052", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    result = jaxclip.classify(jaxclip.load(model), folder, embeddings, logit_scale=4.6052)
    for image, row in zip(document["images"], result.probabilities, strict=True):
        found = {best["label"]: best["probability"] for best in image["classes"]}
        assert found == pytest.approx(dict(zip(["cat", "table", "cup of coffee"], row.tolist(), strict=True)), abs=1e-5)
    assert main(["classify", str(folder), "--labels", "a,b", *options[2:], "--logit-scale", "4.6"]) == 2
    assert "classes.npy: has 3 rows, and there are 2 labels" in capsys.readouterr().err


COLORS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (10, 30, 210)}


@pytest.fixture
def labelled(tmp_path):
    """Three classes of seven photos, each photo of one color with a little noise, and a bad one."""
    root = tmp_path / "labelled"
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for seed in range(7):
            noise = np.random.default_rng(seed).integers(-10, 10, (24, 32, 3))
            Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(root / name / f"{seed}.png")
    (root / "blue" / "bad.png").write_bytes(b"no photo")
    return root


def test_draws_the_photos_with_their_classes(tmp_path, model, capsys):
    (tmp_path / "photos").mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (60, 40), color).save(tmp_path / "photos" / f"{name}.png")
    out = tmp_path / "classified.png"
    arguments = ["classify", str(tmp_path / "photos"), "--labels", "a,b", "-o", str(out), "--model", model]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    picture = np.asarray(Image.open(out).convert("RGB"))
    lefts = []
    for name in sorted(COLORS):
        area = (picture == COLORS[name]).all(axis=-1)
        assert area.sum() == 270 * 180
        lefts.append(area.any(axis=0).argmax())
    assert lefts == sorted(lefts)
    assert sorted(os.listdir(tmp_path)) == ["classified.png", "photos"]


def test_evaluates_a_folder(labelled, model, tmp_path, capsys):
    (tmp_path / "names.tsv").write_text("red\ta red field, rubies\ngreen\tgrass\nblue\tthe sea\nnone\ta cat\n")
    out = tmp_path / "confusion.png"
    arguments = ["--labels-file", str(tmp_path / "names.tsv"), "--index", str(tmp_path / "index"), "--model", model]
    command = ["classify", "--evaluate", str(labelled), *arguments]
    assert main([*command, "-o", str(out)]) == 1
    printed = capsys.readouterr()
    names = {"red": ["a red field", "rubies"], "green": "grass", "blue": "the sea", "none": "a cat"}
    expected = jaxclip.evaluate_zero_shot(jaxclip.load(model), labelled, names).metrics
    lines = printed.out.splitlines()
    assert lines[0] == "labelled: 21 images, 4 classes, 1 skipped"
    assert lines[1] == f"top-1           {expected.top_1:.4f}"
    assert lines[2] == f"mean per class  {expected.mean_per_class:.4f}"
    assert lines[3].startswith("images/s        ")
    assert float(lines[3].split()[1]) > 0
    worst = expected.worst_confusions()
    assert lines[4] == "worst confusions"
    assert [line.split("  ")[-1] for line in lines[5:]] == [f"{pair.label} → {pair.predicted}" for pair in worst]
    assert [line.split("  ")[1] for line in lines[5:]] == [f"{pair.count} of {pair.images}" for pair in worst]
    assert printed.err.count("skipped: ") == 1
    assert out.read_bytes().startswith(b"\x89PNG")

    assert main([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["data"] == "labelled"
    assert (document["images"], document["classes"]) == (21, 4)
    assert document["top_1"] == pytest.approx(expected.top_1)
    assert document["top_5"] is None
    assert document["mean_per_class"] == pytest.approx(expected.mean_per_class)
    assert document["images_per_second"] is None  # All are in the index.
    assert document["per_class"] == expected.per_class
    assert [(pair["label"], pair["predicted"], pair["count"], pair["images"]) for pair in document["confusions"]] == [
        (pair.label, pair.predicted, pair.count, pair.images) for pair in worst
    ]
    assert document["skipped"][0]["item"] == str(labelled / "blue" / "bad.png")


def test_labels_are_the_folders_names_unless_given(labelled, model, templates, capsys):
    (labelled / "blue" / "bad.png").unlink()
    arguments = ["classify", "--evaluate", str(labelled), "--json", "--model", model]
    clip, found = jaxclip.load(model), []
    for more, options in (
        ([], {}),
        (["--templates-file", str(templates)], {"templates": ["a photo of a {}.", "{}"]}),
        (["--labels", "red,green,blue,white"], {"labels": ["red", "green", "blue", "white"]}),
    ):
        assert main([*arguments, *more]) == 0
        document = json.loads(capsys.readouterr().out)
        metrics = jaxclip.evaluate_zero_shot(clip, labelled, **options).metrics
        assert document["per_class"] == metrics.per_class
        assert document["classes"] == len(metrics.labels)
        found.append(document["classes"])
    assert found == [3, 3, 4]


def test_linear_probe(labelled, model, tmp_path, capsys):
    arguments = ["classify", "--evaluate", str(labelled), "--linear-probe", "--model", model]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "labelled: 21 images, 3 classes, 1 skipped"
    assert lines[1] == "top-1           1.0000"
    assert len(lines[4].split(",")) == 5
    assert lines[4].startswith("L2              ")
    assert len(lines) == 5  # Nothing is taken for anything else.
    train = shutil.copytree(labelled, tmp_path / "train")
    (train / "blue" / "bad.png").unlink()
    kept = ["--index", str(tmp_path / "a"), "--train-index", str(tmp_path / "b")]
    (tmp_path / "names.tsv").write_text("red\tROT\ngreen\tGRÜN\nblue\tBLAU\n", encoding="utf-8")
    names = ["--labels-file", str(tmp_path / "names.tsv")]
    assert main([*arguments, "--train", str(train), *kept, *names, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["per_class"] == {"BLAU": 1, "GRÜN": 1, "ROT": 1}
    assert len(document["penalties"]) == 1
    assert (tmp_path / "a" / "manifest.json").exists()
    assert (tmp_path / "b" / "manifest.json").exists()


def test_a_saved_dataset(labelled, model, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    names = list(COLORS)
    rows = [(path, number) for number, name in enumerate(names) for path in sorted((labelled / name).glob("?.png"))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [{"bytes": path.read_bytes(), "path": None} for path, _ in rows]
    split = datasets.Dataset.from_dict({"image": images, "label": [n for _, n in rows]}, features=features)
    datasets.DatasetDict({"train": split, "validation": split.select(range(8))}).save_to_disk(tmp_path / "saved")
    capsys.readouterr()
    arguments = ["classify", "--dataset", str(tmp_path / "saved"), "--json", "--model", model]
    clip = jaxclip.load(model)
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 8
    assert document["per_class"] == jaxclip.evaluate_zero_shot(clip, split.select(range(8))).metrics.per_class
    probe = [*arguments, "--linear-probe", "--train", "train", "--split", "validation"]
    assert main([*probe, "--label-column", "label"]) == 0
    assert json.loads(capsys.readouterr().out)["top_1"] == 1
    assert main([*arguments, "--split", "test"]) == 2
    assert "has the splits train, validation: name one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "a"], "say what to classify: IMAGES, --evaluate DIR or --dataset NAME, one of them"),
        (["x", "--evaluate", "y"], "say what to classify"),
        (["--dataset", "x", "--evaluate", "y"], "say what to classify"),
        (["x"], "say which classes there are"),
        (["--evaluate", "x", "--embeddings", "y"], "say which classes there are"),
        (["x", "--labels", "a", "--labels-file", "b"], "stand in each other's place"),
        (
            ["x", "--labels", "a", "--embeddings", "b", "--templates-file", "c"],
            "stand in place of what --templates-file",
        ),
        (["--evaluate", "x", "--linear-probe", "--templates-file", "c"], "it learns from photos"),
        (["--evaluate", "x", "--train", "y"], "--train is what a --linear-probe is fitted on"),
        (["--evaluate", "x", "--linear-probe", "--train-index", "y"], "--train-index is for the photos of --train"),
        (["x", "--labels", "a", "--index", "y"], "are for labelled photos"),
        (["--evaluate", "x", "--split", "y"], "are of a --dataset"),
        (["x", "--labels", "a", "--top", "0"], "--top must be at least 1, got 0"),
        (["x", "--labels", "a", "--logit-scale", "b"], "invalid float value: 'b'"),
    ],
)
def test_mistyped_arguments_are_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exited:
        main(["classify", *arguments])
    assert exited.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--labels", "a"], "nowhere: no such file or folder"),
        (["photos", "--labels-file", "nowhere"], "nowhere: no such file or folder"),
        (["photos", "--labels", "a,,b"], "--labels a,,b: name each class once"),
        (["photos", "--labels", "a,b,a"], "--labels a,b,a: name each class once"),
        (
            ["photos", "--labels", "a", "--templates-file", "bad.txt"],
            "a template has {} where the name of a class goes",
        ),
        (["photos", "--labels", "a", "--logit-scale", "100"], "logit_scale is the logarithm of the scale"),
        (["empty", "--labels", "a"], "no photos could be read in empty"),
        (["photos", "--labels", "a", "-o", "x.gif"], "name a file that ends with .png"),
        (["photos", "--labels", "a", "-o", "photos/coffee.png"], "is there already, among the photos of photos"),
        (["--evaluate", "empty"], "empty: has no sub-folders"),
        (["--evaluate", "."], "of the images' classes have no label"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_status_2(folder, model, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    (folder.parent / "bad.txt").write_text("a photo\n")
    more = ["--labels", "cat"] if arguments[-1] == "." else []
    assert main(["classify", *arguments, *more, "--model", model]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip classify: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_ctrl_c_says_what_is_kept(labelled, model, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxclip.tasks.evaluation.labelled_vectors", interrupt)
    command = ["classify", "--evaluate", str(labelled), "--model", model]
    assert main(command) == 130
    assert capsys.readouterr().err == "jaxclip classify: interrupted\n"
    assert main([*command, "--index", str(tmp_path / "index")]) == 130
    assert capsys.readouterr().err == ("jaxclip classify: interrupted; what was done is kept: run it again to go on\n")


def test_a_terminal_gets_a_table_that_fits(folder, model):
    shutil.move(folder / "coffee.png", folder / ("very long " * 8 + "coffee.png"))
    reader, writer = pty.openpty()
    code = "import sys; from jaxclip.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"COLUMNS": "70", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code, "classify", str(folder), "--labels", "cat,a cup of coffee", "--model", model]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = os.read(reader, 10_000).decode().splitlines()
    os.close(reader)
    assert len(rows) == 2
    assert all(len(row) <= 70 for row in rows)
    assert len({row.index("   0.") for row in rows}) == 1
    assert all("a cup of coffee" in row and " cat" in row for row in rows)
    for row in rows:
        assert sum(map(float, re.findall(r"\b\d\.\d\d\b", row))) == pytest.approx(1, abs=0.011)
    assert sum("…" in row and "coffee.png" in row for row in rows) == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["classify", "--help"])
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    assert 'jaxclip classify photos/ --labels "cat,dog,truck"' in printed
    assert Path(__file__).name not in printed
