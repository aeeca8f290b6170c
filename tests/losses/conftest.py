import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest

CHECKS = Path(__file__).with_name("sharded_checks.py")
ROOT = CHECKS.parents[2]


@pytest.fixture
def plain_calls():
    """Calls as a user's are, without the suite's own check of the annotations: an error is the function's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def start(devices, *arguments):
    environment = os.environ | {
        # Without the compiler's optimisations the same figures come in two thirds of the time.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(CHECKS), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def figures(process):
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="package")
def processes():
    """All of them at once: the two that talk to each other, and the one with eight devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [start(2, "process", number, port) for number in range(2)] + [start(8, "devices")]
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="package")
def two_processes(processes):
    return [figures(process) for process in processes[:2]]


@pytest.fixture(scope="package")
def on_devices(processes):
    return figures(processes[2])
