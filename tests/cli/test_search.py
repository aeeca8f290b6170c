import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip.cli import main

COMMAND = [sys.executable, "-c", "import sys; from jaxclip.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def index(folder, model, capsys):
    assert main(["embed", str(folder), "-o", str(folder.parent / "index"), "--model", model]) == 0
    capsys.readouterr()
    return folder.parent / "index"


@pytest.fixture
def loaded(monkeypatch):
    """Which towers were loaded, in order."""
    towers, load = [], jaxclip.load

    def spy(*args, **kwargs):
        towers.append(kwargs.get("towers"))
        return load(*args, **kwargs)

    monkeypatch.setattr("jaxclip.clip.load", spy)
    return towers


def lines(hits):
    return [f"{rank}  {hit.score:7.4f}  {hit.item}" for rank, hit in enumerate(hits, start=1)]


def test_prints_the_best_first(folder, model, capsys):
    assert main(["search", "a cat", str(folder), "--model", model]) == 0
    printed = capsys.readouterr()
    hits = jaxclip.search(jaxclip.load(model), "a cat", folder).hits
    assert printed.out.splitlines() == lines(hits)
    assert hits[0].score > hits[1].score
    assert printed.err == ""  # No progress bar where nobody looks.


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("where", ["photos", "photos/coffee.png", "index", "captions.txt"])
def test_every_direction_is_the_librarys_with_no_tower_more(
    folder, captions, index, model, loaded, capsys, image, where
):
    place = folder.parent / where
    query = folder / "chelsea.png" if image else "two dogs"
    arguments = ["--image", str(query)] if image else [query]
    arguments += [] if where == "index" else ["--model", model]
    assert main(["search", *arguments, str(place)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert loaded == [
        {
            "photos": {True: "vision", False: "both"},
            "photos/coffee.png": {True: "vision", False: "both"},
            "index": {True: "vision", False: "text"},
            "captions.txt": {True: "both", False: "text"},
        }[where][image]
    ]
    clip = jaxclip.load(model)
    result = jaxclip.search(clip, query, place)
    assert printed == lines(result.hits)
    wanted = clip.encode_image(query) if image else clip.encode_text(query)
    items = [hit.item for hit in result.hits]
    vectors = clip.encode_text(items) if where == "captions.txt" else clip.encode_image(items)
    np.testing.assert_allclose([hit.score for hit in result.hits], vectors @ wanted, atol=1e-6)
    expected = {"index": 2, "photos": 2, "photos/coffee.png": 1, "captions.txt": 3}
    assert len(items) == expected[where]


@pytest.mark.parametrize(
    "arguments",
    [
        ["a cat", "PHOTOS", "--top", "1", "--model", "MODEL"],
        ["a cat", "--top", "1", "PHOTOS", "--model", "MODEL"],
        ["--top", "1", "a cat", "--model", "MODEL", "PHOTOS"],
        ["--model", "MODEL", "--top=1", "a cat", "PHOTOS"],
        ["--model", "MODEL", "--top", "1", "--", "-a", "PHOTOS"],
        ["--top", "1", "PHOTOS", "--model", "MODEL", "--image", "QUERY", "--"],
        ["--image", "QUERY", "PHOTOS", "--top", "1", "--model", "MODEL"],
        ["PHOTOS", "--top", "1", "--model", "MODEL", "--image", "QUERY"],
    ],
)
def test_options_stand_anywhere(folder, model, capsys, arguments):
    swap = {"PHOTOS": str(folder), "MODEL": model, "QUERY": str(folder / "coffee.png")}
    assert main(["search", *(swap.get(argument, argument) for argument in arguments)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: WHERE"),
        (["a cat"], 'say what to look for and where: "words" WHERE, or --image FILE WHERE'),
        (["a cat", "b", "--image", "c"], "--image stands in place of the words"),
        (["a", "b", "c"], "unrecognized arguments: c"),
        (["a", "b", "--dtype", "float8"], "invalid choice: 'float8'"),
        (["a", "b", "--mod", "x"], "unrecognized arguments: --mod"),
    ],
)
def test_mistyped_arguments_are_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exited:
        main(["search", *arguments])
    assert exited.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_json(folder, model, capsys):
    odd = os.fsdecode(b"\xff\n.png")
    shutil.copy(folder / "coffee.png", folder / odd)
    (folder / "bad.png").write_bytes(b"no photo")
    assert main(["search", "Ein Café", str(folder), "--json", "--model", model]) == 1
    printed = capsys.readouterr()
    assert printed.out.isascii()
    document = json.loads(printed.out)
    result = jaxclip.search(jaxclip.load(model), "Ein Café", folder)
    assert document["query"] == {"text": "Ein Café"}
    assert document["where"] == str(folder)
    assert document["model"] == {"source": model, "revision": None}
    assert document["hits"] == [
        {"rank": rank, "score": hit.score, "item": str(hit.item)} for rank, hit in enumerate(result.hits, start=1)
    ]
    assert {Path(hit["item"]) for hit in document["hits"]} == {
        folder / name for name in ("coffee.png", "chelsea.png", odd)
    }
    assert document["skipped"] == [{"item": str(folder / "bad.png"), "reason": result.skipped[0][1]}]

    query = str(folder / "coffee.png")
    assert main(["search", "--image", query, str(folder), "--json", "--top", "1", "--model", model]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["query"] == {"image": query}
    assert document["hits"][0]["score"] == pytest.approx(1, abs=1e-6)


def test_the_index_names_the_model(index, model, other_model, capsys):
    """By default its own; another one is refused."""
    assert main(["search", "a cat", str(index), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == {"source": model, "revision": None}
    assert main(["search", "a cat", str(index), "--model", other_model]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"the index was made with {model!r}" in printed.err
    assert repr(other_model) in printed.err


def test_an_index_that_changes_while_the_model_loads(folder, index, model, capsys, monkeypatch):
    """What it holds when it is searched is found; where it never stays the same, one line says so."""
    load = jaxclip.load

    def change_and_load(*args, **kwargs):
        shutil.copy(folder / "coffee.png", folder / "tea.png")
        jaxclip.embed_folder(load(model), folder, index)
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("jaxclip.clip.load", change_and_load)
        assert main(["search", "a cat", str(index)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3

    def fail(*_, **__):
        raise jaxclip.IndexChangedError(f"{index}: the index has changed since it was opened: open it again")

    monkeypatch.setattr("jaxclip.tasks.search.search", fail)
    assert main(["search", "a cat", str(index)]) == 2
    assert (
        capsys.readouterr().err
        == f"jaxclip search: {index}: the index has changed since it was opened: open it again\n"
    )


def test_dtype(folder, model, capsys):
    scores = {}
    for dtype in ("float32", "bfloat16"):
        assert main(["search", "a cat", str(folder), "--json", "--dtype", dtype, "--model", model]) == 0
        scores[dtype] = {hit["item"]: hit["score"] for hit in json.loads(capsys.readouterr().out)["hits"]}
        hits = jaxclip.search(jaxclip.load(model, dtype=dtype), "a cat", folder).hits
        assert scores[dtype] == {str(hit.item): hit.score for hit in hits}
    assert scores["float32"] != scores["bfloat16"]

    index = folder.parent / "half"
    assert main(["embed", str(folder), "-o", str(index), "--dtype", "bfloat16", "--model", model]) == 0
    capsys.readouterr()
    assert main(["search", "a cat", str(index), "--json"]) == 0
    by_index = {hit["item"]: hit["score"] for hit in json.loads(capsys.readouterr().out)["hits"]}
    assert by_index == pytest.approx(scores["bfloat16"], abs=1e-6)


def test_a_revision_is_passed_on(folder, model, capsys):
    assert main(["search", "a cat", str(folder), "--revision", "main", "--model", model]) == 2
    assert "is a local folder, which has no revisions" in capsys.readouterr().err


def test_skipped_files_are_named_and_the_status_says_so(folder, model, capsys):
    (folder / "bad.png").write_bytes(b"no photo")
    assert main(["search", "a cat", str(folder), "--model", model, "--top", "1"]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert printed.err.startswith("skipped: ")
    assert "bad.png" in printed.err


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("nowhere", [], "nowhere: no such file or folder"),
        ("photos", ["--model", "./nowhere"], "no folder './nowhere'"),
        ("photos", ["--top", "0"], "top must be at least 1"),
        ("empty", [], "no photos could be read in"),
        ("blank.txt", [], "no captions in"),
        ("photos", ["-o", "hits.gif"], "name a file that ends with .png, .jpg, .pdf or .svg"),
        ("photos", ["-o", "nowhere/hits.png"], "there is no folder"),
        ("captions.txt", ["-o", "hits.png"], "has captions, and -o draws photos"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_status_2(
    folder, captions, model, capsys, monkeypatch, where, options, message
):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    (folder.parent / "blank.txt").write_text("\n")
    if "-o" in options:  # Said before the model is loaded.
        monkeypatch.setattr("jaxclip.clip.load", None)
    assert main(["search", "a cat", where, "--model", model, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip search: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("query", ["nowhere.jpg", "captions.txt"])
def test_a_query_that_is_no_image(folder, captions, model, capsys, query):
    assert main(["search", "--image", str(folder.parent / query), str(folder), "--model", model]) == 2
    printed = capsys.readouterr()
    assert query in printed.err
    assert printed.err.count("\n") == 1


def test_draws_the_hits(tmp_path, model, capsys):
    colors = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (10, 30, 210)}
    (tmp_path / "photos").mkdir()
    for name, color in colors.items():
        Image.new("RGB", (60, 40), color).save(tmp_path / "photos" / f"{name}.png")
    query, out = tmp_path / "photos" / "green.png", tmp_path / "hits.png"
    arguments = ["search", str(tmp_path / "photos"), "--top", "2", "-o", str(out), "--model", model]
    assert main([*arguments, "--image", str(query), "--json"]) == 0
    ranked = [Path(hit["item"]).stem for hit in json.loads(capsys.readouterr().out)["hits"]]
    assert ranked[0] == "green"
    picture = np.asarray(Image.open(out).convert("RGB"))
    areas = {name: (picture == color).all(axis=-1) for name, color in colors.items()}
    assert areas["green"].sum() == 270 * 180 + 150 * 100  # The query, too.
    assert areas[ranked[1]].sum() == 270 * 180
    assert {name for name, area in areas.items() if area.any()} == set(ranked)
    second = areas[ranked[1]].any(axis=0).argmax()
    assert second > 24 + 270
    assert sorted(os.listdir(tmp_path)) == ["hits.png", "photos"]


@pytest.mark.parametrize(
    ("out", "where", "message"),
    [
        ("photos/coffee.png", "photos", "among the photos of photos"),
        ("linked/coffee.png", "photos", "among the photos of photos"),
        ("photos/coffee.png", "index", "among the photos of"),
        ("photos/coffee.png", "photos/coffee.png", "is an input"),
        ("query.png", "photos", "is an input"),
        ("linked/../query.png", "photos", "is an input"),
    ],
)
def test_no_picture_replaces_a_photo(folder, index, model, capsys, monkeypatch, out, where, message):
    monkeypatch.chdir(folder.parent)
    shutil.copy(folder / "chelsea.png", "query.png")
    os.symlink("photos", "linked")
    before = Path(out).read_bytes()
    monkeypatch.setattr("jaxclip.clip.load", None)  # Said before the model is loaded.
    assert main(["search", "--image", "query.png", where, "-o", out, "--model", model]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"jaxclip search: {out}: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert Path(out).read_bytes() == before


def test_a_new_picture_may_lie_among_the_photos(folder, model):
    assert main(["search", "a cat", str(folder), "-o", str(folder / "hits.png"), "--model", model]) == 0
    assert (folder / "hits.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_so_before_the_work(folder, model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("jaxclip.clip.load", None)
    assert main(["search", "a cat", str(folder), "-o", str(folder / "hits.png"), "--model", model]) == 2
    assert 'pip install "jaxclip[plot]"' in capsys.readouterr().err


def test_a_photo_that_has_gone_since_leaves_a_grey_field(folder, index):
    (folder / "coffee.png").unlink()
    out = folder.parent / "hits.png"
    assert main(["search", "a cat", str(index), "-o", str(out)]) == 0
    grey = (np.asarray(Image.open(out).convert("RGB")) == 0xE4).all(axis=-1)
    assert grey.sum() > 0.9 * 270 * 270


def test_ctrl_c_ends_without_a_traceback(folder, model, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxclip.tasks.search.search", interrupt)
    assert main(["search", "a cat", str(folder), "--model", model]) == 130
    assert capsys.readouterr().err == "jaxclip search: interrupted\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["search", "--help"])
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    assert "two dogs running across a frosty field" in printed
    assert "--model" in printed


def test_odd_names_keep_to_their_line(folder, model, capsys):
    for name in ("new\nline.png", os.fsdecode(b"\xff.png"), "Spaß 🐕.png"):
        shutil.copy(folder / "coffee.png", folder / name)
    (folder / "bad\r.txt").touch()
    assert main(["search", "a cat", str(folder), "--model", model]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    for name in (r"new\nline.png", r"\udcff.png", "Spaß 🐕.png"):
        assert name in printed.out
    assert printed.err.count("\n") == 1


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
BUFFERING = pytest.mark.parametrize(
    "environment", [BUFFERED, BUFFERED | {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"]
)


@BUFFERING
@pytest.mark.parametrize("skipped", [False, True])
def test_a_closed_pipe_ends_quietly(folder, model, environment, skipped):
    """And after the picture is drawn, with the status that the command has anyway."""
    if skipped:
        (folder / "bad.png").write_bytes(b"no photo")
    out = folder.parent / "hits.png"
    command = [*COMMAND, "search", "a cat", str(folder), "--model", model, "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        errors = process.stderr.read().decode().splitlines()
        assert process.wait() == int(skipped)
    assert [error.split()[0] for error in errors] == ["skipped:"] * skipped
    assert out.read_bytes().startswith(b"\x89PNG")


def test_help_into_a_closed_pipe_ends_quietly():
    with subprocess.Popen(
        [*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=BUFFERED
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@BUFFERING
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_an_output_that_can_not_be_written_is_one_line_and_status_2(folder, model, environment):
    (folder / "bad.png").write_bytes(b"no photo")
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "search", "a cat", str(folder), "--model", model]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 2
    skipped, error = done.stderr.splitlines()
    assert skipped.startswith("skipped: ")
    assert error.startswith("jaxclip search: ")
    assert "No space left on device" in error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_help_that_can_not_be_written_is_one_line_and_status_2():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "jaxclip: the output could not be written: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n0: 5 MiB"),
            "RESOURCE_EXHAUSTED: Out of memory",
        ),
        (RuntimeError("Unable to initialize backend 'tpu'"), "Unable to initialize backend 'tpu'"),
        (NotImplementedError("no such layer"), "no such layer"),
        (MemoryError(), "MemoryError"),
        (BrokenPipeError(32, "Broken pipe"), "[Errno 32] Broken pipe"),  # Of the work, and not of the output.
    ],
)
def test_errors_of_the_machine_are_one_line_and_status_2(folder, model, capsys, monkeypatch, error, line):
    def fail(*_, **__):
        raise error

    error.add_note("--------------------\nFor simplicity, JAX has removed its internal frames")
    monkeypatch.setattr("jaxclip.tasks.search.search", fail)
    assert main(["search", "a cat", str(folder), "--model", model]) == 2
    assert capsys.readouterr().err == f"jaxclip search: {line}\n"


def test_a_file_named_only_as_captions_end_is_a_photo(folder, model, capsys):
    """The command and the library have one rule."""
    photo = folder / ".txt"
    shutil.copy(folder / "coffee.png", photo)
    assert main(["search", "a cat", str(photo), "--model", model]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == lines(jaxclip.search(jaxclip.load(model), "a cat", photo).hits)


def test_a_terminal_gets_a_table_that_fits(folder, model):
    """And names that its encoding has no letters for as escapes."""
    from rich.cells import cell_len

    long = folder / ("very long " * 8) / ("日本語" * 8)
    long.mkdir(parents=True)
    shutil.move(folder / "coffee.png", long / "coffee.png")
    reader, writer = pty.openpty()
    command = [*COMMAND, "search", "a cat", str(folder), "--model", model]
    environment = os.environ | {"COLUMNS": "70", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    heading, *rows = os.read(reader, 10000).decode().splitlines()
    os.close(reader)
    assert heading.split() == ["rank", "score", "photo"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert all(cell_len(row) <= 70 for row in rows)
    shortened = next(row for row in rows if row.endswith("/coffee.png"))
    assert "…" in shortened
    assert f"  {str(folder)[:10]}" in shortened

    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(command, capture_output=True, env=environment, check=True).stdout.decode("ascii")
    assert r"\u65e5\u672c\u8a9e" in printed
