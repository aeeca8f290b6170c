"""What all losses have in common."""

import functools
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from loss_cases import (
    ALL,
    CASES,
    CHUNKED,
    FILE,
    LOSSES,
    MASK,
    ROWS,
    arguments,
    assert_equal,
    committed,
    differentiated,
    flat,
    inputs,
    jit,
    vectors,
)
from loss_cases import compiled as compiled_case

from jaxclip import losses
from jaxclip.reference import losses as reference


@functools.cache
def compiled(name):
    """(given, mask) → the mean with the rows' losses, and the mean's gradients. Compiled once, for most tests here."""

    def evaluate(given, mask):
        return tuple(LOSSES[name][0](*given, mask=mask, reduction=reduction) for reduction in ("mean", "none"))

    def with_gradients(given, mask):
        def of_vectors(*some):
            whole = list(given)
            for i, array in zip(vectors(name), some, strict=True):
                whole[i] = array
            return evaluate(whole, mask)

        which = range(len(vectors(name)))
        return jax.value_and_grad(of_vectors, which, has_aux=True)(*(given[i] for i in vectors(name)))

    return jit(with_gradients)


def assert_close_in_norm(ours, theirs, tolerance=1e-6):
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_committed_references(case):
    assert_equal(case, *committed(case))


@pytest.mark.parametrize("case", CASES)
def test_gradients_match_float64_finite_differences(case):
    function, names = CASES[case]
    arrays = inputs(seed=1, n=6, width=4)
    which = differentiated(case, arrays)
    with jax.enable_x64(True):
        given = [arrays[name].astype("float64" if arrays[name].dtype.kind == "f" else "int32") for name in names]
        both = compiled_case(function, which, quickly=True)
        gradients = both(*given)[1]
        for seed in range(3):
            generator = np.random.default_rng(seed)
            # A temperature of 1e-3 moves by as small a part of itself.
            direction = {i: generator.normal(size=given[i].shape) * (0.1 * np.abs(given[i]).max()) for i in which}
            there, back = (
                both(*(x + h * direction[i] if i in direction else x for i, x in enumerate(given)))[0]
                for h in (1e-5, -1e-5)
            )
            slope = sum(np.vdot(gradient, direction[i]) for i, gradient in zip(which, gradients, strict=True))
            # Central differences: 1e-10 by the third derivative, and rounding of 1e-16 / 1e-5.
            np.testing.assert_allclose((there - back) / 2e-5, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_padded_row_is_as_if_it_were_not_there(name):
    mask = MASK
    full, short = [], []
    for i, argument in enumerate(LOSSES[name][1]):
        full.append(ROWS[argument].copy())
        kept = ROWS[argument][mask]
        short.append(kept[:, mask] if argument == "marks" else kept)
        # Whatever is in padding, a NaN too, must not show.
        if i in vectors(name):
            full[i][~mask] = np.nan
    (mean, each), gradients = compiled(name)(full, mask)
    (short_mean, short_each), short_gradients = compiled(name)(short, None)
    np.testing.assert_allclose(mean, short_mean, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(each)[mask], short_each, rtol=2e-6)
    assert not np.asarray(each)[~mask].any()
    assert not flat(np.asarray(rows)[~mask] for rows in gradients).any()
    assert_close_in_norm(flat(np.asarray(rows)[mask] for rows in gradients), flat(short_gradients))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_but_padding_is_zero_with_gradient_zero(name):
    (mean, each), gradients = compiled(name)(arguments(name), ~ALL)
    assert mean == 0
    assert not np.asarray(each).any()
    assert not flat(gradients).any()


@functools.cache
def total_of():
    """All losses' sums, in one program."""
    return jit(
        lambda arrays, mask: {
            name: loss(*(arrays[argument] for argument in names), mask=mask, reduction="sum")
            for name, (loss, names) in LOSSES.items()
        }
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", [ALL, MASK, ~ALL], ids=["whole", "padded", "nothing but padding"])
def test_reductions_agree(name, mask):
    (mean, each), _ = compiled(name)(arguments(name), mask)
    total, each = total_of()(ROWS, mask)[name], np.asarray(each)
    assert each.shape == (8,)
    assert (total.shape, mean.shape) == ((), ())
    np.testing.assert_allclose(each.sum(), total, rtol=1e-6)
    _, inverse, count = np.unique(ROWS["labels"][mask], return_inverse=True, return_counts=True)
    # A label alone has no positive, and its row doesn't count in the mean.
    counted = (count[inverse] > 1).sum() if name == "nt_xent_labels" else mask.sum()
    np.testing.assert_allclose(mean * counted, total, rtol=4e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_lengths_do_not_matter(name):
    given = arguments(name)
    scaled = [x * np.float32(10.0 ** (3 * i - 3)) if i in vectors(name) else x for i, x in enumerate(given)]
    ours, theirs = (compiled(name)(x, ALL)[0][0] for x in (scaled, given))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("constant", [1.0, 0.0])
@pytest.mark.parametrize("name", LOSSES)
def test_equal_and_zero_rows_have_finite_values_and_gradients(name, constant):
    given = [np.full_like(x, constant) if i in vectors(name) else x for i, x in enumerate(arguments(name))]
    (mean, _), gradients = compiled(name)(given, ALL)
    assert np.isfinite(mean)
    assert np.isfinite(flat(gradients)).all()


@pytest.mark.parametrize("name", CHUNKED)
def test_chunked_equals_dense(name):
    loss = partial(LOSSES[name][0], chunk_size=3, mask=jnp.asarray(MASK))
    mean, gradients = jit(jax.value_and_grad(loss, argnums=vectors(name)))(*arguments(name))
    (dense_mean, _), dense_gradients = compiled(name)(arguments(name), MASK)
    np.testing.assert_allclose(mean, dense_mean, rtol=1e-6)
    assert_close_in_norm(flat(gradients), flat(dense_gradients))


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_hold_no_matrix(name):
    n, chunk = 512, 16
    arrays = inputs(seed=0, n=n, width=2)
    keys = jnp.asarray(arrays["c"])
    queue = losses.KeyQueue(keys, jnp.array(0), jnp.array(n))
    wide = {
        "info_nce_shared": lambda a, b, **o: losses.info_nce(a, b, keys, **o),
        "moco": lambda a, b, **o: losses.moco_loss(a, b, queue, **o),
    }
    loss = wide.get(name, LOSSES[name][0])
    given = [x for x in arguments(name, arrays) if x.shape != (n, n)]
    if name in ("clip_targets", "info_nce_own"):
        return  # Whose targets are such a matrix, and whose negatives are larger than their logits.
    dense, chunked = (
        largest(jax.make_jaxpr(jax.grad(partial(loss, chunk_size=size)))(*given).jaxpr) for size in (None, chunk)
    )
    assert dense >= (n // 2) ** 2
    assert chunked <= n * chunk


def largest(jaxpr):
    """The size of the largest array in a program."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size")]
        for leaf in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            sizes += [largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def test_half_precision_is_the_float32_loss_of_the_same_numbers():
    """All losses in one program: compiling is what takes the time."""

    @jit
    def everything(arrays):
        return {
            name: jax.value_and_grad(loss)(*(arrays[argument] for argument in names))
            for name, (loss, names) in LOSSES.items()
        }

    halves = {k: v.astype("float16") if v.dtype.kind == "f" else v for k, v in ROWS.items()}
    wide = {k: v.astype("float32") if v.dtype == np.float16 else v for k, v in halves.items()}
    for name, (value, gradient) in everything(halves).items():
        assert value.dtype == jnp.float32
        assert gradient.dtype == jnp.float16
        (wanted, _), gradients = compiled(name)(arguments(name, wide), ALL)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        # One rounding of each component to a half, whose least one is 6e-8.
        np.testing.assert_allclose(np.asarray(gradient, "float32"), gradients[0], rtol=2**-10, atol=6e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_is_widened_first(name):
    short = [jnp.asarray(x, "bfloat16") if i in vectors(name) else x for i, x in enumerate(arguments(name))]
    program = jax.make_jaxpr(LOSSES[name][0])(*short)
    assert program.out_avals[0].dtype == jnp.float32
    computed = [e for e in program.eqns if any(v.aval.dtype == jnp.bfloat16 for v in e.invars)]
    assert {e.primitive.name for e in computed} <= {"convert_element_type", "stop_gradient"}


@pytest.mark.parametrize("name", LOSSES)
def test_float64_stays(name):
    with jax.enable_x64(True):
        given = [jnp.asarray(x, "float64") if i in vectors(name) else x for i, x in enumerate(arguments(name))]
        assert jax.eval_shape(LOSSES[name][0], *given).dtype == jnp.float64


def test_vmap_is_a_loop():
    order = [3, 0, 1, 2, 5, 4, 7, 6]

    def everything(a, b, c):
        arrays = {**{k: jnp.asarray(v) for k, v in ROWS.items()}, "a": a, "b": b, "c": c}
        return [loss(*(arrays[argument] for argument in names)) for loss, names in LOSSES.values()]

    first = [ROWS[name] for name in "abc"]
    second = [x[order] for x in first]
    both = jit(jax.vmap(everything))(*(np.stack(pair) for pair in zip(first, second, strict=True)))
    one = jit(everything)
    np.testing.assert_allclose(np.stack(both, axis=1), [one(*first), one(*second)], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_checkify_finds_what_is_not_finite(name):
    # With the gradient once: it is the same mechanism for all.
    loss = LOSSES[name][0]
    checked = jit(checkify.checkify(jax.value_and_grad(loss) if name == "clip" else loss))
    given = arguments(name)
    error, value = checked(*given)
    error.throw()
    np.testing.assert_allclose(value[0] if name == "clip" else value, compiled(name)(given, ALL)[0][0], rtol=1e-6)
    broken = given[0].copy()
    broken[2, 1], broken[0, 0] = np.nan, np.inf
    error, _ = checked(broken, *given[1:])
    named = {"clip": "image_features", "clip_targets": "image_features", "siglip": "image_features"}
    named |= {"nt_xent": "features", "nt_xent_labels": "features", "cosine_embedding": "a", "triplet": "anchor"}
    with pytest.raises(checkify.JaxRuntimeError, match=f"^{named.get(name, 'queries')} must be finite, got 2 values"):
        error.throw()


def test_checks_cost_nothing_without_checkify():
    program = jax.jit(losses.clip_loss).lower(*arguments("clip"), 2.0).compile().as_text()
    assert "is-finite" not in program
    assert "callback" not in program
    jax.export.export(jax.jit(jax.grad(losses.clip_loss)))(*arguments("clip"), 2.0)
    remat = jit(jax.grad(jax.checkpoint(LOSSES["clip"][0])))(*arguments("clip"))
    np.testing.assert_allclose(remat, compiled("clip")(arguments("clip"), ALL)[1][0], atol=1e-6)


@pytest.mark.usefixtures("plain_calls")
@pytest.mark.parametrize("name", LOSSES)
def test_wrong_shapes_dtypes_and_settings_raise_while_tracing(name):
    def call(*given, **options):
        return jax.eval_shape(partial(LOSSES[name][0], **options), *given)

    given = arguments(name)
    with pytest.raises(TypeError, match="must be floating-point, got int32"):
        call(given[0].astype(int), *given[1:])
    with pytest.raises(ValueError, match=r"must have shape \(n, width\), got \(6,\)"):
        call(given[0][0], *given[1:])
    if name not in ("nt_xent", "nt_xent_labels"):
        with pytest.raises(ValueError, match=r"expected .* \(8, 6\), .* \(8, 5\)"):
            call(given[0], given[1][:, :5], *given[2:])
    with pytest.raises(TypeError, match="mask must be boolean, got int32"):
        call(*given, mask=jnp.ones(8, int))
    with pytest.raises(ValueError, match=r"mask must have shape \(8,\), got \(7,\)"):
        call(*given, mask=jnp.ones(7, bool))
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'average'"):
        call(*given, reduction="average")
    if name in CHUNKED:
        with pytest.raises(ValueError, match="chunk_size must be at least 1"):
            call(*given, chunk_size=0)
    if name in CHUNKED and name != "moco":
        with pytest.raises(ValueError, match="collective must be 'gather' or 'ring', got 'star'"):
            call(*given, collective="star")


# Name → ours and the oracle's, of arrays x, a temperature t (or margin) and s = -ln t.
ORACLES = {
    "info_nce": lambda it, x, t, s: it.info_nce(x["a"], x["b"], temperature=t),
    "info_nce_shared": lambda it, x, t, s: it.info_nce(x["a"], x["b"], x["shared"], t),
    "info_nce_own": lambda it, x, t, s: it.info_nce(x["a"], x["b"], x["own"], t),
    "nt_xent": lambda it, x, t, s: it.nt_xent(x["a"], t),
    "nt_xent_labels": lambda it, x, t, s: it.nt_xent(x["a"], t, x["labels"]),
    "clip": lambda it, x, t, s: it.clip_loss(x["a"], x["b"], s),
    "clip_targets": lambda it, x, t, s: it.clip_loss(x["a"], x["b"], s, x["marks"]),
    "siglip": lambda it, x, t, s: it.siglip_loss(x["a"], x["b"], s, -2.5),
    "cosine_embedding": lambda it, x, t, s: it.cosine_embedding_loss(x["a"], x["b"], x["signs"], t),
    "triplet": lambda it, x, t, s: it.triplet_loss(x["a"], x["b"], x["c"], t),
}
OURS = {name: jit(partial(function, losses)) for name, function in ORACLES.items()}


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([1e-3, 0.07, 1.0, 30.0]),
    length=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_equals_the_oracle_over_scales(name, seed, temperature, length):
    # One shape, for which a program is compiled: unlike those of the tests above, wider than it has rows.
    arrays = inputs(seed, 6, 17)
    arrays |= {k: np.float32(length) * arrays[k] for k in ("a", "b", "c", "shared", "own")}
    # As float32 has them: what float32 makes of 1e-3 is none of the losses' business.
    numbers = float(np.float32(temperature)), float(np.float32(-np.log(temperature)))
    ours = OURS[name](arrays, *numbers)
    # The last digit of a cosine, multiplied by the scale.
    digit = 1.2e-7 * max(1, 1 / temperature)
    np.testing.assert_allclose(ours, ORACLES[name](reference, arrays, *numbers), rtol=5e-7, atol=2 * digit)


def test_shards_of_the_batch_equal_the_whole(on_devices):
    """On four of the devices, two rows each; gradients taken inside shard_map and outside."""
    forms = [form.split(", ") for form in on_devices["losses"]]
    assert {name for name, _ in forms} == set(LOSSES)
    assert len(forms) == len(LOSSES) + 4
    for (name, form), (value, gradients) in zip(forms, on_devices["losses"].values(), strict=True):
        (wanted, _), wanted_gradients = compiled(name)(arguments(name), MASK)
        np.testing.assert_allclose(value, wanted, rtol=1e-6, err_msg=f"{name}, {form}")
        assert_close_in_norm(np.array(gradients), flat(wanted_gradients))


def test_references_are_small():
    assert sum(file.stat().st_size for file in FILE.parent.iterdir()) < 200_000


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_equals_the_live_references(case, seed):
    pytest.importorskip("torch")
    import torchvision_on_cpu  # noqa: F401 (before open_clip)

    pytest.importorskip("open_clip")
    from write_loss_references import expected

    arrays = inputs(seed=seed + 10, n=20, width=16)
    assert_equal(case, arrays, expected(case, arrays))
