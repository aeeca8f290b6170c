"""Few programs, all devices, equal vectors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FOLDER, TEXTS, photos

import jaxclip
from jaxclip.encoder import Encoder
from jaxclip.nn import TextTransformer

WHOLE = FOLDER / "whole"
WORDS = ["two", "dogs", "run", "across", "a", "frosty", "field", "and", "a", "cat", "sleeps"]


@pytest.fixture(scope="module")
def clip():
    return jaxclip.load(WHOLE)


@pytest.fixture
def compilations():
    """The programs that XLA has compiled since, by JAX's own account."""
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


def captions(n, seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 9))) for _ in range(n)]


@pytest.mark.parametrize("case", ["first_eos", "openai"])
def test_texts_of_any_padding_and_order_have_the_models_own_vectors(case):
    """Both pooling rules; ids padded by zeros, by EOS and by something larger after the EOS."""
    model = jaxclip.load(FOLDER / case).model
    eos = model.text.config.eos_token_id if case == "first_eos" else model.text.config.vocab_size - 1
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 13, 70)
    ids = np.zeros((70, 12), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[: length - 1] = generator.integers(3, 90, length - 1)
        row[length - 1] = eos
        row[length:] = generator.choice([0, eos])
    wanted = np.asarray(model.encode_text(jnp.asarray(ids), normalize=False))
    size = np.abs(wanted).max()
    ours = Encoder().texts(model, ids, normalize=False).numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * size)
    ours = Encoder().texts(model, ids, normalize=False, batch_size=7).numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * size)


def test_texts_are_cut_to_the_shortest_length_that_holds_them(clip, monkeypatch):
    shapes = []
    encode = TextTransformer.__call__

    def watched(self, token_ids, *arguments, **options):
        shapes.append(token_ids.shape)
        return encode(self, token_ids, *arguments, **options)

    monkeypatch.setattr(TextTransformer, "__call__", watched)
    padded = clip.tokenizer(["a cat", "cat dog", *captions(20)] * 4 + ["a dog"] * 60, padding="max_length")
    short = (padded != clip.tokenizer.eos_token_id).sum(axis=1) + 1 <= 8
    jax.clear_caches()
    clip.encode_text(padded)
    assert set(shapes) <= {(size, length) for size in (64, 16, 4, 1) for length in (8, 12)}
    assert {length for _, length in shapes} == {8, 12}
    # Nearly all short ones go by in the largest batch.
    assert short.sum() > 64
    assert (64, 8) in shapes


def test_a_thousand_calls_compile_a_handful_of_programs(clip, compilations):
    jax.clear_caches()
    generator = np.random.default_rng(1)
    pixels = clip.image_processor(photos())
    texts = captions(200)
    for _ in range(300):
        start, n = generator.integers(0, 100, 2)
        assert clip.encode_text(texts[start : start + n]).shape == (n, 20)
        n = int(generator.integers(0, 70))
        assert clip.encode_pixels(np.resize(pixels, (n, *pixels.shape[1:]))).shape == (n, 20)
    # Two lengths of text in four sizes, four sizes of image batches.
    assert len(compilations) <= 2 * 4 + 4
    clip.encode_text("a cat")
    clip.encode_image(photos()[0])
    list(clip.stream_texts(captions(333)))
    done = len(compilations)
    assert done <= 2 * 4 + 4 + 4
    clip.encode_text("a dog")
    clip.encode_image(photos()[1])
    list(clip.stream_texts(captions(333, seed=1)))
    assert len(compilations) == done


def test_what_is_padded_does_not_show(clip):
    pixels = clip.image_processor(photos())
    many = np.resize(pixels, (45, *pixels.shape[1:]))
    wanted = np.asarray(clip.model.encode_image(jnp.asarray(pixels)))
    for batch_size in (1, 6, 32):
        vectors = clip.encoder.images(clip.model, many, batch_size=batch_size).numpy()
        np.testing.assert_allclose(vectors, np.resize(wanted, (45, 20)), atol=1e-6)


