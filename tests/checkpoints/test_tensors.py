"""Listing and reading tensors: safetensors, whole and sharded, and what is commonly found in their place."""

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxclip.checkpoints.tensors import CheckpointError, Tensor, open_tensors, read_index

REFERENCES = Path(__file__).parent / "references"

TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([[1.5], [3]], ml_dtypes.bfloat16),
    "double": np.array([0.1]),
    "position_ids": np.arange(5).reshape(1, 5),
    "mask": np.array([True, False]),
    "scale": np.array(4.6052, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> list[Path]:
    """An index and two shards."""
    shards = {f"model-0000{number}-of-00002.safetensors": list(TENSORS)[number - 1 :: 2] for number in (1, 2)}
    for shard, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, tmp_path / shard)
    return write_index(tmp_path, {name: shard for shard, names in shards.items() for name in names})


def write_index(folder: Path, weight_map: object) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return [index, *sorted(folder.glob("*.safetensors"))]


def with_header(header: object, data: bytes) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def assert_holds_all(tensors: dict[str, Tensor]) -> None:
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        tensor = tensors[name]
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, expected.shape, expected.dtype)
        np.testing.assert_array_equal(tensor.read(), expected, strict=True)


def test_a_whole_file(whole: Path) -> None:
    tensors = open_tensors([whole])
    assert_holds_all(tensors)
    assert {tensor.file for tensor in tensors.values()} == {whole}


def test_shards(sharded: list[Path]) -> None:
    tensors = open_tensors(sharded)
    assert_holds_all(tensors)
    assert {tensor.file for tensor in tensors.values()} == set(sharded[1:])


def test_shards_behind_links_as_in_the_hubs_cache(sharded: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    for number, file in enumerate(sharded):
        file.rename(tmp_path / str(number))
        (folder / file.name).symlink_to(tmp_path / str(number))
    assert_holds_all(open_tensors([folder / file.name for file in sharded]))


def test_torch_shards() -> None:
    expected = load_file(REFERENCES / "every_kind.safetensors")
    files = [REFERENCES / "pytorch_model.bin.index.json", *REFERENCES.glob("pytorch_model-*.bin")]
    tensors = open_tensors(files)
    assert tensors.keys() == {"float32", "tied", "int64"}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), expected[name], strict=True)


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    size = 2**40
    content = with_header({"large": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}, b"")
    file.write_bytes(content)
    os.truncate(file, len(content) + size)  # a hole, which takes no room on the disk
    assert open_tensors([file])["large"].shape == (size // 4,)


def test_what_is_read_stays_when_the_file_is_replaced(whole: Path) -> None:
    tensors = open_tensors([whole])
    weight = tensors["weight"].read()
    whole.write_bytes(b"")
    np.testing.assert_array_equal(weight, TENSORS["weight"])
    with pytest.raises(CheckpointError, match=r"'weight' of shape \(2, 3\) cannot be read .* load it again"):
        tensors["weight"].read()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "C64", "F4"])
def test_dtypes_of_quantised_models_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    size = {"C64": 16, "F4": 1}.get(dtype, 2)
    header = {
        name: {"dtype": dtype, "shape": [2], "data_offsets": at}
        for name, at in {"a": [0, size], "b": [size, 2 * size]}.items()
    }
    (tmp_path / "model.safetensors").write_bytes(with_header(header, bytes(2 * size)))
    with pytest.raises(CheckpointError, match=f"'a' is {dtype} with 1 axes; 'b' is {dtype}.*Convert") as caught:
        open_tensors([tmp_path / "model.safetensors"])
    assert "model.safetensors" in str(caught.value)


def test_more_axes_than_numpy_has(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}
    (tmp_path / "model.safetensors").write_bytes(with_header(header, bytes(4)))
    with pytest.raises(CheckpointError, match="'a' is F32 with 65 axes"):
        open_tensors([tmp_path / "model.safetensors"])


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605247071\n"
ELEMENT = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty. Download it again"),
        (POINTER, "is a Git LFS pointer, not the file itself. Run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>404", "is a web page"),
        (b"<html><body>Sorry</body></html>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        ((REFERENCES / "protocol_4.bin").read_bytes(), "zip archive, as torch.save writes: name it pytorch_model.bin"),
        (pickle.dumps({"a": 1}), "a pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b'{"error": "Not found", "status": 404}', "JSON text"),
        (b"abc", "has 3 bytes and may be truncated"),
        (bytes(100), "no whole safetensors file"),
        (b"\xff" * 100, "no whole safetensors file"),
        (with_header(ELEMENT, bytes(3)), "no whole safetensors file .*may be truncated: download it again"),
        (with_header(ELEMENT, bytes(5)), "no whole safetensors file"),
        (with_header(b"[" * 10**5, b""), "no whole safetensors file"),
        (with_header({"a": {**ELEMENT["a"], "dtype": "XX"}}, bytes(4)), "no whole safetensors file .*unknown variant"),
    ],
)
def test_what_is_not_a_safetensors_file(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_tensors([file])
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_missing_files_folders_and_pointers_under_every_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_tensors([file])
    file.mkdir()
    with pytest.raises(CheckpointError, match="expected a file, found a directory"):
        open_tensors([file])
    file.rmdir()
    file.write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_tensors([file])


def test_files_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.ckpt: expected a \.safetensors or \.bin file"):
        open_tensors([tmp_path / "model.ckpt"])


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"{", "JSONDecodeError"),
        (b"[]", "expected JSON with a weight_map"),
        (b"{}", "weight_map"),
        (b'{"weight_map": ["model.safetensors"]}', "AttributeError"),
        (b"[" * 10**5, "RecursionError"),
        (b"\xff\xfe{}", "weight_map"),
    ],
)
def test_damaged_indices(tmp_path: Path, index: bytes, reason: str) -> None:
    file = tmp_path / "model.safetensors.index.json"
    file.write_bytes(index)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_index(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "shards/model.safetensors",
        "shards\\model.safetensors",
        "C:model.safetensors",
        "..",
        ".",
        "",
        "model\n.safetensors",
        "model\0.safetensors",
        "model.bin",
        "config.json",
    ],
)
def test_shards_that_are_not_beside_the_index(sharded: list[Path], shard: str) -> None:
    files = write_index(sharded[0].parent, {**read_index(sharded[0]), "weight": shard})
    with pytest.raises(CheckpointError) as caught:
        read_index(files[0])
    assert f"must be .safetensors files beside the index, not {shard!r}" in str(caught.value)


