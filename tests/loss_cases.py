"""What the losses are compared on with their references, committed and live, and how far apart two results are."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import losses, similarity

# Compiling is most of the tests' time, and this takes a third of it away. Not for what is compared with references.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

FILE = Path(__file__).parent / "losses" / "references" / "losses.npz"

# Float32 against float64 references, committed (12 × 8) and twelve live seeds (20 × 16). The worst: values 4.2e-7 of
# the value (triplets, a mean of differences), gradients 9.6e-7 of their norm (targets).
VALUE_TOLERANCE = 1.5e-6
GRADIENT_TOLERANCE = 3e-6
# At a temperature of 1e-3 the last digit of a cosine is 1e-4 of a logit, and of a probability: 1.1e-5 of the norm.
COLD_GRADIENT_TOLERANCE = 4e-5


def inputs(seed: int, n: int, width: int) -> dict[str, np.ndarray]:
    """Two correlated sets of vectors of any length, negatives, and all the other arguments."""
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return generator.normal(size=shape) * np.exp(generator.normal(size=(*shape[:-1], 1)))

    a = draw(n, width)
    arrays = {
        "a": a,
        "b": a + draw(n, width),
        "shared": draw(7, width),
        "own": draw(n, 5, width),
        "c": draw(n, width),
        "temperature": np.array(0.2),
        "cold": np.array(1e-3),
        "logit_scale": np.array(2.3),
        "logit_bias": np.array(-3.0),
        "targets": generator.dirichlet(np.full(n, 0.3), size=n),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays["marks"] = np.eye(n, dtype=np.int32) | (generator.random((n, n)) < 0.2)
    arrays["signs"] = np.where(np.arange(n) % 3 == 0, 1, -1).astype(np.int32)
    arrays["labels"] = (generator.integers(0, n // 3, size=n)).astype(np.int32)
    arrays["views"] = np.arange(n, dtype=np.int32) // 2
    return arrays


def _info_nce(queries, keys, temperature):
    return losses.info_nce(queries, keys, temperature=temperature)


# Name of the case → our function and its arguments, those of `inputs`.
CASES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "info_nce": (_info_nce, ("a", "b", "temperature")),
    "info_nce_cold": (_info_nce, ("a", "b", "cold")),
    "info_nce_shared": (losses.info_nce, ("a", "b", "shared", "temperature")),
    "info_nce_own": (losses.info_nce, ("a", "b", "own", "temperature")),
    "nt_xent": (losses.nt_xent, ("a", "temperature")),
    "nt_xent_optax": (losses.nt_xent, ("a", "temperature", "views")),
    "nt_xent_labels": (losses.nt_xent, ("a", "temperature", "labels")),
    "clip": (losses.clip_loss, ("a", "b", "logit_scale")),
    "clip_soft": (losses.clip_loss, ("a", "b", "logit_scale", "targets")),
    "clip_several": (losses.clip_loss, ("a", "b", "logit_scale", "marks")),
    "siglip": (losses.siglip_loss, ("a", "b", "logit_scale", "logit_bias")),
    "pairs_cosine": (lambda a, b, s: losses.cosine_embedding_loss(a, b, s, 0.1), ("a", "b", "signs")),
    "pairs_triplet": (lambda a, b, c: losses.triplet_loss(a, b, c, 0.3), ("a", "b", "c")),
    "pairs_triplet_euclidean": (
        lambda a, b, c: losses.triplet_loss(a, b, c, 0.3, similarity.euclidean_distance),
        ("a", "b", "c"),
    ),
}


def differentiated(case: str, arrays: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Which arguments have a gradient: all that are floats, except targets."""
    return tuple(i for i, name in enumerate(CASES[case][1]) if name != "targets" and arrays[name].dtype.kind == "f")


@cache
def compiled(function: Callable, which: tuple[int, ...], quickly: bool = False) -> Callable:
    """The value and the gradients, compiled once for all cases of one function."""
    return (jit if quickly else jax.jit)(jax.value_and_grad(function, argnums=which))


