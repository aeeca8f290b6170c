"""Prints how well a model classifies a folder of labelled photos: by its classes' embeddings, and with a linear probe.

python scripts/measure_zero_shot.py MODEL PHOTOS --index VECTORS
python scripts/measure_zero_shot.py MODEL PHOTOS --embeddings text.npy --names classes.json --same automobile=car

PHOTOS has a sub-folder for each class. The embeddings, a row for each of the names, stand in for the text tower of a
checkpoint that has none, and may be of more classes than the photos': photos whose class is not among them are left
out of what is said of words, and the probe is fitted to all.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import jaxclip
from jaxclip.tasks.classification_metrics import ClassificationMetrics, classification_metrics
from jaxclip.tasks.labelled_images import LabelledVectors, labelled_vectors
from jaxclip.tasks.linear_probe import cross_validated_scores


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--index", help="where the photos' vectors are kept")
    parser.add_argument("--embeddings", help="of classes, .npy (default: of the sub-folders' names, by the model)")
    parser.add_argument("--names", type=Path, help="a JSON list: what the rows of the embeddings are of")
    parser.add_argument(
        "--same", nargs="*", default=[], metavar="CLASS=NAME", help="sub-folders that the names call something else"
    )
    options = parser.parse_args(arguments)
    if (options.embeddings is None) != (options.names is None):
        parser.error("--embeddings and --names go together")
    clip = jaxclip.load(options.model, towers="vision" if options.embeddings else "both")
    photos = labelled_vectors(clip, options.photos, index=options.index)
    for path, reason in photos.skipped:
        print(f"skipped: {path}: {reason}")
    if photos.images_per_second:
        print(f"{photos.images_per_second:.1f} images a second\n")
    if options.embeddings:
        names, embeddings = json.loads(options.names.read_text()), np.load(options.embeddings).astype(np.float64)
        called = dict(pair.split("=", 1) for pair in options.same)
    else:
        names, called = photos.classes, {}
        embeddings = np.asarray(jaxclip.zero_shot_classifier(clip, [name.replace("_", " ") for name in names]))
    numbers = {
        shown: names.index(called.get(name, name))
        for shown, name in enumerate(photos.classes)
        if called.get(name, name) in names
    }
    print("| | classes | images | top-1 | top-5 |\n|---|--:|--:|--:|--:|")
    own = list(numbers.values())
    mistakes = {}
    if own:
        mistakes["words, the classes of the photos"] = zero_shot(photos, numbers, own, names, embeddings)
    if own and len(names) > len(own):
        mistakes["words, among all"] = zero_shot(photos, numbers, list(range(len(names))), names, embeddings)
    scores, _ = cross_validated_scores(photos.vectors, photos.targets, len(photos.classes))
    mistakes["linear probe, five folds"] = classification_metrics(scores, photos.targets, photos.classes)
    for what, found in mistakes.items():
        top_5 = "" if found.top_5 is None else f"{found.top_5:.3f}"
        print(f"| {what} | {len(found.labels)} | {found.images} | {found.top_1:.3f} | {top_5} |")
    for what, found in mistakes.items():
        print(f"\n{what}: the most frequent mistakes")
        for one in found.worst_confusions(5):
            print(f"  {one.count} of {one.images} {one.label}: taken for {one.predicted}")


def zero_shot(
    photos: LabelledVectors, numbers: dict[int, int], among: list[int], names: list[str], embeddings: np.ndarray
) -> ClassificationMetrics:
    """By the embeddings of the names `among`; `numbers` are the classes' numbers among the names."""
    kept = np.isin(photos.targets, list(numbers))
    unit = embeddings[among] / np.linalg.norm(embeddings[among], axis=1, keepdims=True)
    targets = np.array([among.index(numbers[shown]) for shown in photos.targets[kept].tolist()])
    return classification_metrics(photos.vectors[kept] @ unit.T, targets, [names[number] for number in among])


if __name__ == "__main__":
    main()
