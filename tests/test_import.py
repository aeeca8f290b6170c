"""What importing costs, what it leaves alone, and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxclip

PACKAGE = Path(jaxclip.__file__).parent
# A lower row never imports a higher one.
ROWS = {
    "bundled": 0,
    "compilation_cache": 0,
    "atomic": 0,
    "config": 0,
    "reference": 0.5,
    "nn": 1,
    "plotting": 1,
    "similarity": 1,
    "losses": 1.5,
    "checkpoints": 2,
    "processing": 2,
    "batching": 3,
    "encoder": 3.2,
    "streaming": 3.4,
    "clip": 4,
    "tasks": 5,
    "compare": 5,
    "training": 5.5,
    "cli": 6,
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_jaxclip_imports_no_jax_until_it_is_used():
    heavy = "{m for m in ('jax', 'flax', 'PIL', 'tokenizers', 'huggingface_hub', 'torch') if m in sys.modules}"
    assert run(f"import sys, jaxclip; print({heavy})") == "set()\n"
    assert run(f"import sys, jaxclip; jaxclip.CLIPConfig; print({heavy})") == "set()\n"


def test_importing_all_of_it_costs_little_more_than_jax_and_flax():
    measured = {"import jax, flax.nnx": [], "import jaxclip; jaxclip.load": []}
    for _ in range(3):
        for code, seconds in measured.items():
            seconds.append(float(run(f"{code}; import time; print(time.process_time())")))
    alone, ours = (min(seconds) for seconds in measured.values())
    assert ours <= 1.3 * alone


def test_no_global_state_is_changed():
    code = """
import jax, logging, os, warnings
def state():
    root = logging.root
    return dict(jax.config.values), dict(os.environ), list(warnings.filters), root.level, list(root.handlers)
before = state()
import jaxclip
[getattr(jaxclip, name) for name in jaxclip.__all__]
after = state()
print(all(a == b for a, b in zip(before, after)))
"""
    assert run(code) == "True\n"


def test_every_export_is_there_and_listed():
    assert set(jaxclip.__all__) == set(jaxclip._EXPORTS)
    assert set(jaxclip.__all__) <= set(dir(jaxclip))
    assert all(getattr(jaxclip, name) is not None for name in jaxclip.__all__)
    with pytest.raises(AttributeError, match="module 'jaxclip' has no attribute 'lode'"):
        jaxclip.lode  # noqa: B018


def imports(path: Path) -> set[str]:
    """The parts of jaxclip that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxclip":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
            assert not any(alias.name.startswith("_") and not alias.name.startswith("__") for alias in node.names), path
    return found & ROWS.keys()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_lower_row_never_imports_a_higher_one(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # Exports everything, lazily.
    for other in imports(path) - {own}:
        assert ROWS[other] < ROWS[own], f"{path} imports {other}"


def test_processing_and_checkpoint_readers_need_no_jax():
    modules = "jaxclip.processing, jaxclip.checkpoints.tensors, jaxclip.checkpoints.files"
    assert run(f"import sys, {modules}; print('jax' in sys.modules)") == "False\n"
