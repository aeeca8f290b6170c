"""Run by test_sharding.py in processes of their own: prints one JSON object of measured figures.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python sharded_training.py devices FOLDER
XLA_FLAGS=--xla_force_host_platform_device_count=2 python sharded_training.py process FOLDER ID PORT    # ID 0 and ID 1
"""

import contextlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import jax

STEPS, SMALL = 4, 32


def setting():
    # Not above: these start JAX, which `jax.distributed` wants to do itself.
    from training_cases import model

    from jaxclip.training import CLIPObjective, OptimizerConfig, TrainState, make_optimizer

    objective = CLIPObjective()
    config = OptimizerConfig(steps=2 * STEPS, warmup_steps=1, learning_rate=5e-3)
    optimizer, schedule = make_optimizer(config)
    create = partial(
        TrainState.create, model(), objective=objective, optimizer=optimizer, key=jax.random.key(0), ema=True
    )
    return create, {"objective": objective, "optimizer": optimizer, "schedule": schedule}


def rows(step):
    """The whole batch, of sixteen, in NumPy."""
    import numpy as np
    from training_cases import pairs

    batch = {name: np.asarray(values) for name, values in pairs(16, seed=step % 2).items()}
    return batch | {"caption_ids": np.arange(16) % 15}


def train(state, mesh, settings, rows, **more):
    from jaxclip.training import compile_step, global_batch

    step, losses = compile_step(state, **settings, **more), []
    for number in range(STEPS):
        state, metrics = step(state, global_batch(rows(number), mesh))
        losses.append(float(metrics["loss"]))
    return state, losses


def bytes_of_a_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def on_devices(folder):
    from training_cases import difference

    from jaxclip.training import Checkpoints, make_mesh, place

    create, settings = setting()
    at_first = jax.device_get(create().model)
    alone = make_mesh(devices=jax.devices()[:1])
    wanted, losses = train(place(create(), alone), alone, settings, rows)
    wanted = jax.device_get(wanted.model)
    moved = difference(wanted, at_first)
    figures = {"losses": {"one device": losses}, "errors": {}, "bytes": {}, "moved": moved}
    mixed = make_mesh(2, 4)
    for name, mesh in (("data", make_mesh()), ("fsdp", make_mesh(1, fsdp=-1)), ("data and fsdp", mixed)):
        ended, figures["losses"][name] = train(place(create(), mesh, SMALL), mesh, settings, rows)
        figures["errors"][name] = difference(jax.device_get(ended.model), wanted)
        figures["bytes"][name] = [bytes_of_a_device(tree) for tree in (ended.model, ended.ema, ended.optimizer_state)]
        if name == "fsdp":
            # From one layout to another.
            with Checkpoints(folder) as checkpoints:
                checkpoints.save(ended)
                checkpoints.wait()
                restored = checkpoints.restore(place(create(), mixed, SMALL))[0]
            figures["restored"] = difference(jax.device_get(restored.model), jax.device_get(ended.model))
            figures["restored bytes"] = bytes_of_a_device(restored.model)
    state = create()
    figures["bytes"]["whole"] = [bytes_of_a_device(tree) for tree in (state.model, state.ema, state.optimizer_state)]
    # And all at once, of which on one device only the parts of a batch, one after the other, make a difference.
    ended = [
        jax.device_get(train(place(create(), mesh, SMALL), mesh, settings, rows, accumulate=2, **more)[0].model)
        for mesh, more in ((alone, {}), (mixed, {"microbatch": 4, "remat": True}))
    ]
    figures["errors"]["accumulated, cached, rematerialised"] = difference(ended[1], ended[0])
    return figures


class OwnRows:
    """Of a process, which is told to end when it asks for the third batch."""

    def __init__(self, process, *, ends):
        self.process, self.ends, self.number = process, ends, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.ends and self.number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        self.number += 1
        mine = slice(8 * self.process, 8 * self.process + 8)
        return {name: values[mine] for name, values in rows(self.number - 1).items()}

    def get_state(self):
        return [self.process, self.number]

    def set_state(self, state):
        assert state[0] == self.process
        self.number = state[1]


def in_process(folder, process, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    from jaxclip.training import Checkpoints, compile_step, fit, make_mesh, place, read_log

    create, settings = setting()
    mesh = make_mesh(2, fsdp=2)
    step = compile_step(place(create(), mesh, SMALL), **settings)
    run = Path(folder).parent / "run"
    stopped = []
    for ends in (process == 1, False):
        with contextlib.suppress(KeyboardInterrupt):
            ended = fit(
                place(create(), mesh, SMALL),
                OwnRows(process, ends=ends),
                step,
                steps=STEPS,
                folder=run,
                mesh=mesh,
                log_every=1,
                evaluate=lambda state: {"step": float(state.step)},
            )
        stopped.append(max(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")))
    log = read_log(run / "log.jsonl")
    with Checkpoints(folder) as checkpoints:
        # Of other lengths in the two.
        checkpoints.save(ended, data=b"x" * (process + 1), notes={"why": "test"})
        checkpoints.wait()
        restored, data, notes = checkpoints.restore(place(create(), mesh, SMALL))
    same = all(
        (a.addressable_shards[0].data == b.addressable_shards[0].data).all()
        for a, b in zip(jax.tree.leaves(restored.model), jax.tree.leaves(ended.model), strict=True)
    )
    return {
        "losses": [line["loss"] for line in log if "loss" in line],
        "evaluations": [line["evaluation"] for line in log if "evaluation" in line],
        "stopped": stopped,
        "processes": jax.process_count(),
        "devices": len(jax.devices()),
        "restored": [bool(same), data.decode(), notes],
        "bytes": bytes_of_a_device(ended.model),
    }


if __name__ == "__main__":
    kind, folder, *numbers = sys.argv[1:]
    figures = on_devices(folder) if kind == "devices" else in_process(folder, *map(int, numbers))
    print(json.dumps(figures))
