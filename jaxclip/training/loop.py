"""The training loop: steps, a log, a picture of the curves, checkpoints, and going on where it was."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from jaxclip.plotting import require_matplotlib, training_curves, write_figure
from jaxclip.training.checkpointing import Checkpoints
from jaxclip.training.interruption import Interruption
from jaxclip.training.log import TrainingLog
from jaxclip.training.sharding import global_batch
from jaxclip.training.state import TrainState

# What drawing the curves took, times this, passes before they are drawn again.
_DRAWING = 50


@runtime_checkable
class ResumableBatches(Protocol):
    """What `fit` draws from: `Batches`, or an iterator of one's own.

    Each batch is a dict of NumPy arrays, its own and not changed afterwards. `get_state` says in bytes, or in what JSON
    can hold, where it is, and after `set_state` the batch that came next then comes next.
    """

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class DivergenceError(RuntimeError):
    """A loss or a gradient that is not finite. The last good state was saved; `step` is the batch that had it."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def fit(
    state: TrainState,
    batches: ResumableBatches,
    step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
    *,
    steps: int,
    folder: str | os.PathLike,
    mesh: Mesh | None = None,
    save_every: int = 1000,
    log_every: int = 10,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    keep: int = 3,
) -> TrainState:
    """Trains for `steps` batches in all, or until there are no more, and returns the last state. Where `folder` has
    checkpoints of this run it goes on with the newest: to the bit as if it had never stopped.

    - `state`: to begin with; where there are checkpoints, one of the same shapes. It is used up, as by `step`.
    - `batches`: where they are is saved with the state; of this process its own rows
    - `step`: what `compile_step` returns
    - `mesh`: what the state was placed on; batches are then spread over it by `global_batch`
    - `save_every`, `log_every`, `evaluate_every`: in steps. It also saves, evaluates and draws at the end.
    - `evaluate`: numbers of a state on held-out data, by name; all processes call it. It leaves the state alone.
    - `keep`: so many of the newest checkpoints stay

    In `folder`:

    - `checkpoints`: see `Checkpoints`
    - `log.jsonl`: lines with the `step` (batches so far), `loss`, what else `train_step` and the objective say,
      `images_per_second` (since the line before, without evaluations and saves; null where none are measured),
      `seconds` since the run began, `skipped` (samples of process 0, where the batches count them); or with an
      `evaluation`. What was written after the checkpoint that is gone on with is cut off.
    - `curves.png`: drawn of the log, where matplotlib is installed; else the log has a note

    The device doesn't wait for the host: the next batch is made while a step runs, and what a step says is read when
    the next one runs already. So a loss or gradient that isn't finite, which leaves the state as it was, is seen one
    batch later: the state is then saved, without the bad batch but with the one behind it, and `DivergenceError` is
    raised. Run again, it goes on from there.

    Ctrl-C and SIGTERM let the step end, save, and raise KeyboardInterrupt; a second one stops at once. Several
    processes stop together, at the next line of the log. What `batches` or `evaluate` raise is raised when the state is
    saved (in a run of several processes at once).

    Raises ValueError for checkpoints of another model, objective or optimizer, of other batches or of more steps, and
    OSError, naming
    the file or the step, for what can't be written (a full disk): the earlier checkpoints are whole.
    """
    for name, every in (
        ("save_every", save_every),
        ("log_every", log_every),
        ("evaluate_every", evaluate_every),
        ("keep", keep),
    ):
        if every is not None and every < 1:
            raise ValueError(f"{name} must be at least 1, got {every}")
    if evaluate_every is not None and evaluate is None:
        raise ValueError("evaluate_every is given, and no evaluate")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep=keep)
    with Interruption() as interruption:
        loop = _Loop(
            batches=batches,
            step=step,
            steps=steps,
            folder=folder,
            mesh=mesh,
            save_every=save_every,
            log_every=log_every,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            checkpoints=checkpoints,
            interruption=interruption,
        )
        try:
            state = loop.run(state)
        except KeyboardInterrupt:
            raise  # All is saved, or it is the second one, which doesn't wait for what is being written.
        except BaseException as error:
            try:
                checkpoints.close()
            except OSError as unsaved:
                if str(unsaved) != str(error):
                    error.add_note(str(unsaved))
            raise
        checkpoints.close()
        return state


@dataclass
class _Report:
    """What a step says, still on the device, and what is known of it on the host."""

    step: int
    metrics: Mapping[str, Any]
    mark: tuple[float, int]
    skipped: int | None


