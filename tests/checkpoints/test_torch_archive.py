"""Our reader of torch's archives: reads what torch writes, and of everything else runs nothing."""

import io
import os
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from jaxclip.checkpoints.tensors import CheckpointError, open_tensors
from jaxclip.checkpoints.torch_archive import MAXIMUM_PICKLE_BYTES, read_archive

REFERENCES = Path(__file__).parent / "references"
EXPECTED = load_file(REFERENCES / "every_kind.safetensors")

FUZZ = settings(deadline=5000, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Pickles by hand: what no pickler would write.


def text(string: str) -> bytes:
    encoded = string.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int | str) -> bytes:
    if isinstance(value, str):
        return text(value)
    if value is True:
        return b"\x88"
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def reference(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


ORDERED_DICT = reference("collections", "OrderedDict")
FLOATS = reference("torch", "FloatStorage")


def storage(key: str = "0", kind: bytes = FLOATS, length: int = 6) -> bytes:
    return group(text("storage"), kind, text(key), text("cpu"), number(length)) + b"Q"


def tensor(
    stored: bytes | None = None,
    offset: int = 0,
    shape: tuple = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    metadata: bytes = b"",
) -> bytes:
    axes = [group(*map(number, lengths)) for lengths in (shape, strides)]
    arguments = group(stored or storage(), number(offset), *axes, b"\x89", ORDERED_DICT + b")R", metadata)
    return reference("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def program(value: bytes) -> bytes:
    """A pickle of {"weight": value}."""
    return b"\x80\x02}" + text("weight") + value + b"s."


def zipped(entries: dict[str, bytes], **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


SIX = np.arange(6, dtype=np.float32).tobytes()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(data_pkl: bytes, others: dict[str, bytes] | None = None) -> Path:
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(zipped({"a/data.pkl": data_pkl, **({"a/data/0": SIX} if others is None else others)}))
        return path

    return save


def imported() -> set[str]:
    """The modules that are loaded, but for the codecs that Python loads to decode a damaged name."""
    return {name for name in sys.modules if not name.startswith("encodings.")}


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {name: view.read() for name, view in read_archive(path).items()}


# What torch writes.


def test_every_kind_of_tensor_is_read_as_torch_saved_it() -> None:
    tensors = read_all(REFERENCES / "every_kind.bin")
    assert tensors.keys() == EXPECTED.keys()
    for name, expected in EXPECTED.items():
        assert tensors[name].dtype == expected.dtype, name
        assert tensors[name].shape == expected.shape, name
        assert tensors[name].tobytes() == expected.tobytes(), name
        assert tensors[name].flags.c_contiguous, name


@pytest.mark.parametrize("name", ["protocol_3", "protocol_4", "protocol_5", "wrapped", "without_crc"])
def test_other_protocols_wrappers_and_options(name: str) -> None:
    tensors = read_all(REFERENCES / f"{name}.bin")
    assert list(tensors) == ["float32", "bfloat16", "tied", "transposed", "parameter"]
    for key, value in tensors.items():
        assert value.tobytes() == EXPECTED[key].tobytes(), key


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("legacy", "it is in the legacy format of torch < 1.6"),
        ("torchscript", "it is a TorchScript archive"),
        ("module", "asks for 'torch.nn.modules.linear.Linear'"),
        ("float8", r"asks for 'torch._utils._rebuild_tensor_v3'"),
        ("sparse", r"asks for 'torch._utils._rebuild_sparse_tensor'"),
    ],
)
def test_what_else_torch_writes_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_archive(REFERENCES / f"{name}.bin")
    assert f"{name}.bin" in str(caught.value)
    assert "safetensors.torch.save_file" in str(caught.value)


def test_a_view_is_read_alone_and_fresh(save: Callable[..., Path]) -> None:
    path = save(program(tensor(offset=1, shape=(2, 2), strides=(1, 3))))
    view = read_archive(path)["weight"]
    first = view.read()
    np.testing.assert_array_equal(first, [[1, 4], [2, 5]])
    first[:] = 0
    np.testing.assert_array_equal(view.read(), [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((), (), np.float32(0)),
        ((1, 3), (2**62, 1), [[0, 1, 2]]),
        ((0, 3), (9, 1), np.empty((0, 3))),
        ((2, 2), (0, 1), [[0, 1], [0, 1]]),
    ],
)
def test_unusual_strides(save: Callable[..., Path], shape: tuple, strides: tuple, expected: object) -> None:
    found = read_archive(save(program(tensor(shape=shape, strides=strides))))["weight"].read()
    np.testing.assert_array_equal(found, expected, strict=False)
    assert found.shape == shape


def test_an_empty_tensor_at_any_offset(save: Callable[..., Path]) -> None:
    stored = storage(length=0)
    found = read_archive(save(program(tensor(stored, offset=7, shape=(0, 3))), {"a/data/0": b""}))["weight"].read()
    assert (found.shape, found.dtype) == ((0, 3), np.float32)


# Hostile pickles.


def call(module: str, name: str, argument: str) -> bytes:
    return reference(module, name) + text(argument) + b"\x85R"


NESTED = b")" + b"\x86".join([b"q\0h\0"] * 3)
HOSTILE = {
    "GLOBAL": (lambda shell, python: call("os", "system", shell), "asks for 'os.system'"),
    "eval": (lambda shell, python: call("builtins", "eval", python), "asks for 'builtins.eval'"),
    "exec": (lambda shell, python: call("builtins", "exec", python), "asks for 'builtins.exec'"),
    "import": (lambda shell, python: reference("antigravity", "fly"), "asks for 'antigravity.fly'"),
    "stack global": (
        lambda shell, python: text("posix") + text("system") + b"\x93" + text(shell) + b"\x85R",
        "asks for 'posix.system'",
    ),
    "INST": (lambda shell, python: b"(" + text(shell) + b"ios\nsystem\n", "uses INST"),
    "OBJ of a global": (lambda shell, python: b"(" + reference("os", "system") + text(shell) + b"o", "'os.system'"),
    "OBJ": (lambda shell, python: b"(" + ORDERED_DICT + b"o", "uses OBJ"),
    "NEWOBJ": (lambda shell, python: ORDERED_DICT + b")\x81", "uses NEWOBJ"),
    "NEWOBJ_EX": (lambda shell, python: ORDERED_DICT + b")}\x92", "uses NEWOBJ_EX"),
    "EXT1": (lambda shell, python: b"\x82\x01", "uses EXT1"),
    "EXT2": (lambda shell, python: b"\x83\x01\0", "uses EXT2"),
    "EXT4": (lambda shell, python: b"\x84\x01\0\0\0", "uses EXT4"),
    "copyreg": (lambda shell, python: reference("copyreg", "_reconstructor"), "asks for 'copyreg._reconstructor'"),
    "torch.load": (lambda shell, python: call("torch", "load", shell), "asks for 'torch.load'"),
    "load from bytes": (
        lambda shell, python: call("torch.storage", "_load_from_bytes", shell),
        "asks for 'torch.storage._load_from_bytes'",
    ),
    "dotted": (lambda shell, python: call("torch", "serialization.os.system", shell), "'torch.serialization.os.sys"),
    "numpy": (
        lambda shell, python: reference("numpy.core.multiarray", "_reconstruct"),
        "asks for 'numpy.core.multiarray._reconstruct'",
    ),
    "getattr": (lambda shell, python: reference("builtins", "getattr"), "asks for 'builtins.getattr'"),
    "spaces": (lambda shell, python: b"ccollections OrderedDict\n\n", "asks for 'collections OrderedDict.'"),
    "escapes": (lambda shell, python: b"c\\d\n\\x6fs\n", r"asks for '\\\\d.\\\\x6fs'"),
    "newlines": (
        lambda shell, python: text("os\nok") + text("system\x1b[2J") + b"\x93",
        r"asks for 'os\\nok.system\\x1b\[2J'",
    ),
    "global of numbers": (lambda shell, python: number(1) + number(2) + b"\x93", "asks for '1.2'"),
    "text global": (lambda shell, python: b"c\xff\n\xff\n", "damaged"),
    "persistent text": (lambda shell, python: text("os.system") + b"Q", "persistent id"),
    "persistent line": (lambda shell, python: b"Pos.system\n", "uses PERSID"),
    "persistent type": (lambda shell, python: storage(kind=ORDERED_DICT), "persistent id"),
    "persistent path": (lambda shell, python: storage(key="../data.pkl"), "storage '../data.pkl' is missing"),
    "persistent module": (
        lambda shell, python: group(text("module"), ORDERED_DICT, text("m.py"), text(python)) + b"Q",
        "persistent id",
    ),
    "negative length": (lambda shell, python: storage(length=-1), "persistent id"),
    "a storage called": (lambda shell, python: FLOATS + b")R", "calls 'torch.FloatStorage'"),
    "dict of arguments": (lambda shell, python: ORDERED_DICT + text("x") + b"\x85R", "calls 'collections.OrderedDict'"),
    "text called": (lambda shell, python: text("os.system") + text(shell) + b"\x85R", "calls 'str'"),
    "conjugated": (
        lambda shell, python: tensor(metadata=b"}" + text("neg") + b"\x88s"),
        "calls 'torch._utils._rebuild_tensor_v2' with unexpected arguments",
    ),
    "parameter of nothing": (
        lambda shell, python: reference("torch._utils", "_rebuild_parameter") + group(text("x"), b"\x88") + b"R",
        "calls 'torch._utils._rebuild_parameter'",
    ),
    "BUILD": (lambda shell, python: b"}}" + text("__reduce__") + text(shell) + b"sb", r"state of a dict \(BUILD\)"),
    "BUILD of a tensor": (lambda shell, python: tensor() + b"}b", r"state of a View \(BUILD\)"),
    "append to a dict": (lambda shell, python: b"}Na", "appends to a dict"),
    "item of a list": (lambda shell, python: b"]NNs", "sets items"),
    "tuple as a key": (lambda shell, python: b"})Ns", "sets items"),
    "odd items": (lambda shell, python: b"}(" + text("x") + b"u", "sets items"),
    "bytes": (lambda shell, python: b"C\x01x", "uses SHORT_BINBYTES"),
    "buffer": (lambda shell, python: b"\x97", "uses NEXT_BUFFER"),
    "set": (lambda shell, python: b"\x8f", "uses EMPTY_SET"),
    "protocol 0": (lambda shell, python: b"I1\n", "uses INT"),
    "unknown": (lambda shell, python: b"\xff", "uses 0xff"),
    "underflow": (lambda shell, python: b"\x87", "damaged"),
    "no mark": (lambda shell, python: b"t", "damaged"),
    "no memo": (lambda shell, python: b"h\x07", "damaged"),
    "not UTF-8": (lambda shell, python: b"X\x01\0\0\0\xff", "damaged"),
    "long text": (lambda shell, python: b"X\xff\xff\xff\xff", "truncated"),
    "open line": (lambda shell, python: b"cos", "truncated"),
    "None": (lambda shell, python: b"N", r"holds 'weight' \(a NoneType\)"),
    "a number": (lambda shell, python: number(3), r"holds 'weight' \(a int\)"),
    "a bare storage": (lambda shell, python: storage(), r"holds 'weight' \(a Storage\)"),
    "a global": (lambda shell, python: FLOATS, r"holds 'weight' \(a Global\)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_by_name_and_run_nothing(
    name: str, save: Callable[..., Path], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    write, reason = HOSTILE[name]
    path = save(program(write(f"touch {canary}", f"open({str(canary)!r}, 'w').close()")))
    modules = imported()
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_archive(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert imported() == modules
    assert not canary.exists()


def test_the_hostile_pickles_are_live(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("GLOBAL", "eval", "stack global", "INST", "OBJ of a global"):
        write, _ = HOSTILE[name]
        pickle.loads(program(write(f"touch {canary}", f"open({str(canary)!r}, 'w').close()")))
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"shape": (2, 4)}, r"shape \(2, 4\) reaches beyond its storage's 6 elements"),
        ({"offset": 1}, "reaches beyond"),
        ({"strides": (4, 1)}, "reaches beyond"),
        ({"offset": -1}, "no natural numbers"),
        ({"offset": -(2**40)}, "no natural numbers"),
        ({"shape": (True, 3)}, "no natural numbers"),
        ({"shape": ("2", 3)}, "no natural numbers"),
        ({"shape": (-2, 3)}, "no natural numbers"),
        ({"shape": (2, 3), "strides": (-3, 1)}, "no natural numbers"),
        ({"strides": (1,)}, "2 axes and 1 strides"),
        ({"shape": (1,) * 65, "strides": (0,) * 65}, "65 axes"),
        ({"shape": (10**6, 10**6), "strides": (0, 0)}, "would take 4000000000000 bytes, more than the whole file"),
        ({"shape": (0, 2**62, 2**62), "strides": (0, 0, 0)}, "more than the whole file"),
        ({"shape": (2**2000,), "strides": (0,)}, "more than the whole file"),
        ({"stored": storage(length=7)}, "the storage '0' has 24 bytes, too few for 7 of float32"),
        ({"stored": storage(length=2**62)}, "too few"),
        ({"stored": storage(kind=reference("torch", "DoubleStorage"))}, "too few for 6 of float64"),
        ({"stored": storage(key="1")}, "the storage '1' is missing"),
    ],
)
def test_views_stay_within_their_storage(save: Callable[..., Path], fields: dict, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_archive(save(program(tensor(**fields))))


@pytest.mark.parametrize(
    ("data_pkl", "reason"),
    [
        (b"", "truncated"),
        (b"\x80\x02}", "truncated"),
        (b"\x80\x02.", "leaves bytes or values over"),
        (b"\x80\x02}}.", "leaves bytes or values over"),
        (b"\x80\x02].", "holds a list, not a state dict"),
        (b"\x80\x02}.cos\nsystem\n", "leaves bytes or values over"),
        (b"\x80\x02).", "holds a tuple, not a state dict"),
        (b"\x80\x02}K\x01" + tensor() + b"s.", r"holds 1 \(a View\)"),
    ],
)
def test_pickles_that_are_no_state_dict(save: Callable[..., Path], data_pkl: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_archive(save(data_pkl))


@pytest.mark.parametrize(
    "bomb",
    [
        b"}" * 30_000,
        b"(" * 30_000,
        b")" + b"\x85" * 30_000,
        b")" + b"q\0h\0\x86" * 10_000,  # 2^10000 empty tuples, were they ever walked
        b"]q\0" + b"h\0a" * 10_000,
        b"}q\0" + text("state_dict") + b"h\0s",
        b"})" + b"q\0h\0\x86" * 10_000 + b"Ns",
        (b"\x8a\xff" + b"\x7f" * 255) * 1000,
    ],
    ids=["dicts", "marks", "deep", "doubling", "cyclic list", "cyclic dict", "doubling key", "long numbers"],
)
def test_bombs_end_soon(save: Callable[..., Path], bomb: bytes) -> None:
    path = save(b"\x80\x02" + bomb + b".")
    start = time.process_time()
    with pytest.raises(CheckpointError):
        read_archive(path)
    assert time.process_time() - start < 15


# Hostile and damaged archives.


VALID = {"a/data.pkl": program(tensor()), "a/data/0": SIX}


def patched(content: bytes, old: bytes, new: bytes, count: int = 1) -> bytes:
    assert content.count(old) >= 1
    return content.replace(old, new, count)


def central(content: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """`content` with a field changed in the central directory's record of the entry `name`."""
    record = content.rindex(name) - 46
    assert content[record:].startswith(b"PK\x01\x02")
    return content[: record + at] + value + content[record + at + len(value) :]


def local(content: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """`content` with a field changed in the local header of the entry `name`."""
    record = content.index(name) - 30
    assert content[record:].startswith(b"PK\x03\x04")
    return content[: record + at] + value + content[record + at + len(value) :]


PLAIN = zipped(VALID)
ARCHIVES = {
    "compressed": (zipped(VALID, compression=zipfile.ZIP_DEFLATED), "'a/data.pkl' is compressed"),
    "compressed locally": (local(PLAIN, b"a/data/0", 8, b"\x08"), "'a/data/0' is compressed"),
    "compressed centrally": (central(PLAIN, b"a/data/0", 10, b"\x08"), "'a/data/0' is compressed"),
    "a NUL in a name": (
        zipped({"a/data.pkl": VALID["a/data.pkl"], "a/data/0_": SIX}).replace(b"a/data/0_", b"a/data/0\0"),
        "the storage '0' is missing",
    ),
    "encrypted": (central(PLAIN, b"a/data/0", 8, b"\x01"), "'a/data/0' is encrypted"),
    "encrypted locally": (local(PLAIN, b"a/data/0", 6, b"\x01"), "'a/data/0' is encrypted"),
    "big-endian": (zipped({**VALID, "a/byteorder": b"big"}), "byte order is b'big'"),
    "long byte order": (zipped({**VALID, "a/byteorder": b"little" * 10**6}), "more than enough"),
    "no pickle": (zipped({"a/data/0": SIX}), "holds 0 NAME/data.pkl"),
    "no folder": (zipped({"data.pkl": VALID["a/data.pkl"], "data/0": SIX}), "holds 0 NAME/data.pkl"),
    "two pickles": (zipped({**VALID, "b/data.pkl": b""}), "holds 2 NAME/data.pkl"),
    "twice": (patched(zipped({**VALID, "a/data/1": SIX}), b"a/data/1", b"a/data/0", 2), "'a/data/0' is there twice"),
    "other local name": (local(PLAIN, b"a/data/0", 30, b"b/data/0"), "'a/data/0' has another name"),
    "other local size": (local(PLAIN, b"a/data/0", 22, b"\x17"), "'a/data/0' has contradictory sizes"),
    "other packed size": (central(PLAIN, b"a/data/0", 20, b"\x17"), "'a/data/0' has contradictory sizes"),
    "no local header": (local(PLAIN, b"a/data/0", 0, b"PK\x01\x02"), "'a/data/0' has no local header"),
    "overlapping": (central(PLAIN, b"a/data/0", 42, b"\0\0\0\0"), "'a/data/0' has another name .* overlaps"),
    "beyond the end": (local(PLAIN, b"a/data/0", 28, b"\x01"), "'a/data/0' runs beyond the end"),
    "huge pickle": (zipped({**VALID, "a/data.pkl": bytes(MAXIMUM_PICKLE_BYTES + 1)}), "'a/data.pkl' has 2097153 bytes"),
    "prefixed": (b"#!/bin/sh\n" + PLAIN, "begins with b'#!/bin/s'"),
    "bare pickle": (pickle.dumps({"a": 1}), "bare pickle"),
    "tar": (bytes(257) + b"ustar" + bytes(600), "tar archive"),
    "cut": (PLAIN[:-1], "damaged or truncated"),
    "no directory": (PLAIN[:60], "damaged or truncated"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_and_damaged_archives(name: str, tmp_path: Path) -> None:
    content, reason = ARCHIVES[name]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_archive(path)
    assert str(path) in str(caught.value)


def test_the_archive_that_the_damaged_ones_come_from_is_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(PLAIN)
    assert read_all(tmp_path / "pytorch_model.bin")["weight"].tobytes() == SIX


def test_sizes_may_be_in_the_zip64_field(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in VALID.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    assert read_all(path)["weight"].tobytes() == SIX


# Damage at random.


def outcome(content: bytes) -> dict[str, tuple] | None:
    """What is found in a file of this content: None where it is refused. Nothing else may happen."""
    path = Path(os.environ["PYTEST_FUZZ_FOLDER"], "pytorch_model.bin")
    path.write_bytes(content)
    modules = imported()
    try:
        tensors = open_tensors([path])
        arrays = {name: tensor.read() for name, tensor in tensors.items()}
    except CheckpointError:
        return None
    finally:
        assert imported() == modules
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    assert found == {name: (array.shape, array.dtype) for name, array in arrays.items()}
    return found


@pytest.fixture(autouse=True)
def fuzz_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_FUZZ_FOLDER", str(tmp_path))
    read_all(REFERENCES / "every_kind.bin")  # imports what NumPy imports when it first maps a file


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with a few bytes flipped, cut out, doubled or taken from elsewhere in it."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "replace", "remove", "double", "splice", "truncate"]))
        length = 1 if kind == "flip" else draw(st.integers(1, 40))
        rest = content[at + length :]
        if kind == "flip":
            content = content[:at] + bytes(byte ^ 2 ** draw(st.integers(0, 7)) for byte in content[at : at + 1]) + rest
        elif kind == "replace":
            content = content[:at] + draw(st.binary(min_size=length, max_size=length)) + rest
        elif kind == "remove":
            content = content[:at] + rest
        elif kind == "double":
            content = content[: at + length] + content[at:]
        elif kind == "splice":
            start = draw(st.integers(0, max(len(content) - 1, 0)))
            content = content[:at] + content[start : start + length] + rest
        else:
            content = content[:at]
    return content


BASE = (REFERENCES / "every_kind.bin").read_bytes()
PROTOCOL_4 = (REFERENCES / "protocol_4.bin").read_bytes()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@FUZZ
@given(content=mutated(BASE))
def test_a_damaged_file_is_read_or_refused(content: bytes) -> None:
    outcome(content)


@FUZZ
@given(directory=mutated(BASE[BASE.index(b"PK\x01\x02") :]))
def test_a_damaged_zip_directory_is_read_or_refused(directory: bytes) -> None:
    found = outcome(BASE[: BASE.index(b"PK\x01\x02")] + directory)
    assert found is None or found == {name: (array.shape, array.dtype) for name, array in EXPECTED.items()}


@FUZZ
@given(data_pkl=mutated(members(BASE)["every_kind/data.pkl"]) | mutated(members(PROTOCOL_4)["protocol_4/data.pkl"]))
def test_a_damaged_pickle_is_read_or_refused(data_pkl: bytes) -> None:
    outcome(zipped({**members(BASE), "every_kind/data.pkl": data_pkl}))


PIECES = [b"\x80\x02", *(bytes([code]) for code in b"}])(t\x85\x86RbuseaQN\x94."), b"h\0", b"q\0"]
PIECES += [text("weight"), text("storage"), number(6), storage(), tensor(), ORDERED_DICT, FLOATS]


@FUZZ
@given(data_pkl=st.binary(max_size=60) | st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_a_random_pickle_is_read_or_refused(data_pkl: bytes) -> None:
    outcome(zipped({"a/data.pkl": data_pkl, "a/data/0": SIX}))


def test_every_truncation_is_refused() -> None:
    for length in [*range(0, len(BASE), 29), len(BASE) - 1]:
        assert outcome(BASE[:length]) is None, length


# Live.


@pytest.mark.parity
def test_state_dicts_that_torch_saves_now(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "pytorch_model.bin"
    dtypes = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    for case in range(60):
        state = {}
        for name in range(case % 7):
            shape = torch.randint(0, 5, (case % 5,), generator=generator).tolist()
            values = (torch.randn(shape, generator=generator) * 50).to(getattr(torch, dtypes[(case + name) % 10]))
            state[f"plain.{name}"] = values
            state[f"tied.{name}"] = values
            if values.ndim > 1:
                state[f"transposed.{name}"] = values.transpose(0, -1)
                state[f"sliced.{name}"] = values[..., 1::2]
                state[f"parameter.{name}"] = torch.nn.Parameter(values.float())
        torch.save(state, path, pickle_protocol=2 + case % 4)
        tensors = read_all(path)
        assert list(tensors) == list(state)
        for name, expected in state.items():
            expected = expected.detach()
            assert tensors[name].shape == tuple(expected.shape)
            assert tensors[name].dtype.name == str(expected.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(tensors[name].astype(np.float64), expected.double().numpy())


@pytest.mark.parity
def test_a_file_beyond_4_gigabytes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    # Leaves holes where the data go: the file takes no room on the disk.
    with torch.serialization.skip_data():
        torch.save({"large": torch.empty(5 * 2**30, dtype=torch.uint8), "small": torch.zeros(3)}, path)
    tensors = read_archive(path)
    assert tensors["large"].shape == (5 * 2**30,)
    np.testing.assert_array_equal(tensors["small"].read(), np.zeros(3))


@pytest.mark.parity
def test_a_clip_model_that_transformers_saves(tmp_path: Path, transformers: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=sizes, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    model = transformers.CLIPModel(config)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    tensors = read_all(tmp_path / "pytorch_model.bin")
    assert list(tensors) == list(model.state_dict())
    for name, expected in model.state_dict().items():
        np.testing.assert_array_equal(tensors[name], expected.numpy(), strict=True, err_msg=name)
