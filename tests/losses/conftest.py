import jaxtyping
import pytest


@pytest.fixture
def plain_calls():
    """Calls as a user's are, without the suite's own check of the annotations: an error is the function's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
