"""Prints how long `jaxclip.load` takes, and how much private memory it needs, of a checkpoint in a local folder.

    python scripts/measure_load.py MODEL [--repeat 5]

Each repetition is a fresh process with jaxclip imported and JAX started; the files are read once before, so that they
are in the system's cache. Private memory is RssAnon of /proc/PID/status (what a process has of its own: no mapped
files), sampled every millisecond from outside, so that a loader which holds the GIL is seen too. Linux only.
"""

import argparse
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jaxclip
from jaxclip.checkpoints.files import locate, weight_files

LOAD = """
import sys, time, jax, jax.numpy as jnp, jaxclip
jnp.zeros(1).block_until_ready()
jaxclip.load, jaxclip.nn.CLIP
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
clip = jaxclip.load(sys.argv[1])
jax.block_until_ready(jax.tree.leaves(clip.model))
print(time.perf_counter() - start, flush=True)
sys.stdin.readline()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local folder")
    parser.add_argument("--repeat", type=int, default=5, help="fresh processes (default: %(default)s)")
    options = parser.parse_args()
    files = [file for file in weight_files(locate(options.model)) if file.suffix != ".json"]
    size = sum(len(file.read_bytes()) for file in files)
    seconds, growth, kept = zip(*(load_once(options.model) for _ in range(options.repeat)), strict=True)
    print(f"jaxclip {jaxclip.__version__}: {', '.join(file.name for file in files)}, {size / 1e6:.1f} MB")
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"load time           {statistics.median(seconds):6.2f} s (median of {options.repeat}; {spread})")
    print(f"private memory peak {max(growth) / size:6.2f} x the file (worst of {options.repeat})")
    print(f"private memory kept {max(kept) / size:6.2f} x the file")


def load_once(model: str) -> tuple[float, int, int]:
    """Seconds, and the growth of private memory in bytes: at its peak and after loading."""
    with subprocess.Popen(
        [sys.executable, "-c", LOAD, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise SystemExit("the loading process failed; see above")
        before = peak = private_memory(child.pid)
        print(file=child.stdin, flush=True)
        while not has_output(child):
            peak = max(peak, private_memory(child.pid))
            time.sleep(1e-3)
        seconds = child.stdout.readline()
        if not seconds:
            raise SystemExit("loading failed; see above")
        after = private_memory(child.pid)
        child.stdin.close()
        return float(seconds), peak - before, after - before


def has_output(child: subprocess.Popen[str]) -> bool:
    return bool(select.select([child.stdout], [], [], 0)[0])


def private_memory(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(lines[0].split()[1]) if lines else 0


if __name__ == "__main__":
    main()
