import jax.numpy as jnp
import pytest
from cases import FOLDER, expected

import jaxclip


@pytest.fixture(scope="module")
def model():
    return jaxclip.load(FOLDER / "first_eos").model


@pytest.fixture(scope="module")
def inputs():
    reference = expected("first_eos")
    return jnp.asarray(reference["token_ids"]), jnp.asarray(reference["pixels"])
