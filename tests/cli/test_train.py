"""`jaxclip train`: from captioned photos to a checkpoint that is searched with; Ctrl-C, and what goes wrong."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import jaxtyping
import pytest
from cases import FOLDER
from training.data_cases import captioned
from training_cases import FAST

from jaxclip.cli import main
from jaxclip.training import Checkpoints, TrainConfig, compile_step, read_log

WHOLE = str(FOLDER / "whole")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without the suite's check of annotations, which a state of shapes doesn't pass, and most of the compiler's
    optimisations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxclip.training.run.compile_step", partial(compile_step, compiler_options=FAST))
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def photos(tmp_path):
    return captioned(tmp_path / "photos", 8)


def command(photos, *options):
    return ["train", "--model", WHOLE, "--data", str(photos), "--batch-size", "4", "--steps", "3", *options]


def test_from_photos_to_a_model_that_is_searched_with(photos, tmp_path, capsys):
    run, broken = tmp_path / "run", photos / "images" / "03.png"
    broken.write_bytes(b"no image")
    options = ["--output", str(run), "--held-out", str(photos), "--set", "optimizer.learning_rate=1e-3"]
    assert main(command(photos, *options, "--set", "ema=0.9", "--set", "data.threads=1")) == 1
    printed = capsys.readouterr()
    first, to_image, to_text = printed.out.splitlines()
    assert first.startswith(f"{run / 'model'}: 3 steps of 4, ")
    assert re.search(r" [\d.]+ (seconds|minutes), the moving average of its parameters$", first)
    last = read_log(run / "log.jsonl")[-1]["evaluation"]
    for line, way in ((to_image, "text_to_image"), (to_text, "image_to_text")):
        figures = ", ".join(f"{last[f'{way}_recall@{k}']:.3f} at {k}" for k in (1, 5, 10))
        assert line == f"recall, {way.replace('_', ' ')}: {figures}"
    assert re.match(r"skipped: images/03\.png: .*\n", printed.err)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert TrainConfig.from_toml(run / "config.toml").optimizer["learning_rate"] == 1e-3

    broken.unlink()
    assert main(["search", "photo 1 a", str(photos / "images"), "--model", str(run / "model"), "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_ctrl_c_keeps_the_step_that_it_is_at(photos, tmp_path):
    """In a process of its own, as a shell has it."""
    run = tmp_path / "run"
    program = "import sys; from jaxclip.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--steps", "100000", "--output", str(run), "--set", "log_every=1", "--set", "data.threads=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command(photos, *options)],
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # Once there are steps.
        for _ in range(3000):
            if process.poll() is not None or ((run / "log.jsonl").exists() and len(read_log(run / "log.jsonl")) > 2):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, errors
    with Checkpoints(run / "checkpoints") as checkpoints:
        step = checkpoints.latest_step
    assert errors.splitlines()[-1] == (
        f"jaxclip train: interrupted; step {step} of 100000 is saved in {run}: run it again to go on"
    )
    assert step == read_log(run / "log.jsonl")[-1]["step"] > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "optimizer.beta=1"], "unknown key 'beta' in [optimizer]; did you mean 'beta2'?"),
        (["--set", "steps"], "'steps' is no key=value, as optimizer.learning_rate=1e-5"),
        (["none.toml"], "none.toml: no such file"),
        (["config.toml"], "config.toml: steps must be a whole number, got '3'"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--model", "./nowhere"], "no folder './nowhere'"),
        ([], "output is missing: output = \"a folder\""),
        (["--set", "objective=clop"], "objective.name must be one of clip, siglip, simclr, moco, got 'clop'"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_one_line_and_status_2(photos, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text('steps = "3"\n')
    base = ["train", "--model", WHOLE, "--data", str(photos)]
    if "config.toml" not in options:
        base += ["--steps", "3"]
    if options:
        base += ["--output", "run"]
    assert main([*base, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip train: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_missing_to_train_is_named_with_its_mend(photos, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("optax", "grain") else 1)
    assert main(command(photos, "--output", "run")) == 2
    assert capsys.readouterr().err == ('jaxclip train: training needs optax and grain: pip install "jaxclip[train]"\n')


def test_the_examples_of_the_help_are_right(photos, tmp_path, capsys, monkeypatch):
    """Their settings are read, and lead to a run."""
    with pytest.raises(SystemExit) as exited:
        main(["train", "--help"])
    assert exited.value.code == 0
    text = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    begun = []
    monkeypatch.setattr("jaxclip.training.run.train", lambda config: begun.append(config) or 1 / 0)
    lines = text.partition("examples:\n")[2].replace("\\\n", "")
    (tmp_path / "config.toml").write_text("\n".join(re.findall(r"^  (?!jaxclip)(.*)$", lines, re.MULTILINE)))
    for line in re.findall(r"^  jaxclip (.*)$", lines, re.MULTILINE):
        with pytest.raises(ZeroDivisionError):
            main(shlex.split(line))
    tuned, locked = begun
    assert (tuned.model.checkpoint, tuned.steps, tuned.batch_size) == ("openai/clip-vit-base-patch32", 1000, 64)
    assert tuned.optimizer == {"learning_rate": 1e-5}
    assert (locked.output, locked.seed, locked.freeze) == ("run-1", 1, ("vision",))
    assert locked.model.text == {"hidden_size": 256, "num_hidden_layers": 4}
    assert locked.data.held_out == "held-out/"


def test_one_of_several_processes_finds_the_others(photos, monkeypatch):
    called = []
    monkeypatch.setattr("jax.distributed.initialize", lambda: called.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command(photos, "--output", "run", "--distributed"))
    assert called == [1]
