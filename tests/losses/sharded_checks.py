"""Run by test_sharded.py in processes of their own: prints one JSON object of measured figures.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python sharded_checks.py devices
XLA_FLAGS=--xla_force_host_platform_device_count=2 python sharded_checks.py process ID PORT    # ID 0 and ID 1
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.losses.gradient_caching import microbatched
from jaxclip.losses.streaming import global_indices, row_and_column_log_sum_exp, row_log_sum_exp, row_softplus_sum

N, M, WIDTH = 16, 40, 8
ARGUMENTS = ("queries", "keys", "scale", "bias", "weights", "key_weights")


def operands():
    """The six of `ARGUMENTS`, two masks and the excluded keys, which are on every device."""
    generator = np.random.default_rng(0)
    vectors = [generator.normal(size=(count, WIDTH)) for count in (N, M)]
    vectors = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in vectors]
    floats = (*vectors, 20.0, -3.0, generator.normal(size=N), generator.normal(size=M))
    masks = [generator.random(count) < 0.7 for count in (N, M)]
    excluded = generator.permutation(M)[:N].astype(np.int32)
    return *(np.asarray(x, np.float32) for x in floats), *masks, excluded


def loss(queries, keys, scale, bias, weights, key_weights, query_mask, key_mask, excluded, **options):
    seen = {"key_mask": key_mask, "excluded": excluded}
    rows, columns = row_and_column_log_sum_exp(queries, keys, scale, query_mask=query_mask, **seen, **options)
    alone = row_log_sum_exp(queries, keys, scale, key_mask=key_mask, **options)
    softplus = row_softplus_sum(queries, keys, scale, bias, **seen, **options)
    return jnp.sum(weights * (rows + alone / 2 + softplus)) + jnp.sum(key_weights * columns)


def specs(axes):
    return P(axes), P(axes), P(), P(), *[P(axes)] * 5


def value_and_gradient(function):
    return jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(ARGUMENTS)))))


def sharded_loss(mesh, axes, check_vma=True, **options):
    def local(*arguments):
        return jax.lax.psum(loss(*arguments, axis_name=axes, **options), axes)

    return jax.shard_map(local, mesh=mesh, in_specs=specs(axes), out_specs=P(), check_vma=check_vma)


def error(ours, theirs):
    """The largest of the value's and the six gradients' relative errors."""
    ours, theirs = (
        [np.asarray(jax.device_get(x), np.float64) for x in jax.tree.leaves(tree)] for tree in (ours, theirs)
    )
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, theirs, strict=True))


def placed(mesh, axes, arrays):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs(axes), strict=True)]


def on_devices():
    wanted = value_and_gradient(loss)(*operands())
    meshes = {
        kind.name: jax.make_mesh((8,), ("data",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)
    }
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    auto, explicit = meshes.values()
    errors = {}
    for name, mesh, axes, options in (
        ("ring in chunks", auto, "data", {"collective": "ring", "chunk_size": 2}),
        ("ring, vma unchecked", auto, "data", {"collective": "ring", "check_vma": False}),
        ("ring over two axes", grid, ("data", "model"), {"collective": "ring"}),
        ("gather", explicit, "data", {"collective": "gather"}),
        ("gather in chunks", auto, "data", {"collective": "gather", "chunk_size": 7}),
    ):
        errors[name] = error(
            value_and_gradient(sharded_loss(mesh, axes, **options))(*placed(mesh, axes, operands())), wanted
        )
    for name, mesh in meshes.items():
        for chunk_size in (None, 7):
            step = value_and_gradient(functools.partial(loss, chunk_size=chunk_size))
            errors[f"jit, {name}, chunk_size={chunk_size}"] = error(step(*placed(mesh, "data", operands())), wanted)

    # The gradient taken inside shard_map.
    def local(*arguments):
        options = {"axis_name": "data", "collective": "ring", "chunk_size": 2}
        return jax.grad(functools.partial(loss, **options), argnums=(0, 1, 2, 3, 4, 5))(*arguments)

    inside = jax.shard_map(local, mesh=auto, in_specs=specs("data"), out_specs=specs("data")[:6])
    errors["ring, gradient inside"] = error(jax.jit(inside)(*placed(auto, "data", operands())), wanted[1])

    indices = jax.shard_map(
        lambda: global_indices(3, ("data", "model")), mesh=grid, in_specs=(), out_specs=P(("data", "model"))
    )
    return {
        "errors": errors | cached_gradients(auto, explicit),
        "memory": {
            collective: [device_memory(devices, collective, None) for devices in (2, 8)]
            for collective in ("ring", "gather")
        },
        "memory in chunks": [device_memory(devices, "ring", 16) for devices in (2, 8)],
        "global_indices": np.asarray(indices()).tolist(),
        "losses": every_loss(),
    }


def every_loss():
    """Name and form → the value and the gradients of a loss of `ROWS`, two a device."""
    # Not above: it starts JAX, which `jax.distributed` wants to do itself.
    from loss_cases import CHUNKED, LOSSES, MASK, ROWS, flat, vectors

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    arrays = {name: rows for name, rows in ROWS.items() if rows.shape[:1] == MASK.shape}
    gather, ring = {"collective": "gather"}, {"collective": "ring", "chunk_size": 1}
    inside = {f"{name}, gather": (name, gather if name in CHUNKED and name != "moco" else {}) for name in LOSSES}
    inside |= {f"{name}, ring": (name, ring) for name in ("clip_targets", "nt_xent_labels")}

    def gradients_inside(arrays, mask):
        found = {}
        for form, (name, options) in inside.items():
            loss, names = LOSSES[name]
            loss = functools.partial(loss, mask=mask, axis_name="data", **options)
            found[form] = jax.value_and_grad(loss, vectors(name))(*(arrays[argument] for argument in names))
        return found

    specs = {form: (P(), tuple(P("data") for _ in vectors(name))) for form, (name, _) in inside.items()}
    found = jax.jit(jax.shard_map(gradients_inside, mesh=mesh, in_specs=P("data"), out_specs=specs))(arrays, MASK)

    def gradients_outside(arrays, mask):
        def of_clip(options, a, b, mask):
            return LOSSES["clip"][0](a, b, mask=mask, axis_name="data", **options)

        sharded = {
            f"clip, {options['collective']} outside": jax.shard_map(
                functools.partial(of_clip, options), mesh=mesh, in_specs=P("data"), out_specs=P()
            )
            for options in (gather, ring)
        }
        return {
            form: jax.value_and_grad(loss, (0, 1))(arrays["a"], arrays["b"], mask) for form, loss in sharded.items()
        }

    found |= jax.jit(gradients_outside)(arrays, MASK)
    return {form: (float(value), flat(gradients).tolist()) for form, (value, gradients) in found.items()}


def device_memory(devices, collective, chunk_size, own=128):
    """Bytes that one device needs besides its inputs and outputs, having `own` queries and keys."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def local(queries, keys):
        options = {"axis_name": "data", "collective": collective, "chunk_size": chunk_size}
        rows, columns = row_and_column_log_sum_exp(queries, keys, 10.0, **options)
        return jax.lax.psum(jnp.sum(rows) + jnp.sum(columns), "data")

    total = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P())
    vectors = jax.ShapeDtypeStruct((own * devices, 32), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(vectors, vectors).compile()
    if collective == "ring":
        assert "all-gather" not in compiled.as_text()
    return compiled.memory_analysis().temp_size_in_bytes


def cached_gradients(auto, explicit):
    """Of the encoder's weights, microbatched on 8 devices against whole on one."""
    generator = np.random.default_rng(1)
    batch = np.asarray(generator.normal(size=(2 * N, WIDTH)), np.float32)
    weights = np.asarray(generator.normal(size=(WIDTH, WIDTH)), np.float32)

    def features(weights, batch):
        vectors = jnp.tanh(batch @ weights)
        return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)

    def loss(weights, batch, encode=features, **options):
        rows = row_log_sum_exp(encode(weights, batch), encode(weights, -batch), 5.0, **options)
        return jnp.sum(rows)

    def local(weights, batch):
        return jax.lax.psum(loss(weights, batch, microbatched(features, 3), axis_name="data"), "data")

    wanted = jax.grad(loss)(weights, batch)
    errors = {}
    inside = jax.shard_map(local, mesh=auto, in_specs=(P(), P("data")), out_specs=P())
    for name, mesh, function in (
        ("cached, shard_map", auto, inside),
        ("cached, jit, Auto", auto, functools.partial(loss, encode=microbatched(features, 8))),
        ("cached, jit, Explicit", explicit, functools.partial(loss, encode=microbatched(features, 8))),
    ):
        placed = jax.device_put(batch, NamedSharding(mesh, P("data")))
        everywhere = jax.device_put(weights, NamedSharding(mesh, P()))
        errors[name] = error(jax.jit(jax.grad(function))(everywhere, placed), wanted)
    return errors


def in_process(process, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    wanted = value_and_gradient(loss)(*operands())
    arrays = [
        jax.make_array_from_callback(np.shape(x), NamedSharding(mesh, spec), lambda index, x=x: np.asarray(x)[index])
        for x, spec in zip(operands(), specs("data"), strict=True)
    ]
    errors = {}
    for collective in ("ring", "gather"):
        value, gradient = value_and_gradient(sharded_loss(mesh, "data", collective=collective, chunk_size=3))(*arrays)
        # A process sees its own shards alone: of each the same rows of what one device computed.
        errors[collective] = max(
            error(shard.data, np.asarray(whole)[shard.index])
            for ours, whole in zip((value, *gradient), (wanted[0], *wanted[1]), strict=True)
            for shard in ours.addressable_shards
        )
    return {"errors": errors, "processes": jax.process_count(), "devices": len(jax.devices())}


if __name__ == "__main__":
    figures = on_devices() if sys.argv[1] == "devices" else in_process(int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(figures))