def test_all_that_an_index_and_its_shards_disagree_on_is_listed(sharded: list[Path]) -> None:
    weight_map = read_index(sharded[0])
    first, second = sorted(set(weight_map.values()))
    del weight_map["half"]
    weight_map |= {"weight": second, "bias": first, "other": "model-3.safetensors", "last": "model-4.safetensors"}
    files = write_index(sharded[0].parent, weight_map)
    save_file({"weight": TENSORS["weight"]}, files[0].parent / "extra.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_tensors([*files, files[0].parent / "extra.safetensors"])
    for problem in (
        "no shard 'model-3.safetensors'; no shard 'model-4.safetensors'",
        f"'weight' is in {first!r}, and the index has it in {second!r}",
        f"'half' is in {second!r}, and the index does not name it",
        f"'bias' is not in {first!r}",
        "'other' is not in 'model-3.safetensors'",
        f"'weight' is both in {first!r} and in 'extra.safetensors'",
        "Download the whole checkpoint again",
    ):
        assert problem in str(caught.value)


FUZZ = settings(deadline=5000, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = with_header(
    {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    },
    bytes(range(40)),
)
HEADER = SMALL[8:-40]


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[[bytes], dict[str, tuple] | None]:
    def outcome(content: bytes) -> dict[str, tuple] | None:
        """What is found in a file of this content: None where it is refused. Nothing else may happen."""
        file = tmp_path / "model.safetensors"
        file.write_bytes(content)
        try:
            tensors = open_tensors([file])
            arrays = {name: tensor.read() for name, tensor in tensors.items()}
        except CheckpointError:
            return None
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        assert found == {name: (array.shape, array.dtype) for name, array in arrays.items()}
        return found

    return outcome


edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 9), st.binary(max_size=6)), min_size=1, max_size=4)


def edited(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """`content` with each change's bytes put in the place of some others: inserted, removed or replaced."""
    for at, length, new in changes:
        start = at % (len(content) + 1)
        content = content[:start] + new + content[start + length :]
    return content


@FUZZ
@given(changes=edits)
def test_a_damaged_safetensors_file_is_read_or_refused(outcome: Callable, changes: list) -> None:
    outcome(edited(SMALL, changes))


@FUZZ
@given(changes=edits)
def test_a_damaged_header_is_read_or_refused(outcome: Callable, changes: list) -> None:
    outcome(with_header(edited(HEADER, changes), SMALL[-40:]))


def test_damaged_data_and_truncations(outcome: Callable) -> None:
    undamaged = outcome(SMALL)
    assert undamaged == {
        "a.weight": ((2, 3), np.float32),
        "b": ((4,), ml_dtypes.bfloat16),
        "c": ((), np.int64),
    }
    assert outcome(SMALL[:-40] + b"\xff" * 40) == undamaged
    for length in range(len(SMALL)):
        assert outcome(SMALL[:length]) is None, length


@FUZZ
@given(changes=edits)
def test_a_damaged_index_is_read_or_refused(sharded: list[Path], changes: list) -> None:
    text = (
        '{"metadata": {}, "weight_map": ' + json.dumps({"a": "model-1.safetensors", "b": "model-2.safetensors"}) + "}"
    )
    sharded[0].write_bytes(edited(text.encode(), changes))
    try:
        names = read_index(sharded[0])
    except CheckpointError:
        return
    assert all((sharded[0].parent / shard).parent == sharded[0].parent for shard in names.values())


def test_neither_jax_nor_the_hubs_client_is_imported() -> None:
    code = (
        "import sys, jaxclip.checkpoints.files, jaxclip.checkpoints.tensors;"
        "print([name for name in ('jax', 'torch', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
