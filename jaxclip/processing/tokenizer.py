"""Strings to token ids, id for id as transformers' `CLIPTokenizer` 5.23 gives them from the same files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What `Tokenizer.from_files` reads, where it exists."""

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULTS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_END_OF_WORD = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|" + _WORDS


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of equal length.

    `attention_mask` is True at a text's own tokens, BOS and EOS included, and False at padding: it can't be read off
    the ids, because EOS may be the padding and may stand inside a text that spells it out.
    """

    token_ids: Int32[np.ndarray, "batch length"]
    attention_mask: Bool[np.ndarray, "batch length"]


@dataclass(frozen=True)
class Tokenizer:
    """CLIP's byte-level BPE: NFC, runs of white space to one space, lower case, words, byte pairs, BOS and EOS around.

    No HTML is unescaped and no mojibake mended (OpenAI's own tokenizer does both). `special_tokens` maps the Hub's
    names (`bos_token`, `eos_token`, `unk_token`, `pad_token`) to the tokens' text; `max_length` is the most tokens
    that a text may have, BOS and EOS included. Build it with `from_files`.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    special_tokens: Mapping[str, str]
    max_length: int = 77

    @classmethod
    def from_files(cls, files: Mapping[str, Path], *, max_length: int = 77) -> "Tokenizer":
        """The tokenizer of a checkpoint, from `FILES` (name to local path): those that exist, in either form.

        With a `tokenizer.json` its vocabulary counts, otherwise `vocab.json` with `merges.txt`. `max_length` is the
        model's number of positions; a smaller `model_max_length` in `tokenizer_config.json` wins. Special and added
        tokens come from the files as transformers 5 reads them; where they disagree, `added_tokens_decoder` in
        `tokenizer_config.json` goes first.

        Raises `FileNotFoundError` when neither form is there, and `ValueError` for files that are damaged or describe
        another tokenizer than CLIP's: transformers rebuilds CLIP's steps whatever `tokenizer.json` says, so a file
        that says something else would silently give ids that its author didn't mean.
        """
        read = {n: _read_json(Path(files[n])) for n in FILES if n in files and n not in ("vocab.json", "merges.txt")}
        config, file = read.get("tokenizer_config.json", {}), read.get("tokenizer.json", {})
        try:
            _check_sides(config, file)
            if "tokenizer.json" in read:
                _check_is_clip(file, files["tokenizer.json"])
            special_tokens, added_tokens = _special_and_added_tokens(read)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"malformed tokenizer files ({', '.join(read)}): {error!r}; download them again"
            ) from error
        if not file and not {"vocab.json", "merges.txt"} <= files.keys():
            raise FileNotFoundError(
                "no tokenizer: looked for tokenizer.json, or vocab.json with merges.txt, and found only "
                f"{', '.join(files) or 'nothing'}; copy them from the checkpoint's original repository"
            )
        path = files["tokenizer.json" if file else "vocab.json"]
        try:
            if file:
                vocab: dict[str, int] = file["model"]["vocab"]
                merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in file["model"]["merges"]]
            else:
                vocab, merges = models.BPE.read_file(str(path), str(files["merges.txt"]))
            backend = _build(vocab, merges, special_tokens, added_tokens)
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{path}: not a usable BPE vocabulary with its merges: {error}") from error
        if not any(token.endswith(_END_OF_WORD) for token in vocab):
            raise ValueError(f"{path}: no token ends in {_END_OF_WORD}, so this is not the vocabulary of a CLIP")
        backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        stated = config.get("model_max_length") or config.get("max_len") or max_length
        if not isinstance(stated, int | float):
            raise ValueError(f"tokenizer_config.json: model_max_length must be a number, got {stated!r}")
        return cls(backend, special_tokens, int(min(max_length, stated)))

    @property
    def bos_token_id(self) -> int:
        return _token_id(self.backend, self.special_tokens["bos_token"])

    @property
    def eos_token_id(self) -> int:
        return _token_id(self.backend, self.special_tokens["eos_token"])

    @property
    def pad_token_id(self) -> int | None:
        """What transformers pads with: EOS for OpenAI's files, "!" (0) for SDXL's; None where the files say null."""
        token = self.special_tokens.get("pad_token")
        return None if token is None else _token_id(self.backend, token)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """The token ids of each text, BOS first and EOS last, neither padded nor cut.

        Raises `TypeError` for what is not a str and `ValueError` for a str that is not Unicode (a lone surrogate),
        naming the index.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes many texts; put the one str into a list")
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {index} is a {type(text).__name__}, not a str; convert it first")
            # Only a str beyond Latin-1 can hold a surrogate; ASCII needs no look.
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise ValueError(
                        f"text {index} holds a lone surrogate at position {error.start}, which is no character; "
                        "decode it with errors='replace' where it comes from"
                    ) from error
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts)]

    def batch(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        padding: Literal["longest", "max_length"] = "longest",
        max_length: int | None = None,
        truncate: bool = True,
        pad_token_id: int | None = None,
    ) -> TokenBatch:
        """Sequences from `encode`, cut to at most `max_length` and padded on the right to one length.

        The length is the longest sequence's, or `max_length` itself (by default the tokenizer's). A sequence that is
        cut keeps its last id, the EOS, as transformers and open_clip do. With `truncate=False` a longer sequence
        raises `ValueError`, naming its index and length, as OpenAI's tokenizer does. Padding is `pad_token_id`, by
        default the tokenizer's (OpenAI and open_clip pad with 0): with a causal mask no embedding depends on it.
        """
        max_length = self.max_length if max_length is None else max_length
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, to hold BOS and EOS, got {max_length}")
        if padding not in ("longest", "max_length"):
            raise ValueError(f"padding must be 'longest' or 'max_length', got {padding!r}")
        for index, ids in enumerate(sequences):
            if len(ids) > max_length and not truncate:
                raise ValueError(
                    f"text {index} has {len(ids)} tokens, and at most {max_length} fit; shorten it or set truncate=True"
                )
        sequences = [ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in sequences]
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        length = max_length if padding == "max_length" else int(lengths.max(initial=0))
        mask = np.arange(length) < lengths[:, None]
        pad = self.pad_token_id if pad_token_id is None else pad_token_id
        if pad is None and not mask.all():
            raise ValueError("the tokenizer's files name no pad_token; pass pad_token_id")
        token_ids = np.full(mask.shape, 0 if pad is None else pad, np.int32)
        token_ids[mask] = np.fromiter(chain.from_iterable(sequences), np.int32, int(lengths.sum()))
        return TokenBatch(token_ids, mask)

    def __call__(
        self,
        texts: str | Iterable[str],
        *,
        padding: Literal["longest", "max_length"] = "longest",
        max_length: int | None = None,
        truncate: bool = True,
        pad_token_id: int | None = None,
    ) -> Int32[np.ndarray, "*batch length"]:
        """Token ids for the model's text tower: (batch, length), or (length,) for one str. See `encode` and `batch`."""
        sequences = self.encode([texts] if isinstance(texts, str) else texts)
        batch = self.batch(
            sequences, padding=padding, max_length=max_length, truncate=truncate, pad_token_id=pad_token_id
        )
        return batch.token_ids[0] if isinstance(texts, str) else batch.token_ids

    def decode(
        self, token_ids: Sequence[int] | Int32[np.ndarray, "length"], *, skip_special_tokens: bool = False
    ) -> str:
        """The text of token ids, lower-cased and with a space after every word, as transformers' `decode` gives it."""
        ids = [int(token_id) for token_id in token_ids]
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens).replace(_END_OF_WORD, " ").strip()

    def save(self, folder: str | PathLike[str]) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers and `from_files` read as this one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            **self.special_tokens,
            "pad_token": self.special_tokens.get("pad_token"),
            # Stated here too, because readers then look at no older special_tokens_map.json in the same folder.
            "added_tokens_decoder": {
                str(token_id): _flags(token) for token_id, token in self.backend.get_added_tokens_decoder().items()
            },
            "model_max_length": self.max_length,
            "split_special_tokens": self.backend.encode_special_tokens,
            "tokenizer_class": "CLIPTokenizer",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}, not an object; download it again")
    return content


