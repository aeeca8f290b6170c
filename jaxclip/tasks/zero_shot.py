"""Images into classes that are only written down (CLIP paper, section 3.1)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from jaxclip.clip import Clip
from jaxclip.tasks.images import ImageName, Images, named_images
from jaxclip.tasks.photos import stream_named

# What a photo of something may be called: its distance, light, number and kind. One alone leans towards the photos that
# such a caption is written under; the mean of some is nearer to what they have in common (CLIP paper, section 3.1.4).
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of several {}.",
    "a close-up of a {}.",
    "a {} in the distance.",
    "a dark, blurred photo of a {}.",
    "a bright, sharp photo of a {}.",
    "a drawing of a {}.",
)

Names: TypeAlias = str | Sequence[str]
_Vector: TypeAlias = Float[np.ndarray, " projection"] | Float[Array, " projection"]
_Matrix: TypeAlias = Float[np.ndarray, "classes projection"] | Float[Array, "classes projection"]
Labels: TypeAlias = Sequence[Names] | Mapping[str, Names] | Mapping[str, _Vector] | _Matrix

# Beyond any temperature that is trained (at most ln 100 = 4.6): who passes more means the scale itself.
_LARGEST_LOGIT_SCALE = 10


@dataclass(frozen=True)
class Classes:
    """What images are told apart into.

    - `keys`: what tells the classes apart, as folders' names do
    - `labels`: what they are called
    - `embeddings`: one each, unit length
    """

    keys: list[str]
    labels: list[str]
    embeddings: Float32[np.ndarray, "classes projection"]


@dataclass(frozen=True)
class Classification:
    """What images show.

    - `images`: files by their paths, others by their numbers among what was given
    - `labels`: what the classes are called
    - `probabilities`: softmax over the classes of exp(logit_scale) · cosine
    - `scores`: the cosines, from -1 to 1
    - `skipped`: what couldn't be read, with the reason for each
    """

    images: list[ImageName]
    labels: list[str]
    probabilities: Float32[np.ndarray, "images classes"]
    scores: Float32[np.ndarray, "images classes"]
    skipped: list[tuple[ImageName, str]]

    def top(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """For each image its `k` most probable labels with their probabilities, best first."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        return [
            [(self.labels[column], float(row[column])) for column in columns]
            for row, columns in zip(self.probabilities, order.tolist(), strict=True)
        ]


def zero_shot_classifier(
    clip: Clip, labels: Sequence[Names] | Mapping[str, Names], templates: Sequence[str] = TEMPLATES
) -> Float[Array, "classes projection"]:
    """The embedding of each class, unit length, to be made once and passed wherever labels are taken.

    A class has a name, or several that mean the same; each goes into each template in place of {}, and the class is
    the normalised mean of the normalised embeddings of all these prompts, as in CLIP's paper and open_clip's
    `build_zero_shot_classifier`. Any number of classes goes by in constant memory. Raises TypeError for one string,
    and ValueError for no class, a class without a name, a template without {}, and an embedding that isn't finite.
    """
    return jax.device_put(_prompted([_names(label) for label in _listed(labels)], clip, templates))


def classify(
    clip: Clip,
    images: Images,
    labels: Labels | Classes,
    *,
    templates: Sequence[str] = TEMPLATES,
    logit_scale: float | None = None,
    batch_size: int | None = None,
) -> Classification:
    """Tells which of some classes each image shows, with no training on them.

    - `images`: an image (path, PIL image, uint8 array), a folder, many of these, or a `datasets.Dataset`
    - `labels`: the classes: a name each, or several that mean the same, in a list, or in a dict by what the result is
      to call them; or ready-made embeddings in place of the names, one array (classes, projection) or a dict of
      vectors, of any length but zero
    - `templates`: prompts, see `zero_shot_classifier`; for embeddings they aren't read
    - `logit_scale`: the logarithm of what cosines are multiplied by, the model's own by default; OpenAI's is
      ln 100 = 4.6052

    Photos are turned as their EXIF orientation says; what can't be read is skipped and named in the result. Raises
    FileNotFoundError when there is no such file or folder, TypeError and ValueError for labels and templates as
    `zero_shot_classifier` and for embeddings of another width, zero or not finite; and ValueError for a checkpoint
    that has no `logit_scale` when none is given, as a lone image tower's.
    """
    scale = scale_of(clip, logit_scale)
    classes = classes_of(clip, labels, templates)
    found, rows, skipped = [], [], []
    for names, vectors in stream_named(clip, named_images(images, skipped), skipped, batch_size=batch_size):
        found += names
        rows.append(vectors @ classes.embeddings.T)
    scores = np.concatenate(rows) if rows else np.zeros((0, len(classes.labels)), np.float32)
    return Classification(found, classes.labels, _softmax(scale * scores.astype(np.float64)), scores, skipped)


