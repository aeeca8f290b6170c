"""The vectors of a folder's photos, kept on the disk: made once, kept up to date, and searched without the photos."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jaxclip.batching import padded, split
from jaxclip.bundled import model_folder
from jaxclip.clip import Clip
from jaxclip.similarity import TopK, top_k
from jaxclip.tasks.blocks import ROWS, Block, Record
from jaxclip.tasks.fingerprint import fingerprints
from jaxclip.tasks.hits import Hit
from jaxclip.tasks.manifest import NAME, Manifest, ModelIdentity, is_index
from jaxclip.tasks.photos import Skipped, files_under, stream_photos
from jaxclip.tasks.writer import LOCK, IndexWriter, blocks_of, discard_leftovers, locked

# Numbers of queries that are compared with a block at a time, at most 4 MiB of scores; others are filled up to one.
_QUERIES = (256, 128, 64, 32, 16, 8, 4, 2, 1)


class IndexChangedError(ValueError):
    """The folder holds another index than it did when it was opened."""


class Index:
    """The vectors of some photos, as they were when it was opened.

    The folder is for others to read, too: `manifest.json` says which model made the vectors and lists the blocks; each
    is a safetensors file with the tensor "vectors" (rows, width), float32 of unit length, and a file of JSON lines with
    each row's path (within the manifest's `root`), size in bytes and time of modification in ns.

    - `folder`: where it lies
    - `root`: the folder of the photos
    - `model`: the `ModelIdentity` of what made the vectors
    - `width`: the length of a vector
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        self.root, self.model, self.width = Path(manifest.root), manifest.model, manifest.width
        self._blocks = blocks_of(folder, manifest)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Index":
        """Reads the manifest, and checks that the blocks are there, but reads no vector.

        Raises FileNotFoundError where there is no index, and ValueError for one that is damaged or was written by a
        newer jaxclip.
        """
        folder = Path(folder)
        while True:
            index = cls(folder, Manifest.read(folder))
            try:
                for block in index._blocks:
                    block.check()
                return index
            except ValueError:
                # An embed may have put the blocks into others since.
                if Manifest.read(folder) == index.manifest:
                    raise

    def __len__(self) -> int:
        return sum(block.rows for block in self._blocks)

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {len(self)} photos of {str(self.root)!r})"

    @property
    def paths(self) -> list[Path]:
        """The photos, in the order of the rows."""
        with self._reading():
            return [self.root / record.path for block in self._blocks for record in block.records()]

    def vectors(self) -> Iterator[Float32[np.ndarray, "rows width"]]:
        """The vectors of unit length, in the order of the rows: up to 4096 at a time, of which each is read when its
        turn comes. Raises `IndexChangedError`, a ValueError, when an embed has changed the folder since."""
        for block in self._blocks:
            yield self._read(block)

    def _read(self, block: Block) -> Float32[np.ndarray, "rows width"]:
        with self._reading():
            return block.vectors()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Tells a damaged index from one that an embed has put into other blocks since."""
        try:
            yield
        except ValueError as error:
            if Manifest.read(self.folder) == self.manifest:
                raise
            raise IndexChangedError(
                f"{self.folder}: the index has changed since it was opened: open it again"
            ) from error

    def search(self, queries: Float[np.ndarray, "*n width"] | Float[Array, "*n width"], top: int = 10) -> list[Any]:
        """The `top` photos that are most similar to a query (width,), best first, as a list of `Hit`; for many queries
        (n, width) a list of such lists.

        Scores are cosines; the search is exact, and equal ones come in the order of the rows. Blocks go by one after
        the other and nothing of them is kept, so that memory doesn't grow with the index. Raises ValueError for queries
        of another width, for zero and non-finite ones, and when `top` is not at least 1; and `IndexChangedError`, a
        ValueError too, when an embed has changed the folder since: open it again.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        # In float64 and by the largest entry first: neither the length nor its square leaves the range.
        wanted = np.asarray(queries, np.float64)
        if wanted.ndim not in (1, 2) or wanted.shape[-1] != self.width:
            raise ValueError(f"queries must be ({self.width},) or (n, {self.width}), got {wanted.shape}")
        many = np.atleast_2d(wanted)
        largest = np.abs(many).max(axis=1, keepdims=True, initial=0)
        if not (np.isfinite(largest).all() and largest.all()):
            raise ValueError("queries must be finite and not zero: such a vector has no direction")
        many = many / largest
        many = many / np.linalg.norm(many, axis=1, keepdims=True)
        scores, rows = self._nearest(many.astype(np.float32), min(top, len(self)))
        paths = self._paths(rows)
        hits = [
            [Hit(paths[row], score) for row, score in zip(*pair, strict=True)]
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        return hits[0] if wanted.ndim == 1 else hits

    def _nearest(
        self, queries: Float32[np.ndarray, "n width"], top: int
    ) -> tuple[Float32[np.ndarray, "n top"], Int[np.ndarray, "n top"]]:
        scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        start = 0
        for block in self._blocks:
            # One shape for all blocks, so that one program is compiled; on the device once for all queries.
            vectors = self._read(block)
            if block.rows < ROWS:
                vectors = np.concatenate([vectors, np.zeros((ROWS - block.rows, self.width), np.float32)])
            placed = jnp.asarray(vectors)
            new_scores, new_rows = [], []
            for some, size in split(len(queries), _QUERIES):
                found = _in_block(jnp.asarray(padded(queries[some], size)), placed, block.rows, k=min(top, ROWS))
                new_scores.append(np.asarray(found.values)[: some.stop - some.start, : block.rows])
                new_rows.append(np.asarray(found.indices)[: some.stop - some.start, : block.rows] + start)
            if new_scores:
                # Stable, and the earlier rows first: ties are in the order of the rows.
                scores = np.concatenate([scores, np.concatenate(new_scores)], axis=1)
                rows = np.concatenate([rows, np.concatenate(new_rows)], axis=1)
                order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
                scores, rows = (np.take_along_axis(x, order, axis=1) for x in (scores, rows))
            start += block.rows
        return scores, rows

    def _paths(self, rows: Int[np.ndarray, "n top"]) -> dict[int, Path]:
        """Row → its photo; each block that has one of them is read once."""
        found, wanted, start = {}, np.unique(rows), 0
        for block in self._blocks:
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + block.rows)].tolist()
            if here:
                with self._reading():
                    records = block.records(row - start for row in here)
                found |= {row: self.root / record.path for row, record in zip(here, records, strict=True)}
            start += block.rows
        return found

    def check(self, clip: Clip) -> None:
        """Raises ValueError, naming both, when another model than the handle's made the vectors.

        The parameters decide, by the towers that both have. Where they have none in common (a text tower here, only
        photos' there), it is the name of what was loaded.
        """
        ours, theirs = identity(clip), self.model
        common = ours.fingerprints.keys() & theirs.fingerprints.keys()
        same = (
            all(ours.fingerprints[tower] == theirs.fingerprints[tower] for tower in common)
            if common
            else ours.source is not None and (ours.source, ours.revision) == (theirs.source, theirs.revision)
        )
        if not same:
            raise ValueError(
                f"{self.folder}: the index was made with {theirs}, and this is {ours}: use the model of the index, or "
                "embed the photos into another folder with this one"
            )

    def check_preprocessing(self, clip: Clip) -> None:
        """Raises ValueError, naming both, when the handle's images aren't preprocessed as those of the index."""
        ours = _preprocessing(clip)
        if ours != self.manifest.preprocessing:
            raise ValueError(
                f"{self.folder}: the index has the preprocessing {self.manifest.preprocessing}, and this would be "
                f"{ours}: use the image processor of the index, or embed into another folder"
            )


