import socket
from pathlib import Path

import jaxtyping
import pytest
from processes import figures, start

CHECKS = Path(__file__).with_name("sharded_checks.py")


@pytest.fixture
def plain_calls():
    """Calls as a user's are, without the suite's own check of the annotations: an error is the function's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="package")
def processes():
    """All of them at once: the two that talk to each other, and the one with eight devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [start(CHECKS, 2, "process", number, port) for number in range(2)] + [start(CHECKS, 8, "devices")]
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
