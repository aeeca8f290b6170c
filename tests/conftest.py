import signal

import jaxtyping
import pytest

# A job in the background of a script ignores Ctrl-C, which tests press; so would the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before jaxclip is imported: every annotated shape and dtype is checked at every call of every test. (jaxclip.config
# has no arrays, and its own checks of bad values are under test.)
CHECKED = "nn checkpoints processing batching encoder streaming clip tasks cli losses training plotting compare"
jaxtyping.install_import_hook([f"jaxclip.{name}" for name in CHECKED.split()], "beartype.beartype")


@pytest.fixture(scope="session")
def transformers():
    """The live reference, of the parity suite."""
    pytest.importorskip("torch")
    import torchvision_on_cpu  # noqa: F401

    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
