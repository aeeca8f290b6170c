"""From a loss a row to what a loss function gives back."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxclip.losses.arguments import check_finite

Reduction = Literal["mean", "sum", "none"]


def check_reduction(reduction: str) -> None:
    """Raises ValueError for one that isn't there."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")


def reduce(
    losses: Float[Array, " rows"],
    counted: Bool[Array, " rows"] | None,
    reduction: Reduction,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""] | Float[Array, " rows"]:
    """The mean or the sum over the rows that count, of all devices along `axis_name`; or each, 0 where it doesn't.

    The mean of none is 0. Raises ValueError for another `reduction`.
    """
    check_reduction(reduction)
    # Twice `where`: a row that doesn't count may be -inf + inf, whose gradient is NaN even where it isn't selected.
    if counted is not None:
        losses = jnp.where(counted, losses, 0)
    check_finite("the loss", losses)
    if reduction == "none":
        return losses
    total = losses.sum()
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    if reduction == "sum":
        return total
    count = jnp.asarray(losses.size, losses.dtype) if counted is None else counted.sum(dtype=losses.dtype)
    if axis_name is not None:
        count = jax.lax.psum(count, axis_name)
    return total / jnp.maximum(count, 1)
