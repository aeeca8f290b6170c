"""Trains a learned metric on scikit-learn's handwritten digits and compares it with plain cosine.

    pip install scikit-learn
    python scripts/train_metric.py

Prints the 1-nearest-neighbour accuracy on held-out digits (nearest among the training ones): of the raw pixels by
cosine, and of the metric trained from several seeds.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxclip.losses import nt_xent
from jaxclip.nn.metric import LearnedMetric
from jaxclip.similarity import top_k


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training pixels and labels, held-out pixels and labels: the halves of scikit-learn's own example of these
    digits ("Recognizing hand-written digits"), in the file's order, so that mostly other people wrote the second."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y, half = (data.data / 16).astype(np.float32), data.target, len(data.target) // 2
    return x[:half], y[:half], x[half:], y[half:]


def augmented(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images shifted by up to one pixel each way, with a little noise."""
    padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    down, across = rng.choice(3, (2, len(x)), p=[0.15, 0.7, 0.15])
    rows = down[:, None, None] + np.arange(8)[:, None]
    columns = across[:, None, None] + np.arange(8)
    shifted = padded[np.arange(len(x))[:, None, None], rows, columns].reshape(x.shape)
    return (shifted + rng.normal(0, 0.05, x.shape)).astype(np.float32)


def train(
    x: np.ndarray,
    y: np.ndarray,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 256,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] = augmented,
) -> LearnedMetric:
    """By the supervised contrastive loss (arXiv 2004.11362) over batches of augmented rows."""
    metric = LearnedMetric(x.shape[1], 64, hidden_features=256, rngs=nnx.Rngs(seed))
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-3)
    state = optimizer.init(metric)

    @jax.jit
    def step(metric, state, x, y):
        gradient = jax.grad(lambda metric: nt_xent(metric(x), labels=y, temperature=0.1))(metric)
        updates, state = optimizer.update(gradient, state, metric)
        return optax.apply_updates(metric, updates), state

    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.choice(len(x), batch, replace=False)
        metric, state = step(metric, state, jnp.asarray(augment(x[rows], rng)), jnp.asarray(y[rows]))
    return metric


def accuracy(z: jax.Array, y: np.ndarray, held_z: jax.Array, held_y: np.ndarray) -> float:
    """Of the held-out digits, how many have the label of the training digit with the highest cosine."""
    nearest = top_k(held_z, z, 1, metric="cosine").indices[:, 0]
    return float(np.mean(y[np.asarray(nearest)] == held_y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    x, y, held_x, held_y = digits()
    print(f"cosine of pixels         {accuracy(jnp.asarray(x), y, jnp.asarray(held_x), held_y):.2%}")
    learned = []
    for seed in range(arguments.seeds):
        metric = train(x, y, steps=arguments.steps, seed=seed)
        learned.append(accuracy(metric(jnp.asarray(x)), y, metric(jnp.asarray(held_x)), held_y))
        print(f"learned metric, seed {seed}   {learned[-1]:.2%}")
    print(f"learned metric, mean     {np.mean(learned):.2%}")


if __name__ == "__main__":
    main()
