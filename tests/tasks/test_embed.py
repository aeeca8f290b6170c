"""Making an index and keeping it up to date, whatever happens meanwhile."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cases import FOLDER
from PIL import Image
from tasks.index_cases import assert_same, contents, paint

import jaxclip
from jaxclip import atomic
from jaxclip.tasks import writer
from jaxclip.tasks.index import Index, embed_folder
from jaxclip.tasks.writer import IndexInUseError

ROOT = Path(__file__).parents[2]


def counts(result):
    return result.added, result.changed, result.removed, result.unchanged, len(result.skipped)


def state(folder):
    """What would tell of a file that was written."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir() if path.suffix}


def encoded_paths(clip, monkeypatch):
    """A list that is filled with what is encoded from now on."""
    paths, stream = [], clip.stream_images

    def watched(images, **options):
        for batch in stream(images, **options):
            paths.extend(batch.inputs)
            yield batch

    monkeypatch.setattr(clip, "stream_images", watched)
    return paths


@pytest.mark.parametrize("batch_size", [None, 3])
def test_the_second_time_does_nothing(clip, photos, tmp_path, monkeypatch, batch_size, small_blocks):
    result = embed_folder(clip, photos, tmp_path / "index", batch_size=batch_size)
    assert counts(result) == (20, 0, 0, 0, 0)
    assert list(result.index.manifest.blocks.values()) == [8, 8, 4]
    before = state(tmp_path / "index")
    monkeypatch.setattr(clip, "stream_images", None)
    again = embed_folder(clip, photos, tmp_path / "index", batch_size=batch_size)
    assert counts(again) == (0, 0, 0, 20, 0)
    assert state(tmp_path / "index") == before
    assert_same(again.index, result.index)


def test_only_new_work_is_done(clip, photos, tmp_path, monkeypatch, small_blocks):
    before = contents(embed_folder(clip, photos, tmp_path / "index").index)
    paint(photos / "03.png", 103)
    os.utime(photos / "04.png", ns=(0, 1))
    (photos / "12.png").unlink()
    (photos / "more").mkdir()
    (photos / "13.png").rename(photos / "more" / "13.png")
    paths = encoded_paths(clip, monkeypatch)
    result = embed_folder(clip, photos, tmp_path / "index")
    assert [path.name for path in paths] == ["03.png", "04.png", "13.png"]
    assert counts(result) == (1, 2, 2, 16, 0)
    monkeypatch.undo()
    assert_same(result.index, embed_folder(clip, photos, tmp_path / "fresh").index)
    after = contents(result.index)
    assert np.abs(after[photos / "03.png"] - before[photos / "03.png"]).max() > 1e-3
    assert all(
        (after[path] == before[path]).all() for path in after.keys() & before.keys() if path.stem not in ("03", "04")
    )


def test_small_and_holey_blocks_become_full_ones(clip, photos, tmp_path, small_blocks):
    for number in (0, 8, 9, 10):
        (photos / f"{number:02d}.png").rename(tmp_path / f"{number:02d}.png")
    index = embed_folder(clip, photos, tmp_path / "index").index
    assert list(index.manifest.blocks.values()) == [8, 8]
    for number in (0, 8, 9, 10):
        (tmp_path / f"{number:02d}.png").rename(photos / f"{number:02d}.png")
        index = embed_folder(clip, photos, tmp_path / "index").index
    assert list(index.manifest.blocks.values()) == [8, 8, 4]
    for number in (1, 17):
        (photos / f"{number:02d}.png").unlink()
    index = embed_folder(clip, photos, tmp_path / "index").index
    assert list(index.manifest.blocks.values()) == [8, 8, 2]
    assert len(contents(index)) == 18
    live = {f"{name}{suffix}" for name in index.manifest.blocks for suffix in (".safetensors", ".jsonl")}
    assert {path.name for path in (tmp_path / "index").iterdir()} - {".lock"} == live | {"manifest.json"}


