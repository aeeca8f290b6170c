"""Prints how far float32 arithmetic takes jaxclip and transformers from the float64 oracle (`jaxclip.reference`).

    python scripts/measure_float32.py            # the committed checkpoints of tests/references; needs no torch
    python scripts/measure_float32.py --live     # full-size ones, too (pip install -e ".[parity]"; 8 GB of memory and
                                                 # 2 GB of disk, some minutes)

A cell is the root mean square, over the tensors of a tower, of each one's relative RMS error: jaxclip's, transformers'
(torch), and the first divided by the second. The last column is the largest such quotient of a single tensor. Tensors
are the hidden states, the features and the logits.
"""

import argparse
import gc
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cases import CASES, FOLDER, expected, outputs
from measure_errors import LIVE, write_live
from oracle_cases import oracle, oracle_outputs

import jaxclip
from jaxclip.compare.rounding import relative_rms
from jaxclip.reference import Oracle, load

Errors = dict[str, tuple[float, float]]
"""By tensor: jaxclip's and transformers' relative RMS error."""


def measure(folder: Path, exact: Oracle) -> Errors:
    reference = expected(str(folder))
    right = oracle_outputs(exact, reference)
    ours = outputs(jaxclip.load(folder).model, reference)
    return {
        name: (relative_rms(ours[name] - right[name], right[name]), relative_rms(theirs - right[name], right[name]))
        for name, theirs in reference.items()
        if name in right
    }


def row(name: str, found: Errors) -> str:
    def cell(*starts: str) -> str:
        of = np.array([errors for tensor, errors in found.items() if tensor.startswith(starts)])
        if not of.any():
            return ""
        ours, theirs = np.sqrt(np.square(of).mean(axis=0))
        return f"{ours:.1e} / {theirs:.1e} = {ours / theirs:.2f}"

    text, vision = ("text", "masked_text"), ("vision", "other_vision", "image")
    worst = max(ours / theirs for ours, theirs in found.values() if theirs)
    return f"| {name} | {cell(*text)} | {cell(*vision)} | {cell('logits')} | {worst:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", action="store_true", help="full-size models too, against the installed transformers")
    options = parser.parse_args()
    print("| checkpoint | text tower | vision tower | logits | worst tensor |\n|---|--:|--:|--:|--:|")
    small = {case: measure(FOLDER / case, oracle(case)) for case in CASES}
    together = {f"{tensor} of {case}": errors for case, found in small.items() for tensor, errors in found.items()}
    print(row(f"the {len(CASES)} small ones of the tests", together), flush=True)
    for name in LIVE if options.live else ():
        with tempfile.TemporaryDirectory() as folder:
            write_live(name, Path(folder))
            print(row(name, measure(Path(folder), load(folder))), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
