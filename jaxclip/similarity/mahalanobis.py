"""Mahalanobis distance: Euclidean after the data's own correlations are taken out."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxclip.similarity.arguments import compare, wide
from jaxclip.similarity.euclidean import distance_of_pairs, pairwise_distance


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CovarianceFactor:
    """A covariance Σ by its Cholesky factor, which is all that distances need.

    - `cholesky`: L, lower triangular, L Lᵀ = Σ
    """

    cholesky: Float[Array, "d d"]

    def whiten(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """L⁻¹ x for each row: data of covariance Σ become uncorrelated, of unit variance, and the Euclidean distance
        between them is the Mahalanobis distance. So `top_k(factor.whiten(queries), factor.whiten(items), k,
        metric="euclidean")` is a search by it. Raises ValueError for rows of another length."""
        x = wide("x", x)
        if x.ndim == 0 or x.shape[-1] != self.cholesky.shape[0]:
            raise ValueError(f"x must be (..., {self.cholesky.shape[0]}) as the covariance is, got {x.shape}")
        return _whiten(self.cholesky.astype(x.dtype), x)


def covariance(samples: Float[Array, "n d"], *, shrinkage: float = 0.0) -> CovarianceFactor:
    """The samples' covariance, Σ = (x - mean)ᵀ (x - mean) / (n - 1), shrunk and factored (see `factor_covariance`).

    Needs more samples than dimensions, or a shrinkage. Raises ValueError for fewer than two samples and for a singular
    Σ, TypeError for other than floating-point arrays.
    """
    samples = wide("samples", samples)
    if samples.ndim != 2 or samples.shape[0] < 2:
        raise ValueError(f"samples must be (n, d) with at least two rows, got {samples.shape}")
    return factor_covariance(_covariance(samples), shrinkage=shrinkage)


def factor_covariance(covariance: Float[Array, "d d"], *, shrinkage: float = 0.0) -> CovarianceFactor:
    """The Cholesky factor of (1 - shrinkage) Σ + shrinkage · tr(Σ)/d · I.

    The shrinkage, from 0 to 1, pulls the eigenvalues towards their mean (Ledoit and Wolf, "A well-conditioned estimator
    for large-dimensional covariance matrices", 2004; sklearn.covariance.shrunk_covariance is the convention). With any
    that is well above d · 1e-7 every positive semidefinite Σ has a factor.

    Raises ValueError for a Σ that isn't square, and, of concrete arrays, for one that isn't finite, symmetric or
    positive definite (a pivot under d ulps of its variance). Nothing can be raised for values inside a trace: there
    the shrinkage is at least 10 · d ulps (6e-4 for d = 512 in float32), with which a singular Σ gives large but finite
    distances and gradients; of a Σ of zeros the mean is taken for 1. (One with negative eigenvalues is no covariance
    and gives NaN.)
    """
    covariance = wide("covariance", covariance)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance must be (d, d), got {covariance.shape}")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be from 0 to 1, got {shrinkage}")
    d, info = covariance.shape[0], jnp.finfo(covariance.dtype)
    traced = isinstance(covariance, Tracer)
    if traced:
        shrinkage = max(shrinkage, 10 * d * float(info.eps))
        return CovarianceFactor(_factor(covariance, shrinkage, info.smallest_normal)[1])
    # A concrete Σ that a traced function closes over is factored and checked then and there.
    with jax.ensure_compile_time_eval():
        shrunk, cholesky = _factor(covariance, shrinkage, 0.0)
        _check(covariance, shrunk, cholesky, shrinkage)
    return CovarianceFactor(cholesky)


def mahalanobis_distance(
    a: Float[Array, "n d"] | Float[Array, " d"],
    b: Float[Array, "m d"] | Float[Array, " d"],
    covariance: Float[Array, "d d"] | CovarianceFactor,
    *,
    paired: bool = False,
) -> Float[Array, "..."]:
    """√((a - b)ᵀ Σ⁻¹ (a - b)): distance in standard deviations, correlations accounted for. **Not normalised.**

    (n, d), (m, d) → (n, m), all pairs; with `paired` (n, d), (n, d) → (n,). A vector (d,) has no axis in the result.
    `covariance` is Σ itself or, factored once for many calls, `covariance(samples)` or `factor_covariance(Σ)`. No
    inverse is formed: L⁻¹ a and L⁻¹ b are solved for and compared by `euclidean_distance`, whose edges and error hold,
    the error multiplied by Σ's condition number's square root. Singular covariances as in `factor_covariance`. Raises
    TypeError for other than floating-point arrays and ValueError for shapes that don't fit, while tracing. As scipy's
    `mahalanobis`, which takes Σ⁻¹.
    """
    factor = covariance if isinstance(covariance, CovarianceFactor) else factor_covariance(covariance)

    def pairwise(a: Array, b: Array) -> Array:
        # Distances don't change with the origin, and rounding does: data far from it would lose their digits.
        origin = jax.lax.stop_gradient(b[:1].sum(axis=0))
        return pairwise_distance(factor.whiten(a - origin), factor.whiten(b - origin))

    def pairs(a: Array, b: Array) -> Array:
        # The difference itself is whitened: no digit is lost between near vectors.
        return distance_of_pairs(factor.whiten(a - b), jnp.zeros_like(a))

    return compare(pairwise, pairs, a, b, paired)


@jax.jit
def _covariance(samples: Float[Array, "n d"]) -> Float[Array, "d d"]:
    centred = samples - samples.mean(axis=0)
    return jnp.einsum("nd,ne->de", centred, centred, precision="highest") / (samples.shape[0] - 1)


@jax.jit
def _factor(covariance: Array, shrinkage: float | Array, smallest: float | Array) -> tuple[Array, Array]:
    """The shrunk covariance and its factor; a mean variance below `smallest` is taken for 1."""
    d = covariance.shape[0]
    mean = jnp.trace(covariance) / max(d, 1)
    mean = jnp.where(mean < smallest, jnp.ones_like(mean), mean)
    shrunk = ((1 - shrinkage) * covariance + shrinkage * mean * jnp.eye(d)).astype(covariance.dtype)
    with jax.default_matmul_precision("highest"):
        return shrunk, jnp.linalg.cholesky(shrunk)


@jax.jit
def _whiten(cholesky: Float[Array, "d d"], x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    with jax.default_matmul_precision("highest"):
        return jax.lax.linalg.triangular_solve(
            cholesky, x.reshape(-1, x.shape[-1]), left_side=False, lower=True, transpose_a=True
        ).reshape(x.shape)


def _check(covariance: Any, shrunk: Any, cholesky: Any, shrinkage: float) -> None:
    """The errors that only values show."""
    eps = float(jnp.finfo(covariance.dtype).eps)
    covariance, shrunk, cholesky = np.asarray(covariance), np.asarray(shrunk), np.asarray(cholesky)
    if not np.isfinite(covariance).all():
        raise ValueError("covariance must be finite")
    if np.abs(covariance - covariance.T).max(initial=0) > 100 * eps * np.abs(covariance).max(initial=0):
        raise ValueError("covariance must be symmetric")
    # What is left of each variance once the variables before it are known: 0 if it follows from them.
    left = np.diagonal(cholesky) ** 2 > covariance.shape[0] * eps * np.diagonal(shrunk)
    if not left.all():
        raise ValueError(
            "covariance is singular: a variable follows from the others, or doesn't vary. Give it more samples or a "
            f"shrinkage (now {shrinkage})"
        )