def test_an_index_may_become_empty_and_fill_again(clip, photos, tmp_path):
    embed_folder(clip, photos, tmp_path / "index")
    photos.rename(tmp_path / "elsewhere")
    photos.mkdir()
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (0, 0, 20, 0, 0)
    assert len(Index.open(tmp_path / "index")) == 0
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (0, 0, 0, 0, 0)
    paint(photos / "new.png", 1)
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (1, 0, 0, 0, 0)


def spoil(folder, monkeypatch):
    """Seven files that are no photos, each in its own way."""
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no photo")
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:100])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / ".hidden.png").write_text("not looked at")
    os.mkfifo(folder / "pipe.png")
    shutil.copy(folder / "00.png", folder / "unreadable.png")
    opened = Image.open

    def refuse(path, *arguments, **options):
        # The tests may run as root, whom no mode keeps out.
        if str(path).endswith("unreadable.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", refuse)
    return ["broken.png", "empty.jpg", "gone.png", "notes.txt", "pipe.png", "unreadable.png"]


def test_what_can_not_be_read_is_named_each_time(clip, photos, tmp_path, monkeypatch):
    bad = spoil(photos, monkeypatch)
    for expected in ((20, 0, 0, 0, 6), (0, 0, 0, 20, 6)):
        result = embed_folder(clip, photos, tmp_path / "index", batch_size=2)
        assert counts(result) == expected
        assert [path.name for path, _ in result.skipped] == bad
        assert all(str(path) in reason for path, reason in result.skipped)
    paint(photos / "broken.png", 5)
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (1, 0, 0, 20, 5)


def test_a_photo_that_breaks_leaves_the_index(clip, photos, tmp_path):
    embed_folder(clip, photos, tmp_path / "index")
    (photos / "05.png").write_text("no photo any more")
    result = embed_folder(clip, photos, tmp_path / "index")
    assert counts(result) == (0, 0, 1, 19, 1)
    assert photos / "05.png" not in result.index.paths


def refuse_listing(monkeypatch, refused):
    scandir = os.scandir

    def listing(path="."):
        if Path(path) == refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)


def test_photos_of_a_folder_that_can_not_be_listed_stay(clip, photos, tmp_path, monkeypatch):
    (photos / "more").mkdir()
    (photos / "more" / "00.png").write_bytes((photos / "00.png").read_bytes())
    embed_folder(clip, photos, tmp_path / "index")
    (photos / "01.png").unlink()
    refuse_listing(monkeypatch, photos / "more")
    result = embed_folder(clip, photos, tmp_path / "index")
    assert counts(result) == (0, 0, 1, 20, 1)
    ((path, reason),) = result.skipped
    assert path == photos / "more"
    assert "can't be listed (Permission denied)" in reason
    refuse_listing(monkeypatch, photos)
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (0, 0, 0, 20, 1)


def test_photos_of_a_linked_folder_out_of_reach_stay(clip, photos, tmp_path):
    """Of a drive that is not there today."""
    (tmp_path / "drive" / "more").mkdir(parents=True)
    paint(tmp_path / "drive" / "more" / "a.png", 100)
    paint(tmp_path / "drive" / "b.png", 101)
    (photos / "link").symlink_to(tmp_path / "drive")
    embed_folder(clip, photos, tmp_path / "index")
    (tmp_path / "drive").rename(tmp_path / "elsewhere")
    (photos / "01.png").unlink()
    result = embed_folder(clip, photos, tmp_path / "index")
    assert counts(result) == (0, 0, 1, 21, 1)
    assert [path for path, _ in result.skipped] == [photos / "link"]
    assert {photos / "link" / "b.png", photos / "link" / "more" / "a.png"} <= set(result.index.paths)
    (photos / "link").unlink()
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (0, 0, 2, 19, 0)


def test_the_index_may_lie_among_the_photos(clip, photos):
    result = embed_folder(clip, photos, photos / "index")
    assert counts(result) == (20, 0, 0, 0, 0)
    assert counts(embed_folder(clip, photos, photos / "index")) == (0, 0, 0, 20, 0)
    assert counts(embed_folder(clip, photos, photos / "other")) == (20, 0, 0, 0, 0)
    assert len(jaxclip.search(clip, "a cat", photos, top=99).hits) == 20


