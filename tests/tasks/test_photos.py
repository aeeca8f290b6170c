import os

import pytest
from tasks.index_cases import paint

from jaxclip.tasks.index import embed_folder
from jaxclip.tasks.photos import files_under


@pytest.fixture
def tree(tmp_path):
    """Files without contents."""
    for name in ("b.png", "a.png", ".hidden.png", "z/1.png", "c/2.png", "c/d/3.png", ".hidden/4.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    return tmp_path / "tree"


def names(folder, **options):
    return [path.relative_to(folder).as_posix() for path in files_under(folder, **options)]


def test_all_but_hidden_files_in_order(tree):
    assert names(tree) == ["a.png", "b.png", "c/2.png", "c/d/3.png", "z/1.png"]


def test_links_are_followed_last_and_no_folder_twice(tree, tmp_path):
    (tmp_path / "outside" / "sub").mkdir(parents=True)
    (tmp_path / "outside" / "o.png").touch()
    (tmp_path / "outside" / "sub" / "p.png").touch()
    before = names(tree)
    (tree / "a_loop").symlink_to(tree)
    (tree / "a_inside").symlink_to(tree / "c")
    (tree / "c" / "up").symlink_to("..")
    assert names(tree) == before
    (tree / "a_link").symlink_to(tmp_path / "outside")
    (tree / "b_link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(tree)
    assert names(tree) == [*before, "a_link/o.png", "a_link/sub/p.png"]
    (tmp_path / "tree_link").symlink_to(tree)
    assert names(tmp_path / "tree_link") == names(tree)


def test_one_file_none_and_what_is_no_folder(tree, tmp_path):
    assert list(files_under(tree / "a.png")) == [tree / "a.png"]
    (tmp_path / "none").mkdir()
    assert list(files_under(str(tmp_path / "none"))) == []
    os.mkfifo(tmp_path / "pipe")
    assert list(files_under(tmp_path / "pipe")) == [tmp_path / "pipe"]
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        list(files_under(tmp_path / "nowhere"))


def test_an_index_is_no_folder_of_photos(clip, twenty, tree):
    embed_folder(clip, twenty, tree / "index")
    (tree / "index" / "a.png").touch()
    (tree / "c" / "manifest.json").write_text('{"format": "of something else"}')
    os.mkfifo(tree / "z" / "manifest.json")
    assert names(tree) == ["a.png", "b.png", "c/2.png", "c/manifest.json", "c/d/3.png", "z/1.png", "z/manifest.json"]
    assert names(tree / "index") == []


def test_a_folder_that_can_not_be_listed_is_told_of(tree, monkeypatch):
    scandir, told = os.scandir, []

    def listing(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)
    assert names(tree, on_error=lambda *told_of: told.append(told_of)) == ["a.png", "b.png", "z/1.png"]
    assert told == [(tree / "c", f"{str(tree / 'c')!r}: can't be listed (Permission denied); make the folder readable")]


def test_the_order_is_of_names(tmp_path):
    for seed, name in enumerate(("B.png", "a.png", "é.png", "10.png", "9.png")):
        paint(tmp_path / name, seed)
    assert names(tmp_path) == ["10.png", "9.png", "B.png", "a.png", "é.png"]
