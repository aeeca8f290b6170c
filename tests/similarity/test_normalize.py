import jax
import jax.numpy as jnp
import numpy as np
import pytest
from similarity_cases import EPS, jit

from jaxclip import similarity


def test_normalize():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [3e30, 4e30], [3e-30, 4e-30], [1e-40, 0.0]])
    unit = [0.6, 0.8]
    np.testing.assert_allclose(similarity.normalize(x), [unit, [0, 0], unit, unit, [0, 0]], atol=EPS)
    assert similarity.normalize(x[0]).shape == (2,)
    assert similarity.normalize(jnp.ones((2, 3, 4))).shape == (2, 3, 4)
    assert similarity.normalize(x[:0]).shape == (0, 2)
    gradient = np.asarray(jit(jax.jacrev(similarity.normalize))(x))[np.arange(5), :, np.arange(5)]
    tangent = np.array([[0.64, -0.48], [-0.48, 0.36]])
    for row, length in ((0, 5), (2, 5e30), (3, 5e-30)):
        np.testing.assert_allclose(gradient[row] * length, tangent, atol=4 * EPS)
    assert not gradient[[1, 4]].any()
    with pytest.raises(ValueError, match="x must have an axis"):
        similarity.normalize(jnp.array(1.0))
    with pytest.raises(TypeError, match="x must be a floating-point array, got int32"):
        similarity.normalize(jnp.arange(3))
