"""What a training run is told, as frozen dataclasses from and to TOML.

    output = "run"
    model = "openai/clip-vit-base-patch32"
    data = "flickr8k"
    steps = 1000
    batch_size = 64

    [optimizer]
    learning_rate = 1e-5

is a whole file. `TrainConfig` has the rest.
"""

import dataclasses
import difflib
import json
import math
import os
import tomllib
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from jaxclip.config import TextConfig, VisionConfig
from jaxclip.training.augmentation import AUGMENTATIONS, Augmentation
from jaxclip.training.objectives import CLIPObjective, MoCoObjective, Objective, SigLIPObjective, SimCLRObjective
from jaxclip.training.optimizer import OptimizerConfig

OBJECTIVES: dict[str, type[Objective]] = {
    "clip": CLIPObjective,
    "siglip": SigLIPObjective,
    "simclr": SimCLRObjective,
    "moco": MoCoObjective,
}
# float16 is none of them: small gradients vanish in it.
DTYPES = ("float32", "tensorfloat32", "bfloat16")
Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained: a checkpoint, or each tower from a checkpoint or from scratch.

    - `checkpoint`: a local folder or Hub id. `model = "…"` is short for it.
    - `text`, `vision`: a tower's own checkpoint (a joint one, or that tower alone), or for one from scratch its sizes
      by the names of `config.json`: `{hidden_size = 512, num_hidden_layers = 12}`. What isn't said is 4 · hidden_size
      wide (`intermediate_size`), has heads of 64 (`num_attention_heads`), the tokenizer's vocabulary and EOS, and else
      `TextConfig`'s and `VisionConfig`'s defaults, ViT-B/32's. Without one of them there is no such tower.
    - `projection_dim`: of the joint space, where both towers are from scratch; otherwise the checkpoint's
    - `logit_scale_init_value`: a logarithm, where the towers are given one by one; by default ln(1 / 0.07), and ln 10
      for SigLIP, as the papers have it
    """

    checkpoint: str | None = None
    text: str | Mapping[str, Any] | None = None
    vision: str | Mapping[str, Any] | None = None
    projection_dim: int | None = None
    logit_scale_init_value: float | None = None

    def __post_init__(self) -> None:
        others = [f.name for f in dataclasses.fields(self)[1:] if getattr(self, f.name) is not None]
        if self.checkpoint is not None and others:
            raise ValueError(f"model.checkpoint is the whole model, and model.{others[0]} a part: give one of both")
        if self.checkpoint is None and self.text is None and self.vision is None:
            raise ValueError(
                'say what to train: model = "a checkpoint", or the sizes of towers from scratch in [model.text] and '
                "[model.vision]"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What it is trained on; the paths are what `open_source` takes.

    - `train`: images with captions; for SimCLR and MoCo a folder of photos will do. `data = "…"` is short for it.
    - `split`: only the lines of this split
    - `held_out`, `held_out_split`: what it is evaluated on; with a split alone, of `train`
    - `augmentation`: "clip" (a random crop, the default), "simclr" (the default of SimCLR and MoCo), "none" (the
      default where the image tower is frozen), or an `Augmentation`'s numbers
    - `text_length`: tokens, by default as many as the model has positions
    - `threads`: that read and decode, by default one for each processor
    """

    train: str
    split: str | None = None
    held_out: str | None = None
    held_out_split: str | None = None
    augmentation: str | Augmentation | None = None
    text_length: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.augmentation, str) and self.augmentation not in ("none", *AUGMENTATIONS):
            raise ValueError(
                f"data.augmentation must be one of none, {', '.join(AUGMENTATIONS)}, or a table, got "
                f"{self.augmentation!r}"
            )
        _check_positive("data.", text_length=self.text_length, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices are laid out, see `make_mesh`: −1 is as many as there are left."""

    data: int = -1
    fsdp: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Sections are tables in TOML.

    - `output`: its folder
    - `model`: a `ModelConfig`; `data`: a `DataConfig`
    - `objective`: "clip", "siglip", "simclr" or "moco", or a table with it as `name` and the objective's settings
    - `optimizer`: `OptimizerConfig`'s settings but for `steps` (`clip_norm = false` for none). By default the warm-up
      is the paper's 2000 steps, but at most a tenth of all.
    - `tokenizer`, `image_processor`: folders or Hub ids they come from, in the place of the model's own checkpoint. An
      image tower from scratch has OpenAI's, at its image size.
    - `steps`, or `epochs` of the data
    - `batch_size`: of all processes together
    - `accumulate`, `microbatch`, `remat`: see `train_step`
    - `dtype`: the computation's, float32, tensorfloat32 or bfloat16. Parameters are float32 whichever it is.
    - `freeze`: parts that are not trained, by the beginning of their parameters' names: ["vision"]
    - `ema`: the decay of the moving average of the parameters, which is then what is evaluated and saved; else none
    - `mesh`: a `MeshConfig`
    - `seed`: of new parameters, the order of the data and what is drawn in training
    - `save_every`, `log_every`, `evaluate_every`, `keep`: see `fit`; by default it evaluates ten times
    """

    output: str
    model: ModelConfig
    data: DataConfig
    objective: Objective = field(default_factory=CLIPObjective)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    image_processor: str | None = None
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    microbatch: int | None = None
    remat: bool = False
    dtype: str = "float32"
    freeze: tuple[str, ...] = ()
    ema: float | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0
    save_every: int = 1000
    log_every: int = 10
    evaluate_every: int | None = None
    keep: int = 3

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say how long to train: either steps or epochs")
        _check_positive(
            "",
            steps=self.steps,
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            microbatch=self.microbatch,
            save_every=self.save_every,
            log_every=self.log_every,
            evaluate_every=self.evaluate_every,
            keep=self.keep,
        )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be a decay between 0 and 1, as 0.999, got {self.ema}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        # What the optimizer has against its settings, it says before anything is loaded.
        self.optimizer_config(self.steps or 10**9)

    @classmethod
    def from_toml(cls, path: str | os.PathLike, *overrides: Mapping[str, Any]) -> "TrainConfig":
        """Of a file, and what is to be different (`merged`). Raises ValueError, naming the file and the key, for what
        is no TOML, for an unknown key and for a value of the wrong type."""
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: no TOML ({error})") from error
        try:
            return cls.from_table(reduce(merged, overrides, table))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "TrainConfig":
        """Of nested dicts, as TOML has them. Raises ValueError, naming the key, for an unknown one, for a value of the
        wrong type, and for one that is missing."""
        table = _long(table)
        _check_names(table, [f.name for f in dataclasses.fields(cls)], "")
        for name, mend in (("output", "a folder"), ("model", "a checkpoint"), ("data", "images with captions")):
            if name not in table:
                raise ValueError(f'{name} is missing: {name} = "{mend}"')
        settings: Table = {}
        for name, kind in (("model", ModelConfig), ("data", DataConfig), ("mesh", MeshConfig)):
            if name in table:
                settings[name] = _section(kind, table[name], name)
        if "objective" in table:
            settings["objective"] = _objective(table["objective"])
        if "optimizer" in table:
            settings["optimizer"] = _values(OptimizerConfig, table["optimizer"], "optimizer", without=("steps",))
        plain = {name: value for name, value in table.items() if name not in {*settings, "optimizer", "objective"}}
        return cls(**settings, **_values(cls, plain, ""))

    def to_table(self) -> Table:
        """What `from_table` reads back the same. Raises ValueError for an objective that has no name."""
        table: Table = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name == "objective":
                value = _objective_table(value)
            elif each.name == "optimizer":
                value = {name: False if setting is None else setting for name, setting in value.items()}
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            table[each.name] = value
        return _without_none(table)

    def to_toml(self) -> str:
        """`to_table`, written."""
        return "\n".join(_toml(self.to_table())) + "\n"

    def optimizer_config(self, steps: int) -> OptimizerConfig:
        """The optimizer's for so many steps."""
        return OptimizerConfig(**{"warmup_steps": min(2000, steps // 10), **self.optimizer, "steps": steps})


def merged(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> Table:
    """A config's table with other values for some keys. Another model's name or objective's is another model or
    objective: nothing of the one before stays. Nor do `epochs` in the face of other `steps`, and the other way round.
    """
    result = _long(table)
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in overrides:
            result.pop(other, None)
    for name, value in _long(overrides).items():
        kept = result.get(name)
        if isinstance(overrides[name], str) and name in ("model", "objective"):
            kept = None
        result[name] = merged(kept, value) if isinstance(kept, Mapping) and isinstance(value, Mapping) else value
    return result


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, without: Collection[str]) -> list[str]:
    """Which keys of two tables differ and how; not those that are, or are within, one of `without`."""
    flat = [_flat(table) for table in (ours, theirs)]
    found = []
    for key in sorted({*flat[0], *flat[1]}):
        values = [table.get(key) for table in flat]
        if values[0] != values[1] and not any(key == name or key.startswith(f"{name}.") for name in without):
            found.append(f"{key}: {_shown(values[1])} there, {_shown(values[0])} now")
    return found


def parse_override(text: str) -> Table:
    """`optimizer.learning_rate=1e-5` as a table. What is no value in TOML is a string. Raises ValueError for what has
    no "="."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ValueError(f"{text!r} is no key=value, as optimizer.learning_rate=1e-5")
    try:
        table: Table = {names[-1]: tomllib.loads(f"value = {value}")["value"]}
    except tomllib.TOMLDecodeError:
        table = {names[-1]: value.strip()}
    for name in reversed(names[:-1]):
        table = {name: table}
    return table


_SHORT = {"model": "checkpoint", "data": "train", "objective": "name"}
_Config = TypeVar("_Config")


def _long(table: Mapping[str, Any]) -> Table:
    """With tables for the sections that are given by one string."""
    return {
        name: {_SHORT[name]: value} if name in _SHORT and isinstance(value, str) else value
        for name, value in table.items()
    }


def _section(kind: type[_Config], table: Any, name: str) -> _Config:
    values = _values(kind, table, name)
    missing = [
        each.name
        for each in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        if each.default is dataclasses.MISSING and each.name not in values
    ]
    if missing:
        raise ValueError(f"{name}.{missing[0]} is missing")
    if kind is ModelConfig:
        for tower, config in (("text", TextConfig), ("vision", VisionConfig)):
            if isinstance(values.get(tower), Mapping):
                values[tower] = _values(
                    config, values[tower], f"{name}.{tower}", without=("projection_dim", "family", "other")
                )
    if kind is DataConfig and isinstance(values.get("augmentation"), Mapping):
        values["augmentation"] = Augmentation(**_values(Augmentation, values["augmentation"], f"{name}.augmentation"))
    return kind(**values)


def _objective(table: Any) -> Objective:
    _check_table(table, "objective")
    name = table.get("name")
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    rest = {key: value for key, value in table.items() if key != "name"}
    return OBJECTIVES[name](**_values(OBJECTIVES[name], rest, "objective", without=("augment",)))


def _objective_table(objective: Objective) -> Table:
    names = [name for name, kind in OBJECTIVES.items() if type(objective) is kind]
    if not names or getattr(objective, "augment", None) is not None:
        raise ValueError(
            f"{objective} can't be written to a file: train with one of {', '.join(OBJECTIVES)}, without `augment`, or "
            "call fit() yourself"
        )
    values = dataclasses.asdict(objective)  # pyright: ignore[reportArgumentType]
    values.pop("augment", None)
    return {"name": names[0], **values}


def _values(kind: type, table: Any, where: str, *, without: Collection[str] = ()) -> Table:
    """The table's values, with the types that the dataclass's fields have."""
    _check_table(table, where)
    names = [each.name for each in dataclasses.fields(kind) if each.name not in without]
    _check_names(table, names, where)
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    return {name: _typed(value, hints[name], prefix + name) for name, value in table.items()}


def _check_table(table: Any, where: str) -> None:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, [{where}], got {table!r}")


def _check_names(table: Mapping[str, Any], names: Collection[str], where: str) -> None:
    for name in table:
        if name not in names:
            place = f" in [{where}]" if where else ""
            raise ValueError(f"unknown key {name!r}{place}{_nearest(name, names)}")


def _nearest(name: Any, names: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(names))}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    if value is False and hint == float | None:
        return None
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if typing.get_origin(hint) is tuple:
        kinds = [hint]
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if origin is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if origin in (bool, str) and isinstance(value, origin):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            each = typing.get_args(kind)
            each = each[:1] * len(value) if each[-1] is Ellipsis else each
            if len(each) == len(value):
                return tuple(_typed(item, one, where) for item, one in zip(value, each, strict=True))
        if _named(kind) == "a table" and isinstance(value, Mapping):
            return value
    raise ValueError(f"{where} must be {' or '.join(map(_named, kinds))}, got {value!r}")


def _named(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)
        return "a list of strings" if each[-1] is Ellipsis else f"a list of {len(each)} numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a table")


def _check_positive(where: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{where}{name} must be at least 1, got {value}")


def _without_none(table: Mapping[str, Any]) -> Table:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if value is not None
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> Table:
    flat: Table = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _toml(table: Mapping[str, Any], name: str = "") -> list[str]:
    """Values first, then the tables within: JSON's strings, numbers, booleans and lists are TOML's as well."""
    lines = [f"{key} = {_shown(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            inner = f"{name}.{key}" if name else key
            lines += ["", f"[{inner}]", *_toml(value, inner)]
    return lines
