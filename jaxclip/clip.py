"""`load`, and the handle that it gives: strings and photos in, vectors out.

Composes the layers below and adds no mathematics of its own.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.checkpoints.files import locate, read_json, weight_files
from jaxclip.checkpoints.load import fill_model
from jaxclip.checkpoints.save import replacing_folder, save_model, write_json
from jaxclip.checkpoints.tensors import open_tensors
from jaxclip.config import CLIPConfig, TextConfig
from jaxclip.nn import CLIP
from jaxclip.processing import TOKENIZER_FILES, ImageLike, ImageProcessor, Tokenizer, is_single_image

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
) -> "Clip":
    """Loads a CLIP checkpoint: a local folder, or a Hugging Face Hub id (fetched into, and found in, its cache).

    - `revision`: a branch, tag or commit of the Hub; `subfolder`: where in the repository or folder the files lie
    - `towers`: "text" or "vision" loads one tower of a joint checkpoint
    - `model`: a subclass of `jaxclip.nn.CLIP`, or any callable with its arguments, to be filled instead
    - `dtype`: the computation's: float32 (always at full precision), tensorfloat32, bfloat16 or float16
    - `param_dtype`: the parameters'; half-precision files are up-cast unless told otherwise

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
    return Clip(
        filled,
        source=files.source,
        revision=files.revision,
        files={name: path for name in wanted if (path := files.find(name))},
        stored_dtypes=stored_dtypes,
    )


