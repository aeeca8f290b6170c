"""Read torch's `pytorch_model.bin` without torch, and without executing the pickle inside it.

The format (`torch.save` since torch 1.6; `torch/serialization.py`, `caffe2/serialize/inline_container.h`) is a zip
archive of stored entries: `NAME/data.pkl`, a pickle of the state dict in which each tensor is a call of
`torch._utils._rebuild_tensor_v2` on a persistent id, and `NAME/data/KEY`, the raw bytes of the storage KEY.

A pickle is a program for a stack machine that can import and call anything. The machine below has only the instructions
a state dict needs, builds only plain data, and imports nothing: whatever else a pickle asks for is refused by its name.
"""

import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxclip.checkpoints.errors import CheckpointError

DOWNLOAD = "Download the file again."
CONVERT = (
    "If you trust where it comes from, convert it: load it with torch.load, and save its state dict with"
    " safetensors.torch.save_file as model.safetensors."
)

# A thousand tensors (ViT-bigG/14) take some 200 kB. The bound keeps a pickle made of nothing but `{` to seconds.
MAXIMUM_PICKLE_BYTES = 2 * 2**20

MAXIMUM_DIMENSIONS = 64  # NumPy's own


class Global(NamedTuple):
    """A name that a pickle refers to. It is compared, never imported."""

    module: str
    name: str


ORDERED_DICT = Global("collections", "OrderedDict")
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
STORAGES = {
    Global("torch", "DoubleStorage"): np.dtype(np.float64),
    Global("torch", "FloatStorage"): np.dtype(np.float32),
    Global("torch", "HalfStorage"): np.dtype(np.float16),
    Global("torch", "BFloat16Storage"): np.dtype(ml_dtypes.bfloat16),
    Global("torch", "LongStorage"): np.dtype(np.int64),
    Global("torch", "IntStorage"): np.dtype(np.int32),
    Global("torch", "ShortStorage"): np.dtype(np.int16),
    Global("torch", "CharStorage"): np.dtype(np.int8),
    Global("torch", "ByteStorage"): np.dtype(np.uint8),
    Global("torch", "BoolStorage"): np.dtype(np.bool_),
}
GLOBALS = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *STORAGES}

OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
ARGUMENTS = {
    "PROTO": "<B",
    "FRAME": "<Q",
    "BININT": "<i",
    "BININT1": "<B",
    "BININT2": "<H",
    "LONG1": "<B",
    "SHORT_BINUNICODE": "<B",
    "BINUNICODE": "<I",
    "BINUNICODE8": "<Q",
    "BINGET": "<B",
    "LONG_BINGET": "<I",
    "BINPUT": "<B",
    "LONG_BINPUT": "<I",
}


class Storage(NamedTuple):
    """`length` elements of `dtype` that lie at byte `start` of the file."""

    dtype: np.dtype
    start: int
    length: int


