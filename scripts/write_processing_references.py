"""Write the reference outputs of `tests/processing`: token ids and pixels, as transformers computes them.

Run in the repository's root, with transformers and open_clip_torch installed (`pip install '.[parity]'`):

    python scripts/write_processing_references.py

It makes small tokenizers from the first merges of OpenAI's vocabulary, which the open_clip wheel brings, in each form
in which checkpoints on the Hub have their files, and runs the images of `tests/processing/image_cases.py` through the
image processor.
"""

import gzip
import importlib
import importlib.util
import json
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torchvision_on_cpu  # noqa: F401  (first: see there)
import transformers
from PIL import Image

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "processing"
OUTPUT = TESTS / "references"
MERGES = 400

TEXTS = [
    "",
    " ",
    "\n\t \u3000\u00a0\u2028\u0085",
    "Hello World!",
    "a photo of a cat",
    "a  photo\tof\n a   cat ",
    "THE CAT'S hat, they'd've said I'LL",
    "don't 'sit' we're o'clock ''s",
    "&lt;b&gt; &amp;amp; &#39;quoted&#39;",
    "1234567890 3.14 ½ Ⅷ ١٢٣ ²",
    "café cafe\u0301 ÅÅ ﬁne Straße STRASSE İstanbul ıI",
    "你好，世界 こんにちは 안녕하세요",
    "مرحبا بالعالم עִבְרִית ไทย हिन्दी",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 ❤️",
    "\x00 \x01\x02 \x7f \x1c\x1d \ufeffbom \u200bzero\u200dwidth\u00ad \ufffd \ufffe",
    "\U0010ffff \ue000 \ud7ff \U00013000",
    "<|endoftext|>",
    "<|startoftext|>a cat<|endoftext|>",
    "a <|ENDOFTEXT|> b <|StartOfText|> c",
    "x<|endoftext|>!!<|endoftext|>y",
    "<|endoftext|><|endoftext|>  <|startoftext|>",
    "< |endoftext|> <|endoftext |> <|endoftext|",
    "the</w> </w> a</w>b",
    "a <sks> dog, a <SKS> dog, a<sks>dog, <sks>",
    "[PAD] [pad] [SEP] <img> <IMG>",
    "wow!!! ! a!b",
    "snake_case kebab-case path/to/file.py #hashtag @user a@b.co http://x.y/?q=1&r=2",
    "\"quotes\" 'single' “curly” ‘curly’ «guillemets» …—–",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " ".join(["the quick brown fox"] * 30),
    "A\u030a\u0327\u0301 o\u0308\u0304 \u0301 \u1100\u1161\u11a8",
]


def openai_merges(count: int | None = None) -> list[str]:
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise SystemExit("no open_clip wheel, whose vocabulary this needs; pip install open_clip_torch")
    with gzip.open(Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : 49152 - 256 - 2 + 1][:count]


