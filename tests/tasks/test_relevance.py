import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from jaxclip.tasks.relevance import (
    agreed_relevance,
    coverage,
    cut_windows,
    interpolated,
    patch_similarities,
    relevance,
    starts,
    window_corners,
    window_similarities,
)


@pytest.fixture(scope="module")
def embeddings(clip):
    return np.asarray(clip.encode_text(["a cat", "a cup", "sky"]))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_pieces_cover_the_length_evenly(length, size, stride):
    size = min(size, length)
    found = starts(length, size, stride)
    assert found[0] == 0
    assert found[-1] == length - size
    steps = np.diff(found)
    assert (steps <= stride).all()
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_pieces_that_cover_nothing_are_refused():
    with pytest.raises(ValueError, match="pieces of 5, at most 2 apart, can't cover 4"):
        starts(4, 5, 2)
    with pytest.raises(ValueError, match="at most 0 apart"):
        starts(4, 2, 0)


def test_windows_are_cut_as_by_slicing():
    image, corners = normal(20, 30, 3), window_corners(20, 30, 8, 4)
    assert corners.tolist()[:2] == [[0, 0], [0, 4]]
    assert corners.tolist()[-1] == [12, 22]
    found = cut_windows(image, corners, size=8)
    for window, (y, x) in zip(found, corners, strict=True):
        np.testing.assert_array_equal(window, image[y : y + 8, x : x + 8])


def test_coverage_by_hand():
    """Two windows of 4 over a row of 8 cells of one pixel each, from 0 and from 3: cells' middles are 0.5, 1.5, …"""
    found = coverage(np.asarray([[0, 0], [0, 3]]), 4, (4, 7), (1, 7))[0]
    near = np.maximum(0, 1 - np.abs((np.arange(7) + 0.5)[:, None] - np.asarray([2.0, 5.0])) / 2.5) ** 6
    np.testing.assert_allclose(found, near / near.sum(axis=1, keepdims=True), atol=1e-6)
    assert found[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="leave out a part of the 1 × 9 cells"):
        coverage(np.asarray([[0, 0]]), 4, (4, 12), (1, 9))


@given(st.integers(8, 60), st.integers(8, 60), st.integers(1, 8), st.integers(1, 30), st.integers(1, 30))
def test_weights_of_the_windows_sum_to_one(height, width, stride, rows, columns):
    corners = window_corners(height, width, 8, min(stride, 4))
    found = coverage(corners, 8, (height, width), (rows, columns))
    assert found.shape == (rows, columns, len(corners))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


def test_windows_are_images_of_their_own(clip, embeddings):
    side = clip.model.config.vision.image_size
    windows = normal(3, side, side, 3)
    found = window_similarities(clip.model, windows, embeddings)
    wanted = np.stack([np.asarray(clip.encode_pixels(window[None]))[0] @ embeddings.T for window in windows])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_patches_are_patch_features_by_cosine(clip, embeddings):
    pixels = normal(2, 24, 32, 3)
    features = np.asarray(clip.model.vision.patch_features(jnp.asarray(pixels)), np.float64)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    np.testing.assert_allclose(patch_similarities(clip.model, pixels, embeddings), features @ embeddings.T, atol=1e-6)


def test_relevance_is_a_softmax_in_which_the_background_competes():
    cosines = np.tanh(normal(4, 5, 7))
    found = relevance(cosines, 20.0, prompts=3)
    wanted = softmax(20 * cosines.astype(np.float64), axis=-1)[..., :3]
    np.testing.assert_allclose(found, np.moveaxis(wanted, -1, 0), atol=1e-6)
    assert found.dtype == jnp.float32


def test_views_agree_by_the_geometric_mean():
    cosines = np.tanh(normal(3, 4, 5, 7))
    found = agreed_relevance(cosines, 20.0, prompts=2)
    wanted = np.prod(softmax(20 * cosines.astype(np.float64), axis=-1)[..., :2], axis=0) ** (1 / 3)
    np.testing.assert_allclose(found, np.moveaxis(wanted, -1, 0), atol=1e-6)
    np.testing.assert_allclose(agreed_relevance(cosines[:1], 1e4, prompts=2), relevance(cosines[0], 1e4, prompts=2))


def test_maps_go_through_vmap_and_grad(clip, embeddings):
    pixels = normal(3, 1, 16, 24, 3)

    def of_one(pixels):
        return relevance(patch_similarities(clip.model, pixels, embeddings), 10.0, prompts=2)[:, 0]

    mapped = jax.vmap(of_one)(pixels)
    np.testing.assert_allclose(mapped, np.stack([of_one(one) for one in pixels]), atol=1e-6)
    side = clip.model.config.vision.image_size
    corners = window_corners(side + 4, side + 4, side, 4)

    def by_windows(image):
        windows = cut_windows(image, corners, size=side)
        spread = coverage(corners, side, (side + 4, side + 4), (3, 3))
        return relevance(
            jnp.einsum("rcw,wk->rck", spread, window_similarities(clip.model, windows, embeddings)), 10.0, prompts=1
        )

    images = normal(2, side + 4, side + 4, 3)
    np.testing.assert_allclose(jax.vmap(by_windows)(images), np.stack([by_windows(one) for one in images]), atol=1e-6)
    gradient = jax.grad(lambda image: by_windows(image).max())(jnp.asarray(images[0]))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_interpolation_is_linear_between_middles_of_cells():
    found = interpolated(np.asarray([[0.0, 1.0]], np.float32), (3, 8))
    np.testing.assert_allclose(found[0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-6)
    assert (found == found[0]).all()
    cells = normal(2, 5, 6)
    np.testing.assert_allclose(interpolated(cells, (5, 6)), cells, atol=1e-6)
