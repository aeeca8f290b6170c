"""`load`, and the handle that it gives: strings and photos in, vectors out.

Composes the layers below and adds no mathematics of its own.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.checkpoints.files import Files, locate, read_json, weight_files
from jaxclip.checkpoints.load import fill_model
from jaxclip.checkpoints.save import replacing_checkpoint, save_model, write_json
from jaxclip.checkpoints.tensors import open_tensors
from jaxclip.config import CLIPConfig, TextConfig
from jaxclip.encoder import Encoder
from jaxclip.nn import CLIP
from jaxclip.processing import TOKENIZER_FILES, ImageLike, ImageProcessor, Tokenizer, is_single_image
from jaxclip.streaming import EncodedBatch, stream_images, stream_texts

IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load(
    source: str | os.PathLike = "openai/clip-vit-base-patch32",
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    towers: Literal["both", "text", "vision"] = "both",
    model: Callable[..., CLIP] = CLIP,
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    devices: Sequence[Any] | None = None,
) -> "Clip":
    """Loads a CLIP checkpoint: a local folder, or a Hugging Face Hub id (fetched into, and found in, its cache).

    - `revision`: a branch, tag or commit of the Hub; `subfolder`: where in the repository or folder the files lie
    - `towers`: "text" or "vision" loads one tower of a joint checkpoint
    - `model`: a subclass of `jaxclip.nn.CLIP`, or any callable with its arguments, to be filled instead
    - `dtype`: the computation's: float32 (always at full precision), tensorfloat32, bfloat16 or float16
    - `param_dtype`: the parameters'; half-precision files are up-cast unless told otherwise
    - `devices`: what the handle encodes on, each batch split among them; by default all of this process's

    Raises `CheckpointError` when files can't be had or are damaged, or when tensors are missing, unexpected or of the
    wrong shape, and ValueError when a tower is asked for that isn't there. What a checkpoint lacks besides (a
    tokenizer, a tower) raises when it is asked for.
    """
    files = locate(source, revision=revision, subfolder=subfolder)
    config_file = files.require("config.json")
    try:
        whole = CLIPConfig.from_hub(read_json(config_file))
    except ValueError as error:
        raise CheckpointError(f"{config_file}: {error}") from error
    config = whole.select(towers)
    filled, stored_dtypes = fill_model(
        open_tensors(weight_files(files)), config, whole, model=model, dtype=dtype, param_dtype=param_dtype
    )
    wanted = (*(TOKENIZER_FILES if config.text else ()), *(IMAGE_PROCESSOR_FILES if config.vision else ()))
    clip = Clip(filled, devices=devices)
    clip._origin = _Origin(files, {name: path for name in wanted if (path := files.find(name))}, stored_dtypes)
    return clip


@dataclass(frozen=True)
class _Origin:
    """What a handle knows of the checkpoint that it was loaded from."""

    files: Files
    found: Mapping[str, Path]
    stored_dtypes: Mapping[str, np.dtype]


class Clip:
    """A model with the tokenizer and the image processor that belong to it.

    - `model`: the Flax NNX module (`jaxclip.nn.CLIP`); its methods are pure functions of arrays
    - `tokenizer`, `image_processor`: read when first asked for, or your own; CheckpointError when the checkpoint has
      none, or a damaged one
    - `source`, `revision`: where it was loaded from (for the Hub, the commit), or None
    - `encoder`: what compiles for few shapes and spreads batches over the devices

    `Clip(model, tokenizer=..., image_processor=...)` makes a handle of a model of your own. Model, tokenizer and image
    processor can be replaced.
    """

    _origin: _Origin | None = None

    def __init__(
        self,
        model: CLIP,
        *,
        tokenizer: Tokenizer | None = None,
        image_processor: ImageProcessor | None = None,
        devices: Sequence[Any] | None = None,
    ):
        self.model = model
        self.encoder = Encoder(devices)
        self._own: dict[str, Any] = {"tokenizer": tokenizer, "image_processor": image_processor}

    def __repr__(self) -> str:
        towers = " and ".join(tower for tower in ("text", "vision") if getattr(self.model, tower))
        return f"Clip({self.source or 'unsaved'!r}, {towers})"

    @property
    def source(self) -> str | None:
        return self._origin and self._origin.files.source

    @property
    def revision(self) -> str | None:
        return self._origin and self._origin.files.revision

    @property
    def tokenizer(self) -> Tokenizer:
        return self._own["tokenizer"] or self._stored_tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._own["tokenizer"] = tokenizer

    @property
    def image_processor(self) -> ImageProcessor:
        return self._own["image_processor"] or self._stored_image_processor

    @image_processor.setter
    def image_processor(self, image_processor: ImageProcessor) -> None:
        self._own["image_processor"] = image_processor

    @cached_property
    def _stored_tokenizer(self) -> Tokenizer:
        text = self.model.tower("text").config
        files = self._stored_files("tokenizer", TOKENIZER_FILES, "encode_text takes token ids")
        try:
            return Tokenizer.from_files(files, max_length=text.max_position_embeddings)
        except (ValueError, FileNotFoundError) as error:
            raise CheckpointError(f"{self.source}: {error}") from error

    @cached_property
    def _stored_image_processor(self) -> ImageProcessor:
        self.model.tower("vision")
        return read_image_processor(
            self._stored_files("image processor", IMAGE_PROCESSOR_FILES, "encode_pixels takes pixels")
        )

    def _stored_files(self, what: str, names: Iterable[str], instead: str) -> dict[str, Path]:
        found = {name: path for name, path in self._origin.found.items() if name in names} if self._origin else {}
        if found:
            return found
        mend = f"Give the handle one (clip.{what.replace(' ', '_')} = ...), or do without: {instead}."
        if self._origin is None:
            raise CheckpointError(f"this handle was given no {what}. {mend}")
        raise CheckpointError(f"{self._origin.files.missing(*names)} So there is no {what}. {mend}")

    def encode_text(
        self,
        texts: str | Iterable[str] | Int[np.ndarray, "*n tokens"] | Int[Array, "*n tokens"],
        *,
        normalize: bool = True,
    ) -> Float[Array, "n projection"] | Float[Array, " projection"]:
        """Texts in the joint space: (projection,) for one, (n, projection) for many; float32, unit length.

        A text is a string, or a row of an array of token ids. Strings longer than the model's positions are truncated,
        as the reference does (`clip.tokenizer` with `truncate=False` raises instead). `normalize=False` gives the raw
        features, transformers' `get_text_features`. Raises ValueError for token ids without EOS or outside the
        vocabulary.
        """
        if isinstance(texts, np.ndarray | jax.Array):
            one, token_ids = texts.ndim == 1, np.atleast_2d(np.asarray(texts))
        else:
            one, token_ids = isinstance(texts, str), self.tokenizer([texts] if isinstance(texts, str) else texts)
        self._check(token_ids)
        features = self.encoder.texts(self.model, token_ids, normalize=normalize).array()
        return features[0] if one else features

    def encode_image(
        self, images: ImageLike | Iterable[ImageLike], *, normalize: bool = True
    ) -> Float[Array, "n projection"] | Float[Array, " projection"]:
        """Images in the joint space: (projection,) for one, (n, projection) for many; float32, unit length.

        An image is a path, a PIL image or an array (height, width, 3) of uint8; `clip.image_processor` has more ways.
        `normalize=False` gives the raw features, transformers' `get_image_features`. Raises ImageError naming the file
        or the index of the first that can't be decoded; `stream_images` goes on with the others.
        """
        self.model.tower("vision")  # Says so where there is none, before any file is read.
        if is_single_image(images):
            return self.encode_pixels(self.image_processor(images), normalize=normalize)[0]
        vectors = []
        images = cast(Iterable[ImageLike], np.asarray(images) if isinstance(images, jax.Array) else images)
        for batch in self.stream_images(images, normalize=normalize):
            if batch.errors:
                raise batch.errors[0].error
            vectors.append(batch.vectors)
        return jax.device_put(np.concatenate(vectors)) if vectors else self.encode_pixels(self.image_processor([]))

    def encode_pixels(
        self,
        pixels: Float[np.ndarray, "n height width channels"] | Float[Array, "n height width channels"],
        *,
        normalize: bool = True,
    ) -> Float[Array, "n projection"]:
        """As `encode_image`, of what `clip.image_processor` made."""
        return self.encoder.images(self.model, np.asarray(pixels), normalize=normalize).array()

    def stream_texts(
        self, texts: Iterable[str], *, normalize: bool = True, batch_size: int | None = None
    ) -> Iterator[EncodedBatch]:
        """Any number of strings in constant memory: batches in order, with the vectors that `encode_text` gives.

        A batch stands for `batch_size` inputs (by default what suits the devices). Some batches are read ahead and
        sorted by length, which spares most of the padding. What is no string, or can't be tokenized, is found in its
        batch's `errors`. Raises TypeError for one string alone.
        """
        if isinstance(texts, str):
            raise TypeError("stream_texts takes an iterable of strings; encode_text takes one")
        tokenizer, size = self.tokenizer, self.encoder.batch_size("text", batch_size)

        def tokenize(texts: list[str]) -> np.ndarray:
            token_ids = tokenizer(texts)
            self._check(token_ids)
            return token_ids

        return stream_texts(self.encoder, self.model, tokenize, texts, normalize=normalize, batch_size=size)

    def stream_images(
        self,
        images: Iterable[ImageLike],
        *,
        normalize: bool = True,
        batch_size: int | None = None,
        exif_rotation: bool = False,
    ) -> Iterator[EncodedBatch]:
        """Any number of images in constant memory: batches in order, with the vectors that `encode_image` gives.

        A batch stands for `batch_size` inputs (by default what suits the devices). Threads decode and resize ahead of
        the model, two batches at most. An image that can't be read is found in its batch's `errors` and stops nothing.
        `exif_rotation` turns photos as their cameras recorded, which the reference doesn't do. Raises TypeError for one
        image alone.
        """
        if is_single_image(images):
            raise TypeError("stream_images takes an iterable of images; encode_image takes one")
        processor, size = self.image_processor, self.encoder.batch_size("image", batch_size)
        return stream_images(
            self.encoder,
            self.model,
            processor,
            images,
            normalize=normalize,
            batch_size=size,
            exif_rotation=exif_rotation,
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a Hugging Face checkpoint that transformers loads unchanged: config, weights, tokenizer and
        preprocessor. Tensors go back in the dtype that they had in the file they came from.

        All files are written before the first takes its place in `folder`, so that a full disk or Ctrl-C leaves it as
        it was; then each is replaced at once, the weights last, and what an earlier checkpoint left there of its
        weights, tokenizer and preprocessor is removed. Other files stay. Raises ValueError for what the format has no
        place for, and for a value that its stored dtype can't hold.
        """
        stored = self._origin.stored_dtypes if self._origin else {}
        with replacing_checkpoint(folder, others=(*TOKENIZER_FILES, *IMAGE_PROCESSOR_FILES)) as staging:
            save_model(self.model, staging, stored)
            for part, names in (("tokenizer", TOKENIZER_FILES), ("image_processor", IMAGE_PROCESSOR_FILES)):
                own = self._own[part]
                if isinstance(own, Tokenizer):
                    own.save(staging)
                elif isinstance(own, ImageProcessor):
                    write_json(staging / "preprocessor_config.json", own.to_hub())
                elif self._origin:
                    self._copy_files(names, staging)

    def _copy_files(self, names: Iterable[str], folder: Path) -> None:
        assert self._origin is not None
        found = {name: path for name, path in self._origin.found.items() if name in names}
        if not found and not self._origin.files.uncached.isdisjoint(names):
            raise self._origin.files.missing(*names)
        for name, path in found.items():
            shutil.copyfile(path, folder / name)

    def _check(self, token_ids: np.ndarray) -> None:
        _check_token_ids(token_ids, self.model.tower("text").config, self._eos_token_id())

    def _eos_token_id(self) -> int | None:
        """The token that ends a text; under the largest-id rule only the tokenizer knows it."""
        text = self.model.tower("text").config
        if text.pooling == "first_eos":
            return text.eos_token_id
        has_tokenizer = self._own["tokenizer"] or (self._origin and set(TOKENIZER_FILES) & self._origin.found.keys())
        return self.tokenizer.eos_token_id if has_tokenizer else None


