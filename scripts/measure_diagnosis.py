"""Prints how well `jaxclip diff` finds mistakes that were planted on purpose, and whether it raises false alarms.

    python scripts/measure_diagnosis.py               # needs no torch
    python scripts/measure_diagnosis.py --live        # and right runs of transformers (pip install -e ".[parity]")

Every mistake is planted in a copy of the oracle, over several configurations and redrawn parameters, and the copy runs
in float32, in bfloat16, and in float32 with the hidden states alone kept. Mistakes of preprocessing are planted in
plain NumPy and Pillow (`tests/broken_pixels.py`), over several configurations and images. "Right" is the mistake that
was made and no other; "tie" holds it among others that the data can't tell apart; "unseen" is a mistake that rounding
hides.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import broken_pixels
from broken import PLANTS, UNKNOWN, Plant, broken, inputs_of, redrawn, run, write_checkpoint

import jaxclip
from jaxclip.compare import Capture, capture, diff
from jaxclip.compare.checkpoint import Checkpoint
from jaxclip.compare.preprocessing import diagnose_pixels
from jaxclip.reference import Oracle

SEEDS = (0, 1, 2)
OUTCOMES = ("right", "tie", "wrong", "none named", "unseen", "first tensor right")
STATES = ("embeddings", "pre_layrnorm", "layers.0", "layers.1", "final_layer_norm", "_projection", "_embeds",
          "input_ids", "pixel_values", "logits_per_image")  # fmt: skip
Checkpoints = dict[tuple[str, int], Checkpoint]


def outcomes(
    checkpoints: dict[tuple[str, int], Checkpoint], plants: list[Plant], precision: str, states: bool
) -> Counter:
    counted: Counter = Counter()
    for plant in plants:
        for case in plant.cases:
            for seed in SEEDS:
                checkpoint = checkpoints[case, seed]
                inputs = inputs_of(checkpoint.config, larger=plant.larger)
                right, wrong = (
                    run(kind, checkpoint.config, checkpoint.oracle.tensors, inputs, precision)
                    for kind in (Oracle, broken(plant))
                )
                if states:
                    wrong = Capture({name: value for name, value in wrong.items() if name.endswith(STATES)})
                found = diff(right, wrong, model=checkpoint)
                causes = next((each.causes for each in found.diagnoses if each.side == "B"), ())
                first = found.first_divergence
                counted["runs"] += 1
                counted["first tensor right"] += first is not None and (states or first.name == plant.at)
                counted["unseen" if first is None else outcome(plant.cause, causes)] += 1
    return counted


def outcome(cause: str, causes: tuple[str, ...]) -> str:
    if not causes:
        return "none named"
    if cause not in causes:
        return "wrong"
    return "right" if len(causes) == 1 else "tie"


def outcomes_of_pixels(known: bool) -> Counter:
    counted: Counter = Counter()
    for made in broken_pixels.CONFIGURATIONS.values():
        planted = broken_pixels.mistakes(made).items() if known else (("", p) for p in broken_pixels.unknown(made))
        for cause, wrong in planted:
            for seed in SEEDS:
                images = broken_pixels.pictures(seed)
                right = made.processor()(list(images))
                found = diagnose_pixels(wrong(images), right, images, made.processor(), "B")
                counted["runs"] += 1
                counted["first tensor right"] += found.name == "pixel_values"
                counted[outcome(cause, found.causes)] += 1
    return counted


def row(name: str, counted: Counter) -> str:
    return f"| {name} | {counted['runs']} | {' | '.join(str(counted[each]) for each in OUTCOMES)} |"


def false_alarms(checkpoints: Checkpoints, live: bool) -> Counter:
    counted: Counter = Counter()
    for (case, seed), checkpoint in checkpoints.items():
        if seed or case not in ("openai", "first_eos", "metaclip_2"):
            continue
        inputs = inputs_of(checkpoint.config)
        exact = Capture({**inputs.tensors(), **checkpoint.trace(inputs)})
        for dtype in ("float32", "bfloat16", "float16"):
            clip = jaxclip.load(checkpoint.source, dtype=dtype)
            runs = [capture(clip, token_ids=inputs.token_ids, pixels=inputs.pixels)]
            if live:
                from jaxclip.compare.torch_model import capture_transformers, load_transformers

                runs.append(capture_transformers(load_transformers(checkpoint.source, dtype=dtype), inputs))
            for captured in runs:
                counted["runs"] += 1
                counted["alarms"] += not diff(exact, captured, model=checkpoint).agree
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", action="store_true", help="right runs of transformers, too")
    options = parser.parse_args()
    if options.live:
        import torchvision_on_cpu  # noqa: F401 (before transformers)
    cases = sorted({case for plant in (*PLANTS, *UNKNOWN) for case in plant.cases})
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {}
        for case in cases:
            for seed in SEEDS:
                own = Path(folder, f"{case}-{seed}")
                own.mkdir()
                write_checkpoint(own, *redrawn(case, seed))
                checkpoints[case, seed] = Checkpoint(str(own))
        print(f"| planted | runs | {' | '.join(OUTCOMES)} |\n|---|{'--:|' * (1 + len(OUTCOMES))}")
        for name, plants, precision, states in (
            (f"{len(PLANTS)} known mistakes, float32", PLANTS, "float32", False),
            ("the same, bfloat16", PLANTS, "bfloat16", False),
            ("the same, float32, hidden states and features alone", PLANTS, "float32", True),
            (f"{len(UNKNOWN)} unknown mistakes, float32", UNKNOWN, "float32", False),
        ):
            print(row(name, outcomes(checkpoints, plants, precision, states)), flush=True)
        for name, known in (("known mistakes", True), ("unknown mistakes", False)):
            print(row(f"{name} of preprocessing", outcomes_of_pixels(known)), flush=True)
        alarms = false_alarms(checkpoints, options.live)
        print(f"\nFalse alarms: {alarms['alarms']} in {alarms['runs']} right runs.")


if __name__ == "__main__":
    main()
