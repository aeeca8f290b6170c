"""A checkpoint's tensors: listed from the files' headers, read one at a time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxclip.checkpoints import torch_archive
from jaxclip.checkpoints.errors import CheckpointError, quoted

__all__ = ["CheckpointError", "Tensor", "open_tensors", "read_index"]

INDEX_SUFFIX = ".index.json"

# safetensors' names for what NumPy holds in whole bytes; the 8-bit floats and smaller are quantised models'.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint that is still in its file.

    Attributes:
        name: as the checkpoint has it.
        shape: elements along each axis.
        dtype: as stored (`ml_dtypes.bfloat16` included).
        file: where it lies.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)

    def read(self) -> np.ndarray:
        """Return the elements as a fresh array, which stays as it is when the file is replaced.

        Raises:
            CheckpointError: the file has changed or gone since it was opened.
        """
        try:
            return self.load()
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.file}: the tensor {self.name!r} of shape {self.shape} cannot be read ({error})."
                " If the file was changed while it was open, load it again."
            ) from error


def open_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """Return the tensors of `files` by name, reading headers only.

    Args:
        files: one `.safetensors` or `.bin` file, or an index (`*.index.json`) and all its shards.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind, or the files and the index disagree.
    """
    indices = [file for file in files if file.name.endswith(INDEX_SUFFIX)]
    shards = [file for file in files if file not in indices]
    where = {name: shard for index in indices for name, shard in read_index(index).items()}
    expected = set(where.values())
    problems = [f"no shard {name!r}" for name in sorted(expected - {shard.name for shard in shards})]
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for name, tensor in _open(shard).items():
            if name in tensors:
                problems.append(f"{name!r} is both in {tensors[name].file.name!r} and in {shard.name!r}")
            elif indices and where.get(name) != shard.name:
                indexed = f"has it in {where[name]!r}" if name in where else "does not name it"
                problems.append(f"{name!r} is in {shard.name!r}, and the index {indexed}")
            tensors[name] = tensor
    problems += [f"{name!r} is not in {shard!r}" for name, shard in where.items() if name not in tensors]
    if problems:
        raise CheckpointError(
            f"{', '.join(str(file) for file in indices or shards)}: the files do not belong together:"
            f" {'; '.join(problems)}. Download the whole checkpoint again."
        )
    return tensors


def read_index(index: Path) -> dict[str, str]:
    """Return the file name of the shard that holds each tensor: the `weight_map` of a `*.index.json`.

    Raises:
        CheckpointError: the index is missing, damaged, or names a shard that is not a file beside it.
    """
    _check_plausible(index)
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: expected JSON with a weight_map of tensor names to file names ({type(error).__name__}: {error})."
            " Download the file again."
        ) from error
    suffix = Path(index.name.removesuffix(INDEX_SUFFIX)).suffix
    strays = sorted({shard for shard in names.values() if not _is_plain_name(shard) or not shard.endswith(suffix)})
    if strays:
        raise CheckpointError(f"{index}: the shards must be {suffix} files beside the index, not {quoted(strays)}.")
    return names


def _is_plain_name(name: str) -> bool:
    return name.isprintable() and name == PurePosixPath(name).name == PureWindowsPath(name).name


def _open(file: Path) -> dict[str, Tensor]:
    _check_plausible(file)
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix == ".bin":
        views = torch_archive.read_archive(file)
        return {name: Tensor(name, view.shape, view.dtype, file, view.read) for name, view in views.items()}
    raise CheckpointError(f"{file}: expected a .safetensors or .bin file.")


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        # pread: where the file is truncated while open, reading raises; a map would kill the process (SIGBUS).
        opened = safe_open(file, framework="numpy", backend="pread")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: is no whole safetensors file ({error}). {_guess(file)}") from error
    tensors: dict[str, Tensor] = {}
    problems: list[str] = []
    for name in opened.offset_keys():
        header = opened.get_slice(name)
        shape, dtype = tuple(header.get_shape()), DTYPES.get(header.get_dtype())
        if dtype is None or len(shape) > torch_archive.MAXIMUM_DIMENSIONS:
            problems.append(f"{name!r} is {header.get_dtype()} with {len(shape)} axes")
        else:
            tensors[name] = Tensor(name, shape, dtype, file, lambda name=name: opened.get_tensor(name))
    if problems:
        raise CheckpointError(
            f"{file}: expected tensors of {', '.join(DTYPES)}: {'; '.join(problems)}."
            " Convert the checkpoint to float32, float16 or bfloat16."
        )
    return tensors


def _check_plausible(file: Path) -> None:
    """Refuse the things that are commonly found under a weights file's name."""
    if not file.exists():
        raise CheckpointError(f"{file}: there is no such file.")
    if not file.is_file():
        raise CheckpointError(f"{file}: expected a file, found a directory.")
    with open(file, "rb") as opened:
        start = opened.read(512).lstrip().lower()
    if not start:
        raise CheckpointError(f"{file}: the file is empty. Download it again.")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CheckpointError(f"{file}: is a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{file}: is a web page (perhaps an error message), not the file. Download it again.")


def _guess(file: Path) -> str:
    with open(file, "rb") as opened:
        start = opened.read(8)
    for magic, kind in {
        b"PK\x03\x04": "a zip archive, as torch.save writes: name it pytorch_model.bin",
        b"\x80": "a pickle",
        b"\x89HDF": "an HDF5 file, as TensorFlow and Keras write",
        b"\x1f\x8b": "compressed by gzip: unpack it",
        b"{": "JSON text",
    }.items():
        if start.startswith(magic):
            return f"It seems to be {kind}."
    return f"It has {file.stat().st_size} bytes and may be truncated: download it again."
