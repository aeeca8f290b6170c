"""An interrupted run goes on as if nothing had been, and a checkpoint holds arrays and JSON alone."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from training_cases import FAST, IMAGES_ALONE, assert_same_bits, model, pairs

from jaxclip.training import (
    Checkpoints,
    MoCoObjective,
    OptimizerConfig,
    SimCLRObjective,
    TrainState,
    compile_step,
    make_optimizer,
)


@pytest.fixture(scope="module", autouse=True)
def shapes_in_the_place_of_arrays():
    """Without the suite's check of annotations: `jax.eval_shape` builds a `KeyQueue` of what are no arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


OPTIMIZER, _ = make_optimizer(OptimizerConfig(steps=8, warmup_steps=2, learning_rate=1e-2))


def augment(key, image):
    return image + 0.3 * jax.random.normal(key, image.shape)


# All that a state can hold: an EMA, a key encoder, a queue that isn't full, and a key that decides what comes next.
MOCO = MoCoObjective(queue_size=20, momentum=0.9, augment=augment)


def fresh(objective=MOCO, seed=3, **settings):
    settings = {"ema": True, "frozen": ("vision.class_embedding",), **settings}
    key = jax.random.key(seed, impl="rbg")
    return TrainState.create(model(IMAGES_ALONE), objective=objective, optimizer=OPTIMIZER, key=key, **settings)


def batch(step):
    return {"pixels": pairs(seed=int(step))["pixels"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the steps 2 to 4 of a run of 4, and the state at the end. Each save is followed at once by the step
    that donates what is being saved."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    state = fresh()
    step = compile_step(state, objective=MOCO, optimizer=OPTIMIZER, compiler_options=FAST)
    with Checkpoints(folder, keep=2) as checkpoints:
        for number in range(4):
            state, _ = step(state, batch(number))
            data = {"epoch": 0, "next": [number]} if number == 1 else b"\x00\xffbinary"
            checkpoints.save(state, data=data, notes={"seed": 3})
            if number == 1:
                checkpoints.wait()
                assert checkpoints.steps == [1, 2]
                second = checkpoints.restore(fresh(seed=0))
    return folder, state, step, second


def test_resuming_equals_no_interruption_bit_for_bit(run):
    _, uninterrupted, step, (state, _, _) = run
    assert state.step == 2
    for number in (2, 3):
        state, _ = step(state, batch(number))
    assert_same_bits(state, uninterrupted)
    assert uninterrupted.extras["queue"].count == 20
    # The key did decide something: with another one the weights are others.
    other = fresh(seed=4)
    for number in range(4):
        other, _ = step(other, batch(number))
    assert (other.model.vision.projection.weight[...] != state.model.vision.projection.weight[...]).any()


def test_the_newest_are_kept_with_the_data_s_place_and_notes(run):
    folder, state, _, (_, data, notes) = run
    assert (data, notes) == ({"epoch": 0, "next": [1]}, {"seed": 3})
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == [3, 4]
        assert checkpoints.latest_step == 4
        restored, data, _ = checkpoints.restore(jax.eval_shape(fresh))
        assert_same_bits(restored, state)
        assert data == b"\x00\xffbinary"
        assert jnp.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
        assert checkpoints.restore(fresh(), 3)[0].step == 3
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 1 in .*, only \[3, 4\]"):
            checkpoints.restore(fresh(), 1)
        # What is there already stays.
        checkpoints.save(state, data="other")
        assert checkpoints.restore(fresh())[1] == b"\x00\xffbinary"


def test_no_pickle(run):
    files = [path for path in run[0].rglob("*") if path.is_file()]
    assert files
    # Every pickle of protocol 2 or later begins with 0x80 and its version, and ends with a point.
    for content in (path.read_bytes() for path in files):
        assert not (content[:1] == b"\x80" and content[-1:] == b".")


def test_another_run_s_checkpoint_is_refused(run):
    with Checkpoints(run[0]) as checkpoints:
        with pytest.raises(
            ValueError, match=r"another model, objective or optimizer:\n(?s:.*)unexpected: extras\.queue"
        ):
            checkpoints.restore(fresh(SimCLRObjective()))
        with pytest.raises(ValueError, match=r"extras\.queue\.keys is \(\(20, 8\), 'float32'\), expected \(\(24, 8\)"):
            checkpoints.restore(fresh(MoCoObjective(queue_size=24)))
        with pytest.raises(ValueError, match=r"missing: optimizer_state\.1\.mu\.vision\.class_embedding"):
            checkpoints.restore(fresh(frozen=()))


def test_an_empty_folder(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.steps == []
        with pytest.raises(FileNotFoundError, match="no checkpoint of step None"):
            checkpoints.restore(fresh())
