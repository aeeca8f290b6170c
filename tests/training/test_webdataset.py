"""Tar shards by number."""

import gzip
import io
import json
import os
import tarfile

import pytest
from training.data_cases import captions_of, paint

from jaxclip.training import webdataset
from jaxclip.training.captions import Sample
from jaxclip.training.data import open_source
from jaxclip.training.webdataset import WebDataset, expand_braces


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxclip" / "shards"


def shard(path, members):
    """A tar of name → bytes, in this order."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def text(number: int) -> bytes:
    return "\n".join(captions_of(number)).encode()


@pytest.fixture
def images(tmp_path):
    return [paint(tmp_path / f"{number}.png", number).read_bytes() for number in range(7)]


@pytest.fixture
def shards(tmp_path, images):
    """Seven samples in three shards of every layout."""
    folder = tmp_path / "shards"
    shard(
        folder / "00.tar", {f"{i}.{end}": (images[i], text(i))[end == "txt"] for i in (0, 1) for end in ("png", "txt")}
    )
    both = {
        "x/2.json": json.dumps({"caption": "other"}).encode(),
        "x/2.txt": text(2),
        "x/2.seg.png": b"",
        "x/2.JPG": images[2],
    }
    shard(folder / "01.tar", {**both, "y/2.txt": "\ufeff".encode() + text(3) + b"\n\n", "y/2.webp": images[3]})
    last = {f"a long name {'.' * (i == 5)}/{i}" * 9: i for i in (4, 5, 6)}
    members = {}
    for name, i in last.items():
        members |= {f"{name}.jpeg": images[i], f"{name}.json": json.dumps({"text": captions_of(i)}).encode()}
    shard(folder / "02.tar", members)
    return folder


def read(source):
    return [(sample.image, list(sample.captions)) for sample in (source[i] for i in range(len(source)))]


def test_samples_of_several_shards(shards, images):
    source = WebDataset(shards)
    assert read(source) == [(image, captions_of(number)) for number, image in enumerate(images)]
    assert source[0] == Sample("00.tar/0", images[0], tuple(captions_of(0)))
    assert [source[i].id for i in (2, 3)] == ["01.tar/x/2", "01.tar/y/2"]
    assert len(source) == 7
    for outside in (7, -1):
        with pytest.raises(IndexError, match="of 7"):
            source[outside]


def test_ways_to_name_shards(shards):
    every = read(WebDataset(shards))
    names = [shards / f"{i:02d}.tar" for i in range(3)]
    assert read(open_source(shards)) == read(open_source(shards / "{00..02}.tar")) == every
    assert read(WebDataset(f"{shards}/0?.tar")) == read(WebDataset(names)) == every
    assert read(WebDataset([names[2], names[0]])) == every[4:] + every[:2]
    assert read(open_source(names[1])) == every[2:4]
    with pytest.raises(ValueError, match="shards have no split"):
        open_source(shards, split="train")


def test_braces():
    assert expand_braces("a{08..11}b{x,y}") == [f"a{i}b{c}" for i in ("08", "09", "10", "11") for c in "xy"]
    assert expand_braces("{9..11}") == ["9", "10", "11"]
    assert expand_braces("{2..0}{z}") == ["2{z}", "1{z}", "0{z}"]


def test_headers_are_read_once(shards, cache, monkeypatch):
    every = read(WebDataset(shards))
    assert len(list(cache.iterdir())) == 3
    indexed = []

    def index(path, original=webdataset._indexed):
        indexed.append(path.name)
        return original(path)

    monkeypatch.setattr(webdataset, "_indexed", index)
    assert read(WebDataset(shards)) == every
    assert indexed == []
    os.utime(shards / "01.tar", ns=(0, 1))
    assert read(WebDataset(shards)) == every
    assert indexed == ["01.tar"]
    for kept in cache.iterdir():
        kept.write_bytes(b"PK damaged")
    assert read(WebDataset(shards)) == every
    assert indexed[1:] == ["00.tar", "01.tar", "02.tar"]


def test_a_cache_that_can_not_be_written(shards, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(WebDataset(shards)) == 7


def test_incomplete_samples_raise_when_asked_for(tmp_path, images):
    members = {"0.png": images[0], "0.txt": text(0), "1.png": images[1], "2.txt": text(2), "3.png": images[3]}
    bad = {"3.json": b"{}", "4.jpg": b"", "4.json": b"[", "5.jpg": b"", "5.txt": b"\xff", "6.cls": b"1", ".png": b""}
    path = shard(tmp_path / "a.tar", members | bad)
    source = WebDataset(path)
    assert source[0].image == images[0]
    for index, message in enumerate(
        ["no text", "no image", "no captions there.*nothing", *["no captions there"] * 2], 1
    ):
        with pytest.raises(ValueError, match=f"a.tar/{index}: .*{message}"):
            source[index]
    assert len(source) == 6


def test_a_shard_cut_short(tmp_path, images):
    path = shard(tmp_path / "a.tar", {"0.txt": text(0), "0.png": images[0], "1.txt": text(1), "1.png": images[1]})
    source = WebDataset(path)
    with open(path, "r+b") as file:
        file.truncate(3 * 512 + 512 * -(-len(images[0]) // 512) + 3 * 512 + len(images[1]) - 1)
    assert source[0].image == images[0]
    with pytest.raises(ValueError, match=f"cut short, {len(images[1]) - 1} of {len(images[1])} bytes"):
        source[1]
    with pytest.raises(ValueError, match=r"a.tar: no uncompressed tar, or damaged \(unexpected end of data\)"):
        WebDataset(path)


def test_what_is_no_shard(tmp_path, shards):
    with pytest.raises(FileNotFoundError, match=r"03.tar: no such shard, and 1 more of 4"):
        WebDataset(shards / "{01..04}.tar")
    for nothing in (tmp_path / "*.tar", tmp_path, []):
        with pytest.raises(FileNotFoundError, match=r"no .tar there"):
            WebDataset(nothing)
    (tmp_path / "z.tar").write_bytes(gzip.compress((shards / "00.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"z.tar: no uncompressed tar, or damaged"):
        WebDataset(tmp_path / "z.tar")
    shard(tmp_path / "e.tar", {"0.png": b"", "1.txt": b"", "0.txt": b""})
    with pytest.raises(ValueError, match=r"e.tar: not one sample has an image.*of 3"):
        WebDataset(tmp_path / "e.tar")


def test_the_fingerprint_is_of_the_shards(shards):
    before = WebDataset(shards).fingerprint()
    assert WebDataset(shards).fingerprint() == before
    assert WebDataset(shards / "{00..01}.tar").fingerprint() != before
    os.utime(shards / "01.tar", ns=(0, 1))
    assert WebDataset(shards).fingerprint() != before