def test_a_tower_that_looks_at_what_comes_after_is_given_all_of_it(clip):
    class Backwards(TextTransformer):
        """No causal mask: whatever follows a text changes it."""

        def __call__(self, token_ids, *arguments, **options):
            output = super().__call__(token_ids, *arguments, **options)
            return jax.tree.map(lambda leaf: leaf + token_ids.shape[1], output)

    class Own(jaxclip.nn.CLIP):
        def __init__(self, config, **settings):
            super().__init__(config, **settings)
            self.text = Backwards(config.text, **settings)

    own = jaxclip.load(WHOLE, model=Own)
    ids = own.tokenizer(["a cat"], padding="max_length")
    plain = clip.encode_text(ids, normalize=False)
    np.testing.assert_allclose(own.encode_text(ids, normalize=False), plain + 12, atol=1e-5)


def test_a_model_that_was_trained_in_between_is_what_counts():
    clip = jaxclip.load(WHOLE, devices=jax.devices())
    before = clip.encode_text("a cat", normalize=False)
    projection = clip.model.text.projection.weight
    projection[...] = 2 * projection[...]
    np.testing.assert_allclose(clip.encode_text("a cat", normalize=False), 2 * before, rtol=1e-6)
    clip.model = jaxclip.load(WHOLE).model
    np.testing.assert_array_equal(clip.encode_text("a cat", normalize=False), before)


def test_bad_settings_are_refused(clip):
    with pytest.raises(ValueError, match="devices is empty"):
        Encoder([])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        clip.stream_texts(TEXTS, batch_size=0)


ON_EIGHT_DEVICES = """
import jax, numpy as np, jaxclip
from cases import FOLDER, TEXTS, photos

assert len(jax.devices()) == 8
one = jaxclip.load(FOLDER / "whole", devices=jax.devices()[3:4])
every = jaxclip.load(FOLDER / "whole")
some = jaxclip.load(FOLDER / "whole", devices=jax.devices()[1:4])
pixels = np.resize(one.image_processor(photos()), (45, 16, 16, 3))
texts = TEXTS * 20
for clip in (every, some):
    for n in (1, 3, 45):
        np.testing.assert_allclose(clip.encode_pixels(pixels[:n]), one.encode_pixels(pixels[:n]), atol=1e-6)
    for n in (1, 7, 100):
        np.testing.assert_allclose(clip.encode_text(texts[:n]), one.encode_text(texts[:n]), atol=1e-6)
batch = every.encoder._run(every.model, "image", pixels[:32], True)
assert len(batch.sharding.device_set) == 8 and batch.addressable_shards[0].data.shape == (4, 20)
assert one.encode_pixels(pixels[:32]).devices() == {jax.devices()[3]}
assert every.encoder.batch_size("image", 9) == 16 and some.encoder.batch_size("text", 4) == 6
(mesh,) = [mesh for mesh in every.encoder._copies if mesh.size == 8]
shared = jax.device_put(pixels[:32], jax.NamedSharding(mesh, jax.P("batch")))
lowered = jaxclip.encoder._encode.lower(
    every.encoder._copy(every.model, mesh), shared, modality="image", normalize=True, mesh=mesh
)
program = lowered.compile().as_text()
assert not any(word in program for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))
vectors = np.concatenate([batch.vectors for batch in every.stream_images(photos() * 20, batch_size=16)])
np.testing.assert_allclose(vectors, one.encode_image(photos() * 20), atol=1e-6)
print("equal")
"""


def test_eight_devices_give_one_devices_vectors():
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize(
    ("devices", "wished", "sizes"),
    [(1, 64, (64, 16, 4, 1)), (8, 64, (64, 16, 8, 2, 1)), (8, 30, (32, 8, 2, 1)), (3, 32, (33, 6, 3, 1))],
)
def test_all_devices_share_whatever_they_can(devices, wished, sizes):
    assert Encoder(jax.devices() * devices)._sizes("image", wished) == sizes


@pytest.mark.parametrize("case", ["first_eos", "openai"])
def test_a_text_that_ends_beyond_the_positions_is_refused(case):
    clip = jaxclip.load(FOLDER / case)
    eos = clip.model.text.config.eos_token_id if case == "first_eos" else 98
    ids = np.full((2, 20), 5)
    ids[0, 3] = eos
    ids[1, 15] = eos
    with pytest.raises(ValueError, match="text 1 is 16 tokens long, but this model has 12 positions"):
        clip.encode_text(ids)
    np.testing.assert_allclose(clip.encode_text(ids[:1]), clip.encode_text(ids[:1, :12]), atol=1e-6)