def _build(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, ...]],
    special_tokens: Mapping[str, str],
    added_tokens: list[AddedToken],
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab,
            list(merges),  # pyright: ignore[reportArgumentType]: pairs, which BPE checks itself
            unk_token=special_tokens["unk_token"],
            continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD,
            fuse_unk=False,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(added_tokens)
    bos, eos = ((special_tokens[name], _token_id(backend, special_tokens[name])) for name in ("bos_token", "eos_token"))
    backend.post_processor = processors.RobertaProcessing(eos, bos, trim_offsets=False, add_prefix_space=False)
    return backend


def _token_id(backend: tokenizers.Tokenizer, token: str) -> int:
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise ValueError(f"the vocabulary has no token {token!r}")
    return token_id


def _special_and_added_tokens(read: Mapping[str, dict[str, Any]]) -> tuple[dict[str, str], list[AddedToken]]:
    """The named special tokens, and the tokens to add in the order in which transformers adds them.

    The order and the flags decide ids and matches: a token with `normalized` is looked for in the cleaned,
    lower-cased text, one without in the raw text. So this follows transformers' `_from_pretrained` and
    `TokenizersBackend.__init__` step by step, down to which file silences which.
    """
    config = read.get("tokenizer_config.json", {})
    extra, additional = config.get("extra_special_tokens"), config.get("additional_special_tokens")
    if not extra and additional is not None:
        extra, additional = additional, None
    own = {name: token for name, token in config.items() if name.endswith("_token") and isinstance(token, str)}
    if isinstance(extra, dict):
        own, extra = own | extra, None
    named: dict[str, Any] = {name: config[name] for name in _NAMES if name in config}

    if "added_tokens_decoder" in config:
        declared = {int(index): AddedToken(**token) for index, token in config["added_tokens_decoder"].items()}
    else:
        declared = {}
        for name, value in read.get("special_tokens_map.json", {}).items():
            if name == "additional_special_tokens":
                additional = value
            elif name == "extra_special_tokens":
                extra = [*(extra or []), *value]
            else:
                named[name] = _parsed(value, special=True)
        # The special tokens that tokenizer_config.json gives as objects are no match here, as in the reference.
        specials = {str(token) for token in [*(named.get(name) for name in _NAMES), *(extra or [])] if token}
        for content, index in read.get("added_tokens.json", {}).items():
            special = content in specials
            declared[index] = AddedToken(content, normalized=not special, special=special)
        for token in read.get("tokenizer.json", {}).get("added_tokens", []):
            declared[token["id"]] = AddedToken(**{key: value for key, value in token.items() if key != "id"})

    named = {name: _parsed(token) for name, token in named.items()}
    named = dict.fromkeys(_NAMES) | _DEFAULTS | named | {k: v for k, v in own.items() if k not in _NAMES}
    for name in ("bos_token", "eos_token", "unk_token"):
        if named[name] is None:
            raise ValueError(f"tokenizer_config.json: {name} is null, but CLIP needs one; delete the line")

    extra = additional if extra is None else extra
    contents = {str(token) for token in declared.values()}
    tokens: list[str | AddedToken] = [token for _, token in sorted(declared.items(), key=lambda item: item[0])]
    for token in [*named.values(), *map(_parsed, extra or [])]:
        if token is not None and str(token) not in contents and token not in tokens:
            tokens.append(token)
    special_tokens = {name: str(token) for name, token in named.items() if token is not None}
    added_tokens = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    for token in added_tokens:
        token.special = token.special or str(token) in special_tokens.values()
    return special_tokens, added_tokens