def classes_of(clip: Clip, labels: Labels | Classes, templates: Sequence[str] = TEMPLATES) -> Classes:
    """The classes that `labels` stand for, as `classify` takes them."""
    if isinstance(labels, Classes):
        return labels
    if isinstance(labels, np.ndarray | jax.Array):
        keys = [str(number) for number in range(len(labels))]
        return Classes(keys, keys, _checked(clip, np.asarray(labels)))
    listed = _listed(labels)
    if all(isinstance(label, np.ndarray | jax.Array) for label in listed) and isinstance(labels, Mapping):
        keys = list(labels)
        return Classes(keys, keys, _checked(clip, np.stack([np.asarray(vector) for vector in listed])))
    names = [_names(label) for label in listed]
    firsts = [several[0] for several in names]
    keys = list(labels) if isinstance(labels, Mapping) else firsts
    return Classes(keys, firsts, _prompted(names, clip, templates))


def _listed(labels: Sequence | Mapping) -> list:
    if isinstance(labels, str):
        raise TypeError(f"labels are a list of class names: put {labels!r} into one")
    listed = list(labels.values()) if isinstance(labels, Mapping) else list(labels)
    if not listed:
        raise ValueError("there is no class to tell: labels is empty")
    return listed


def _names(label: Names) -> list[str]:
    names = [label] if isinstance(label, str) else list(label)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"a class is a name or some names, got {label!r}")
    return names


def _prompted(
    classes: list[list[str]], clip: Clip, templates: Sequence[str]
) -> Float32[np.ndarray, "classes projection"]:
    if isinstance(templates, str):
        raise TypeError(f"templates are a list of prompts: put {templates!r} into one")
    if not templates or not all("{}" in template for template in templates):
        wrong = next((template for template in templates if "{}" not in template), None)
        raise ValueError(f"a template has {{}} where the name of a class goes, got {wrong!r}")
    owners = np.repeat(np.arange(len(classes)), [len(names) * len(templates) for names in classes])
    prompts = (template.replace("{}", name) for names in classes for name in names for template in templates)
    width = clip.model.tower("text").config.projection_dim or 0
    sums = np.zeros((len(classes), width))
    for batch in clip.stream_texts(prompts):
        if batch.errors:
            raise batch.errors[0].error
        np.add.at(sums, owners[batch.indices], batch.vectors)
    return _unit_rows(sums)


def _checked(clip: Clip, embeddings: Float[np.ndarray, "classes width"]) -> Float32[np.ndarray, "classes width"]:
    width = clip.model.tower("vision").config.projection_dim
    if embeddings.ndim != 2 or embeddings.shape[1] != width or not len(embeddings):
        raise ValueError(f"class embeddings must be (classes, {width}) for this model, got {embeddings.shape}")
    return _unit_rows(embeddings.astype(np.float64))


def _unit_rows(rows: Float[np.ndarray, "classes width"]) -> Float32[np.ndarray, "classes width"]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = ~(np.isfinite(lengths) & (lengths > 0))
    if bad.any():
        raise ValueError(f"the embedding of class {int(bad.argmax())} is zero or not finite: it has no direction")
    return (rows / lengths).astype(np.float32)


def scale_of(clip: Clip, given: int | float | None) -> float:
    """What cosines are multiplied by: the exponential of a logarithm that is given, or else of the model's own."""
    if given is not None:
        if not math.isfinite(given) or given > _LARGEST_LOGIT_SCALE:
            raise ValueError(
                f"logit_scale is the logarithm of the scale: for a scale of 100 pass 4.6052, got {given:g}"
            )
        return math.exp(given)
    if clip.model.logit_scale is None:
        raise ValueError(
            "this model has no logit_scale, as it has one tower: pass logit_scale=, the logarithm (of OpenAI's models "
            "it is ln 100 = 4.6052)"
        )
    return math.exp(float(clip.model.logit_scale[...]))


def _softmax(logits: Float[np.ndarray, "images classes"]) -> Float32[np.ndarray, "images classes"]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
