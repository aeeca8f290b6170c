import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cases import FOLDER, photos
from PIL import Image

import jaxclip
from jaxclip.tasks.hits import Best
from jaxclip.tasks.index import embed_folder

QUERY = "two dogs running across a frosty field"


@pytest.fixture
def folder(tmp_path):
    """Five photos in two folders, one of them turned by EXIF."""
    chelsea, coffee = map(Image.fromarray, photos())
    (tmp_path / "photos" / "more").mkdir(parents=True)
    chelsea.save(tmp_path / "photos" / "chelsea.png")
    coffee.save(tmp_path / "photos" / "coffee.png")
    chelsea.convert("L").save(tmp_path / "photos" / "grey.png")
    coffee.rotate(90, expand=True).save(tmp_path / "photos" / "more" / "standing.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # "Rotate by 90° clockwise to display"
    coffee.rotate(90, expand=True).save(tmp_path / "photos" / "more" / "turned.png", exif=turned)
    return tmp_path / "photos"


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_the_ranking_is_the_cosines(clip, folder, batch_size):
    result = jaxclip.search(clip, QUERY, folder, batch_size=batch_size)
    names = ("chelsea.png", "coffee.png", "grey.png", "more/standing.png", "more/turned.png")
    paths = [folder / name for name in names]
    upright = [Image.open(path) for path in paths[:4]] + [Image.open(paths[1])]
    cosines = np.asarray(clip.encode_image(upright) @ clip.encode_text(QUERY))
    found = {hit.item: hit.score for hit in result.hits}
    np.testing.assert_allclose([found[path] for path in paths], cosines, atol=1e-6)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert np.ptp(cosines) > 0.01
    assert result.skipped == []


def test_top_limits_and_is_checked(clip, folder):
    whole = jaxclip.search(clip, QUERY, folder)
    assert jaxclip.search(clip, QUERY, folder, top=2).hits == whole.hits[:2]
    assert len(jaxclip.search(clip, QUERY, folder, top=99).hits) == 5
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        jaxclip.search(clip, QUERY, folder, top=0)


def test_what_can_not_be_read_is_skipped_and_named(clip, folder):
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no photo")
    (folder / "broken.png").write_bytes((folder / "coffee.png").read_bytes()[:1000])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / ".hidden.png").write_text("not looked at")
    (folder / "loop").symlink_to(folder)
    Image.new("L", (300_000, 1)).save(folder / "strip.png")  # Would be resized to 6 million × 20 pixels.
    os.mkfifo(folder / "pipe.png")
    result = jaxclip.search(clip, QUERY, folder, batch_size=2)
    assert len(result.hits) == 5
    names = ["broken.png", "empty.jpg", "gone.png", "notes.txt", "pipe.png", "strip.png"]
    assert [path.name for path, _ in result.skipped] == names
    for path, reason in result.skipped:
        assert str(path) in reason


def test_one_file_and_no_file(clip, folder, tmp_path):
    assert [hit.item for hit in jaxclip.search(clip, QUERY, folder / "coffee.png").hits] == [folder / "coffee.png"]
    (tmp_path / "none").mkdir()
    assert jaxclip.search(clip, QUERY, tmp_path / "none") == jaxclip.tasks.search.SearchResult([], [])
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        jaxclip.search(clip, QUERY, tmp_path / "nowhere")


def test_odd_names_are_no_obstacle(clip, folder):
    for name in ("spaß 🐕.png", "--top.png", "new\nline.png", os.fsdecode(b"\xff.png")):
        shutil.copy(folder / "coffee.png", folder / name)
    result = jaxclip.search(clip, QUERY, folder)
    assert len(result.hits) == 9
    assert result.skipped == []


CAPTIONS = ["two dogs", "a cat", "", "  ", "a dog ", "a cat", "ein Café"]


