"""`jaxclip inspect MODEL`"""

import argparse
import io
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from jaxclip.cli.printing import printable

if TYPE_CHECKING:
    from jaxclip.compare.inspect import Inspection
    from jaxclip.config import TextConfig, TowerConfig, VisionConfig
    from jaxclip.processing import ImageProcessor, Tokenizer

_RESAMPLE = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="say what a checkpoint is, and whether it can be trusted",
        description="Prints a checkpoint's towers, preprocessing, tokenizer and files, what of them is known to\n"
        "mislead, and what would keep it from loading; the exit status is then 1. Reads headers only.",
        epilog="examples:\n"
        "  jaxclip inspect openai/clip-vit-base-patch32\n"
        "  jaxclip inspect checkpoint/ --values --json",
    )
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face Hub id, or a local folder")
    parser.add_argument("--revision", help="a branch, tag or commit of the Hub")
    parser.add_argument("--subfolder", help="the folder within, as text_encoder")
    parser.add_argument(
        "--values", action="store_true", help="read the numbers, too: NaN, infinite, nothing but zeros; logit scale"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from jaxclip.compare import inspect

    found = inspect(options.model, revision=options.revision, subfolder=options.subfolder, values=options.values)
    options.status = 1 if found.problems else 0
    if options.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _print(found)
    return options.status


def _print(found: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A terminal's lines are broken where it ends; into a file or a pipe they go whole.
    terminal = bool(sys.stdout and sys.stdout.isatty())
    page = io.StringIO()
    console = Console(file=page, highlight=False, force_terminal=terminal, width=None if terminal else 10_000)

    def show(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style))

    show(found.source + (f" ({found.revision})" if found.revision else ""), "bold")
    show(_summary(found))
    show("")
    if found.config is not None:
        towers = {name: tower for name in ("text", "vision") if (tower := getattr(found.config, name)) is not None}
        columns = {name: _rows(tower, found.parameters.get(name)) for name, tower in towers.items()}
        table = Table("", *columns, box=None, pad_edge=False, header_style="bold")
        for row in dict.fromkeys(row for rows in columns.values() for row in rows):
            table.add_row(row, *(rows.get(row, "") for rows in columns.values()))
        console.print(table)
        show("")
    details = Table(box=None, pad_edge=False, show_header=False)
    for name, text in _details(found):
        details.add_row(name, Text(printable(text)))
    console.print(details)
    for kind, style, lines in (("warning", "yellow", found.warnings), ("problem", "bold red", found.problems)):
        for told in lines:
            show(f"{kind}: {' '.join(told.split())}", style)
    print("\n".join(line.rstrip() for line in page.getvalue().splitlines()))


def _summary(found: "Inspection") -> str:
    dtypes = ", ".join(found.dtypes) or "no tensors"
    size = f"{dtypes}, {found.size / 1e6:,.1f} MB" + (f" in {len(found.files) - 1} shards" if found.sharded else "")
    if found.config is None:
        return size
    facts = found.to_json()
    kind = ", ".join(filter(None, (facts["architecture"], f"family {facts['family']}", found.name)))
    return f"{kind}: {facts['parameters']:,} parameters, {size}"


def _rows(tower: "TowerConfig", parameters: int | None) -> dict[str, str]:
    from jaxclip.config import TextConfig, VisionConfig

    rows = {
        "width": f"{tower.hidden_size:,}",
        "MLP width": f"{tower.intermediate_size:,}",
        "depth": f"{tower.num_hidden_layers}",
        "heads": f"{tower.num_attention_heads}, each {tower.hidden_size // tower.num_attention_heads} wide",
        "activation": tower.hidden_act,
        "LayerNorm epsilon": f"{tower.layer_norm_eps:g}",
    }
    if isinstance(tower, TextConfig):
        rows |= _text_rows(tower)
    if isinstance(tower, VisionConfig):
        rows |= _vision_rows(tower)
    projection = "none" if tower.projection_dim is None else f"{tower.hidden_size:,} → {tower.projection_dim:,}"
    return {**rows, "projection": projection, "parameters": "unknown" if parameters is None else f"{parameters:,}"}


def _text_rows(text: "TextConfig") -> dict[str, str]:
    rule = {
        "largest_id": f"at the largest id (eos_token_id {text.eos_token_id})",
        "first_eos": f"at the first {text.eos_token_id}",
    }
    return {
        "input": f"{text.max_position_embeddings} tokens of {text.vocab_size:,}",
        "read off": rule[text.pooling],
    }


def _vision_rows(vision: "VisionConfig") -> dict[str, str]:
    side, grid = vision.image_size, vision.grid_size
    channels = "" if vision.num_channels == 3 else f", {vision.num_channels} channels"
    return {
        "input": f"{side} × {side} pixels, {grid} × {grid} patches of {vision.patch_size}{channels}",
        "read off": "at the class token",
    }


def _details(found: "Inspection") -> list[tuple[str, str]]:
    config = found.config
    details = []
    if config is None or config.vision:
        processor = found.image_processor
        details.append(("preprocessing", "none" if processor is None else _preprocessing(processor)))
    if config is None or config.text:
        details.append(("tokenizer", "none" if found.tokenizer is None else _vocabulary(found.tokenizer)))
    if found.values is not None and found.values.logit_scale is not None:
        logarithm = found.values.logit_scale
        details.append(("logit scale", f"exp({logarithm:.4f}) = {math.exp(min(logarithm, 700)):.4g}"))
    for file in found.files:
        tensors = f", {file.tensors:,} tensors" if file.tensors else ""
        details.append(("weights" if file is found.files[0] else "", f"{file.name}: {file.size:,} bytes{tensors}"))
    return details


def _preprocessing(processor: "ImageProcessor") -> str:
    steps = ["RGB"] if processor.do_convert_rgb else []
    if processor.do_resize:
        size = processor.size
        edges = " ".join(f"{name.replace('_', ' ')} {edge}" for name, edge in size.items())
        steps.append(f"{_RESAMPLE[processor.resample]} to {edges}")
    if processor.do_center_crop:
        steps.append(f"centre {processor.crop_size['height']} × {processor.crop_size['width']}")
    if processor.do_rescale:
        steps.append(f"× {processor.rescale_factor:.6g}")
    if processor.do_normalize:
        steps += [f"mean {_numbers(processor.image_mean)}", f"std {_numbers(processor.image_std)}"]
    return ", ".join(steps)


def _numbers(values: tuple[float, ...] | float) -> str:
    return " ".join(f"{value:.4f}" for value in (values if isinstance(values, tuple) else (values,)))


def _vocabulary(tokenizer: "Tokenizer") -> str:
    special = f"begin {tokenizer.bos_token_id}, end {tokenizer.eos_token_id}, padding {tokenizer.pad_token_id}"
    return f"{tokenizer.vocab_size:,} tokens ({special}), at most {tokenizer.max_length} a text"