def results(case: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our value, and the gradient by the name of each argument."""
    function, names = CASES[case]
    which = differentiated(case, arrays)
    value, gradients = compiled(function, which)(*(arrays[name] for name in names))
    return {"value": value, **{names[i]: gradient for i, gradient in zip(which, gradients, strict=True)}}


def errors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], arrays: dict[str, np.ndarray]):
    """The value's relative error, and the worst of the gradients', in units of each one's norm.

    A temperature's gradient may nearly cancel: it is a mean of differences of cosines times the scale's derivative,
    which is its unit here.
    """
    assert ours.keys() == theirs.keys()
    found = {name: relative_error(ours[name], theirs[name]) for name in ours}
    for name, derivative in {"temperature": _inverse_square, "cold": _inverse_square, "logit_scale": np.exp}.items():
        if name in found:
            found[name] = float(abs(ours[name] - theirs[name]) / derivative(np.float64(arrays[name])))
    return found.pop("value"), max(found.values())


def _inverse_square(temperature: float) -> float:
    return temperature**-2


def assert_equal(case: str, arrays: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    value, gradient = errors(results(case, arrays), theirs, arrays)
    assert value <= VALUE_TOLERANCE
    assert gradient <= (COLD_GRADIENT_TOLERANCE if case.endswith("cold") else GRADIENT_TOLERANCE)


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{ours.shape} against the reference's {theirs.shape}"
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def committed(case: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inputs, and the reference's results."""
    with np.load(FILE) as file:
        arrays = {name.removeprefix("inputs/"): file[name] for name in file.files if name.startswith("inputs/")}
        return arrays, {n.removeprefix(f"{case}/"): file[n] for n in file.files if n.startswith(f"{case}/")}


# What all losses have in common is tested on these.
ROWS = inputs(seed=3, n=8, width=6)
ALL = np.ones(8, bool)
MASK = ALL & (np.arange(8) // 2 != 1)
SHARED = jnp.asarray(ROWS["shared"])
QUEUE = jit(lambda keys: losses.KeyQueue.empty(9, 6).enqueue(keys))(SHARED)
# Name → our loss, taking `mask` and `reduction` too, and which of `ROWS` it is of: those have a row a query.
LOSSES = {
    "info_nce": (partial(losses.info_nce, temperature=0.2), ("a", "b")),
    "info_nce_shared": (lambda a, b, **o: losses.info_nce(a, b, SHARED, 0.2, **o), ("a", "b")),
    "info_nce_own": (partial(losses.info_nce, temperature=0.2), ("a", "b", "own")),
    "moco": (lambda a, b, **o: losses.moco_loss(a, b, QUEUE, 0.2, **o), ("a", "b")),
    "nt_xent": (partial(losses.nt_xent, temperature=0.2), ("a",)),
    "nt_xent_labels": (lambda a, labels, **o: losses.nt_xent(a, 0.2, labels, **o), ("a", "labels")),
    "clip": (lambda a, b, **o: losses.clip_loss(a, b, 2.3, **o), ("a", "b")),
    "clip_targets": (lambda a, b, t, **o: losses.clip_loss(a, b, 2.3, t, **o), ("a", "b", "marks")),
    "siglip": (lambda a, b, **o: losses.siglip_loss(a, b, 2.3, -3.0, **o), ("a", "b")),
    "cosine_embedding": (losses.cosine_embedding_loss, ("a", "b", "signs")),
    "triplet": (losses.triplet_loss, ("a", "b", "c")),
}
CHUNKED = (
    "info_nce",
    "info_nce_shared",
    "info_nce_own",
    "moco",
    "nt_xent",
    "nt_xent_labels",
    "clip",
    "clip_targets",
    "siglip",
)


def arguments(name, arrays=ROWS):
    return [arrays[argument] for argument in LOSSES[name][1]]


def vectors(name):
    return [i for i, argument in enumerate(LOSSES[name][1]) if argument in ("a", "b", "c", "own")]


def flat(gradients) -> np.ndarray:
    return np.concatenate([np.ravel(gradient) for gradient in gradients])
