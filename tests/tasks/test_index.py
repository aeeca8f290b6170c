"""Opening an index, and searching it."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import FOLDER
from safetensors.numpy import load_file
from tasks.index_cases import contents, halves, paint

import jaxclip
from jaxclip.tasks import index as index_module
from jaxclip.tasks.blocks import Block
from jaxclip.tasks.index import Index, IndexChangedError, embed_folder


@pytest.fixture(scope="module")
def model_index(clip, twenty, tmp_path_factory):
    """Of the twenty photos; nobody changes it."""
    folder = tmp_path_factory.mktemp("of_twenty") / "index"
    return embed_folder(clip, twenty, folder).index


def expected(index, queries, top):
    """(row, score) of the best by NumPy, equal ones by row."""
    scores = queries @ np.concatenate(list(index.vectors())).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [[(row, score[row]) for row in rows] for rows, score in zip(order, scores, strict=True)]


def found(hits):
    return [[(int(hit.item.stem), hit.score) for hit in row] for row in hits]


@pytest.mark.parametrize("blocks", [(9000,), (4096, 4096), (100, 4096, 7, 1, 4095), (3,)], ids=str)
@pytest.mark.parametrize("top", [1, 10, 5000])
def test_search_is_exact_and_ties_are_by_row(random_index, blocks, top):
    index = random_index(*(min(4096, left) for n in blocks for left in range(n, 0, -4096)))
    queries = halves(np.random.default_rng(1), 5)
    hits = index.search(queries, top)
    assert found(hits) == expected(index, queries, top)
    assert [len(row) for row in hits] == [min(top, sum(blocks))] * 5
    assert found([index.search(queries[0], top)]) == found(hits[:1])


def test_what_fills_up_a_block_is_never_a_hit(random_index):
    index = random_index(5)
    rows = np.concatenate(list(index.vectors()))
    # All real scores are below the zero that an empty row would have.
    query = -rows.sum(axis=0)
    assert (rows @ query < 0).all()
    hits = index.search(query, 10)
    assert sorted(hit.item.name for hit in hits) == [f"{i}.png" for i in range(5)]
    assert all(-1 <= hit.score < 0 for hit in hits)


def test_queries_of_any_length_and_number(random_index):
    index = random_index(300)
    queries = halves(np.random.default_rng(2), 600)
    assert found(index.search(queries * 7, 3)) == expected(index, queries, 3)
    assert index.search(jax.numpy.asarray(queries[0]), 1) == index.search(queries[0], 1)
    assert index.search(queries[:0]) == []


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e-30, 1e30, 1e300])
def test_queries_of_any_finite_length(random_index, scale):
    index = random_index(300)
    query = halves(np.random.default_rng(2), 1)[0]
    assert index.search(query.astype(np.float64) * scale, 5) == index.search(query, 5)


def test_a_constant_number_of_programs(random_index):
    index = random_index(4096, 4096, 50, 4096, 3, width=12)
    before = index_module._in_block._cache_size()
    for n in (1, 2, 3, 7, 9, 100, 257, 300):
        index.search(halves(np.random.default_rng(n), n, width=12), 4)
    # Of 1, 2, 4, 8, 32, 128 and 256 queries.
    assert index_module._in_block._cache_size() - before == 7


@pytest.mark.parametrize(
    ("queries", "top", "message"),
    [
        (np.ones(20, np.float32), 0, "top must be at least 1, got 0"),
        (np.ones(19, np.float32), 1, r"queries must be \(20,\) or \(n, 20\), got \(19,\)"),
        (np.ones((1, 1, 20), np.float32), 1, r"got \(1, 1, 20\)"),
        (np.zeros(20, np.float32), 1, "finite and not zero"),
        (np.full((2, 20), np.nan, np.float32), 1, "finite and not zero"),
    ],
)
def test_queries_that_can_not_be_answered(random_index, queries, top, message):
    with pytest.raises(ValueError, match=message):
        random_index(5).search(queries, top)


def test_an_empty_index(random_index):
    index = random_index()
    assert (len(index), index.paths, list(index.vectors())) == (0, [], [])
    assert index.search(np.ones(20, np.float32)) == []
    assert index.search(np.ones((2, 20), np.float32)) == [[], []]


def test_what_an_index_knows(clip, model_index, twenty):
    assert (len(model_index), model_index.width, model_index.root) == (20, 20, twenty)
    assert model_index.paths == sorted(twenty.iterdir())
    vectors = np.asarray(clip.encode_image(sorted(twenty.iterdir())))
    np.testing.assert_allclose(np.concatenate(list(model_index.vectors())), vectors, atol=1e-6)
    assert model_index.model.source == str(FOLDER / "whole")
    assert (model_index.model.revision, model_index.model.dtype) == (None, "float32")
    assert model_index.model.fingerprints.keys() == {"vision", "text"}


def test_others_can_read_the_folder(clip, model_index, twenty):
    manifest = json.loads((model_index.folder / "manifest.json").read_text("ascii"))
    assert (manifest["format"], manifest["version"]) == ("jaxclip index", 1)
    assert manifest["preprocessing"] == {**clip.image_processor.to_hub(), "exif_rotation": True}
    assert (manifest["width"], manifest["root"]) == (20, str(twenty))
    assert manifest["blocks"] == [{"name": "000000", "rows": 20}]
    vectors = load_file(model_index.folder / "000000.safetensors")["vectors"]
    assert (vectors.dtype, vectors.shape) == (np.float32, (20, 20))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    lines = [json.loads(line) for line in (model_index.folder / "000000.jsonl").read_text("ascii").splitlines()]
    status = (twenty / "07.png").stat()
    assert lines[7] == {"path": "07.png", "size": status.st_size, "modified_ns": status.st_mtime_ns}


def damage_manifest(folder):
    content = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(content[: len(content) // 2])


def cut(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])

    return damage


def later_version(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 2, "blocks": "of another kind"}))


def other_rows(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "blocks": [{"name": "000000", "rows": 19}]}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_manifest, "manifest.json: no part of a whole index"),
        (cut("000000.safetensors"), "000000.safetensors: no part of a whole index"),
        (cut("000000.jsonl"), "000000.jsonl: no part of a whole index .it has 19 whole lines, not 20"),
        (lambda folder: (folder / "000000.jsonl").unlink(), "000000.jsonl: no part of a whole index"),
        (lambda folder: (folder / "000000.safetensors").unlink(), "000000.safetensors: no part of a whole index"),
        (other_rows, r"it holds F32 \[20, 20\], not F32 \[19, 20\]"),
        (later_version, "format version 2, and this jaxclip reads up to 1: install a newer one"),
    ],
)
def test_a_damaged_index_says_which_file(clip, model_index, twenty, tmp_path, damage, message):
    folder = shutil.copytree(model_index.folder, tmp_path / "index")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        Index.open(folder)
    with pytest.raises(ValueError, match=message):
        embed_folder(clip, twenty, folder)


def test_a_damaged_line_is_named_when_it_is_read(model_index, tmp_path):
    folder = shutil.copytree(model_index.folder, tmp_path / "index")
    content = (folder / "000000.jsonl").read_bytes()
    (folder / "000000.jsonl").write_bytes(content.replace(b'"path": "05.png"', b'"path": "05.png'))
    index = Index.open(folder)
    with pytest.raises(ValueError, match=r"000000.jsonl: no part of a whole index"):
        index.paths  # noqa: B018


def test_no_index_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no index there"):
        Index.open(tmp_path)


def test_opening_while_an_embed_puts_blocks_together(clip, photos, tmp_path, monkeypatch):
    embed_folder(clip, photos, tmp_path / "index")
    opened, check = [], Block.check

    def changed_meanwhile(block):
        if not opened:
            opened.append(block.name)
            (photos / "00.png").unlink()
            embed_folder(clip, photos, tmp_path / "index")
        check(block)

    monkeypatch.setattr(Block, "check", changed_meanwhile)
    index = Index.open(tmp_path / "index")
    assert opened == ["000000"]
    assert index.paths == sorted(photos.iterdir())


def test_an_index_that_changes_while_it_is_read_says_so(clip, photos, tmp_path):
    """And no one is told to remove a whole index."""
    index = embed_folder(clip, photos, tmp_path / "index").index
    vectors = index.vectors()
    (photos / "00.png").unlink()
    embed_folder(clip, photos, tmp_path / "index")
    query = np.ones(20, np.float32)
    for read in (lambda: index.search(query), lambda: index.paths, lambda: next(vectors)):
        with pytest.raises(IndexChangedError, match="index: the index has changed since it was opened: open it again"):
            read()
    assert len(jaxclip.search(clip, "a cat", index, top=99).hits) == 19
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="index: no such folder"):
        index.search(query)


def test_what_changes_between_vectors_and_paths_is_searched_again(clip, photos, tmp_path, monkeypatch):
    index = embed_folder(clip, photos, tmp_path / "index").index
    nearest, calls = Index._nearest, []

    def changed_meanwhile(self, *arguments):
        found = nearest(self, *arguments)
        if not calls:
            (photos / "00.png").unlink()
            embed_folder(clip, photos, tmp_path / "index")
        calls.append(self)
        return found

    monkeypatch.setattr(Index, "_nearest", changed_meanwhile)
    hits = jaxclip.search(clip, "a cat", index, top=99).hits
    assert sorted(hit.item for hit in hits) == sorted(photos.iterdir())
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["000000.safetensors", "000000.jsonl"])
def test_a_block_that_the_system_refuses_is_no_damage(model_index, tmp_path, monkeypatch, name):
    folder = shutil.copytree(model_index.folder, tmp_path / "index")
    index, refused = Index.open(folder), OSError(errno.EMFILE, "Too many open files", name)

    def refuse(path, *arguments, **options):
        if Path(path) == folder / name:
            raise refused
        return opened(path, *arguments, **options)

    def masked(path, **options):
        # safetensors says so of whatever it can't open.
        raise FileNotFoundError(f"No such file or directory: {path}")

    opened = open
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    if name.endswith(".safetensors"):
        monkeypatch.setattr("jaxclip.tasks.blocks.safe_open", masked)
    for read in (lambda: Index.open(folder), lambda: index.search(np.ones(20, np.float32)), lambda: contents(index)):
        with pytest.raises(OSError, match="Too many open files") as raised:
            read()
        assert raised.value is refused


def test_nothing_of_a_search_is_kept(random_index):
    index = random_index(4096, 50)
    index.search(halves(np.random.default_rng(1), 3))
    assert all(vars(block).keys() == {"folder", "name", "rows", "width"} for block in index._blocks)


def test_the_model_is_checked(clip, model_index, tmp_path):
    model_index.check(clip)
    for towers in ("text", "vision"):
        model_index.check(jaxclip.load(FOLDER / "whole", towers=towers))
    # Computing in half precision is another matter than another model.
    model_index.check(jaxclip.load(FOLDER / "whole", dtype="bfloat16"))
    other = jaxclip.load(FOLDER / "openai")
    with pytest.raises(ValueError, match=r"made with .*whole.*and this is .*openai"):
        model_index.check(other)
    changed = jaxclip.load(FOLDER / "whole")
    bias = changed.model.text.final_norm.bias
    bias[...] = bias[...] + 1e-6
    with pytest.raises(ValueError, match="the index was made with"):
        model_index.check(changed)
    model_index.check(jaxclip.Clip(clip.model))


def test_without_a_common_tower_the_name_counts(clip, twenty, tmp_path):
    index = embed_folder(jaxclip.load(FOLDER / "whole", towers="vision"), twenty, tmp_path / "index").index
    assert index.model.fingerprints.keys() == {"vision"}
    text = jaxclip.load(FOLDER / "whole", towers="text")
    index.check(text)
    index.check(clip)
    for other in (jaxclip.load(FOLDER / "openai", towers="text"), jaxclip.Clip(text.model)):
        with pytest.raises(ValueError, match="the index was made with"):
            index.check(other)


def test_relative_folders_are_found_from_elsewhere(clip, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embed_folder(clip, "photos", "index")
    monkeypatch.chdir(photos)
    index = Index.open("../index")
    assert index.paths == sorted(photos.iterdir())
    monkeypatch.chdir("/")
    assert embed_folder(clip, photos, tmp_path / "index").unchanged == 20


def test_the_model_is_found_from_elsewhere(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER)
    index = embed_folder(jaxclip.load("whole"), photos, tmp_path / "index").index
    assert index.model.source == str(FOLDER / "whole")


def test_odd_names_survive(clip, photos, tmp_path):
    names = ["new\nline.png", 'quo"te.png', "back\\slash.png", "Spaß 🐕.png", os.fsdecode(b"\xff.png"), "\u2028.png"]
    for seed, name in enumerate(names):
        paint(photos / name, 100 + seed)
    index = embed_folder(clip, photos, tmp_path / "index").index
    assert set(index.paths) == set(photos.iterdir())
    assert embed_folder(clip, photos, tmp_path / "index").unchanged == 26
    everything = contents(index)
    for name in names:
        (hit,) = index.search(everything[photos / name], 1)
        assert hit.item == photos / name
        assert hit.item.exists()