@dataclass(frozen=True)
class View:
    """A tensor in an archive: a strided view of a storage, known to lie within it.

    Attributes:
        file: the archive.
        dtype: the elements' type.
        shape: elements along each axis.
        strides: elements (not bytes) from one index of an axis to the next.
        start: the first element's byte in the file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Return a fresh contiguous array; only the bytes of this view are read, through a map of the file."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        mapped = np.memmap(self.file, self.dtype, "r", self.start, (_extent(self.shape, self.strides),))
        # A stride along an axis of length 1 is never taken, and torch lets it be anything.
        strides = [
            stride * self.dtype.itemsize if length > 1 else 0
            for length, stride in zip(self.shape, self.strides, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(mapped, self.shape, strides).copy()


def read_archive(path: Path) -> dict[str, View]:
    """Return where each tensor of the state dict saved at `path` lies, in the saved order.

    A checkpoint that wraps its state dict as `{"state_dict": {...}, ...}` is unwrapped.

    Raises:
        CheckpointError: the file is of another format, is damaged, or asks for anything but tensors.
    """
    with open(path, "rb") as file:
        _check_format(path, file)
        entries = _entries(path, file)
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise _refusal(path, f"the zip archive holds {len(pickles)} NAME/data.pkl, and torch.save writes one")
        folder = pickles[0].removesuffix("data.pkl")
        byteorder = _content(path, file, entries, folder + "byteorder") if folder + "byteorder" in entries else b""
        if byteorder not in (b"", b"little"):
            raise _refusal(path, f"its byte order is {byteorder!r}, and only b'little' is supported")
        program = _content(path, file, entries, pickles[0])
    storages = {name.removeprefix(folder + "data/"): entry for name, entry in entries.items()}
    try:
        state = _Machine(path, program, storages).run()
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise _refusal(path, f"its data.pkl is damaged ({type(error).__name__})", DOWNLOAD) from error
    return _state_dict(path, state)


def _refusal(path: Path, reason: str, mend: str = CONVERT) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read as a torch checkpoint: {reason}. {mend}")


def _state_dict(path: Path, state: object) -> dict[str, View]:
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise _refusal(path, f"it holds a {type(state).__name__}, not a state dict")
    others = [
        f"{name!r} (a {type(value).__name__})"
        for name, value in state.items()
        if not (isinstance(name, str) and isinstance(value, View))
    ]
    if others:
        raise _refusal(path, f"its state dict may hold nothing but named tensors, and holds {', '.join(others)}")
    return state


def _check_format(path: Path, file: BinaryIO) -> None:
    start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        return
    # The magic number 0x1950a86a20f9469cfc6c, pickled.
    if start[2:].startswith(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
        raise _refusal(path, "it is in the legacy format of torch < 1.6")
    if start.startswith(b"\x80"):
        raise _refusal(path, "it is a bare pickle, which is only read by executing it")
    if start[257:262] == b"ustar":
        raise _refusal(path, "it is a tar archive, as torch < 0.1.10 wrote")
    raise _refusal(path, f"it begins with {start[:8]!r}, and torch.save writes a zip archive", DOWNLOAD)


class Entry(NamedTuple):
    """`size` bytes that lie at byte `start` of the file."""

    start: int
    size: int


def _content(path: Path, file: BinaryIO, entries: dict[str, Entry], name: str) -> bytes:
    start, size = entries[name]
    if size > MAXIMUM_PICKLE_BYTES:
        raise _refusal(path, f"{name!r} has {size} bytes, and {MAXIMUM_PICKLE_BYTES} are more than enough")
    file.seek(start)
    return file.read(size)


def _entries(path: Path, file: BinaryIO) -> dict[str, Entry]:
    """Return where each entry's bytes lie: stored, plain, unique, and disjoint from all others.

    CRCs are not checked: torch itself writes wrong ones under `torch.serialization.set_crc32_options(False)`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos, directory = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, struct.error) as error:
        raise _refusal(path, f"the zip archive is damaged or truncated ({error})", DOWNLOAD) from error
    if any(info.orig_filename.endswith("/constants.pkl") for info in infos):
        raise _refusal(path, "it is a TorchScript archive, which holds code, like OpenAI's own ViT-B-32.pt")
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    end = 0
    for info in infos:
        name = info.orig_filename  # `filename` is another where an extra field or a NUL byte says so
        file.seek(max(info.header_offset, 0))  # a damaged directory makes it negative
        header = file.read(30)
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            problems.append(f"{name!r} has no local header")
            continue
        flags, method, packed, size, name_length, extra_length = struct.unpack("<6xHH8xIIHH", header)
        # Bit 3: torch writes sizes after the data, and zeros here. 0xFFFFFFFF: they are in the zip64 field.
        accepted = {info.file_size, 0xFFFFFFFF} | ({0} if flags & 8 else set())
        if file.read(name_length) != name.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
            problems.append(f"{name!r} has another name in its local header")
        if method or info.compress_type:
            problems.append(f"{name!r} is compressed")
        elif info.compress_size != info.file_size or not {packed, size} <= accepted:
            problems.append(f"{name!r} has contradictory sizes")
        if (flags | info.flag_bits) & 0x2041:  # encrypted, strongly encrypted, masked header
            problems.append(f"{name!r} is encrypted")
        if name in entries:
            problems.append(f"{name!r} is there twice")
        start = info.header_offset + 30 + name_length + extra_length
        if info.header_offset < end:
            problems.append(f"{name!r} overlaps the entry before it")
        end = start + info.compress_size
        if end > directory:
            problems.append(f"{name!r} runs beyond the end of the data")
        entries[name] = Entry(start, info.file_size)
    if problems:
        raise _refusal(path, "in the zip archive " + ", ".join(problems))
    return entries


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements of a storage lie from a view's first element to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


