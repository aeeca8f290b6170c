"""`jaxclip train CONFIG.toml`"""

import argparse
import importlib.util
import sys
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip.cli.options import keep_compiled
from jaxclip.cli.printing import printable

if TYPE_CHECKING:
    from jaxclip.training import TrainResult


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model on images with captions",
        usage="jaxclip train [CONFIG.toml] [options]",
        description="Trains a model, from a checkpoint or from scratch, as a TOML file says, as options say, or both:\n"
        "options go first. The run's folder gets the log (log.jsonl), its curves (curves.png), checkpoints\n"
        "and at the end the model, which `jaxclip` and transformers load. Run again, it goes on where it was.\n"
        "Samples that can't be used are named on the error stream and skipped; the exit status is then 1.",
        epilog="examples:\n"
        "  jaxclip train --model openai/clip-vit-base-patch32 --data photos/ --steps 1000 --batch-size 64 \\\n"
        "      --output run --set optimizer.learning_rate=1e-5\n"
        "  jaxclip train config.toml --set seed=1 --output run-1\n"
        "where photos/ holds captions.jsonl or captions.csv, a .txt beside each image, or .tar shards, and\n"
        "config.toml is, for a text tower from scratch and a locked image tower:\n\n"
        '  output = "run"\n'
        '  tokenizer = "openai/clip-vit-base-patch32"\n'
        "  steps = 1000\n"
        "  batch_size = 64\n"
        '  freeze = ["vision"]\n\n'
        "  [model]\n"
        '  vision = "openai/clip-vit-base-patch32"\n'
        "  text = {hidden_size = 256, num_hidden_layers = 4}\n\n"
        "  [data]\n"
        '  train = "photos/"\n'
        '  held_out = "held-out/"\n\n'
        'All keys: python -c "from jaxclip.training import *; help(TrainConfig); help(ModelConfig); help(DataConfig)"',
    )
    parser.add_argument("config", metavar="CONFIG.toml", nargs="?", help="what to train, and how")
    parser.add_argument("--output", metavar="DIR", help="the run's folder, made if need be")
    parser.add_argument("--model", metavar="MODEL", help="what to begin with: a Hugging Face Hub id, or a local folder")
    parser.add_argument("--data", metavar="DIR", help="images with captions: a folder, a file that lists them, shards")
    parser.add_argument("--held-out", metavar="DIR", help="as --data, to evaluate on: recall both ways")
    parser.add_argument("--steps", type=int, metavar="N", help="batches in all")
    parser.add_argument("--batch-size", type=int, metavar="N", help="pairs in a batch, of all devices (default: 256)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key, as optimizer.learning_rate=1e-5; may be given many times",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, which find each other as jax.distributed.initialize does (Cloud TPU, SLURM, "
        "Open MPI)",
    )
    parser.set_defaults(run=run, kept="what was saved is kept: run it again to go on")


def run(options: argparse.Namespace) -> int:
    if options.config is not None and not Path(options.config).is_file():
        raise FileNotFoundError(f"{options.config}: no such file")
    missing = [name for name in ("optax", "orbax", "grain") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'training needs {" and ".join(missing)}: pip install "jaxclip[train]"')
    import jax

    from jaxclip.training.config import TrainConfig, merged, parse_override
    from jaxclip.training.run import train

    overrides = [parse_override(text) for text in options.set]
    overrides += [{name: value} for name, value in _stated(options).items() if value is not None]
    if options.held_out is not None:
        overrides.append({"data": {"held_out": options.held_out}})
    if options.config is not None:
        config = TrainConfig.from_toml(options.config, *overrides)
    else:
        config = TrainConfig.from_table(reduce(merged, overrides, {}))
    if options.distributed:
        jax.distributed.initialize()
    keep_compiled(options)
    result = train(config)
    if jax.process_index() == 0:
        _print(result, config.batch_size)
    return 1 if result.skipped else 0


def _stated(options: argparse.Namespace) -> dict[str, Any]:
    names = ("output", "model", "data", "steps", "batch_size")
    return {name: getattr(options, name) for name in names}


def _print(result: "TrainResult", batch_size: int) -> None:
    for sample in result.bad_samples:
        print(f"skipped: {printable(sample.reason)}", file=sys.stderr)
    if result.skipped > len(result.bad_samples):
        print(f"skipped: {result.skipped} in all, each time that its turn came", file=sys.stderr)
    averaged = ", the moving average of its parameters" if result.averaged else ""
    print(f"{printable(str(result.model))}: {result.steps} steps of {batch_size}, {_time(result.seconds)}{averaged}")
    if result.evaluation:
        names = {"text to image": "text_to_image", "image to text": "image_to_text"}
        for shown, name in names.items():
            recalls = [f"{result.evaluation[f'{name}_recall@{k}']:.3f} at {k}" for k in (1, 5, 10)]
            print(f"recall, {shown}: {', '.join(recalls)}")


def _time(seconds: float) -> str:
    """In the unit that a person would use."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