@pytest.fixture
def captions(tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    return tmp_path / "captions.txt"


@pytest.fixture
def index(clip, folder, tmp_path):
    return embed_folder(clip, folder, tmp_path / "index").index


def queries(clip, folder):
    """Each kind of query with its vector."""
    turned = folder / "more" / "turned.png"
    with Image.open(folder / "coffee.png") as coffee:
        coffee.load()
    upright = np.asarray(clip.encode_image(coffee))
    return [
        (QUERY, np.asarray(clip.encode_text(QUERY))),
        (turned, upright),
        (coffee, upright),
        (np.asarray(coffee), upright),
    ]


def test_words_and_images_find_photos(clip, folder, index):
    paths = [folder / name for name in ("chelsea.png", "coffee.png", "grey.png", "more/standing.png")]
    paths.append(folder / "more" / "turned.png")
    upright = [Image.open(path) for path in paths[:4]] + [Image.open(paths[1])]
    vectors = np.asarray(clip.encode_image(upright))
    for query, vector in queries(clip, folder):
        for where in (folder, str(folder), index, index.folder, str(index.folder)):
            hits = jaxclip.search(clip, query, where).hits
            found = {hit.item: hit.score for hit in hits}
            assert [hit.score for hit in hits] == sorted(found.values(), reverse=True)
            np.testing.assert_allclose([found[path] for path in paths], vectors @ vector, atol=1e-6)
            assert jaxclip.search(clip, query, where, top=2).hits == hits[:2]


def test_words_and_images_find_captions(clip, folder, captions):
    kept = [caption for caption in CAPTIONS if caption.strip()]
    vectors = np.asarray(clip.encode_text(kept))
    for query, vector in queries(clip, folder):
        for batch_size in (None, 1, 2):
            result = jaxclip.search(clip, query, captions, batch_size=batch_size)
            assert result.skipped == []
            order = np.argsort(-(vectors @ vector).round(6), kind="stable")
            assert [hit.item for hit in result.hits] == [kept[i] for i in order]
            np.testing.assert_allclose([hit.score for hit in result.hits], (vectors @ vector)[order], atol=1e-6)
    assert jaxclip.search(clip, "a cat", captions, top=2).hits[1].item == "a cat"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa cat\r\na dog\r\n", b"a cat\n\n\na dog"])
def test_captions_of_any_editor(clip, tmp_path, content):
    (tmp_path / "captions.TXT").write_bytes(content)
    hits = jaxclip.search(clip, "a cat", tmp_path / "captions.TXT").hits
    assert [hit.item for hit in hits] == ["a cat", "a dog"]
    assert hits[0].score == pytest.approx(1, abs=1e-6)


def test_captions_that_are_no_text(clip, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    assert jaxclip.search(clip, "a cat", tmp_path / "empty.txt").hits == []
    (tmp_path / "latin.txt").write_bytes("a cat\nein Café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt: line 2 is no UTF-8 text"):
        jaxclip.search(clip, "a cat", tmp_path / "latin.txt")


def test_equal_ones_are_in_the_order_of_their_paths(clip, folder, tmp_path):
    (tmp_path / "same").mkdir()
    names = [f"{i:02d}.png" for i in range(9)]
    for name in reversed(names):
        shutil.copy(folder / "coffee.png", tmp_path / "same" / name)
    index = embed_folder(clip, tmp_path / "same", tmp_path / "same_index").index
    for where in (tmp_path / "same", index):
        assert [hit.item.name for hit in jaxclip.search(clip, QUERY, where, top=7, batch_size=4).hits] == names[:7]


def test_an_index_of_another_model_is_refused(clip, index):
    other = jaxclip.load(FOLDER / "heads_64")
    with pytest.raises(ValueError, match="the index was made with"):
        jaxclip.search(other, np.zeros((9, 9, 3), np.uint8), index)


def test_an_image_is_preprocessed_as_the_photos_or_refused(clip, folder, index):
    other = jaxclip.Clip(
        clip.model, tokenizer=clip.tokenizer, image_processor=replace(clip.image_processor, do_normalize=False)
    )
    for query in (folder / "coffee.png", np.zeros((9, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"index: the index has the preprocessing .*, and this would be "):
            jaxclip.search(other, query, index)
    assert jaxclip.search(other, QUERY, index) == jaxclip.search(clip, QUERY, index)
    text = jaxclip.load(FOLDER / "whole", towers="text")
    assert len(jaxclip.search(text, QUERY, index).hits) == 5


def not_finite(clip, monkeypatch, *, number):
    """From now on one photo of each stream has a vector that is not."""
    stream = clip.stream_images

    def spoilt(images, **options):
        for batch in stream(images, **options):
            batch.vectors[batch.indices == number, 3] = np.inf
            yield batch

    monkeypatch.setattr(clip, "stream_images", spoilt)


def test_photos_without_a_finite_vector_are_skipped(clip, folder, tmp_path, monkeypatch):
    whole = jaxclip.search(clip, QUERY, folder).hits
    not_finite(clip, monkeypatch, number=1)
    result = embed_folder(clip, folder, tmp_path / "index")
    assert (result.added, len(result.index)) == (4, 4)
    for found in (result, jaxclip.search(clip, QUERY, folder)):
        reason = f"{str(folder / 'coffee.png')!r}: its vector is not finite: try dtype float32"
        assert found.skipped == [(folder / "coffee.png", reason)]
    expected = [hit.item for hit in whole if hit.item != folder / "coffee.png"]
    for where in (folder, result.index):
        assert [hit.item for hit in jaxclip.search(clip, QUERY, where).hits] == expected


def test_a_query_without_a_finite_vector_is_refused(clip, folder, monkeypatch):
    monkeypatch.setattr(clip, "encode_text", lambda text: np.full(20, np.nan, np.float32))
    with pytest.raises(ValueError, match="the query's vector is not finite: try dtype float32"):
        jaxclip.search(clip, QUERY, folder)


def test_a_query_that_can_not_be_read(clip, folder):
    with pytest.raises(jaxclip.ImageError, match=r"nowhere.png.*no such file"):
        jaxclip.search(clip, folder / "nowhere.png", folder)


def test_only_the_best_are_kept(clip, folder, monkeypatch):
    """However many photos go by."""
    most, add = [], Best.add

    def watched(best, items, scores):
        add(best, items, scores)
        most.append(len(list(best)))

    monkeypatch.setattr(Best, "add", watched)
    jaxclip.search(clip, QUERY, folder, top=2, batch_size=1)
    assert most == [1, 2, 2, 2, 2]


def test_a_caption_that_can_not_be_encoded_is_named(clip, tmp_path):
    class Endless(type(clip.tokenizer)):
        """Cuts the end-of-text token off long texts."""

        def __call__(self, texts, **options):
            return super().__call__(texts, **options)[:, :5]

    tokenizer = Endless(clip.tokenizer.backend, clip.tokenizer.special_tokens, 12)
    captions = tmp_path / "captions.txt"
    captions.write_text("a cat\nthe quick brown fox jumps over the lazy dog\n")
    result = jaxclip.search(jaxclip.Clip(clip.model, tokenizer=tokenizer), "a cat", captions)
    assert [hit.item for hit in result.hits] == ["a cat"]
    ((path, reason),) = result.skipped
    assert path == captions
    assert "text 1 has no end-of-text token" in reason
