"""The loop: an interruption of any kind changes nothing, what is written is whole, and what goes wrong is said."""

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from training_cases import FAST, assert_same_bits, model, pairs

from jaxclip.training import (
    Checkpoints,
    CLIPObjective,
    DivergenceError,
    OptimizerConfig,
    TrainState,
    batch_sharding,
    compile_step,
    fit,
    make_mesh,
    make_optimizer,
    place,
    read_log,
)
from jaxclip.training import loop as loop_module


@pytest.fixture(scope="module", autouse=True)
def shapes_in_the_place_of_arrays():
    """Without the suite's check of annotations: a state to be restored is one of shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def without_curves(request, monkeypatch):
    """But where they are what is tested: they take longer than all else."""
    if "curves" not in request.node.name:
        monkeypatch.setattr(loop_module, "training_curves", lambda records: None)
        monkeypatch.setattr(loop_module, "write_figure", lambda path, figure: None)


OBJECTIVE = CLIPObjective()
OPTIMIZER, SCHEDULE = make_optimizer(OptimizerConfig(steps=150, warmup_steps=2, learning_rate=3e-3))
STEPS = 12


def fresh(seed=0):
    return TrainState.create(model(), objective=OBJECTIVE, optimizer=OPTIMIZER, key=jax.random.key(seed), ema=True)


@pytest.fixture(scope="module")
def step():
    return compile_step(
        fresh(), objective=OBJECTIVE, optimizer=OPTIMIZER, schedule=SCHEDULE, ema_decay=0.9, compiler_options=FAST
    )


class Numbered:
    """Batch n is made of n. As `Batches` do, it says how many samples it has skipped: one in each batch."""

    def __init__(self, end=10**6, at=None, act=None, damaged=()):
        self.number, self.end, self.at, self.act, self.damaged = 0, end, at, act, damaged

    @property
    def skipped(self):
        return self.number

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.end:
            raise StopIteration
        self.number += 1
        if self.number == self.at:
            self.act()
        batch = {name: np.array(rows) for name, rows in pairs(seed=self.number).items()}
        if self.number in self.damaged:
            batch["pixels"][0] = np.nan
        return batch

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def evaluate(state):
    return {"recall@1": int(state.step) / 100, "never": float("nan")}


SETTINGS = {"steps": STEPS, "save_every": 5, "log_every": 1, "evaluate": evaluate, "evaluate_every": 4}


def nothing(state, batch):
    raise AssertionError("there is no step to take")


def lines(folder):
    """The log without what a clock says."""
    return [
        {name: value for name, value in record.items() if name not in ("seconds", "images_per_second")}
        for record in read_log(folder / "log.jsonl")
    ]


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def uninterrupted(step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, fit(fresh(), Numbered(), step, folder=folder, **SETTINGS)


def test_the_loop_does_what_its_steps_do(step, uninterrupted):
    folder, state = uninterrupted
    by_hand, batches = fresh(), Numbered()
    for number in range(1, STEPS + 1):
        by_hand, metrics = step(by_hand, next(batches))
        logged = next(line for line in lines(folder) if line["step"] == number and "loss" in line)
        assert logged == {
            "step": number,
            "skipped": number,
            **{name: float(metrics[name]) for name in ("loss", "grad_norm", "logit_scale", "learning_rate")},
        }
    assert_same_bits(state, by_hand)
    assert state.step == STEPS


def test_what_is_in_the_folder(uninterrupted):
    folder, _ = uninterrupted
    assert steps_in(folder) == [5, 10, 12]
    evaluations = [(line["step"], line["evaluation"]) for line in lines(folder) if "evaluation" in line]
    assert evaluations == [(number, {"recall@1": number / 100, "never": None}) for number in (4, 8, 12)]
    text = (folder / "log.jsonl").read_text()
    assert "NaN" not in text
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["seconds"] for record in records] == sorted(record["seconds"] for record in records)
    speeds = [record["images_per_second"] for record in records if "loss" in record]
    # The first step is compiled, and tells of no speed.
    assert speeds[0] is None
    assert all(speed > 0 for speed in speeds[1:])


def stop():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    """In the place of a kill: nothing in the loop knows of it."""


def kill():
    raise Killed


def fail():
    raise OSError("the disk with the data is gone")


@pytest.mark.parametrize(
    ("act", "where"),
    [
        *((stop, "batch"), (terminate, "step"), (stop, "evaluation"), (kill, "step"), (kill, "evaluation")),
        *((fail, "batch"), (fail, "evaluation")),
    ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(step, uninterrupted, tmp_path, act, where):
    """At batch 8, which is no batch that is saved otherwise, but evaluated."""

    def interrupted_step(state, batch):
        if where == "step" and state.step == 7:
            act()
        return step(state, batch)

    def interrupted_evaluate(state):
        if where == "evaluation" and state.step == 8:
            act()
        return evaluate(state)

    batches = Numbered(at=9 if where == "batch" else None, act=act)
    settings = SETTINGS | {"evaluate": interrupted_evaluate}
    with pytest.raises((KeyboardInterrupt, Killed, OSError)) as stopped:
        fit(fresh(), batches, interrupted_step, folder=tmp_path, **settings)
    if act is kill:
        assert steps_in(tmp_path) == [5]
        assert lines(tmp_path)[-1]["step"] > 5
        # The line that was being written.
        with open(tmp_path / "log.jsonl", "a") as log:
            log.write('{"step": 9, "lo')
    else:
        assert (type(stopped.value) is OSError) is (act is fail)
        assert steps_in(tmp_path) == [5, 8]
        assert stopped.value.__notes__ == [f"step 8 of {STEPS} is saved in {tmp_path}: run it again to go on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # Another key, and other weights: both come from the checkpoint.
    state = fit(fresh(seed=1), Numbered(), step, folder=tmp_path, **SETTINGS)
    folder, wanted = uninterrupted
    assert_same_bits(state, wanted)
    assert lines(tmp_path) == lines(folder)
    assert len(lines(tmp_path)) == STEPS + 3


def test_a_second_ctrl_c_stops_at_once(step, tmp_path):
    def impatient(state, batch):
        stop()
        assert True  # The first lets it go on;
        stop()
        raise AssertionError("the second doesn't")

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(fresh(), Numbered(), impatient, folder=tmp_path, **SETTINGS)
    assert not hasattr(stopped.value, "__notes__")
    assert steps_in(tmp_path) == []


def test_without_a_step_there_is_nothing_to_save(tmp_path):
    with pytest.raises(OSError, match="the disk with the data is gone") as stopped:
        fit(fresh(), Numbered(at=1, act=fail), nothing, folder=tmp_path, **SETTINGS)
    assert not hasattr(stopped.value, "__notes__")
    assert steps_in(tmp_path) == []


def test_an_ignored_signal_stays_so(step, tmp_path):
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        state = fit(fresh(), Numbered(at=2, act=stop), step, steps=3, folder=tmp_path)
    finally:
        signal.signal(signal.SIGINT, former)
    assert state.step == 3


def test_a_run_that_is_done_does_nothing_more(step, uninterrupted, tmp_path):
    folder, wanted = uninterrupted
    shutil.copytree(folder, tmp_path / "run")
    state = fit(fresh(seed=1), Numbered(at=1, act=kill), step, folder=tmp_path / "run", **SETTINGS)
    assert_same_bits(state, wanted)
    assert lines(tmp_path / "run") == lines(folder)
    with pytest.raises(ValueError, match="has done 12 steps already, more than 11"):
        fit(fresh(), Numbered(), step, folder=tmp_path / "run", **SETTINGS | {"steps": 11})
    # A longer one goes on.
    assert fit(fresh(), Numbered(), step, folder=tmp_path / "run", **SETTINGS | {"steps": 14}).step == 14


def test_it_ends_where_the_batches_do(step, tmp_path):
    state = fit(fresh(), Numbered(end=6), step, folder=tmp_path, **SETTINGS)
    assert state.step == 6
    assert steps_in(tmp_path) == [5, 6]
    assert [line["step"] for line in lines(tmp_path) if "evaluation" in line] == [4, 6]


def test_the_loss_falls_to_near_zero_on_one_batch(step, tmp_path):
    class Same(Numbered):
        def __next__(self):
            self.number = 0
            return super().__next__()

    fit(fresh(), Same(), step, steps=150, log_every=50, folder=tmp_path)
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    assert losses[0] < np.log(8) / 10
    # It was 3.4e-5.
    assert losses[-1] < 2e-4


@pytest.mark.parametrize("damaged", [(7,), (7, 8)])
def test_divergence_stops_with_the_last_good_state(step, tmp_path, damaged):
    with pytest.raises(DivergenceError, match=r"step 7: the loss is nan .* lower learning rate") as stopped:
        fit(fresh(), Numbered(damaged=damaged), step, folder=tmp_path, **SETTINGS)
    assert stopped.value.step == 7
    last = read_log(tmp_path / "log.jsonl")[-1]
    assert (last["step"], last["loss"], last["diverged"]) == (7, None, True)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        saved, data, _ = checkpoints.restore(fresh())
        steps = checkpoints.steps
    # Batch 8 was on its way already, and counts where it is good.
    good = [number for number in range(1, 9) if number not in damaged]
    by_hand, batches = fresh(), Numbered()
    for number in range(1, 9):
        batch = next(batches)
        if number in good:
            by_hand, _ = step(by_hand, batch)
    assert_same_bits(saved, by_hand)
    assert steps == [5, len(good)]
    assert data == {"number": 8}
    # Again, it goes on behind the bad batch.
    state = fit(fresh(), Numbered(damaged=damaged), step, folder=tmp_path, **SETTINGS)
    assert state.step == STEPS - len(damaged)
    assert all(jnp.isfinite(value).all() for value in state.parameters.values())


def test_a_full_disk_leaves_the_earlier_checkpoints(step, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)

    def fill():
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))

    with pytest.raises(OSError, match=r"no room for a checkpoint, .* 1,000 are free: '.*checkpoints'"):
        fit(fresh(), Numbered(at=8, act=fill), step, folder=tmp_path, **SETTINGS)
    monkeypatch.undo()
    assert steps_in(tmp_path) == [5]
    assert fit(fresh(), Numbered(), step, folder=tmp_path, **SETTINGS).step == STEPS


def test_what_the_writing_of_a_checkpoint_dies_of_is_said_once(step, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 8 bytes: No space left on device\nand more")

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        monkeypatch.setattr(type(checkpoints._manager), "save", fail)
    with pytest.raises(OSError, match=r"could not be written, the earlier are whole: .* on device$") as stopped:
        fit(fresh(), Numbered(), step, folder=tmp_path, **SETTINGS)
    assert not hasattr(stopped.value, "__notes__")


def test_without_matplotlib_there_is_a_note_in_the_log(step, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for steps in (2, 4):
        fit(fresh(), Numbered(), step, folder=tmp_path, steps=steps, log_every=2)
    notes = [record for record in read_log(tmp_path / "log.jsonl") if "note" in record]
    assert len(notes) == 1
    assert notes[0]["note"].startswith("no curves.png: pictures are drawn by matplotlib, which is not installed")
    assert not (tmp_path / "curves.png").exists()


def test_the_curves_are_drawn(step, tmp_path):
    fit(fresh(), Numbered(), step, folder=tmp_path, **SETTINGS | {"steps": 4})
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_take_a_small_part_of_the_time(step, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(loop_module, "training_curves", lambda records: time.sleep(0.2))
    monkeypatch.setattr(loop_module, "write_figure", lambda path, figure: drawn.append(path))
    fit(fresh(), Numbered(), step, folder=tmp_path, **SETTINGS | {"save_every": 1})
    # The first, and the last: the ones between would have had to wait for 50 times what the first took.
    assert len(drawn) == 2


def test_batches_are_spread_over_the_mesh(tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    seen = []

    def watched(state, batch):
        seen.append(batch["pixels"].sharding)
        return state, {"loss": batch["pixels"].sum(), "grad_norm": jnp.ones(()), "finite": jnp.array(True)}

    fit(place(fresh(), mesh), Numbered(), watched, mesh=mesh, steps=2, log_every=1, folder=tmp_path)
    assert seen == [batch_sharding(mesh)] * 2
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    np.testing.assert_allclose(losses, [pairs(seed=number)["pixels"].sum() for number in (1, 2)], rtol=1e-5)


def test_checkpoints_of_another_loop_are_refused(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(fresh(), data={"number": 3})
    with pytest.raises(ValueError, match="are none of `fit`"):
        fit(fresh(), Numbered(), nothing, steps=3, folder=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_every": 0}, "save_every must be at least 1, got 0"),
        ({"log_every": -1}, "log_every must be at least 1"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"evaluate": None, "evaluate_every": 3}, "evaluate_every is given, and no evaluate"),
    ],
)
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(fresh(), Numbered(), nothing, folder=tmp_path / "run", **SETTINGS | settings)
    assert not (tmp_path / "run").exists()


def test_a_log_that_is_none(tmp_path):
    log = Path(tmp_path / "log.jsonl")
    log.write_text('{"step": 1, "loss": 2.0}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is none of a training log"):
        read_log(log)
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2')
    assert read_log(log) == [{"step": 1, "loss": 2.0}]
