"""How well a model classifies images whose classes are known: by words alone, or with a linear probe."""

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64

from jaxclip.clip import Clip
from jaxclip.tasks.classification_metrics import ClassificationMetrics, classification_metrics
from jaxclip.tasks.images import ImageName
from jaxclip.tasks.labelled_images import LabelledVectors, class_names, labelled_vectors
from jaxclip.tasks.linear_probe import cross_validated_scores, fit_linear_probe, require_optax
from jaxclip.tasks.zero_shot import TEMPLATES, Classes, Labels, classes_of


@dataclass(frozen=True)
class ClassificationEvaluation:
    """What came of it.

    - `metrics`: accuracies and confusions
    - `skipped`: images that couldn't be read or have no class, with the reason for each; they don't count
    - `images_per_second`: of the images that were encoded now, decoding included; None where all were known
    - `penalties`: of a linear probe, or of each fold's, the strength that was chosen
    """

    metrics: ClassificationMetrics
    skipped: list[tuple[ImageName, str]]
    images_per_second: float | None
    penalties: tuple[float, ...] = ()


def evaluate_zero_shot(
    clip: Clip,
    data: Any,
    labels: Labels | Classes | None = None,
    *,
    templates: Sequence[str] = TEMPLATES,
    index: str | os.PathLike | None = None,
    label_column: str | None = None,
    batch_size: int | None = None,
) -> ClassificationEvaluation:
    """Classifies images whose classes are known (CLIP paper, section 3.1).

    - `data`, `index`, `label_column`: as `labelled_vectors` takes them, a folder with a sub-folder for each class, or
      a `datasets.Dataset`
    - `labels`, `templates`: as `classify` takes them: by default the classes' own names, "_" read as a space; else a
      dict by these names ({"n01440764": ["tench", "Tinca tinca"]}), or a list that begins each class with one, or an
      array of embeddings in the order of the classes. Classes that no image shows are told apart from as well.

    Raises as `labelled_vectors` and `classify` do, and ValueError where a class of the images has no label.
    """
    shown = class_names(data, label_column)
    if labels is None:
        labels = {name: name.replace("_", " ") for name in shown}
    elif isinstance(labels, np.ndarray | jax.Array):
        if len(labels) != len(shown):
            raise ValueError(f"the images have {len(shown)} classes, and the embeddings {len(labels)} rows: use a dict")
        labels = dict(zip(shown, labels, strict=True))
    classes = classes_of(clip, labels, templates)
    _check_known(shown, classes.keys)
    labelled = labelled_vectors(clip, data, index=index, label_column=label_column, batch_size=batch_size)
    targets = _renumbered(labelled, classes.keys)
    metrics = classification_metrics(labelled.vectors @ classes.embeddings.T, targets, classes.labels)
    return ClassificationEvaluation(metrics, labelled.skipped, labelled.images_per_second)


def evaluate_linear_probe(
    clip: Clip,
    data: Any,
    train: Any = None,
    *,
    labels: Mapping[str, str] | None = None,
    index: str | os.PathLike | None = None,
    train_index: str | os.PathLike | None = None,
    label_column: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> ClassificationEvaluation:
    """Classifies images by a linear classifier on the model's frozen vectors (CLIP paper, appendix A.3).

    It is fitted on `train`, or without it cross-validated in five folds of `data`; see `fit_linear_probe`. Both are
    what `labelled_vectors` takes, with an index each. `labels` is what the result calls the classes, by their names.

    Raises as `labelled_vectors` and `fit_linear_probe` do, and ValueError for classes that aren't those of `train`.
    """
    require_optax()

    def read(images: Any, kept: str | os.PathLike | None) -> LabelledVectors:
        return labelled_vectors(clip, images, index=kept, label_column=label_column, batch_size=batch_size)

    classes = class_names(data if train is None else train, label_column)
    if unknown := [name for name in class_names(data, label_column) if name not in classes]:
        raise ValueError(f"the images to learn from have none of the classes {', '.join(unknown)}")
    if labels is not None:
        _check_known(classes, labels)
    seen = None if train is None else read(train, train_index)
    shown = read(data, index)
    targets = _renumbered(shown, classes)
    if seen is None:
        scores, penalties = cross_validated_scores(shown.vectors, targets, len(classes), seed=seed)
    else:
        probe = fit_linear_probe(seen.vectors, _renumbered(seen, classes), len(classes), seed=seed)
        scores, penalties = probe(shown.vectors), [probe.l2]
    metrics = classification_metrics(scores, targets, [labels[name] if labels else name for name in classes])
    skipped = [*(seen.skipped if seen else []), *shown.skipped]
    return ClassificationEvaluation(metrics, skipped, shown.images_per_second, tuple(penalties))


def _check_known(classes: Sequence[str], known: Container[str]) -> None:
    if unknown := [name for name in classes if name not in known]:
        raise ValueError(
            f"{len(unknown)} of the images' classes have no label: {', '.join(unknown[:10])}"
            f"{', ...' if len(unknown) > 10 else ''}. Name them among the labels, or leave their images out"
        )


def _renumbered(labelled: LabelledVectors, names: Sequence[str]) -> Int64[np.ndarray, " images"]:
    """What the images show, by the numbers of the classes among `names`."""
    numbers = {name: number for number, name in enumerate(names)}
    # A class without a single image needs no number.
    return np.array([numbers.get(name, -1) for name in labelled.classes], np.int64)[labelled.targets]
