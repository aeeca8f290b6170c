import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxclip.tasks.class_files import read_embeddings, read_labels, read_templates


def test_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text(
        "n01440764\ttench, Tinca tinca\n\n cat , kitten,\nEnglish springer\nn2\tdog\r\n", encoding="utf-8-sig"
    )
    assert read_labels(path) == {
        "n01440764": ["tench", "Tinca tinca"],
        "cat": ["cat", "kitten"],
        "English springer": ["English springer"],
        "n2": ["dog"],
    }
    assert list(read_labels(path)) == ["n01440764", "cat", "English springer", "n2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no class in it"),
        (b"cat\n , \n", "the line ' , ' has no name of a class"),
        (b"n1\t\n", r"the line 'n1\\t' has no name of a class"),
        (b"cat\na\tb\ncat, kitten\n", "the class 'cat' comes twice"),
        (b"cat\nd\xff\n", "line 2 is no UTF-8 text"),
    ],
)
def test_labels_that_are_none(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_labels(tmp_path / "labels.txt")
    assert str(tmp_path / "labels.txt") in str(raised.value)


def test_templates(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a photo of a {}.\n\n  {} \n")
    assert read_templates(path) == ["a photo of a {}.", "{}"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="there is no template in it"):
        read_templates(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_embeddings(tmp_path, dtype):
    values = np.array([[1.5, -2, 0], [0.25, 4, 8]])
    save_file({"text_embeds": values.astype(dtype)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.safetensors"), values)
    if dtype != ml_dtypes.bfloat16:  # .npy has no name for it.
        np.save(tmp_path / "a.npy", values.astype(dtype))
        np.testing.assert_array_equal(read_embeddings(tmp_path / "a.npy"), values)
    assert read_embeddings(tmp_path / "a.safetensors").dtype == np.float32


def test_embeddings_that_are_none(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "ids.npy", np.zeros((3, 4), np.int64))
    np.save(tmp_path / "pickle.npy", np.array([{}], object))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("1 2 3")
    save_file({"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}, tmp_path / "two.safetensors")
    for name, message in {
        "a.npy": r"expected floats of shape \(classes, width\), found float32 \(3,\)",
        "ids.npy": "found int64",
        "pickle.npy": "allow_pickle",
        "broken.npy": "broken.npy: ",
        "broken.safetensors": "broken.safetensors: ",
        "a.txt": "are read from .npy and .safetensors files",
        "two.safetensors": "it holds 2 tensors",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_embeddings(tmp_path / name)
    for name in ("nowhere.npy", "nowhere.safetensors"):
        with pytest.raises(FileNotFoundError):
            read_embeddings(tmp_path / name)
