"""A learned metric: for when none of the fixed ones is right."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.nn.activations import ACTIVATIONS
from jaxclip.nn.initialization import Abstract
from jaxclip.nn.precision import computation, parameter_dtype
from jaxclip.nn.transformer import Linear


class LearnedMetric(nnx.Module):
    """A Siamese network: both sides of a comparison go through the same projection head h and bilinear form M.

    Similarity is h(a)ᵀ M h(b) and distance √((h(a) - h(b))ᵀ M (h(a) - h(b))), a Mahalanobis distance after h. M = F Fᵀ
    is positive semidefinite whatever the parameters are, so that no distance is ever imaginary. Calling the module
    gives z = Fᵀ h(x), of which these are the dot product and the Euclidean distance: any measure of
    `jaxclip.similarity`, any loss of `jaxclip.losses` and `top_k` take the z's, and training through them trains the
    metric.

    `out_features` is h's width and z's. With `hidden_features` h has one hidden layer (SimCLR, arXiv 2002.05709,
    section 4.2), without it is linear. F begins as the identity, where the measure is that of h alone. `dtype` is the
    computation's (float32, tensorfloat32, bfloat16, float16), `param_dtype` the parameters'; z is at least float32.

    Parameters: `hidden.{weight,bias}` (with `hidden_features`), `out.{weight,bias}`, `factor` (out, out).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden_features: int | None = None,
        activation: str = "gelu",
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        self.dtype, self.precision = computation(dtype)
        param_dtype = parameter_dtype(param_dtype)

        def layer(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, std=inputs**-0.5, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.hidden = nnx.data(None) if hidden_features is None else layer(in_features, hidden_features)
        self.activation = ACTIVATIONS[activation]
        self.out = layer(hidden_features or in_features, out_features)
        shape = (out_features, out_features)
        self.factor = nnx.Param(
            jax.ShapeDtypeStruct(shape, param_dtype)
            if isinstance(rngs, Abstract)
            else jnp.eye(*shape, dtype=param_dtype)
        )

    def __call__(self, x: Float[Array, "batch in_features"]) -> Float[Array, "batch out_features"]:
        """z = Fᵀ h(x), not normalised. Raises ValueError for another width than `in_features`."""
        width = (self.out if self.hidden is None else self.hidden).weight.shape[1]
        if x.shape[-1] != width:
            raise ValueError(f"x must be (batch, {width}), got {x.shape}")
        if self.hidden is not None:
            x = self.activation(self.hidden(x))
        z = jnp.matmul(self.out(x), self.factor[...].astype(self.dtype), precision=self.precision)
        return z.astype(jnp.promote_types(z.dtype, jnp.float32))

    def bilinear_form(self) -> Float[Array, "out_features out_features"]:
        """M = F Fᵀ, symmetric and positive semidefinite."""
        factor = self.factor[...].astype(jnp.promote_types(self.factor[...].dtype, jnp.float32))
        return jnp.matmul(factor, factor.T, precision="highest")
