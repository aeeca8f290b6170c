import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.config import HIDDEN_ACTS, TextConfig
from jaxclip.nn.activations import ACTIVATIONS

X = np.array([-6.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, 6.0])


def exact_gelu(x):
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("gelu", exact_gelu),
        ("gelu_new", tanh_gelu),
        ("gelu_pytorch_tanh", tanh_gelu),
        ("relu", lambda x: max(x, 0.0)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_formulas(name, formula):
    # float32's rounding at |x| = 6; the three GELUs differ from each other by 1e-4 and more.
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X)), [formula(x) for x in X], atol=1e-6)


def test_every_activation_that_a_config_may_name_is_there():
    assert set(ACTIVATIONS) == set(HIDDEN_ACTS)
    with pytest.raises(ValueError, match=r"unknown activation: TextConfig\.hidden_act must be one of .*, got 'gelo'"):
        TextConfig(hidden_act="gelo")
