"""What a checkpoint's `config.json` states, as frozen dataclasses with the Hub's own names.

`CLIPConfig.from_hub` reads every form of the file that the family has: the joint model (`CLIPModel`), a lone text or
vision tower with or without its projection (`CLIPTextModel`, `CLIPVisionModelWithProjection`, ...), and the legacy
`text_config_dict` / `vision_config_dict`. Defaults are those of transformers 5.23 (`configuration_clip.py`), because a
file that omits a key means them.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

FAMILIES = ("clip", "metaclip_2")
HIDDEN_ACTS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What the text and the vision transformer have in common.

    `projection_dim` is the width of the joint space, None for a tower without a projection. `other` carries the keys
    of the file that the model doesn't read, so that saving loses nothing.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 12
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = 512
    family: str = "clip"
    other: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    _LEAST: ClassVar[Mapping[str, int]] = {
        "hidden_size": 1,
        "intermediate_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "projection_dim": 1,
    }

    def __post_init__(self):
        for name, least in self._LEAST.items():
            value = getattr(self, name)
            if name == "projection_dim" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{type(self).__name__}.{name} must be an integer of at least {least}, got {value!r}")
        if not isinstance(self.layer_norm_eps, int | float) or not 0 <= self.layer_norm_eps < 1:
            raise ValueError(
                f"{type(self).__name__}.layer_norm_eps must be a number from 0 to 1, got {self.layer_norm_eps!r}"
            )
        if self.hidden_act not in HIDDEN_ACTS:
            raise ValueError(
                f"unknown activation: {type(self).__name__}.hidden_act must be one of {', '.join(HIDDEN_ACTS)}, got "
                f"{self.hidden_act!r}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{type(self).__name__}.hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.family not in FAMILIES:
            raise ValueError(f"{type(self).__name__}.family must be one of {', '.join(FAMILIES)}, got {self.family!r}")

    def _to_hub(self) -> dict[str, Any]:
        read = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("family", "other")}
        return {**self.other, **{key: value for key, value in read.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """The text transformer; the defaults are ViT-B/32's."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    eos_token_id: int = 49407

    _LEAST: ClassVar = {**TowerConfig._LEAST, "vocab_size": 1, "max_position_embeddings": 1, "eos_token_id": 0}

    @property
    def pooling(self) -> Literal["largest_id", "first_eos"]:
        """Which token stands for the text: the largest id, or the first that equals `eos_token_id`.

        OpenAI's repositories on the Hub say `eos_token_id: 2`, which is not their EOS (49407). transformers' CLIP
        takes 2 as the mark of OpenAI's own rule, the position of the largest id; its MetaCLIP 2, where 2 is the real
        EOS, does not.
        """
        return "largest_id" if self.family == "clip" and self.eos_token_id == 2 else "first_eos"


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """The vision transformer; the defaults are ViT-B/32's. `image_size` and `patch_size` are in pixels."""

    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12

    _LEAST: ClassVar = {**TowerConfig._LEAST, "image_size": 1, "patch_size": 1, "num_channels": 1}

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise ValueError(f"VisionConfig.patch_size ({self.patch_size}) exceeds image_size ({self.image_size})")

    @property
    def grid_size(self) -> int:
        """Patches along one side; what remains at the right and bottom edge is not seen, as in the reference."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """One or both towers. With both, they project into one space: their `projection_dim` must agree.

    `logit_scale_init_value` is the logarithm of the initial scale, ln(1 / 0.07) (CLIP paper, section 2.5).
    """

    text: TextConfig | None = field(default_factory=TextConfig)
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    logit_scale_init_value: float = 2.6592
    other: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        if self.text is None and self.vision is None:
            raise ValueError("CLIPConfig needs a text tower, a vision tower, or both")
        if not isinstance(self.logit_scale_init_value, int | float) or not math.isfinite(self.logit_scale_init_value):
            raise ValueError(
                f"CLIPConfig.logit_scale_init_value must be a finite number, got {self.logit_scale_init_value!r}"
            )
        if self.text and self.vision:
            if self.text.projection_dim != self.vision.projection_dim or self.text.projection_dim is None:
                raise ValueError(
                    "the towers of one CLIPConfig project into one space, so their projection_dim must be the same "
                    f"number: text has {self.text.projection_dim}, vision has {self.vision.projection_dim}"
                )
            if self.text.family != self.vision.family:
                raise ValueError(f"the towers' families differ: {self.text.family}, {self.vision.family}")

    @classmethod
    def from_hub(cls, hub: Mapping[str, Any]) -> "CLIPConfig":
        """Reads the dict of a Hub `config.json`. Raises ValueError naming the key that is wrong.

        Whether a lone tower has a projection is in its `architectures` alone.
        """
        if not isinstance(hub, Mapping):
            raise ValueError(f"config.json must hold a JSON object, got {type(hub).__name__}")
        model_type = hub.get("model_type")
        for family in FAMILIES:
            if model_type == family:
                return cls._joint_from_hub(hub, family)
            if model_type == f"{family}_text_model":
                tower = _tower_from_hub(TextConfig, hub, projection_dim=_lone_projection(hub, "Text"), family=family)
                return cls(text=tower, vision=None)
            if model_type == f"{family}_vision_model":
                tower = _tower_from_hub(
                    VisionConfig, hub, projection_dim=_lone_projection(hub, "Vision"), family=family
                )
                return cls(text=None, vision=tower)
        accepted = ", ".join(f"{f}{tower}" for f in FAMILIES for tower in ("", "_text_model", "_vision_model"))
        raise ValueError(f"config.json's model_type is {model_type!r}; jaxclip reads: {accepted}")

    @classmethod
    def _joint_from_hub(cls, hub: Mapping[str, Any], family: str) -> "CLIPConfig":
        decided = {"projection_dim": hub.get("projection_dim", 512), "family": family}
        towers: dict[str, Any] = {
            name: _tower_from_hub(config, _tower_of(hub, name, config), **decided)
            for name, config in (("text", TextConfig), ("vision", VisionConfig))
        }
        read = {"logit_scale_init_value", "projection_dim"} | {f"{t}_config{d}" for t in towers for d in ("", "_dict")}
        return cls(
            **towers,
            logit_scale_init_value=hub.get("logit_scale_init_value", cls.logit_scale_init_value),
            other={key: value for key, value in hub.items() if key not in read and key not in _IDENTITY},
        )

    def to_hub(self) -> dict[str, Any]:
        """The dict that transformers' `CLIPModel` (or the lone tower's class) reads as `config.json`."""
        if self.text and self.vision:
            family = self.text.family
            return {
                **self.other,
                "architectures": [_CLASS_PREFIX[family] + "Model"],
                "model_type": family,
                "projection_dim": self.text.projection_dim,
                "logit_scale_init_value": self.logit_scale_init_value,
                "text_config": {**self.text._to_hub(), "model_type": f"{family}_text_model"},
                "vision_config": {**self.vision._to_hub(), "model_type": f"{family}_vision_model"},
            }
        kind, tower = ("Text", self.text) if self.text else ("Vision", self.vision)
        assert tower is not None
        suffix = "" if tower.projection_dim is None else "WithProjection"
        return {
            **tower._to_hub(),
            "architectures": [f"{_CLASS_PREFIX[tower.family]}{kind}Model{suffix}"],
            "model_type": f"{tower.family}_{kind.lower()}_model",
        }

    def select(self, towers: str) -> "CLIPConfig":
        """The config of the asked-for towers alone. Raises ValueError when one of them isn't there."""
        if towers not in ("both", "text", "vision"):
            raise ValueError(f"towers must be 'both', 'text' or 'vision', got {towers!r}")
        if towers == "both":
            return self
        tower = getattr(self, towers)
        if tower is None:
            raise ValueError(f"towers={towers!r} was asked for, but this checkpoint has no {towers} tower")
        return type(self)(**{"text": None, "vision": None, towers: tower})