def _parsed(value: Any, **flags: Any) -> str | AddedToken | None:
    if not isinstance(value, dict):
        return value
    return AddedToken(**({key: flag for key, flag in value.items() if key != "__type"} | flags))


def _flags(token: AddedToken) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}


def _check_sides(config: dict[str, Any], file: dict[str, Any]) -> None:
    for side, part in (("padding_side", "padding"), ("truncation_side", "truncation")):
        stated = config.get(side) or (file.get(part) or {}).get("direction", "right").lower()
        if stated != "right":
            raise ValueError(f"the tokenizer's {side} is {stated!r}, but CLIP needs 'right'; delete the setting")


def _check_is_clip(file: dict[str, Any], path: Path) -> None:
    """Raise unless a `tokenizer.json` means the steps that `_build` builds."""
    model = file.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "tokenizer without a model")
    if kind != "BPE":
        raise ValueError(
            f"{path}: a {kind} model, but CLIP's is a byte-level BPE (MetaCLIP 2, SigLIP and other relatives bring "
            "tokenizers of their own, which are not read here)"
        )
    fixed = {"end_of_word_suffix": _END_OF_WORD} | dict.fromkeys(
        ("dropout", "continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges")
    )
    found: dict[str, Any] = {"model": {name: model.get(name) or None for name in fixed}}
    wanted: dict[str, Any] = {"model": fixed}
    built = json.loads(_build({"<|startoftext|>": 0, "<|endoftext|>": 1}, [], _DEFAULTS, []).to_str())
    for part in ("normalizer", "pre_tokenizer"):
        found[part], wanted[part] = _steps(file.get(part)), _steps(built[part])
    for part in wanted:
        if found[part] != wanted[part]:
            raise ValueError(
                f"{path}: its {part} is {found[part]}, but CLIPTokenizer's is {wanted[part]} whatever the file says; "
                "if the checkpoint is a CLIP, take tokenizer.json from openai/clip-vit-base-patch32"
            )


def _steps(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer as a flat list of steps, with what makes no difference to ids left out."""
    if component is None:
        return []
    for key in ("normalizers", "pretokenizers"):
        if key in component:
            return [step for part in component[key] for step in _steps(part)]
    step = {key: value for key, value in component.items() if key != "trim_offsets"}
    if step["type"] == "ByteLevel":
        step.setdefault("use_regex", True)
    # The spelling of transformers 4 (openai/clip-vit-large-patch14), from which CLIPTokenizer builds its own.
    if step.get("pattern") == {"Regex": _WORDS}:
        step["pattern"] = {"Regex": _SPLIT}
    return [step]