def read_image_processor(files: Mapping[str, Path]) -> ImageProcessor:
    """The image processor of a checkpoint, from those of `IMAGE_PROCESSOR_FILES` that it has (name to path), at least
    one. Raises CheckpointError for a damaged one."""
    # processor_config.json counts where it tells of images: what transformers < 5 wrote doesn't.
    path = files.get("processor_config.json")
    if path is None or ("preprocessor_config.json" in files and "image_processor" not in read_json(path)):
        path = files["preprocessor_config.json"]
    try:
        return ImageProcessor.from_hub(read_json(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_token_ids(token_ids: np.ndarray, text: TextConfig, eos_token_id: int | None) -> None:
    if token_ids.ndim != 2 or not np.issubdtype(token_ids.dtype, np.integer):
        raise ValueError(
            f"an array of texts holds token ids, integers of shape (n, tokens); got {token_ids.dtype} {token_ids.shape}"
        )
    if token_ids.size and not (token_ids.min() >= 0 and token_ids.max() < text.vocab_size):
        raise ValueError(
            f"token ids must be from 0 to {text.vocab_size - 1}, this model's vocabulary; got {token_ids.min()} to "
            f"{token_ids.max()}"
        )
    # Where nobody knows the EOS, under the largest-id rule without a tokenizer: the largest is then the BOS in front.
    ends = (token_ids == eos_token_id).any(axis=1) if eos_token_id is not None else token_ids.argmax(axis=1) > 0
    if not ends.all():
        raise ValueError(
            f"text {np.flatnonzero(~ends)[0]} has no end-of-text token, which is where this model reads the text off: "
            "truncate so that it stays the last (the tokenizer does)"
        )