_IDENTITY = ("model_type", "architectures")
# What transformers' tower configs have besides: a legacy dict's defaults override these as well.
_UNREAD = {"attention_dropout", "initializer_range", "initializer_factor", "bos_token_id", "pad_token_id"}
_CLASS_PREFIX = {"clip": "CLIP", "metaclip_2": "MetaClip2"}


_Tower = TypeVar("_Tower", bound=TowerConfig)


def _tower_from_hub(config: type[_Tower], hub: Mapping[str, Any], **decided: Any) -> _Tower:
    known = {f.name for f in dataclasses.fields(config)} - {"family", "other"}
    if decided["projection_dim"] is None:
        known.remove("projection_dim")  # The file states one all the same: kept with what the model doesn't read.
    other = {key: value for key, value in hub.items() if key not in known and key not in _IDENTITY}
    return config(**{**{key: hub[key] for key in known & hub.keys()}, "other": other, **decided})


def _tower_of(hub: Mapping[str, Any], name: str, config: type[TowerConfig]) -> dict[str, Any]:
    """One tower's keys in a joint config. The legacy `*_config_dict`, where present, overrides, and with it its
    defaults: transformers completes it to a whole config before it updates the other."""
    tower, legacy = (hub.get(f"{name}_config{suffix}") for suffix in ("", "_dict"))
    for key, value in ((f"{name}_config", tower), (f"{name}_config_dict", legacy)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"config.json's {key} must be a JSON object, got {value!r}")
    tower = tower or {}
    if legacy is None:
        return dict(tower)
    known = {f.name for f in dataclasses.fields(config)} | _UNREAD
    return {**{key: value for key, value in tower.items() if key not in known}, **legacy}


def _lone_projection(hub: Mapping[str, Any], kind: str) -> int | None:
    architectures = hub.get("architectures")
    listed = architectures if isinstance(architectures, list) else []
    named = [name for name in map(str, listed) if f"{kind}Model" in name]
    if not named:
        raise ValueError(
            f"config.json's architectures must tell whether this {kind.lower()} tower has a projection: expected "
            f'["CLIP{kind}Model"] or ["CLIP{kind}ModelWithProjection"], got {hub.get("architectures")!r}'
        )
    return hub.get("projection_dim", 512) if any(name.endswith("WithProjection") for name in named) else None
