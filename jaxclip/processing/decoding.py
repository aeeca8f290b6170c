"""Image files to Pillow images, with one error for all the ways in which a file can fail."""

import os
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError


class ImageError(ValueError):
    """An image that can't be read or prepared; the message names the file or the index, what is wrong and the mend."""


def open_image(source: str | os.PathLike[str] | bytes, *, exif_rotation: bool = False) -> Image.Image:
    """The first frame of an image file, fully decoded, in the file's own mode.

    `source` is a path or the file's contents. `exif_rotation` turns the photo as its EXIF orientation asks; the
    reference's image processor ignores EXIF, so it is off unless asked for.

    Raises `ImageError` for a file that is missing, unreadable, no image, truncated or damaged, or a
    decompression bomb: of more than twice `PIL.Image.MAX_IMAGE_PIXELS`. Above once that, Pillow warns.
    """
    name = f"an image of {len(source):,} bytes" if isinstance(source, bytes) else f"{os.fspath(source)!r}"
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            if exif_rotation:
                ImageOps.exif_transpose(image, in_place=True)
            return image
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the path (what has a URL must be downloaded first)") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(f"{name}: can't be opened ({error.strerror}); pass a readable image file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: no image format that Pillow knows; convert it to PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name}: {error}. Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError and more
        raise ImageError(f"{name}: truncated or damaged ({error}); fetch or export it again") from error
