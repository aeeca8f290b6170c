"""Prints time and peak memory of contrastive losses, forward and backward, on this machine's CPU: jaxclip's dense and
chunked forms beside open_clip's `ClipLoss` (torch) and optax's `ntxent`, on unit vectors in float32.

    python scripts/benchmark_losses.py                      batches of 512 to 4,096
    python scripts/benchmark_losses.py --large -o curve.png   to 32,768, and dense to where it doesn't fit; the curve

Every figure is the median of fresh processes, the implementations taking turns. Peak memory is what the first run adds
to the process's resident memory (VmHWM of /proc/self/status, which is reset before it), inputs and compiled program
being there already; time is the median of the runs after it. A process that asks for more than the limit is stopped:
"-". Linux only.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GIB = 2**30
SMALL, LARGE = [512, 1024, 2048, 4096], [8192, 16384, 32768]
TEMPERATURE = 0.07
TABLES = {
    "CLIP": ("open_clip ClipLoss", "jaxclip clip_loss", "jaxclip clip_loss, chunked"),
    "NT-Xent": ("optax ntxent", "jaxclip nt_xent", "jaxclip nt_xent, chunked"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="batches to 32,768 too: half an hour, 12 GiB of memory")
    parser.add_argument("--batches", type=int, nargs="+", help="these batches instead")
    parser.add_argument("--width", type=int, default=512, help="of the features (default: %(default)s)")
    parser.add_argument("--chunk-size", type=int, default=1024, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each process (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=8, help="GiB that a loss may add (default: %(default)s)")
    parser.add_argument("-o", "--output", help="draw the memory curve into this file (needs matplotlib)")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    batches = options.batches or SMALL + (LARGE if options.large else [])
    figures: dict[str, dict[int, dict[str, float] | None]] = {}
    for title, names in TABLES.items():
        print(f"\n{title}, forward and backward, width {options.width}, chunks of {options.chunk_size}\n")
        print("| batch |" + "".join(f" {name}, s | GiB |" for name in names))
        print("|---:|" + "---:|---:|" * len(names))
        for batch in batches:
            seen: dict[str, list[dict[str, float] | None]] = {name: [] for name in names}
            for _ in range(options.rounds):
                for name, turns in seen.items():
                    # Over the limit once, or at a smaller batch, is over it.
                    over = None in turns or None in figures.setdefault(name, {}).values()
                    turns.append(None if over else in_a_process(name, batch, options))
            for name, turns in seen.items():
                fitting = [figure for figure in turns if figure]
                figures[name][batch] = (
                    {key: statistics.median(figure[key] for figure in fitting) for key in fitting[0]}
                    if None not in turns
                    else None
                )
            row = [figures[name][batch] for name in names]
            cells = [f" {cell['seconds']:.3f} | {cell['peak'] / GIB:.3f} |" if cell else " - | - |" for cell in row]
            print(f"| {batch:,} |" + "".join(cells), flush=True)
    if options.output:
        draw(figures, options)


def in_a_process(name: str, batch: int, options: argparse.Namespace) -> dict[str, float] | None:
    """None when the loss needs more than the limit."""
    settings = {"--batches": batch} | {
        f"--{key}": getattr(options, key.replace("-", "_")) for key in ("width", "chunk-size", "runs", "limit")
    }
    arguments = [str(word) for setting in settings.items() for word in setting]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    # XLA says so in several ways, by who asked; torch in one.
    refusals = ("RESOURCE_EXHAUSTED", "bad_alloc", "allocate of", "Out of memory", "can't allocate memory")
    if any(words in done.stderr for words in refusals):
        return None
    raise SystemExit(f"{name} at a batch of {batch} failed:\n{done.stderr}")


def measure(options: argparse.Namespace) -> dict[str, float]:
    (batch,) = options.batches
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2, batch, options.width)).astype(np.float32)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    run = LOSSES[options.measure](*features, options)
    # Anonymous memory: unlike the address space, of which JAX and torch reserve much more than they use.
    most = status("VmData") + int(options.limit * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    Path("/proc/self/clear_refs").write_text("5")  # Resets VmHWM (man 5 proc).
    before = status("VmRSS")
    run()
    peak = status("VmHWM") - before
    seconds = []
    for _ in range(options.runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "peak": peak}


def status(key: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def open_clip_loss(images: np.ndarray, texts: np.ndarray, _: argparse.Namespace) -> Callable[[], Any]:
    import torch
    import torchvision_on_cpu  # noqa: F401
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    leaves = [torch.tensor(x, requires_grad=True) for x in (images, texts)]
    scale = torch.tensor(1 / TEMPERATURE, requires_grad=True)

    def run():
        for leaf in (*leaves, scale):
            leaf.grad = None
        loss(*leaves, scale).backward()

    return run


def jaxclip_clip_loss(images: np.ndarray, texts: np.ndarray, _: argparse.Namespace, chunk_size: int | None = None):
    from jaxclip.losses import clip_loss

    return compiled(lambda *operands: clip_loss(*operands, chunk_size=chunk_size), images, texts, -np.log(TEMPERATURE))


def jaxclip_nt_xent(views: np.ndarray, _: np.ndarray, __: argparse.Namespace, chunk_size: int | None = None):
    from jaxclip.losses import nt_xent

    return compiled(lambda *operands: nt_xent(*operands, chunk_size=chunk_size), views, TEMPERATURE)


def optax_ntxent(views: np.ndarray, _: np.ndarray, __: argparse.Namespace) -> Callable[[], Any]:
    import optax

    labels = np.arange(len(views)) // 2
    return compiled(lambda views, temperature: optax.losses.ntxent(views, labels, temperature), views, TEMPERATURE)


def compiled(loss: Callable[..., Any], *operands: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    operands = tuple(jnp.asarray(x, jnp.float32) for x in operands)
    step = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(operands))))).lower(*operands).compile()
    return lambda: jax.block_until_ready(step(*operands))


LOSSES: dict[str, Callable[..., Callable[[], Any]]] = {
    "open_clip ClipLoss": open_clip_loss,
    "jaxclip clip_loss": jaxclip_clip_loss,
    "jaxclip clip_loss, chunked": lambda *given: jaxclip_clip_loss(*given, chunk_size=given[-1].chunk_size),
    "optax ntxent": optax_ntxent,
    "jaxclip nt_xent": jaxclip_nt_xent,
    "jaxclip nt_xent, chunked": lambda *given: jaxclip_nt_xent(*given, chunk_size=given[-1].chunk_size),
}


def draw(figures: dict[str, dict[int, dict[str, float] | None]], options: argparse.Namespace) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, by_batch in figures.items():
        fitting = {batch: seen["peak"] / GIB for batch, seen in by_batch.items() if seen}
        axes.loglog(list(fitting), list(fitting.values()), marker="o", label=name)
    axes.axhline(options.limit, color="grey", linestyle="--", label=f"{options.limit:g} GiB")
    batches = sorted({batch for by_batch in figures.values() for batch in by_batch})
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.minorticks_off()
    axes.set(xlabel="batch", ylabel="peak memory, GiB", title=f"Forward and backward, width {options.width}, float32")
    axes.legend(loc="lower right")
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
