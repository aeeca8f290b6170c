import os
import shutil

import numpy as np
import pytest
from cases import FOLDER, photos
from PIL import Image

import jaxclip

QUERY = "two dogs running across a frosty field"


@pytest.fixture(scope="module")
def clip():
    return jaxclip.load(FOLDER / "whole")


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
