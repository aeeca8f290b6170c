"""The published numbers, from the Hub's own checkpoints; skipped, with the reason, where it can't be reached."""

import io
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxclip

pytestmark = pytest.mark.hub
PHOTO = "http://images.cocodataset.org/val2017/000000039769.jpg"


@pytest.fixture(scope="module")
def clip():
    try:
        return jaxclip.load("openai/clip-vit-base-patch32")
    except jaxclip.CheckpointError as error:
        if "is not in the cache" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def photo():
    try:
        with urllib.request.urlopen(PHOTO, timeout=30) as answer:
            return Image.open(io.BytesIO(answer.read()))
    except OSError as error:
        pytest.skip(f"{PHOTO} can't be fetched: {error}")


def test_token_ids(clip):
    assert clip.tokenizer("Hello World!").tolist() == [49406, 3306, 1002, 256, 49407]
    assert clip.tokenizer("a photo of a cat").tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_logits_of_two_cats(clip, photo):
    # transformers' own integration test of CLIPModel.
    output = clip.model(
        jnp.asarray(clip.tokenizer(["a photo of a cat", "a photo of a dog"])), jnp.asarray(clip.image_processor(photo))
    )
    np.testing.assert_allclose(output.logits_per_image[0], [24.5701, 19.3049], atol=1e-3)


def test_interpolated_positions(clip, photo):
    # transformers' own integration test of interpolate_pos_encoding, at 180 pixels.
    processor = jaxclip.processing.ImageProcessor(size={"shortest_edge": 180}, crop_size={"height": 180, "width": 180})
    state = clip.model.vision(jnp.asarray(processor(photo)), interpolate_positions=True).last_hidden_state
    wanted = [[-0.1538, 0.0322, -0.3235], [0.2893, 0.1135, -0.5708], [0.0461, 0.1540, -0.6018]]
    np.testing.assert_allclose(state[0, :3, :3], wanted, atol=1e-4)


def test_the_articles_extremes(clip):
    # Pinecone's "Multi-modal ML with OpenAI's CLIP": 21 texts and photos of jamescalam/image-text-demo.
    datasets = pytest.importorskip("datasets")
    try:
        data = datasets.load_dataset("jamescalam/image-text-demo", split="train")
    except Exception as error:
        pytest.skip(f"jamescalam/image-text-demo can't be fetched: {error}")
    for encode, column, raw, normalized in (
        (clip.encode_text, "text", (-1.1893, 4.8015), (-0.1526844, 0.53449875)),
        (clip.encode_image, "image", (-8.6533, 2.6551), (-0.7275361, 0.23383287)),
    ):
        for normalize, extremes in ((False, raw), (True, normalized)):
            vectors = np.asarray(encode(list(data[column]), normalize=normalize))
            assert vectors.shape == (21, 512)
            np.testing.assert_allclose((vectors.min(), vectors.max()), extremes, atol=1e-3 if not normalize else 1e-5)