class Clip:
    """A model with the tokenizer and the image processor that belong to it.

    - `model`: the Flax NNX module (`jaxclip.nn.CLIP`); its methods are pure functions of arrays
    - `tokenizer`, `image_processor`: made when first asked for; CheckpointError when the checkpoint has none
    - `source`, `revision`: where it was loaded from (for the Hub, the commit), or None

    `Clip(model, tokenizer=..., image_processor=...)` makes a handle of a model of your own.
    """

    def __init__(
        self,
        model: CLIP,
        *,
        tokenizer: Tokenizer | None = None,
        image_processor: ImageProcessor | None = None,
        source: str | None = None,
        revision: str | None = None,
        files: Mapping[str, Path] | None = None,
        stored_dtypes: Mapping[str, np.dtype] | None = None,
    ):
        self.model = model
        self.source = source
        self.revision = revision
        self._files = dict(files or {})
        self._stored_dtypes = dict(stored_dtypes or {})
        if tokenizer is not None:
            self.tokenizer = tokenizer
        if image_processor is not None:
            self.image_processor = image_processor

    def __repr__(self) -> str:
        towers = " and ".join(tower for tower in ("text", "vision") if getattr(self.model.config, tower))
        return f"Clip({self.source or 'unsaved'!r}, {towers})"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        text = self.model.config.text
        if text is None:
            raise ValueError("this model has no text tower, so it has no tokenizer")
        found = {name: path for name, path in self._files.items() if name in TOKENIZER_FILES}
        if not found:
            raise self._lacks("tokenizer", TOKENIZER_FILES, "clip.model.encode_text takes token ids")
        return Tokenizer.from_files(found, max_length=text.max_position_embeddings)

    @cached_property
    def image_processor(self) -> ImageProcessor:
        if self.model.config.vision is None:
            raise ValueError("this model has no vision tower, so it has no image processor")
        for name in IMAGE_PROCESSOR_FILES:
            if name not in self._files:
                continue
            settings = read_json(self._files[name])
            # processor_config.json may be about other things than images: transformers < 5 wrote it so.
            if name == "preprocessor_config.json" or "image_processor" in settings:
                try:
                    return ImageProcessor.from_hub(settings)
                except (ValueError, TypeError) as error:
                    raise CheckpointError(f"{self._files[name]}: {error}") from error
        raise self._lacks("image processor", IMAGE_PROCESSOR_FILES, "clip.model.encode_image takes pixels")

    def encode_text(
        self,
        texts: str | Iterable[str] | Int[np.ndarray, "n tokens"] | Int[Array, "n tokens"],
        *,
        normalize: bool = True,
    ) -> Float[Array, "n projection"] | Float[Array, " projection"]:
        """Texts in the joint space: (projection,) for one string, (n, projection) for many; float32, unit length.

        Strings longer than the model's positions are truncated, as the reference does (`clip.tokenizer` with
        `truncate=False` raises instead). Arrays are taken as token ids. `normalize=False` gives the raw features,
        transformers' `get_text_features`. Raises ValueError for token ids without EOS or outside the vocabulary.
        """
        text = self.model.tower("text").config
        if isinstance(texts, np.ndarray | jax.Array):
            token_ids = np.asarray(texts)
        else:
            listed = [texts] if isinstance(texts, str) else list(texts)
            token_ids = self.tokenizer(listed) if listed else np.zeros((0, 1), np.int32)
        _check_token_ids(token_ids, text)
        features = _encode_text(self.model, jnp.asarray(token_ids), normalize=normalize)
        return features[0] if isinstance(texts, str) else features

    def encode_image(
        self, images: ImageLike | Iterable[ImageLike], *, normalize: bool = True
    ) -> Float[Array, "n projection"] | Float[Array, " projection"]:
        """Images in the joint space: (projection,) for one, (n, projection) for many; float32, unit length.

        An image is a path, a PIL image or an array (height, width, 3) of uint8; `clip.image_processor` has more ways.
        `normalize=False` gives the raw features, transformers' `get_image_features`. All images are decoded and go
        through the model at once: pass a large collection in pieces. Raises ImageError naming the file or the index of
        what can't be decoded.
        """
        self.model.tower("vision")  # Says so where there is none, before any file is read.
        features = self.encode_pixels(self.image_processor(images), normalize=normalize)
        return features[0] if is_single_image(images) else features

    def encode_pixels(
        self,
        pixels: Float[np.ndarray, "n height width channels"] | Float[Array, "n height width channels"],
        *,
        normalize: bool = True,
    ) -> Float[Array, "n projection"]:
        """As `encode_image`, of what `clip.image_processor` made: compiled once for each shape."""
        return _encode_image(self.model, jnp.asarray(pixels), normalize=normalize)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a Hugging Face checkpoint that transformers loads unchanged: config, weights, tokenizer and
        preprocessor. Tensors go back in the dtype that they had in the file they came from.

        All files are written before the first takes its place in `folder`, so that a failure leaves it as it was.
        """
        with replacing_folder(folder) as staging:
            save_model(self.model, staging, self._stored_dtypes)
            for name, path in self._files.items():
                shutil.copyfile(path, staging / name)
            if not self._files and "tokenizer" in vars(self):
                self.tokenizer.save(staging)
            if not self._files and "image_processor" in vars(self):
                write_json(staging / "preprocessor_config.json", self.image_processor.to_hub())

    def _lacks(self, what: str, names: Iterable[str], instead: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source or 'this model'} has no {what}: none of {', '.join(names)} is there. Put them beside the "
            f"weights, or give one to Clip(model, ...); {instead} as they are."
        )


@partial(jax.jit, static_argnames="normalize")
def _encode_text(model: CLIP, token_ids: Int[Array, "n tokens"], *, normalize: bool) -> Float[Array, "n projection"]:
    return model.encode_text(token_ids, normalize=normalize)


@partial(jax.jit, static_argnames="normalize")
def _encode_image(
    model: CLIP, pixels: Float[Array, "n height width channels"], *, normalize: bool
) -> Float[Array, "n projection"]:
    return model.encode_image(pixels, normalize=normalize)


def _check_token_ids(token_ids: Int[np.ndarray, "n tokens"], text: TextConfig) -> None:
    if token_ids.ndim != 2 or not np.issubdtype(token_ids.dtype, np.integer):
        raise ValueError(
            f"an array of texts holds token ids, integers of shape (n, tokens); got {token_ids.dtype} {token_ids.shape}"
        )
    if token_ids.size and not (token_ids.min() >= 0 and token_ids.max() < text.vocab_size):
        raise ValueError(
            f"token ids must be from 0 to {text.vocab_size - 1}, this model's vocabulary; got {token_ids.min()} to "
            f"{token_ids.max()}"
        )
    # Under the largest-id rule the config doesn't hold the real EOS; without one, the largest is the BOS in front.
    is_eos = token_ids == text.eos_token_id
    without = is_eos.sum(axis=1) == 0 if text.pooling == "first_eos" else token_ids.argmax(axis=1) == 0
    if without.any():
        raise ValueError(
            f"text {np.flatnonzero(without)[0]} has no end-of-text token, which is where this model reads the text "
            "off: truncate so that it stays the last (the tokenizer does)"
        )
