import numpy as np
import pytest

from jaxclip.tasks.similarity_matrix import similarity_matrix

TEXTS = ["two dogs", "a cat", "a cat"]


def test_cosines_of_all_pairs(clip, photos):
    (photos / "bad.png").write_text("no photo")
    matrix = similarity_matrix(clip, TEXTS, photos)
    paths = [path for path in sorted(photos.iterdir()) if path.name != "bad.png"]
    assert (matrix.texts, matrix.images) == (TEXTS, paths)
    expected = np.asarray(clip.encode_text(TEXTS)) @ np.asarray(clip.encode_image(paths)).T
    assert matrix.values.shape == (3, 20)
    assert matrix.values.dtype == np.float32
    np.testing.assert_allclose(matrix.values, expected, atol=1e-6)
    assert np.ptp(matrix.values) > 0.01
    ((path, reason),) = matrix.skipped
    assert path == photos / "bad.png"
    assert "no image format" in reason


def test_of_some_files_in_their_order(clip, photos):
    matrix = similarity_matrix(clip, TEXTS, [photos / "05.png", str(photos / "03.png")])
    assert matrix.images == [photos / "05.png", photos / "03.png"]
    whole = similarity_matrix(clip, TEXTS, photos).values
    np.testing.assert_allclose(matrix.values, whole[:, [5, 3]], atol=1e-6)
    assert similarity_matrix(clip, TEXTS, photos / "05.png").images == [photos / "05.png"]


def test_one_text_is_not_taken_for_its_letters(clip, photos):
    with pytest.raises(TypeError, match="similarity_matrix takes an iterable of strings"):
        similarity_matrix(clip, "a cat", photos)


def test_of_nothing(clip, tmp_path):
    matrix = similarity_matrix(clip, TEXTS, tmp_path)
    assert (matrix.values.shape, matrix.images, matrix.skipped) == ((3, 0), [], [])
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        similarity_matrix(clip, TEXTS, tmp_path / "nowhere")