class _Machine:
    """A pickle's stack machine, reduced to plain data and tensors. Work and memory are linear in the program."""

    def __init__(self, path: Path, program: bytes, storages: dict[str, Entry]) -> None:
        self.path = path
        self.file_size = path.stat().st_size
        self.program = program
        self.storages = storages
        self.position = 0
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        """Execute the program and return what it leaves on the stack."""
        while True:
            code = self.take(1)[0]
            name = OPCODES.get(code) or f"0x{code:02x}"
            if name == "STOP":
                if self.position != len(self.program) or len(self.stack) != 1:
                    raise _refusal(self.path, "its data.pkl leaves bytes or values over")
                return self.stack[0]
            argument = 0
            if layout := ARGUMENTS.get(name):
                (argument,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
            self.execute(name, argument)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes of the program."""
        taken = self.program[self.position : self.position + count]
        if len(taken) < count:
            raise _refusal(self.path, "its data.pkl is truncated", DOWNLOAD)
        self.position += count
        return taken

    def line(self) -> str:
        """Return the program's next line."""
        end = self.program.find(b"\n", self.position)
        if end < 0:
            raise _refusal(self.path, "its data.pkl is truncated", DOWNLOAD)
        return self.take(end + 1 - self.position)[:-1].decode()

    def pop(self, count: int) -> list:
        """Take `count` values off the stack, the topmost last."""
        if count > len(self.stack):
            raise IndexError
        split = len(self.stack) - count
        values, self.stack[split:] = self.stack[split:], []
        return values

    def pop_marked(self) -> list:
        """Take all values above the last mark off the stack."""
        mark = self.marks.pop()
        return self.pop(max(len(self.stack) - mark, 0))

    def execute(self, opcode: str, argument: int) -> None:
        """Execute one instruction."""
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BININT" | "BININT1" | "BININT2":
                self.stack.append(argument)
            case "BINFLOAT":
                self.stack.extend(struct.unpack(">d", self.take(8)))
            case "LONG1":
                self.stack.append(int.from_bytes(self.take(argument), "little", signed=True))
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                self.stack.append(self.take(argument).decode())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(int(opcode[-1]))))
            case "TUPLE":
                self.stack.append(tuple(self.pop_marked()))
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS":
                self.extend(self.pop_marked())
            case "SETITEM":
                self.update(self.pop(2))
            case "SETITEMS":
                self.update(self.pop_marked())
            case "GLOBAL":
                self.stack.append(self.checked(Global(self.line(), self.line())))
            case "STACK_GLOBAL":
                module, name = self.pop(2)
                self.stack.append(self.checked(Global(str(module), str(name))))
            case "BINPERSID":
                self.stack.append(self.storage(self.pop(1)[0]))
            case "REDUCE":
                function, arguments = self.pop(2)
                self.stack.append(self.call(function, arguments))
            case "BUILD":
                self.build(self.pop(1)[0])
            case _:
                raise _refusal(self.path, f"its pickle uses {opcode}, which no state dict needs")

    def extend(self, values: list) -> None:
        """Append `values` to the list on the stack."""
        if not isinstance(self.stack[-1], list):
            raise _refusal(self.path, f"its pickle appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def update(self, values: list) -> None:
        """Set the items of the dict on the stack to `values`: key, value, key, value."""
        target, keys = self.stack[-1], values[::2]
        # Hashing a tuple of tuples of tuples takes exponential time.
        if not isinstance(target, dict) or len(values) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise _refusal(self.path, "its pickle sets items of what is no dict of names")
        target.update(zip(keys, values[1::2], strict=True))

    def build(self, state: object) -> None:
        """Accept `_metadata` (the modules' versions), which torch hangs onto a state dict, and nothing else."""
        if not isinstance(self.stack[-1], dict) or not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise _refusal(self.path, f"its pickle sets the state of a {type(self.stack[-1]).__name__} (BUILD)")

    def checked(self, name: Global) -> Global:
        """Return `name` if it is one that a state dict needs."""
        if name not in GLOBALS:
            raise _refusal(
                self.path, f"its pickle asks for {'.'.join(name)!r}, which no plain float or integer tensor needs"
            )
        return name

    def storage(self, identifier: object) -> Storage:
        """Return the storage that a persistent id, ("storage", type, key, device, length), stands for."""
        match identifier:
            case ("storage", Global() as kind, str(key), str(), int(length)) if kind in STORAGES and length >= 0:
                pass
            case _:
                raise _refusal(self.path, "its pickle has a persistent id that is no storage of a supported type")
        if key not in self.storages:
            raise _refusal(self.path, f"the storage {key!r} is missing from the zip archive", DOWNLOAD)
        dtype = STORAGES[kind]
        start, size = self.storages[key]
        if length * dtype.itemsize > size:
            raise _refusal(
                self.path, f"the storage {key!r} has {size} bytes, too few for {length} of {dtype}", DOWNLOAD
            )
        return Storage(dtype, start, length)

    def call(self, function: object, arguments: object) -> object:
        """Do what the three callables of a state dict do."""
        match function, arguments:
            case Global() as name, () if name == ORDERED_DICT:
                return {}
            case Global() as name, (View() as view, *_) if name == REBUILD_PARAMETER:
                return view
            # The last, where it is there, has the bits (negative, conjugate) that change what the elements mean.
            case (
                Global() as name,
                (Storage() as storage, int(offset), tuple(shape), tuple(strides), _, _, *metadata),
            ) if name == REBUILD_TENSOR and not any(metadata):
                return self.view(storage, offset, shape, strides)
        called = ".".join(function) if isinstance(function, Global) else type(function).__name__
        raise _refusal(self.path, f"its pickle calls {called!r} with unexpected arguments")

    def view(self, storage: Storage, offset: int, shape: tuple, strides: tuple) -> View:
        """Return the view of `storage`, in elements, if it lies within."""
        if len(shape) != len(strides) or len(shape) > MAXIMUM_DIMENSIONS:
            raise _refusal(self.path, f"a tensor has {len(shape)} axes and {len(strides)} strides")
        if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
            raise _refusal(self.path, "a tensor has an offset, shape or strides that are no natural numbers")
        # torch gives a view without elements whatever offset it came by.
        if 0 not in shape and offset + _extent(shape, strides) > storage.length:
            raise _refusal(
                self.path, f"a tensor of shape {shape} reaches beyond its storage's {storage.length} elements"
            )
        # An axis of stride 0 repeats an element at no cost in the file, a million million times if asked to.
        size = math.prod(length or 1 for length in shape) * storage.dtype.itemsize
        if size > self.file_size:
            raise _refusal(self.path, f"a tensor of shape {shape} would take {size} bytes, more than the whole file")
        return View(self.path, storage.dtype, shape, strides, storage.start + offset * storage.dtype.itemsize)
