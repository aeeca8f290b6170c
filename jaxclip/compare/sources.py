"""What stands for a side of a comparison on the command line: a file, a model, `oracle:MODEL` or `torch:MODEL`."""

from pathlib import Path

from jaxclip.clip import load
from jaxclip.compare.capture import SUFFIXES, Capture, capture, load_capture
from jaxclip.compare.checkpoint import Checkpoint, is_here
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
    specs, checkpoints = [_parse(a), _parse(b)], {}
    files = {name: load_capture(name) for kind, name in specs if kind == "file"}
    models = [name for kind, name in specs if kind != "file"]
    oracles = [name for kind, name in specs if kind == "oracle"]
    known = [name for name in (model, *oracles, *models, *(read.source for read in files.values())) if name]
    for source in known:
        if source not in checkpoints and (source in (model, *models) or is_here(source)):
            checkpoints[source] = Checkpoint(source)
    judge = next((checkpoints[source] for source in known if source in checkpoints), None)
    if files:
        path, read = next(iter(files.items()))
        given = read.inputs
        if models and not given.tensors():
            few = ", ".join([*read][:3])
            raise ValueError(
                f"{path} holds nothing that went in: write input_ids and pixel_values to it as well (it has {few}, ...)"
            )
    else:
        given = _examples([checkpoints[name] for name in models])
    sides, notes = [], {}
    for kind, name in specs:
        if kind == "file":
            sides.append(files[name])
            continue
        made, told = checkpoints[name].process(given)
        sides.append(run(kind, checkpoints[name], made, dtype=dtype))
        notes |= dict.fromkeys(told)
    return sides[0], sides[1], judge, list(notes)


def _examples(models: list[Checkpoint]) -> Inputs:
    """Texts and images, and the arrays that go into a model that can't make its own of them: another's, if one can."""
    towers = [{name for name in ("text", "vision") if getattr(each.config, name)} for each in models]
    if not set.intersection(*towers):
        described = " and ".join(
            f"{each.source} has a {name} tower alone" for each, own in zip(models, towers, strict=True) for name in own
        )
        raise ValueError(f"there is nothing to compare: {described}")
    given = Inputs()
    for model in models:
        own = model.examples()
        made = model.process(own)[0]
        given = Inputs(
            texts=own.texts,
            images=own.images,
            token_ids=made.token_ids if given.token_ids is None or made.texts else given.token_ids,
            pixels=made.pixels if given.pixels is None or made.images else given.pixels,
        )
    return given


def run(kind: str, checkpoint: Checkpoint, inputs: Inputs, *, dtype: str = "float32") -> Capture:
    """What a model makes of the inputs that `checkpoint.process` gave: jaxclip ("jaxclip"), the oracle, or transformers
    with its own tokenizer and image processor ("torch")."""
    source = checkpoint.source
    if kind == "torch":
        text = checkpoint.config.text
        inputs = processed_by_transformers(source, inputs, longest=text and text.max_position_embeddings)
        return capture_transformers(load_transformers(source), inputs, source=source)
    if kind == "oracle":
        return Capture({**inputs.tensors(), **checkpoint.trace(inputs)}, source=source)
    clip = checkpoint.clip if dtype == "float32" else load(source, dtype=dtype)
    return capture(
        clip,
        inputs.texts,
        inputs.images,
        token_ids=inputs.token_ids,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        pixels=inputs.pixels,
    )


def _parse(spec: str) -> tuple[str, str]:
    kind, colon, name = spec.partition(":")
    if colon and kind in KINDS:
        if not name:
            raise ValueError(f"{spec} names no model: write {spec}MODEL, a Hub id or folder")
        return kind, name
    if Path(spec).suffix in SUFFIXES and not Path(spec).is_dir():
        return "file", spec
    if Path(spec).is_file():
        raise ValueError(f"{spec}: tensors are read from a file that ends with {' or '.join(SUFFIXES)}")
    return "jaxclip", spec
