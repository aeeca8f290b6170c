"""A linear classifier on frozen features (CLIP paper, appendix A.3): what a little training adds to them."""

import importlib.util
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int64

# Strengths of the penalty that are tried. Features are scaled to a mean square of 1, which makes the same range do for
# any model.
PENALTIES = tuple(float(10 ** (power / 2)) for power in range(2, -11, -1))

# The part of the images that the penalty is chosen on.
_HELD_OUT = 0.2

_MOST_STEPS = 1000


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression: probabilities are softmax(features · weights + bias).

    - `weights`, `bias`: one column for each class
    - `l2`: the strength of the penalty that was chosen
    """

    weights: Float32[np.ndarray, "width classes"]
    bias: Float32[np.ndarray, " classes"]
    l2: float

    def __call__(self, features: Float[np.ndarray, "n width"]) -> Float32[np.ndarray, "n classes"]:
        """The logit of each class."""
        return np.asarray(features @ self.weights + self.bias, np.float32)


def fit_linear_probe(
    features: Float[np.ndarray, "n width"] | Float[Array, "n width"],
    targets: Int64[np.ndarray, " n"],
    classes: int,
    *,
    l2: float | None = None,
    seed: int = 0,
) -> LinearProbe:
    """The minimum of mean cross-entropy + l2 / 2 · ‖weights‖², found by L-BFGS; the bias isn't penalised.

    The penalty is on the weights of features that are shifted to mean 0 and scaled, all by one number, to a mean square
    of 1. By default `l2` is, of `PENALTIES`, the one with the least cross-entropy on a fifth of each class's images
    that the others didn't see (drawn with `seed`); then all images are used. (scikit-learn's C is 1 / (n · l2).)

    Raises ImportError without optax (`jaxclip[train]`), and ValueError for features that aren't finite, for fewer than
    two classes with images, and where no class has two images to choose `l2` by.
    """
    features, targets = _checked(features, targets, classes)
    everything = np.ones(len(targets), np.float32)
    if l2 is None:
        l2 = _chosen(features, targets, classes, everything, np.random.default_rng(seed))
    return _fit(features, targets, classes, everything, [l2])[-1]


def cross_validated_scores(
    features: Float[np.ndarray, "n width"] | Float[Array, "n width"],
    targets: Int64[np.ndarray, " n"],
    classes: int,
    *,
    folds: int = 5,
    seed: int = 0,
) -> tuple[Float32[np.ndarray, "n classes"], list[float]]:
    """The logits of each image by a probe that was fitted without the image's fold, and the penalty of each fold's
    probe, which was chosen without it as well.

    Folds have the same part of each class. Raises as `fit_linear_probe`, and ValueError where a class that has images
    has fewer than `folds`.
    """
    features, targets = _checked(features, targets, classes)
    counts = np.bincount(targets, minlength=classes)
    if folds < 2 or counts[counts > 0].min() < folds:
        raise ValueError(
            f"{folds}-fold cross-validation needs at least two folds and {folds} images of each class, and one has "
            f"{counts[counts > 0].min()}"
        )
    generator = np.random.default_rng(seed)
    fold = _spread(targets, generator) % folds
    scores, penalties = np.empty((len(targets), classes), np.float32), []
    for number in range(folds):
        seen = (fold != number).astype(np.float32)
        l2 = _chosen(features, targets, classes, seen, generator)
        scores[fold == number] = _fit(features, targets, classes, seen, [l2])[-1](features[fold == number])
        penalties.append(l2)
    return scores, penalties


def require_optax() -> None:
    """Raises ImportError, with the mend, where optax is missing; takes no time where it isn't."""
    if importlib.util.find_spec("optax") is None:
        raise ImportError('the linear probe is fitted by optax, which is not installed: pip install "jaxclip[train]"')


def _checked(
    features: Float[np.ndarray, "n width"] | Float[Array, "n width"], targets: Int64[np.ndarray, " n"], classes: int
) -> tuple[Float32[np.ndarray, "n width"], Int64[np.ndarray, " n"]]:
    require_optax()
    features = np.asarray(features, np.float32)
    if not np.isfinite(features).all():
        raise ValueError("features must be finite")
    if len(np.unique(targets)) < 2 or targets.min() < 0 or targets.max() >= classes:
        raise ValueError(
            f"a probe tells at least two of the {classes} classes apart, got {np.unique(targets).tolist()}"
        )
    return features, targets