@dataclass(kw_only=True)
class _Loop:
    batches: ResumableBatches
    step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]]
    steps: int
    folder: Path
    mesh: Mesh | None
    save_every: int
    log_every: int
    evaluate: Callable[[TrainState], Mapping[str, float]] | None
    evaluate_every: int | None
    checkpoints: Checkpoints
    interruption: Interruption

    # Batches so far, and where the iterator was behind them: by now it may be one ahead.
    done: int = 0
    place: Any = None
    skipped: int | None = None
    # What ends the run once the state is saved.
    failure: Exception | None = None

    def run(self, state: TrainState) -> TrainState:
        state, seconds = self._resumed(state)
        first = jax.process_index() == 0
        self.log = TrainingLog(self.folder / "log.jsonl", upto=self.done, writes=first)
        # What the first process has in its log: all must do the same.
        done = first and any(record["step"] == self.done and "evaluation" in record for record in self.log.records())
        self.evaluated_at = self.done if multihost_utils.broadcast_one_to_all(np.asarray(done)) else None
        self.curves = _Curves(self.folder / "curves.png", self.log, self.done) if first else None
        self.clock = _Clock(seconds)
        disable = None if first else True  # None: where the error stream is no terminal.
        with tqdm(desc="training", unit="step", total=self.steps, initial=self.done, disable=disable) as self.bar:
            return self._train(state)

    def _train(self, state: TrainState) -> TrainState:
        # The run may have stopped between a step and its evaluation.
        stopping = not self._evaluated(state, self._is_time(self.evaluate_every))
        batch = None if stopping else self._next_batch()
        report = None
        while batch is not None and not stopping:
            state, metrics = self.step(state, batch)
            mark = self.clock.mark(len(next(iter(batch.values()))))
            self.done += 1
            self._mark_place()
            batch = self._next_batch()
            # Only now, when the device has its next step.
            if report:
                self._tell(report, state)
            report = _Report(self.done, metrics, mark, self.skipped)
            stopping = self._stopping()
            saving, evaluating = self._is_time(self.save_every), self._is_time(self.evaluate_every)
            if not stopping and (saving or evaluating):
                self._tell(report, state)
                report = None
                with self.clock.pause():
                    if saving:
                        self._save(state)
                    stopping = not self._evaluated(state, evaluating)
                    self._draw()
        if report:
            self._tell(report, state)
        stopping = stopping or self._stopping()
        self._save(state)
        if not stopping:
            stopping = not self._evaluated(state, self.evaluate is not None)
        self._draw(always=True)
        if stopping:
            self.checkpoints.close()
            reason = self.failure or KeyboardInterrupt()
            if self.done:
                reason.add_note(f"step {self.done} of {self.steps} is saved in {self.folder}: run it again to go on")
            raise reason
        return state

    def _resumed(self, state: TrainState) -> tuple[TrainState, float]:
        """The newest checkpoint's state, if there is one, and the seconds that it took."""
        if self.checkpoints.latest_step is None:
            self._mark_place()
            return state, 0.0
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # There may be no room for both.
        state, data, notes = self.checkpoints.restore(like)
        if "batches" not in notes:
            raise ValueError(f"the checkpoints in {self.folder} are none of `fit`; train in another folder")
        self.batches.set_state(data)
        self.done = notes["batches"]
        if self.done > self.steps:
            raise ValueError(f"the run in {self.folder} has done {self.done} steps already, more than {self.steps}")
        self._mark_place()
        return state, notes["seconds"]

    def _is_time(self, every: int | None) -> bool:
        return every is not None and self.done > 0 and self.done % every == 0

    def _stopping(self) -> bool:
        if jax.process_count() == 1:
            return self.interruption.requested or self.failure is not None
        # All at the same step, which costs a round between the hosts.
        if self.done % self.log_every:
            return False
        return bool(multihost_utils.process_allgather(np.asarray(self.interruption.requested)).any())

    def _attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns; None where Ctrl-C or an error of its own ended it, which leaves the state as it
        was, to be saved."""
        if jax.process_count() > 1:
            return function(*arguments)  # What all do together, one can't give up.
        try:
            return self.interruption.attempt(function, *arguments)
        except Exception as error:
            self.failure = error
            return None

    def _mark_place(self) -> None:
        self.place, self.skipped = self.batches.get_state(), getattr(self.batches, "skipped", None)

    def _next_batch(self) -> Mapping[str, Any] | None:
        """On its way to the device; None at the end, and where the waiting was cut short."""
        if self.done >= self.steps:
            return None
        rows = self._attempt(next, self.batches, None)
        if rows is None:
            return None
        return jax.device_put(rows) if self.mesh is None else global_batch(rows, self.mesh)

    def _tell(self, report: _Report, state: TrainState) -> None:
        """Waits for a step, and says what there is to say of it. Raises DivergenceError."""
        finite = bool(report.metrics["finite"])
        self.bar.update()
        if finite and report.step % self.log_every:
            return
        fetched = jax.device_get(dict(report.metrics))
        metrics = {name: value.item() for name, value in fetched.items() if name != "finite"}
        speed = self.clock.images_per_second(report.mark)
        line = {"step": report.step, "loss": metrics["loss"], **metrics}
        line |= {"images_per_second": speed, "seconds": self.clock.seconds()}
        if report.skipped is not None:
            line["skipped"] = report.skipped
        self.log.write(line if finite else {**line, "diverged": True})
        shown = {"loss": metrics["loss"], "logit scale": metrics.get("logit_scale"), "images/s": speed}
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items() if value is not None})
        if not finite:
            self._save(state)
            self.checkpoints.wait()
            raise DivergenceError(
                f"step {report.step}: the loss is {metrics['loss']:g} and the gradient's norm "
                f"{metrics['grad_norm']:g}. The last good weights are saved in {self.folder}. Run again, training goes "
                "on from them, behind this batch. If it diverges again, begin anew with a lower learning rate, a "
                "longer warm-up, clipped gradients or float32; if the first steps do, look for damaged data",
                report.step,
            )

    def _save(self, state: TrainState) -> None:
        if not self.done:
            return  # Nothing that a new beginning wouldn't give.
        notes = {"batches": self.done, "seconds": self.clock.seconds()}
        self.checkpoints.save(state, data=self.place, notes=notes)

    def _evaluated(self, state: TrainState, due: bool) -> bool:
        """Evaluates what is due; false where it was given up."""
        if self.evaluate is None or not due or self.done == self.evaluated_at:
            return True
        found = self._attempt(self.evaluate, state)
        if found is None:
            return False
        evaluation = {name: float(value) for name, value in found.items()}
        self.log.write({"step": self.done, "evaluation": evaluation, "seconds": self.clock.seconds()})
        self.evaluated_at = self.done
        return True

    def _draw(self, *, always: bool = False) -> None:
        if self.curves:
            self.curves.draw(always=always)


# Seconds, without pauses, and images until a step was on its way.
_Mark = tuple[float, int]


class _Clock:
    """Seconds since the run began, those of earlier processes included, and images a second."""

    def __init__(self, seconds: float):
        self._begun = time.perf_counter() - seconds
        self._paused = 0.0
        self._images = 0
        self._since: _Mark | None = None

    def seconds(self) -> float:
        return round(time.perf_counter() - self._begun, 3)

    def mark(self, images: int) -> _Mark:
        """That a step with so many images is on its way. The first one has been compiled by then."""
        self._images += images
        mark = time.perf_counter() - self._paused, self._images
        self._since = self._since or mark
        return mark

    def images_per_second(self, mark: _Mark) -> float | None:
        """Since the mark that was last asked for, or the first; None without an image between."""
        (start, before), (end, after), self._since = self._since or mark, mark, mark
        return round((after - before) / (end - start), 1) if after > before else None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens meanwhile doesn't count for the speed."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start


class _Curves:
    """`curves.png`, of what the log has."""

    def __init__(self, path: Path, log: TrainingLog, step: int):
        self.path, self.log = path, log
        self._took, self._last = 0.0, -math.inf
        self._can = True
        try:
            require_matplotlib()
        except ImportError as error:
            self._can = False
            note = {"step": step, "note": f"no curves.png: {error}"}
            if not any(record.get("note") == note["note"] for record in log.records()):
                log.write(note)

    def draw(self, *, always: bool) -> None:
        start = time.perf_counter()
        if not self._can or (not always and start - self._last < _DRAWING * self._took):
            return
        records = [record for record in self.log.records() if "note" not in record]
        if records:
            write_figure(self.path, training_curves(records))
        self._last = time.perf_counter()
        self._took = self._last - start