@partial(jax.jit, static_argnames="k")
def _in_block(
    queries: Float32[Array, "n width"], vectors: Float32[Array, "block width"], rows: Int[Array, ""] | int, *, k: int
) -> TopK:
    # What fills up a block is no hit: one more coordinate puts its score at -4, where no cosine is.
    extra = jnp.where(jnp.arange(vectors.shape[0]) < rows, 0.0, -4.0).astype(vectors.dtype)
    queries = jnp.concatenate([queries, jnp.ones((queries.shape[0], 1), queries.dtype)], axis=1)
    return top_k(queries, jnp.concatenate([vectors, extra[:, None]], axis=1), k, metric="dot_product")


def identity(clip: Clip) -> ModelIdentity:
    """What tells the handle's model from others, as a manifest holds it.

    A local folder's name is made absolute, so that the index finds its model from any working folder. The `subfolder`
    that `jaxclip.load` took is not recorded: who loads the model for such an index has to name it again.
    """
    tower = clip.model.tower("vision" if clip.model.vision is not None else "text")
    dtype = "tensorfloat32" if tower.precision == "tensorfloat32" else jnp.dtype(tower.dtype).name
    source = clip.source
    if source is not None and model_folder(source) is None and os.path.isdir(source):
        source = os.path.abspath(source)
    return ModelIdentity(source, clip.revision, dtype, fingerprints(clip.model))