@pytest.mark.parametrize("there", [False, True])
def test_no_photo_leaves_no_index(clip, tmp_path, there):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    if there:
        (tmp_path / "index").mkdir()
    with pytest.raises(ValueError, match=r"photos: no photo there .*notes.txt.*no image format"):
        embed_folder(clip, tmp_path / "photos", tmp_path / "index")
    if there:
        assert [path.name for path in (tmp_path / "index").iterdir()] == [".lock"]
    else:
        assert not (tmp_path / "index").exists()


def test_what_can_not_be_embedded(clip, photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        embed_folder(clip, tmp_path / "nowhere", tmp_path / "index")
    with pytest.raises(NotADirectoryError, match=r"00.png: no folder; embed takes a folder of photos"):
        embed_folder(clip, photos / "00.png", tmp_path / "index")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embed_folder(clip, photos, tmp_path / "index", batch_size=0)
    with pytest.raises(ValueError, match="no vision tower"):
        embed_folder(jaxclip.load(FOLDER / "whole", towers="text"), photos, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "000000.jsonl").write_text("somebody's")
    with pytest.raises(FileExistsError, match="work: holds other files"):
        embed_folder(clip, photos, tmp_path / "work")
    with pytest.raises(FileExistsError, match="photos: holds other files"):
        embed_folder(clip, photos, photos)
    with pytest.raises(NotADirectoryError, match=r"00.png: no folder; an index is one"):
        embed_folder(clip, photos, photos / "00.png")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["000000.jsonl"]


def test_an_index_keeps_to_its_settings(clip, photos, tmp_path):
    embed_folder(clip, photos, tmp_path / "index")
    before = state(tmp_path / "index")
    other = jaxclip.load(FOLDER / "openai")
    other.image_processor = clip.image_processor
    with pytest.raises(ValueError, match=r"made with .*whole.*and this is .*openai"):
        embed_folder(other, photos, tmp_path / "index")
    with pytest.raises(
        ValueError, match="has the dtype float32, and this would be bfloat16: load the model with dtype="
    ):
        embed_folder(jaxclip.load(FOLDER / "whole", dtype="bfloat16"), photos, tmp_path / "index")
    other = jaxclip.Clip(
        clip.model, image_processor=jaxclip.processing.ImageProcessor(crop_size={"height": 16, "width": 16})
    )
    with pytest.raises(ValueError, match="has the preprocessing"):
        embed_folder(other, photos, tmp_path / "index")
    shutil.copytree(photos, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"has the root .*photos, and this would be .*copy: embed .*photos"):
        embed_folder(clip, tmp_path / "copy", tmp_path / "index")
    assert state(tmp_path / "index") == before
    (tmp_path / "link").symlink_to(photos)
    assert embed_folder(clip, tmp_path / "link", tmp_path / "index").unchanged == 20


def test_the_second_of_two_is_told(clip, photos, tmp_path, monkeypatch):
    stream = clip.stream_images

    def meanwhile(images, **options):
        for batch in stream(images, **options):
            with pytest.raises(IndexInUseError, match="index: another embed is working on this index"):
                embed_folder(clip, photos, tmp_path / "index")
            yield batch

    monkeypatch.setattr(clip, "stream_images", meanwhile)
    assert counts(embed_folder(clip, photos, tmp_path / "index", batch_size=8)) == (20, 0, 0, 0, 0)
    assert issubclass(IndexInUseError, OSError)


def test_a_lock_is_never_removed_while_it_is_held(clip, photos, tmp_path, monkeypatch):
    """Another process may have opened its file, and a third would then lock a new one."""
    (photos / "notes.txt").write_text("no photo")
    for path in photos.glob("*.png"):
        path.unlink()
    held, release = [], writer.FileLock.release

    def releasing(lock, **options):
        held.append(os.path.exists(lock.lock_file))
        release(lock, **options)

    monkeypatch.setattr(writer.FileLock, "release", releasing)
    with pytest.raises(ValueError, match="no photo there"):
        embed_folder(clip, photos, tmp_path / "index")
    assert held[0]
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_is_named(clip, photos, tmp_path, monkeypatch, error):
    def acquire(lock):
        raise error

    monkeypatch.setattr(writer.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match=r"the file system has no locks.*put the index elsewhere.*index"):
        embed_folder(clip, photos, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_ctrl_c_stays_ctrl_c_when_saving_fails(clip, photos, tmp_path, monkeypatch):
    def interrupted(images, **options):
        raise KeyboardInterrupt

    def damaged(self):
        raise ValueError("000000.jsonl: no part of a whole index")

    embed_folder(clip, photos, tmp_path / "index")
    paint(photos / "new.png", 100)
    monkeypatch.setattr(clip, "stream_images", interrupted)
    monkeypatch.setattr(writer.IndexWriter, "commit", damaged)
    with pytest.raises(KeyboardInterrupt) as raised:
        embed_folder(clip, photos, tmp_path / "index")
    (note,) = raised.value.__notes__
    assert note.endswith("could not be saved: 000000.jsonl: no part of a whole index")


@pytest.mark.parametrize("after", [0, 1, 9, 19])
def test_ctrl_c_keeps_what_was_encoded(clip, photos, tmp_path, monkeypatch, after, small_blocks):
    stream = clip.stream_images

    def interrupted(images, **options):
        for number, batch in enumerate(stream(images, **options)):
            if number == after:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(clip, "stream_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(clip, photos, tmp_path / "index", batch_size=1)
    monkeypatch.setattr(clip, "stream_images", stream)
    if after == 0:
        assert not (tmp_path / "index").exists()
    else:
        assert Index.open(tmp_path / "index").paths == sorted(photos.iterdir())[:after]
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (20 - after, 0, 0, after, 0)


def test_a_block_is_committed_every_minute(clip, photos, tmp_path, monkeypatch):
    stream, lengths = clip.stream_images, []

    def slow(images, **options):
        for batch in stream(images, **options):
            lengths.append(len(Index.open(tmp_path / "index")))
            now[0] += 25
            yield batch

    now = [0]
    monkeypatch.setattr("jaxclip.tasks.writer.monotonic", lambda: now[0])
    monkeypatch.setattr(clip, "stream_images", slow)
    index = embed_folder(clip, photos, tmp_path / "index", batch_size=2).index
    assert lengths == [0, 0, 0, 6, 6, 6, 12, 12, 12, 18]
    assert list(index.manifest.blocks.values()) == [20]


class Killed(BaseException):
    """As `kill -9`: from the moment it is raised nothing reaches the disk."""


def failing(monkeypatch, at: int, error, *, lasting: bool = False, late: bool = False) -> None:
    """From the `at`-th call on (or at that one alone), what changes a disk raises an error: with half of what should be
    written there, or `late`, when all is done."""
    calls = [0]

    def wrap(module, name):
        function = getattr(module, name)

        def wrapped(*arguments, **options):
            calls[0] += 1
            first = calls[0] == at
            if first and late:
                function(*arguments, **options)
            elif first and name == "write":
                function(arguments[0][: len(arguments[0]) // 2])
            if first or (lasting and calls[0] > at):
                raise error()
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, wrapped)

    def opening(path, mode):
        file = open(path, mode)  # noqa: SIM115
        wrap(file, "write")
        return file

    monkeypatch.setattr(atomic, "open", opening, raising=False)
    if error is not full_disk:
        for name in ("fsync", "replace", "unlink"):
            wrap(os, name)


def full_disk():
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def outdated(clip, photos, tmp_path, small_blocks):
    """An index of before three photos were deleted, three added and more than a block of others changed."""
    folder = tmp_path / "outdated"
    for number in (3, 9, 17):
        paint(photos / f"new {number}.png", 100 + number)
        (photos / f"{number:02d}.png").rename(tmp_path / f"{number:02d}.png")
    embed_folder(clip, photos, folder)
    for number in (3, 9, 17):
        (photos / f"new {number}.png").unlink()
        (tmp_path / f"{number:02d}.png").rename(photos / f"{number:02d}.png")
    for number in range(5, 16):
        paint(photos / f"{number:02d}.png", 200 + number)
    return folder


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (Killed, {"lasting": True}),
        (full_disk, {"lasting": True}),
        (full_disk, {}),
        (KeyboardInterrupt, {}),
        (KeyboardInterrupt, {"late": True}),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_whatever_fails_the_index_is_whole(clip, photos, tmp_path, outdated, begun, error, how):
    """At each write to the disk in turn."""
    reference = embed_folder(clip, photos, tmp_path / "reference").index
    old, new = contents(Index.open(outdated)), contents(reference)
    at, finished = 0, False
    while not finished:
        at += 1
        folder = tmp_path / "index"
        if begun:
            shutil.copytree(outdated, folder)
        with pytest.MonkeyPatch.context() as patch:
            encoded = encoded_paths(clip, patch)
            failing(patch, at, error, **how)
            try:
                embed_folder(clip, photos, folder, batch_size=4)
                finished = True
            except (Killed, OSError, KeyboardInterrupt):
                pass
        # A whole index of old and new, each photo once; none is lost that is still there.
        now = contents(Index.open(folder)) if begun or (folder / "manifest.json").exists() else {}
        assert now.keys() >= (old.keys() & new.keys() if begun else set())
        for path, vector in now.items():
            assert any(np.abs(vector - known[path]).max() < 1e-6 for known in (old, new) if path in known)
        if error is KeyboardInterrupt:
            assert all(np.abs(now[path] - new[path]).max() < 1e-6 for path in encoded)
        assert_same(embed_folder(clip, photos, folder).index, reference)
        shutil.rmtree(folder)
    assert at > 10


def test_a_full_disk_says_so(clip, photos, tmp_path, small_blocks):
    with pytest.MonkeyPatch.context() as patch:
        # The manifest, then two files and the manifest for each block.
        failing(patch, 5, full_disk, lasting=True)
        with pytest.raises(OSError, match="No space left on device") as raised:
            embed_folder(clip, photos, tmp_path / "index", batch_size=4)
    assert raised.value.errno == errno.ENOSPC
    assert "could not be saved" in raised.value.__notes__[0]
    assert len(Index.open(tmp_path / "index")) == 8
    assert {path.suffix for path in (tmp_path / "index").iterdir()} <= {".json", ".jsonl", ".safetensors", ""}
    assert counts(embed_folder(clip, photos, tmp_path / "index")) == (12, 0, 0, 8, 0)


KILLED = f"""
import sys, time
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
import jaxclip
from jaxclip.tasks import writer
from jaxclip.tasks.index import embed_folder
writer.ROWS = 4
clip = jaxclip.load({str(FOLDER / "whole")!r})
stream = clip.stream_images
def slowly(images, **options):
    for batch in stream(images, **options):
        time.sleep(0.02)
        yield batch
        print("batch", flush=True)
clip.stream_images = slowly
embed_folder(clip, sys.argv[1], sys.argv[2], batch_size=2)
"""


def test_killed_again_and_again(clip, photos, tmp_path):
    rows = [0]
    for seed in range(4):
        random = np.random.default_rng(seed)
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, photos, tmp_path / "index"], stdout=subprocess.PIPE
        ) as process:
            for _ in range(random.integers(1, 4)):
                process.stdout.readline()
            time.sleep(random.uniform(0, 0.05))
            process.kill()
        rows.append(len(contents(Index.open(tmp_path / "index"))))
    assert rows == sorted(rows)
    assert rows[-1] > 0
    result = embed_folder(clip, photos, tmp_path / "index")
    assert result.unchanged == rows[-1]
    assert_same(result.index, embed_folder(clip, photos, tmp_path / "uninterrupted").index)
