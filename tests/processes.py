"""Scripts of the tests that run in processes of their own, which a number of devices or of processes needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def start(script: Path, devices: int, *arguments) -> subprocess.Popen:
    """Runs the script with so many CPU devices, and with warnings as errors."""
    environment = os.environ | {
        # Without the compiler's optimisations the same figures come in two thirds of the time.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def figures(process: subprocess.Popen):
    """What the script printed on its last line, as JSON."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])