def _spread(targets: Int64[np.ndarray, " n"], generator: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """A random number from 0 on for each image, no two of a class alike."""
    order = generator.permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    starts = np.searchsorted(targets[order], targets[order])
    numbers = np.empty(len(targets), np.int64)
    numbers[order] = np.arange(len(targets)) - starts
    return numbers


def _chosen(
    features: Float32[np.ndarray, "n width"],
    targets: Int64[np.ndarray, " n"],
    classes: int,
    seen: Float32[np.ndarray, " n"],
    generator: np.random.Generator,
) -> float:
    """The penalty with the least cross-entropy on a part of the images that are seen."""
    here = np.flatnonzero(seen)
    numbers, counts = _spread(targets[here], generator), np.bincount(targets[here], minlength=classes)
    # Of a class of two or more at least one, and never all.
    held = here[numbers < np.ceil(_HELD_OUT * counts[targets[here]]) * (counts[targets[here]] > 1)]
    if not len(held):
        raise ValueError("no class has two images, and choosing the penalty takes one to fit and one to choose by")
    fitted = seen.copy()
    fitted[held] = 0
    losses = [_cross_entropy(probe(features[held]), targets[held]) for probe in
              _fit(features, targets, classes, fitted, PENALTIES)]  # fmt: skip
    return PENALTIES[int(np.argmin(losses))]


def _cross_entropy(logits: Float32[np.ndarray, "n classes"], targets: Int64[np.ndarray, " n"]) -> float:
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    totals = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    return float((totals - np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]).mean())


def _fit(
    features: Float32[np.ndarray, "n width"],
    targets: Int64[np.ndarray, " n"],
    classes: int,
    seen: Float32[np.ndarray, " n"],
    penalties: tuple[float, ...] | list[float],
) -> list[LinearProbe]:
    """A probe for each penalty, of the images with a weight of 1 in `seen`: one program whichever they are."""
    mean = (seen @ features) / seen.sum()
    scale = np.sqrt((seen @ (features - mean) ** 2).sum() / (seen.sum() * features.shape[1]))
    standard = jnp.asarray((features - mean) / max(scale, np.finfo(np.float32).tiny))
    labels, weights = jnp.asarray(targets.astype(np.int32)), jnp.asarray(seen / seen.sum())
    found = []
    for l2 in penalties:
        kernel, bias = _minimum(standard, labels, weights, l2, classes=classes)
        ours = np.asarray(kernel, np.float64) / max(scale, np.finfo(np.float32).tiny)
        bias = np.asarray(bias, np.float64) - mean @ ours
        found.append(LinearProbe(ours.astype(np.float32), bias.astype(np.float32), l2))
    return found


@partial(jax.jit, static_argnames="classes")
def _minimum(
    features: Float[Array, "n width"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    l2: Float[Array, ""] | float,
    *,
    classes: int,
) -> tuple[Float[Array, "width classes"], Float[Array, " classes"]]:
    import optax

    def loss(parameters):
        kernel, bias = parameters
        logits = jnp.matmul(features, kernel, precision="highest") + bias
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(weights * losses) + l2 / 2 * jnp.sum(kernel**2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        parameters, state, number, still = carry
        value, gradient = value_and_grad(parameters, state=state)
        updates, state = optimizer.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
        parameters = jax.tree.map(jnp.add, parameters, updates)
        small = optax.tree.norm(updates) <= 1e-6 * (1 + optax.tree.norm(parameters))
        return parameters, state, number + 1, jnp.where(small, still + 1, 0)

    def unfinished(carry):
        *_, number, still = carry
        # In float32 the last steps only wander about the minimum; and before, one may be small where the search along
        # a line can't tell values apart.
        return (number < _MOST_STEPS) & (still < 5)

    # From zero each time: at another penalty's minimum the first step would be so small as to look like the last.
    start = jnp.zeros((features.shape[1], classes)), jnp.zeros(classes)
    return jax.lax.while_loop(unfinished, step, (start, optimizer.init(start), 0, 0))[0]
