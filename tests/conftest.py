import atexit
import os
import shutil
import signal
import tempfile

import jaxtyping
import pytest

# A job in the background of a script ignores Ctrl-C, which tests press; so would the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What one test compiled, the next needn't, nor the other workers and the processes that tests start: they inherit the
# folder. With a bound JAX locks it, and looks at all that is in it whenever it keeps something: so nothing small is
# kept. The user's own is left alone.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="jaxclip-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(1 << 32),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.25",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

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
