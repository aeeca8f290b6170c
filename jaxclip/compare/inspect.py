"""What a checkpoint is, told from its files' headers: no model is built, and no number read unless asked for."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxclip.checkpoints import CheckpointError, Files, Tensor, locate, open_tensors, weight_files
from jaxclip.checkpoints.files import read_json
from jaxclip.checkpoints.load import Mismatches, mismatches
from jaxclip.checkpoints.names import is_exempt, parameter_names, with_prefix
from jaxclip.clip import IMAGE_PROCESSOR_FILES, read_image_processor
from jaxclip.compare.misleading import (
    warnings_of_config,
    warnings_of_dtype,
    warnings_of_image_processor,
    warnings_of_logit_scale,
    warnings_of_open_clip,
    warnings_of_tokenizer,
)
from jaxclip.config import CLIPConfig, TowerConfig
from jaxclip.processing import TOKENIZER_FILES, ImageProcessor, Tokenizer

# A vision transformer's width and depth → the letters that papers and model names have for it (open_clip's
# `model_configs`).
_SIZES = {
    (384, 12): "S",
    (512, 12): "M",
    (768, 12): "B",
    (1024, 24): "L",
    (1280, 32): "H",
    (1408, 40): "g",
    (1664, 48): "bigG",
    (1792, 56): "e",
}

# Numbers that are looked at together: 16 MiB in float32.
_PIECE = 1 << 22


@dataclass(frozen=True)
class WeightFile:
    """`size` in bytes on the disk; `tensors` is how many it holds, 0 for an index."""

    name: str
    size: int
    tensors: int


@dataclass(frozen=True)
class Values:
    """What the numbers show.

    - `nan`, `infinite`: tensor → how many of its numbers are so
    - `zero`: tensors of nothing but zeros
    - `logit_scale`: the stored logarithm, None where there is none
    """

    nan: Mapping[str, int]
    infinite: Mapping[str, int]
    zero: tuple[str, ...]
    logit_scale: float | None


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    - `source`, `revision`: where it is (for the Hub, the commit)
    - `config`: as it is read, a legacy `*_config_dict` accounted for; None where it can't be
    - `name`: what the vision tower's size is called, "ViT-B/32" or "ViT-L/14@336px"; None for other sizes
    - `parameters`: of "text" and "vision", projections included, and "logit_scale"
    - `dtypes`: as stored → how many numbers
    - `files`: the weights, an index first
    - `image_processor`, `tokenizer`: None where there is none, or it can't be read (a warning then says so)
    - `mismatches`: what is missing, unexpected or of another shape; None where config or weights can't be read
    - `values`: what the numbers show, None unless asked for
    - `problems`: why it doesn't load or, among the values, what can't be right
    - `warnings`: what is known to mislead those who read the files
    """

    source: str
    revision: str | None
    config: CLIPConfig | None
    parameters: Mapping[str, int] = field(default_factory=dict)
    dtypes: Mapping[str, int] = field(default_factory=dict)
    files: tuple[WeightFile, ...] = ()
    image_processor: ImageProcessor | None = None
    tokenizer: Tokenizer | None = None
    mismatches: Mismatches | None = None
    values: Values | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        vision = self.config and self.config.vision
        letter = _SIZES.get((vision.hidden_size, vision.num_hidden_layers)) if vision else None
        if vision is None or letter is None:
            return None
        return f"ViT-{letter}/{vision.patch_size}" + (f"@{vision.image_size}px" if vision.image_size != 224 else "")

    @property
    def sharded(self) -> bool:
        return len(self.files) > 1

    @property
    def size(self) -> int:
        """Bytes on the disk, of the weights."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain dicts, lists, strings and numbers, with the Hub's names for what config.json states."""
        config, tokenizer = self.config, self.tokenizer
        towers = {name: tower for name in ("text", "vision") if (tower := getattr(config, name, None)) is not None}
        return {
            "source": self.source,
            "revision": self.revision,
            "family": config and next(iter(towers.values())).family,
            "architecture": config and config.to_hub()["architectures"][0],
            "name": self.name,
            "towers": {name: _facts(tower, self.parameters.get(name)) for name, tower in towers.items()},
            "parameters": sum(self.parameters.values()),
            "dtypes": dict(self.dtypes),
            "size": self.size,
            "sharded": self.sharded,
            "files": [dataclasses.asdict(file) for file in self.files],
            "image_processor": self.image_processor and self.image_processor.to_hub(),
            "tokenizer": tokenizer
            and {
                "vocab_size": tokenizer.vocab_size,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "max_length": tokenizer.max_length,
            },
            "mismatches": self.mismatches and dataclasses.asdict(self.mismatches),
            "values": self.values and dataclasses.asdict(self.values),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }


