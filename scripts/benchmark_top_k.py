"""Times `jaxclip.similarity.top_k` beside FAISS's exact index (IndexFlatIP), on the CPU, in one run.

    pip install faiss-cpu
    python scripts/benchmark_top_k.py

Items and queries are random unit vectors, `metric="dot_product"`. Times are medians of repetitions that alternate
between the two, each in a process of its own and never both at work. Memory is each whole process's peak while it
searches, libraries and items included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

THREADS = str(os.cpu_count())


def rows(start: int, count: int, d: int) -> np.ndarray:
    x = np.random.default_rng(start).standard_normal((count, d), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def chunks(m: int, d: int):
    return (rows(start, min(50_000, m - start), d) for start in range(0, m, 50_000))


def forget_peak() -> None:
    """The process's peak of memory counts from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def ours(m: int, d: int, k: int):
    import jax
    import jax.numpy as jnp

    from jaxclip.similarity import top_k

    put = jax.jit(lambda items, chunk, start: jax.lax.dynamic_update_slice(items, chunk, (start, 0)), donate_argnums=0)
    items, start = jnp.zeros((m, d), jnp.float32), 0
    for chunk in chunks(m, d):
        items, start = put(items, chunk, start), start + len(chunk)
    items.block_until_ready()

    def search(queries: np.ndarray) -> np.ndarray:
        return np.asarray(top_k(jnp.asarray(queries), items, k, metric="dot_product").indices)

    return search


def faiss(m: int, d: int, k: int):
    import faiss

    faiss.omp_set_num_threads(int(THREADS))
    index = faiss.IndexFlatIP(d)
    # At once: else its storage grows by doubling.
    index.codes.resize(m * d * 4)
    index.codes.resize(0)
    for chunk in chunks(m, d):
        index.add(chunk)
    return lambda queries: index.search(queries, k)[1]


def worker(name: str, m: int, d: int, k: int) -> None:
    """Answers each line, a number of queries, with the time of a search and the peak of memory."""
    search = {"jaxclip": ours, "faiss": faiss}[name](m, d, k)
    print("ready", flush=True)
    for line in sys.stdin:
        queries = rows(2**32 - 1, int(line), d)
        forget_peak()
        began = time.perf_counter()
        indices = search(queries)
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "memory": peak(), "indices": indices[:5].tolist()}
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = (arguments.items, arguments.width, arguments.k)
    if arguments.worker:
        worker(arguments.worker, *size)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS, "JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "passive"}
    own = [sys.executable, __file__, "--items", str(size[0]), "--width", str(size[1]), "-k", str(size[2]), "--worker"]
    workers = {
        name: subprocess.Popen(
            [*own, name], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for name in ("jaxclip", "faiss")
    }
    for process in workers.values():
        assert process.stdout.readline() == "ready\n"

    def ask(name: str, queries: int) -> dict:
        workers[name].stdin.write(f"{queries}\n")
        return json.loads(workers[name].stdout.readline())

    items = size[0] * size[1] * 4 / 2**20
    print(f"{size[0]:,} × {size[1]} items ({items:.0f} MiB), k = {size[2]}, {THREADS} threads")
    print(f"{'queries':>8} {'':>8} {'median s':>10} {'fastest s':>10} {'peak MiB':>9}")
    for queries in arguments.queries:
        answers = {name: [ask(name, queries)] for name in workers}  # Compiles: not counted.
        assert answers["jaxclip"][0]["indices"] == answers["faiss"][0]["indices"], "the two disagree"
        for _ in range(arguments.repetitions):
            for name in workers:
                answers[name].append(ask(name, queries))
        for name, found in answers.items():
            seconds = [answer["seconds"] for answer in found[1:]]
            memory = max(answer["memory"] for answer in found)
            print(f"{queries:>8} {name:>8} {statistics.median(seconds):>10.3f} {min(seconds):>10.3f} {memory:>9.0f}")
    for process in workers.values():
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