def vocabulary(merges: list[str]) -> dict[str, int]:
    """OpenAI's order of ids: bytes, bytes that end a word, merges, start and end of text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    tokens = [*characters, *(c + "</w>" for c in characters), *(m.replace(" ", "") for m in merges)]
    return {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer_files(folder: Path) -> None:
    """One folder per form: what OpenAI's, LAION's, Stability's and transformers 5's repositories have."""
    merges = openai_merges(MERGES)
    vocab = vocabulary(merges)
    bos, eos = vocab["<|startoftext|>"], vocab["<|endoftext|>"]

    def flags(content: str, **others: bool) -> dict[str, Any]:
        common = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"content": content, **common, **others}

    def write(name: str, **files: Any) -> Path:
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            text = content if file == "merges" else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            (folder / name / f"{file}.{'txt' if file == 'merges' else 'json'}").write_text(text + "\n", "utf-8")
        return folder / name

    slow = {"vocab": vocab, "merges": "\n".join(["#version: 0.2", *merges])}
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    plain = write("vocab_and_merges", **slow)
    transformers.CLIPTokenizer.from_pretrained(plain).save_pretrained(folder / "transformers_5")
    file = json.loads((folder / "transformers_5" / "tokenizer.json").read_text())
    (folder / "transformers_5" / "tokenizer.json").write_text(json.dumps(file, separators=(",", ":")))

    # As in openai/clip-vit-base-patch32: the start token is looked for in the lower-cased text, the end token is not.
    special = [
        {"id": bos, **flags("<|startoftext|>", normalized=True, special=True)},
        {"id": eos, **flags("<|endoftext|>", special=True)},
    ]
    write(
        "openai",
        **slow,
        tokenizer={**file, "added_tokens": special},
        tokenizer_config={
            **{key: {"__type": "AddedToken", **flags(token, normalized=True)} for key, token in names.items()},
            "pad_token": "<|endoftext|>",
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "name_or_path": "openai/clip-vit-base-patch32",
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
        },
        special_tokens_map={
            **{key: flags(token, normalized=True) for key, token in names.items()},
            "pad_token": "<|endoftext|>",
        },
    )
    # As in openai/clip-vit-large-patch14: transformers 4's spelling of the words, merges as strings, no use_regex.
    split, byte_level = file["pre_tokenizer"]["pretokenizers"]
    words = split["pattern"]["Regex"].removeprefix(r"<\|startoftext\|>|<\|endoftext\|>|")
    older = {
        "type": "Sequence",
        "pretokenizers": [
            {**split, "pattern": {"Regex": words}},
            {key: value for key, value in byte_level.items() if key != "use_regex"},
        ],
    }
    model = {key: value for key, value in file["model"].items() if key not in ("byte_fallback", "ignore_merges")}
    model["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]
    write("transformers_4", tokenizer={**file, "added_tokens": special, "pre_tokenizer": older, "model": model})
    # As in stable-diffusion-xl's tokenizer_2: padding with "!", which thereby is taken out of the text as a token.
    write(
        "sdxl",
        **slow,
        tokenizer_config={
            "added_tokens_decoder": {
                "0": flags("!", special=True),
                str(bos): flags("<|startoftext|>", normalized=True, special=False),
                str(eos): flags("<|endoftext|>", special=False),
            },
            "additional_special_tokens": [],
            **names,
            "pad_token": "!",
            "model_max_length": 10**30,
            "tokenizer_class": "CLIPTokenizer",
        },
        special_tokens_map={**names, "pad_token": "!"},
    )
    # Textual inversion and friends: tokens added behind the vocabulary, in the ways of transformers 4 and 5.
    write(
        "added_in_tokenizer_json",
        tokenizer={
            **file,
            "added_tokens": [
                *special,
                {"id": eos + 1, **flags("<sks>", normalized=True, special=False)},
                {"id": eos + 2, **flags("<img>", lstrip=True, rstrip=True, special=True)},
            ],
        },
    )
    write(
        "added_in_config",
        **slow,
        tokenizer_config={
            **names,
            "pad_token": "[PAD]",
            "sep_token": "[SEP]",
            "image_token": "<img>",
            "additional_special_tokens": ["<sks>"],
        },
    )
    write(
        "added_tokens_file",
        **slow,
        added_tokens={"<|endoftext|>": eos, "<sks>": eos + 1},
        special_tokens_map={"bos_token": "<|startoftext|>", "additional_special_tokens": ["<img>"]},
    )
    write("split_special_tokens", **slow, tokenizer_config={**names, "split_special_tokens": True})


def token_references(folder: Path) -> dict[str, Any]:
    forms = {}
    for path in sorted(folder.iterdir()):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(path)
        ids = tokenizer(TEXTS)["input_ids"]
        cut = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12)
        forms[path.name] = {
            "ids": ids,
            "decoded": [tokenizer.decode(one) for one in ids],
            "max_length_12": {"ids": cut["input_ids"], "attention_mask": cut["attention_mask"]},
            "bos_eos_pad": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
            "vocab_size": len(tokenizer),
        }
    return {"texts": TEXTS, "forms": forms}


def pixel_references() -> dict[str, np.ndarray]:
    sys.path.insert(0, str(TESTS))
    cases = importlib.import_module("image_cases")
    pixels = {}
    for image_name, config_name in cases.CASES:
        image = cases.IMAGES[image_name]()
        layout: dict[str, Any] = {} if isinstance(image, Image.Image) else {"input_data_format": "channels_last"}
        result = transformers.CLIPImageProcessorPil(**cases.CONFIGS[config_name])(image, **layout)
        pixels[f"{image_name}/{config_name}"] = np.moveaxis(result["pixel_values"][0], 0, -1).astype(np.float32)
    return pixels


def versions() -> dict[str, str]:
    names = ("transformers", "tokenizers", "pillow", "numpy", "open_clip_torch")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    write_tokenizer_files(OUTPUT / "tokenizers")
    (OUTPUT / "token_ids.json").write_text(json.dumps(token_references(OUTPUT / "tokenizers")) + "\n")
    np.savez_compressed(OUTPUT / "pixels.npz", **pixel_references())  # pyright: ignore[reportArgumentType]
    (OUTPUT / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
    size = sum(path.stat().st_size for path in OUTPUT.rglob("*") if path.is_file())
    print(f"{OUTPUT}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
