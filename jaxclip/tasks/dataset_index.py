"""The vectors of a dataset's rows, kept in an index as those of a folder's photos are."""

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxclip.clip import Clip
from jaxclip.processing import ImageLike
from jaxclip.tasks.blocks import Record
from jaxclip.tasks.images import ImageName
from jaxclip.tasks.index import Index, identity
from jaxclip.tasks.manifest import NAME, Manifest, is_index
from jaxclip.tasks.photos import stream_named
from jaxclip.tasks.writer import LOCK, IndexWriter, blocks_of, discard_leftovers, locked


def embed_rows(
    clip: Clip,
    images: Iterable[tuple[int, ImageLike]],
    folder: str | os.PathLike,
    *,
    name: str,
    skipped: list[tuple[ImageName, str]],
    batch_size: int | None = None,
) -> tuple[Index, int]:
    """Makes `folder` an index of a dataset's images (row numbers with the files' contents), or goes on with the one
    that is there, and says how many rows were encoded now.

    A row's path in the index is its number, and its size and checksum stand for the photo's size and time: rows that
    are there with the same are not encoded again. What was encoded is kept as by `embed_folder`, whatever ends the
    work. What can't be read goes to `skipped` and is tried again each time.

    Raises ValueError when the index is another model's or another dataset's, FileExistsError when the folder holds
    something else, and `IndexInUseError` while another process works on it.
    """
    folder = Path(folder)
    preprocessing = {**clip.image_processor.to_hub(), "exif_rotation": True}
    width = clip.model.tower("vision").config.projection_dim or 0
    wanted = Manifest(identity(clip), preprocessing, width, name, {}, 0)
    if folder.exists() and not is_index(folder) and set(os.listdir(folder)) - {LOCK, f"{NAME}.part"}:
        raise FileExistsError(f"{folder}: holds other files; name a new or an empty folder for the index")
    with locked(folder):
        if is_index(folder):
            _check(Index.open(folder), clip, wanted)
        else:
            wanted.write(folder)
        discard_leftovers(folder)
        manifest = Manifest.read(folder)
        known = {record.path: record for block in blocks_of(folder, manifest) for record in block.records()}
        waiting: dict[ImageName, Record] = {}
        seen: set[str] = set()

        def new() -> Iterator[tuple[ImageName, ImageLike]]:
            for row, image in images:
                record = _record(row, image)
                seen.add(record.path)
                if record.path not in known:
                    waiting[row] = record
                    yield row, image
                elif record != known[record.path]:
                    raise ValueError(
                        f"{folder}: the index has another image {row}: name another folder for this dataset"
                    )

        encoded, writer = 0, IndexWriter(folder, manifest, {})
        try:
            for rows, vectors in stream_named(clip, new(), skipped, batch_size=batch_size):
                writer.add(vectors, [waiting.pop(row) for row in rows])
                encoded += len(rows)
            if known.keys() - seen:
                raise ValueError(f"{folder}: the index has other images as well: name another folder for this dataset")
            writer.finish()
        except BaseException as error:
            try:
                writer.commit()
            except Exception as failure:  # Nor may a full disk take the place of Ctrl-C.
                error.add_note(f"What was encoded since the last block could not be saved: {failure}")
            raise
        return Index.open(folder), encoded


def _check(index: Index, clip: Clip, wanted: Manifest) -> None:
    index.check(clip)
    index.check_preprocessing(clip)
    here = index.manifest
    for what, ours, theirs in (("dtype", here.model.dtype, wanted.model.dtype), ("root", here.root, wanted.root)):
        if ours != theirs:
            raise ValueError(
                f"{index.folder}: the index has the {what} {ours}, and this would be {theirs}: name another folder"
            )


def _record(row: int, image: ImageLike) -> Record:
    content = image
    if isinstance(image, os.PathLike):
        try:
            content = Path(image).read_bytes()
        except OSError:  # Whoever decodes it says so.
            return Record(str(row), -1, -1)
    assert isinstance(content, bytes)
    return Record(str(row), len(content), zlib.crc32(content))
