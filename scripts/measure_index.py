"""Times searches of a large `jaxclip.Index` of random unit vectors, and checks them against NumPy.

    python scripts/measure_index.py [--rows 1000000] [--width 512] [--folder FOLDER]

Writes the index (2 GB of 1,000,000 × 512) through its own blocks into a temporary folder, or into an empty one that is
named and kept; searches in a process of its own, and compares every hit with blockwise NumPy products. Memory (Linux):
the whole process's peak, mapped files and libraries included, and what it has of its own (RssAnon), sampled every
millisecond while it searches, less what it had before.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np


def unit(seed: int, n: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(folder: Path, rows: int, width: int) -> None:
    from jaxclip.tasks.blocks import ROWS, Record
    from jaxclip.tasks.manifest import Manifest, ModelIdentity
    from jaxclip.tasks.writer import IndexWriter

    manifest = Manifest(ModelIdentity(None, None, "float32", {}), {}, width, "/photos", {}, 0)
    manifest.write(folder)
    writer = IndexWriter(folder, manifest, {})
    for start in range(0, rows, ROWS):
        n = min(ROWS, rows - start)
        records = [Record(f"{row // 1000:04d}/{row:07d}.jpg", 3_000_000 + row, row) for row in range(start, start + n)]
        writer.add(unit(start, n, width), records)
    writer.finish()


def own() -> float:
    """MiB of memory that belong to this process alone: no mapped files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


class Peak:
    """The largest `own()` within a block, of samples a millisecond apart."""

    def __enter__(self) -> "Peak":
        self.value, self._done = own(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.value = max(self.value, own())

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()


def search(folder: Path, width: int, top: int) -> None:
    from jaxclip.tasks.index import Index

    started = time.perf_counter()
    index = Index.open(folder)
    figures = {"open": time.perf_counter() - started, "rows": len(index), "searches": []}
    for n in (1, 100):
        queries = unit(2**32 - n, n, width)
        seconds, before = [], own()
        with Peak() as peak:
            for _ in range(6):
                started = time.perf_counter()
                hits = index.search(queries, top)
                seconds.append(time.perf_counter() - started)
        figures["searches"].append(
            {
                "queries": n,
                "first": seconds[0],
                "median": float(np.median(seconds[1:])),
                "own": peak.value - before,
                "own_all": peak.value,
                "hits": [[(int(hit.item.stem), hit.score) for hit in row] for row in hits],
            }
        )
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(figures))


def nearest(folder: Path, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """By NumPy, block by block: (n, top) row numbers and cosines, equal ones by row."""
    from jaxclip.tasks.index import Index

    rows, scores, start = np.empty((len(queries), 0), int), np.empty((len(queries), 0), np.float32), 0
    for vectors in Index.open(folder).vectors():
        scores = np.concatenate([scores, queries @ vectors.T], axis=1)
        rows = np.concatenate(
            [rows, np.broadcast_to(np.arange(start, start + len(vectors)), (len(queries), len(vectors)))], 1
        )
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        start += len(vectors)
    return rows, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--search", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        search(options.folder, options.width, options.top)
        return
    if options.folder and options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder}: not empty: name a new or an empty folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        build(folder, options.rows, options.width)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
        print(f"{options.rows:,} × {options.width}: written in {time.perf_counter() - started:.1f} s, {size:,.0f} MiB")
        command = [sys.executable, __file__, "--search", "--folder", str(folder)]
        command += ["--width", str(options.width), "--top", str(options.top)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert figures["rows"] == options.rows
        print(f"opened in {figures['open']:.2f} s")
        for found in figures["searches"]:
            n = found["queries"]
            queries, started = unit(2**32 - n, n, options.width), time.perf_counter()
            rows, scores = nearest(folder, queries, options.top)
            numpy = time.perf_counter() - started
            ours = np.array([[row for row, _ in hits] for hits in found["hits"]])
            recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ours, rows, strict=True)])
            error = np.abs(np.array([[score for _, score in hits] for hits in found["hits"]]) - scores).max()
            print(
                f"{n:>4} queries: {found['median']:.3f} s (the first {found['first']:.2f} s; NumPy {numpy:.2f} s), "
                f"recall {recall:.4f}, same order {np.mean(ours == rows):.4f}, largest difference {error:.1e}; "
                f"memory of its own: {found['own']:.0f} MiB more than before, {found['own_all']:.0f} in all"
            )
            assert recall == 1
        print(f"peak of the whole process: {figures['peak']:.0f} MiB")


if __name__ == "__main__":
    main()
