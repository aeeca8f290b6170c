"""What stands for a side of a comparison on the command line: a file, a model, `oracle:MODEL` or `torch:MODEL`."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxclip.clip import load
from jaxclip.compare.capture import SUFFIXES, Capture, capture, load_capture
from jaxclip.compare.checkpoint import Checkpoint
from jaxclip.compare.inputs import Inputs
from jaxclip.compare.torch_model import capture_transformers, load_transformers, processed_by_transformers

KINDS = ("oracle", "torch")


def open_sides(
    a: str, b: str, *, model: str | None = None, dtype: str = "float32"
) -> tuple[Capture, Capture, Checkpoint | None, list[str]]:
    """Both sides, the checkpoint to judge them by, and notes on what they were given.

    Models get what a file on the other side got, its strings and images if they are there, or else examples.
    `dtype` is that of jaxclip's own computation. The checkpoint is `model`, or that of a side; None for two files that
    don't name theirs. Raises ValueError for a file that doesn't hold what its model was given.
    """
    specs, checkpoints, notes = [_parse(a), _parse(b)], {}, []
    files = {name: load_capture(name) for kind, name in specs if kind == "file"}
    models = [name for kind, name in specs if kind != "file"]
    oracles = [name for kind, name in specs if kind == "oracle"]
    known = [name for name in (model, *oracles, *models, *(read.source for read in files.values())) if name]
    for source in known:
        if source not in checkpoints and (source in (model, *models) or os.path.isdir(source)):
            checkpoints[source] = Checkpoint(source)
    judge = next((checkpoints[source] for source in known if source in checkpoints), None)
    given = Inputs()
    if files:
        path, read = next(iter(files.items()))
        given = read.inputs
        if models and given.token_ids is None and given.pixels is None and given.texts is None and given.images is None:
            raise ValueError(f"{path} holds nothing that went in: write input_ids and pixel_values to it as well")
    elif judge is not None:
        given, notes = judge.examples()
    sides = [
        files[name] if kind == "file" else run(kind, checkpoints[name], given, dtype=dtype) for kind, name in specs
    ]
    return sides[0], sides[1], judge, notes


def run(kind: str, checkpoint: Checkpoint, inputs: Inputs, *, dtype: str = "float32") -> Capture:
    """What a model makes of the inputs: jaxclip ("jaxclip"), the oracle or transformers ("torch")."""
    made, source = checkpoint.process(inputs), checkpoint.source
    if kind == "torch":
        text = checkpoint.config.text
        made = processed_by_transformers(source, made, longest=text and text.max_position_embeddings)
        return capture_transformers(load_transformers(source), made, source=source)
    if kind == "oracle":
        seen: Mapping[str, np.ndarray] = checkpoint.oracle(
            made.token_ids, made.pixels, made.attention_mask, made.position_ids
        )
        return Capture({**made.tensors(), **seen}, source=source)
    clip = checkpoint.clip if dtype == "float32" else load(source, dtype=dtype)
    return capture(
        clip,
        made.texts,
        made.images,
        token_ids=made.token_ids,
        attention_mask=made.attention_mask,
        position_ids=made.position_ids,
        pixels=made.pixels,
    )


def _parse(spec: str) -> tuple[str, str]:
    kind, colon, name = spec.partition(":")
    if colon and kind in KINDS:
        return kind, name
    if Path(spec).suffix in SUFFIXES:
        return "file", spec
    return "jaxclip", spec
