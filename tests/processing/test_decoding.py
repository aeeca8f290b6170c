"""Opening image files: the first frame, fully decoded, or an ImageError that names the file and the mend."""

import warnings
from io import BytesIO

import numpy as np
import pytest
from image_cases import in_mode, pattern
from PIL import Image

from jaxclip.processing import ImageError, open_image

MODES = {
    "PNG": ("1", "L", "LA", "RGB", "RGBA", "P", "I;16"),
    "TIFF": ("CMYK", "F"),
    "GIF": ("P",),
    "BMP": ("RGB",),
}


def encoded(image: Image.Image, format: str = "PNG", **settings) -> bytes:
    file = BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes])
def test_paths_and_contents_give_what_pillow_reads(tmp_path, format, mode):
    image = in_mode(mode, 9, 14)
    path = tmp_path / f"image.{format}"
    path.write_bytes(encoded(image, format))
    with Image.open(path) as expected:
        for source in (path, str(path), path.read_bytes()):
            opened = open_image(source)
            assert opened.mode == expected.mode
            np.testing.assert_array_equal(np.asarray(opened), np.asarray(expected))


def test_the_file_is_not_needed_any_more(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(in_mode("RGB", 9, 14)))
    image = open_image(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image), pattern(9, 14, 4)[..., :3])


def test_the_first_frame_of_an_animation():
    frames = [in_mode("P", 9, 14), in_mode("P", 9, 14).transpose(Image.Transpose.ROTATE_180)]
    opened = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_an_option(orientation):
    """Trap 13: as the camera held it (the reference's processor), unless the upright photo is asked for."""
    image = Image.fromarray(pattern(9, 14))
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encoded(image, exif=exif)
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x.swapaxes(0, 1)[:, ::-1],
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: x.swapaxes(0, 1)[::-1],
    }[orientation]
    np.testing.assert_array_equal(np.asarray(open_image(contents)), pattern(9, 14))
    np.testing.assert_array_equal(np.asarray(open_image(contents, exif_rotation=True)), upright(pattern(9, 14)))


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(ImageError, match=r"missing\.jpg'?: no such file"):
        open_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="downloaded first"):
        open_image("https://example.org/photo.jpg")
    with pytest.raises(ImageError, match="can't be opened"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="image of 5 bytes: no image format"):
        open_image(b"hello")
    with pytest.raises(ImageError, match="image of 0 bytes: no image format"):
        open_image(b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files(tmp_path, format):
    path = tmp_path / f"half.{format}"
    contents = encoded(Image.fromarray(pattern(60, 80)), format)
    path.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ImageError, match=rf"half\.{format}'?: (truncated or damaged|no image format)"):
        open_image(path)


def test_every_prefix_of_a_file_is_an_image_or_an_image_error():
    contents = encoded(in_mode("P", 9, 14, transparency=3))
    refused = 0
    for end in range(len(contents)):
        try:
            assert open_image(contents[:end]).size == (14, 9)
        except ImageError:
            refused += 1
    assert refused > contents.index(b"IDAT"), "without its pixels no prefix is an image"


def test_decompression_bombs(monkeypatch):
    """Pillow warns above its limit and raises above twice the limit."""
    image = encoded(Image.new("L", (15, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS if you trust it"):
        open_image(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_image(image).size == (15, 10)
    assert [warning.category for warning in caught] == [Image.DecompressionBombWarning]


def test_image_error_is_a_value_error():
    assert issubclass(ImageError, ValueError)