def inspect(
    source: str | os.PathLike, *, revision: str | None = None, subfolder: str | None = None, values: bool = False
) -> Inspection:
    """Says what a checkpoint is, whether it loads, and what in its files is known to mislead.

    `source`, `revision` and `subfolder` are those of `jaxclip.load`; what the Hub's cache doesn't have is fetched.
    Of the weights only the headers are read, or with `values` every number, one tensor at a time.

    Raises `CheckpointError` where there is nothing to inspect: no such folder or Hub id, neither a config.json nor
    weights in it, or the Hub refuses. All else that stops a checkpoint from loading is among the `problems`.
    """
    files = locate(source, revision=revision, subfolder=subfolder)
    problems: list[str] = []
    hub, config = _config(files, problems)
    tensors, weights = _weights(files, problems)
    if hub is None and not weights:
        raise CheckpointError("; ".join(problems))
    found = _under_table_names(tensors, config)
    warnings = warnings_of_config(hub, config, files.source) if hub is not None and config else []
    differences, processor, tokenizer, read = None, None, None, None
    if config is not None:
        if weights:
            differences = _mismatches(tensors, config, problems)
        processor = _image_processor(files, config, warnings)
        tokenizer = _tokenizer(files, config, warnings)
        if (path := files.find("open_clip_config.json")) is not None:
            try:
                warnings += warnings_of_open_clip(read_json(path), config, processor)
            except CheckpointError as error:
                warnings.append(str(error))
    dtypes = Counter[str]()
    for tensor in found.values():
        dtypes[tensor.dtype.name] += int(np.prod(tensor.shape))
    if hub is not None:
        warnings += warnings_of_dtype(hub, dtypes)
    if values:
        read = read_values(found.values())
        problems += _bad_values(read)
        warnings += _odd_values(read)
    return Inspection(
        source=files.source,
        revision=files.revision,
        config=config,
        parameters=_parameters(found, config),
        dtypes=dict(dtypes),
        files=tuple(weights),
        image_processor=processor,
        tokenizer=tokenizer,
        mismatches=differences,
        values=read,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def read_values(tensors: Iterable[Tensor]) -> Values:
    """Reads every number, one tensor after the other: memory is that of the largest. On a terminal a bar shows how
    far it is. Raises CheckpointError for a file that changes meanwhile."""
    tensors = list(tensors)
    nan, infinite, zero, logit_scale = {}, {}, [], None
    total = sum(int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in tensors)
    with tqdm(desc="values", unit="B", unit_scale=True, total=total, disable=None) as bar:
        for tensor in tensors:
            numbers = tensor.read().reshape(-1)
            pieces = [numbers[start : start + _PIECE] for start in range(0, numbers.size, _PIECE)]
            for kind, counts in ((np.isnan, nan), (np.isinf, infinite)):
                if count := sum(int(np.count_nonzero(kind(piece))) for piece in pieces):
                    counts[tensor.name] = count
            if not any(piece.any() for piece in pieces):
                zero.append(tensor.name)
            if tensor.name == "logit_scale" and numbers.size == 1:
                logit_scale = float(numbers[0])
            bar.update(numbers.nbytes)
    return Values(nan, infinite, tuple(zero), logit_scale)


def _config(files: Files, problems: list[str]) -> tuple[dict[str, Any] | None, CLIPConfig | None]:
    """config.json, as it is and as it is read."""
    hub = None
    if (path := files.find("config.json")) is None:
        problems.append(str(files.missing("config.json")))
        return None, None
    try:
        hub = read_json(path)
        return hub, CLIPConfig.from_hub(hub)
    except CheckpointError as error:
        problems.append(str(error))
    except ValueError as error:
        problems.append(f"{path}: {error}")
    return hub, None


def _weights(files: Files, problems: list[str]) -> tuple[dict[str, Tensor], list[WeightFile]]:
    paths: list[Path] = []
    tensors: dict[str, Tensor] = {}
    try:
        paths = weight_files(files)
        tensors = open_tensors(paths)
    except CheckpointError as error:
        problems.append(str(error))
    counts = Counter(tensor.file for tensor in tensors.values())
    return tensors, [WeightFile(path.name, path.stat().st_size, counts[path]) for path in paths]


def _under_table_names(tensors: Mapping[str, Tensor], config: CLIPConfig | None) -> dict[str, Tensor]:
    """All but the buffers, which are no parameters."""
    if config is None:
        return dict(tensors)
    names = with_prefix(tensors, config)
    return {names[name]: tensor for name, tensor in tensors.items() if not is_exempt(names[name], config, config)}


def _mismatches(tensors: Mapping[str, Tensor], config: CLIPConfig, problems: list[str]) -> Mismatches | None:
    if not tensors:  # Damaged, as is said already.
        return None
    try:
        found = mismatches(tensors, config)
    except CheckpointError as error:
        problems.append(str(error))
        return None
    problems += found.lines()
    return found


def _image_processor(files: Files, config: CLIPConfig, warnings: list[str]) -> ImageProcessor | None:
    found = {name: path for name in IMAGE_PROCESSOR_FILES if config.vision and (path := files.find(name))}
    if not found or config.vision is None:
        return None
    try:
        processor = read_image_processor(found)
    except CheckpointError as error:
        warnings.append(f"preprocessing: photos can't be encoded: {error}")
        return None
    warnings += warnings_of_image_processor(processor, config.vision)
    return processor


def _tokenizer(files: Files, config: CLIPConfig, warnings: list[str]) -> Tokenizer | None:
    found = {name: path for name in TOKENIZER_FILES if config.text and (path := files.find(name))}
    if not found or config.text is None:
        return None
    try:
        tokenizer = Tokenizer.from_files(found, max_length=config.text.max_position_embeddings)
    except (ValueError, FileNotFoundError) as error:
        warnings.append(f"tokenizer: strings can't be encoded: {error}")
        return None
    warnings += warnings_of_tokenizer(tokenizer, config.text)
    return tokenizer


def _parameters(found: Mapping[str, Tensor], config: CLIPConfig | None) -> dict[str, int]:
    counts = Counter[str]()
    for path, (name, _) in (parameter_names(config) if config else {}).items():
        if name in found:
            counts[path.split(".")[0]] += int(np.prod(found[name].shape))
    return dict(counts)


def _bad_values(values: Values) -> list[str]:
    bad = [
        f"values: {name} has {count:,} {what}"
        for what, counts in (("NaN", values.nan), ("infinite numbers", values.infinite))
        for name, count in counts.items()
    ]
    return [*bad, *(f"values: {name} holds nothing but zeros" for name in values.zero if not name.endswith(".bias"))]


def _odd_values(values: Values) -> list[str]:
    told = []
    if biases := [name for name in values.zero if name.endswith(".bias")]:
        told.append(
            f"values: {len(biases)} {'bias holds' if len(biases) == 1 else 'biases hold'} nothing but zeros, as before "
            f"any training ({biases[0]}{', ...' if len(biases) > 1 else ''})"
        )
    return told if values.logit_scale is None else told + warnings_of_logit_scale(values.logit_scale)


def _facts(tower: TowerConfig, parameters: int | None) -> dict[str, Any]:
    stated = {f.name: getattr(tower, f.name) for f in dataclasses.fields(tower) if f.name not in ("family", "other")}
    derived = {"head_dim": tower.hidden_size // tower.num_attention_heads}
    derived |= {name: getattr(tower, name) for name in ("pooling", "grid_size") if hasattr(tower, name)}
    return {**stated, **derived, "parameters": parameters}