def _preprocessing(clip: Clip) -> dict[str, Any]:
    return {**clip.image_processor.to_hub(), "exif_rotation": True}


@dataclass(frozen=True)
class EmbedResult:
    """What `embed_folder` did.

    - `index`: as it is now
    - `added`, `changed`, `removed`, `unchanged`: numbers of photos, of which the first two were encoded; a photo that
      changed so that it can't be read any more has been removed
    - `skipped`: files and folders that couldn't be read, with the reason for each
    """

    index: Index
    added: int
    changed: int
    removed: int
    unchanged: int
    skipped: Skipped


def embed_folder(
    clip: Clip, photos: str | os.PathLike, folder: str | os.PathLike, *, batch_size: int | None = None
) -> EmbedResult:
    """Makes `folder` an index of all photos under `photos`, or brings the index that is there up to date.

    Photos whose size and time of modification are the same are not read again; changed ones are encoded anew, and those
    that are gone leave the index. Photos in folders that can't be listed stay, as do those of a linked folder that is
    out of reach. Files that can't be read are named in the result, and tried again each time. Photos are turned as
    their EXIF orientation says.

    What was encoded is part of the index after every 4096 photos and every minute, and when an exception (Ctrl-C, say)
    ends the work; whatever ends the process, a whole index is left, and the next call goes on from there.

    Raises FileNotFoundError or NotADirectoryError when `photos` is no folder, or `folder` a file; FileExistsError when
    it holds something else; `IndexInUseError`, an OSError, while another process works on the index; and ValueError
    when it is another model's or another folder's, when it is damaged, or when there is not one photo to begin with.
    """
    root, folder, made = Path(photos), Path(folder), not os.path.lexists(folder)
    if not root.is_dir():
        kind = NotADirectoryError if root.exists() else FileNotFoundError
        raise kind(f"{root}: no {'folder' if root.exists() else 'such folder'}; embed takes a folder of photos")
    clip.encoder.batch_size("image", batch_size)  # Raises before anything is done.
    wanted = Manifest(
        model=identity(clip),
        preprocessing=_preprocessing(clip),
        width=clip.model.tower("vision").config.projection_dim or 0,
        root=os.path.abspath(root),
        blocks={},
        next_block=0,
    )
    if not made and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no folder; an index is one")
    if not made and not is_index(folder) and set(os.listdir(folder)) - {LOCK, f"{NAME}.part"}:
        raise FileExistsError(f"{folder}: holds other files; name a new or an empty folder for the index")
    try:
        with locked(folder):
            return _embed(clip, root, folder, wanted, batch_size)
    finally:
        # What became no index leaves nothing behind. The lock goes with its folder, once nobody here holds it.
        if made and not is_index(folder):
            with contextlib.suppress(OSError):
                if set(os.listdir(folder)) <= {LOCK}:
                    (folder / LOCK).unlink(missing_ok=True)
                    folder.rmdir()


