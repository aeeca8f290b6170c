"""Where arrays lie, and that training over many devices and over two processes is training on one. The latter run as
processes of their own (sharded_training.py)."""

import socket
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from jax.sharding import PartitionSpec as P
from training_cases import IMAGES_ALONE, model

from jaxclip.training import batch_sharding, make_mesh, state_shardings
from jaxclip.training.sharding import parameter_spec
from jaxclip.training.state import named_parameters

SCRIPT = Path(__file__).with_name("sharded_training.py")
# Of the parameters' norm after four steps of AdamW, whose sums run over devices in another order: the worst was 9.5e-7.
TOLERANCE = 3e-6


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Of the eight devices, and of the two processes: all at once."""
    folders = [tmp_path_factory.mktemp(name) / "checkpoints" for name in ("devices", "processes")]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [processes.start(SCRIPT, 8, "devices", folders[0])]
    started += [processes.start(SCRIPT, 2, "process", folders[1], number, port) for number in range(2)]
    try:
        found = [processes.figures(process) for process in started]
        yield found[0], found[1:]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_every_mesh_trains_as_one_device(figures):
    devices, _ = figures
    assert devices["moved"] > 0.01
    assert len(devices["errors"]) == 4
    assert {name: error for name, error in devices["errors"].items() if not error < TOLERANCE} == {}
    wanted = devices["losses"]["one device"]
    assert len(wanted) == 4
    assert wanted[0] > wanted[2]
    for name, losses in devices["losses"].items():
        np.testing.assert_allclose(losses, wanted, rtol=1e-5, err_msg=name)


def test_fsdp_divides_the_memory(figures):
    of_device = figures[0]["bytes"]
    for name, parts in (("data", 1), ("fsdp", 8), ("data and fsdp", 4)):
        for mine, whole in zip(of_device[name], of_device["whole"], strict=True):
            # Arrays of fewer than 32 values, or that don't divide, are whole on each.
            assert whole / parts <= mine <= whole / parts + 0.1 * whole * (parts > 1)


def test_a_checkpoint_moves_to_another_mesh(figures):
    devices, _ = figures
    assert devices["restored"] == 0
    assert devices["restored bytes"] == devices["bytes"]["data and fsdp"][0]


def test_two_processes_have_the_loss_curve_of_one_device(figures):
    devices, processes = figures
    for number, seen in enumerate(processes):
        assert (seen["processes"], seen["devices"]) == (2, 4)
        np.testing.assert_allclose(seen["losses"], devices["losses"]["one device"], rtol=1e-5)
        assert seen["restored"] == [True, "x" * (number + 1), {"why": "test"}]
        assert seen["bytes"] < 0.6 * devices["bytes"]["whole"][0]
        # One of them was told to end, both did at the same step, and went on together.
        assert seen["stopped"] == [2, 4]
        assert seen["evaluations"] == [{"step": 4.0}]


@pytest.mark.parametrize(
    ("shape", "size", "spec"),
    [
        ((512, 2048), 8, P(None, "fsdp")),
        ((2048, 512), 8, P("fsdp")),
        ((512, 512), 8, P("fsdp")),
        ((49408, 512), 7, P()),
        # The longest that divides, not the longest.
        ((2050, 512), 4, P(None, "fsdp")),
        ((16, 16, 3, 768), 8, P(None, None, None, "fsdp")),
        ((2**14 - 8,), 8, P()),
        ((2**14,), 8, P("fsdp")),
        ((2**14,), 1, P()),
        ((), 8, P()),
    ],
)
def test_the_largest_axis_that_divides_is_spread(shape, size, spec):
    assert parameter_spec(shape, size) == spec


def test_any_mesh():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1}
    assert batch_sharding(mesh).spec == P(("data", "fsdp"))
    other = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    assert batch_sharding(other).spec == P(("batch",))
    shardings = state_shardings(named_parameters(model(IMAGES_ALONE)), other)
    assert {sharding.spec for sharding in shardings.values()} == {P()}
    for sizes in ({"data": 3, "fsdp": 5}, {"data": 0}, {"data": 0, "fsdp": -1}, {"data": -1, "fsdp": 2}):
        with pytest.raises(ValueError, match="doesn't come to 1 devices"):
            make_mesh(**sizes, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="only one"):
        make_mesh(-1, -1)
