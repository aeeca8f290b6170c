"""Files of class names, prompt templates and class embeddings, as the commands take them."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from jaxclip.tasks.captions import captions_in


def read_labels(file: str | os.PathLike) -> dict[str, list[str]]:
    """Class → its names, of a UTF-8 file with a class on each line: names separated by commas.

    A class is called by its first name, or by what stands before a tab, as folders of WordNet ids need it
    ("n01440764<tab>tench, Tinca tinca"). Blank lines are left out. Raises ValueError for a line without a name, for a
    class that comes twice, and for a file without any.
    """
    labels: dict[str, list[str]] = {}
    for line in captions_in(file):
        key, tab, rest = line.rpartition("\t")
        names = [name for name in map(str.strip, rest.split(",")) if name]
        if not names:
            raise ValueError(f"{os.fspath(file)}: the line {line!r} has no name of a class")
        key = key.strip() if tab else names[0]
        if key in labels:
            raise ValueError(f"{os.fspath(file)}: the class {key!r} comes twice")
        labels[key] = names
    if not labels:
        raise ValueError(f"{os.fspath(file)}: there is no class in it")
    return labels


def read_templates(file: str | os.PathLike) -> list[str]:
    """One a line, with {} where the name of a class goes, in UTF-8. Raises ValueError for a file without any."""
    return _lines(file, "template")


def read_prompts(file: str | os.PathLike) -> list[str]:
    """One a line, in UTF-8. Raises ValueError for a file without any."""
    return _lines(file, "prompt")


def _lines(file: str | os.PathLike, what: str) -> list[str]:
    if not (lines := [line.strip() for line in captions_in(file)]):
        raise ValueError(f"{os.fspath(file)}: there is no {what} in it")
    return lines


def read_embeddings(file: str | os.PathLike) -> Float32[np.ndarray, "classes projection"]:
    """A class's embedding in each row, of a .npy file or of a .safetensors file that holds this tensor alone. Raises
    FileNotFoundError, and ValueError for other files."""
    path = Path(file)
    try:
        if path.suffix == ".npy":
            embeddings = np.load(path, allow_pickle=False)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as opened:
                names = list(opened.keys())
                if len(names) != 1:
                    raise ValueError(f"it holds {len(names)} tensors ({', '.join(names[:5])}), and one is expected")
                embeddings = opened.get_tensor(names[0])
        else:
            raise ValueError("embeddings are read from .npy and .safetensors files")
    except (ValueError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fV":  # bfloat16 is of no kind of NumPy's own.
        raise ValueError(
            f"{path}: expected floats of shape (classes, width), found {embeddings.dtype} {embeddings.shape}"
        )
    return embeddings.astype(np.float32)