def _embed(clip: Clip, root: Path, folder: Path, wanted: Manifest, batch_size: int | None) -> EmbedResult:
    """With the lock held."""
    fresh = not is_index(folder)
    if fresh:
        wanted.write(folder)
        manifest = wanted
    else:
        index = Index.open(folder)
        index.check(clip)
        _check_settings(index, wanted)
        index.check_preprocessing(clip)
        manifest = index.manifest
    discard_leftovers(folder)
    try:
        result = _update(clip, root, folder, manifest, batch_size)
        if fresh and not len(result.index):
            reasons = "".join(f"; {reason}" for _, reason in result.skipped[:3])
            raise ValueError(f"{root}: no photo there that could be read, of {len(result.skipped)} files{reasons}")
        return result
    finally:
        discard_leftovers(folder)
        if fresh and not Manifest.read(folder).blocks:
            (folder / NAME).unlink()


def _check_settings(index: Index, wanted: Manifest) -> None:
    here, there = index.manifest, wanted
    for what, ours, theirs, mend in (
        ("dtype", here.model.dtype, there.model.dtype, f"load the model with dtype={here.model.dtype!r}"),
        ("root", os.path.realpath(here.root), os.path.realpath(there.root), f"embed {here.root}"),
    ):
        if ours != theirs:
            raise ValueError(
                f"{index.folder}: the index has the {what} {ours}, and this would be {theirs}: {mend}, or embed into "
                "another folder"
            )


def _update(clip: Clip, root: Path, folder: Path, manifest: Manifest, batch_size: int | None) -> EmbedResult:
    skipped: Skipped = []
    unlisted: set[str] = set()

    def on_error(path: Path, reason: str) -> None:
        skipped.append((path, reason))
        unlisted.add(_within(root, path))

    found = {_within(root, path): _record(root, path) for path in files_under(root, on_error=on_error)}
    # A link to nowhere is listed as a file, and may have been a folder.
    unlisted |= {path for path, record in found.items() if record.size < 0}
    unchanged: set[str] = set()
    outdated: dict[str, str] = {}
    for block in blocks_of(folder, manifest):
        for record in block.records():
            # What is under a folder that couldn't be listed isn't known to be gone.
            above = map(str, PurePosixPath(record.path).parents)
            if found[record.path] == record if record.path in found else not unlisted.isdisjoint(above):
                unchanged.add(record.path)
            else:
                outdated[record.path] = block.name
    work = [path for path in found if path not in unchanged]
    encoded: set[str] = set()
    writer = IndexWriter(folder, manifest, outdated)
    try:
        if work:
            photos = (root / path for path in work)
            for paths, vectors in stream_photos(clip, photos, skipped, batch_size=batch_size, total=len(work)):
                records = [found[_within(root, path)] for path in paths]
                writer.add(vectors, records)
                encoded.update(record.path for record in records)
        writer.finish()
    except BaseException as error:
        try:
            writer.commit()
        except Exception as failure:  # Nor may a damaged block, or a lack of memory, take the place of Ctrl-C.
            error.add_note(f"What was encoded since the last block could not be saved: {failure}")
        raise
    return EmbedResult(
        Index.open(folder),
        added=len(encoded - outdated.keys()),
        changed=len(encoded & outdated.keys()),
        removed=len(outdated.keys() - encoded),
        unchanged=len(unchanged),
        skipped=sorted(skipped),
    )


def _within(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _record(root: Path, path: Path) -> Record:
    """As it is before the photo is read: one that changes meanwhile differs the next time, as does one that nothing can
    be told of."""
    try:
        status = path.stat()
    except OSError:
        return Record(_within(root, path), -1, -1)
    return Record(_within(root, path), status.st_size, status.st_mtime_ns)
