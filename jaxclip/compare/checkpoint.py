"""A checkpoint as a comparison needs it: the oracle of its tensors, and what its strings and images become."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from jaxclip.bundled import MODELS
from jaxclip.checkpoints import CheckpointError, locate, open_tensors, weight_files
from jaxclip.checkpoints.files import read_json
from jaxclip.clip import Clip, load
from jaxclip.compare.inputs import TEXTS, Inputs, example_images, example_pixels, example_token_ids
from jaxclip.config import CLIPConfig
from jaxclip.reference import Oracle


def is_here(source: str) -> bool:
    """Whether a checkpoint is on this machine for sure: a folder, or in the package. A capture may have come from
    another machine, and with it the name of its checkpoint."""
    return source in MODELS or os.path.isdir(source)


class _Stored(Mapping[str, np.ndarray]):
    """Tensors that stay in their files until they are asked for."""

    def __init__(self, files: list):
        self._tensors = open_tensors(files)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Checkpoint:
    """Of a folder or Hub id. Raises `CheckpointError` as `jaxclip.load` does."""

    def __init__(self, source: str):
        self.source = source
        files = locate(source)
        path = files.require("config.json")
        try:
            self.config = CLIPConfig.from_hub(read_json(path))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        self.oracle = Oracle(self.config, _Stored(weight_files(files)))

    @cached_property
    def clip(self) -> Clip:
        return load(self.source)

    def trace(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """What the oracle makes of the inputs. Raises ValueError where they aren't this checkpoint's."""
        try:
            return self.oracle(*inputs.arrays())
        except (ValueError, IndexError) as error:
            raise ValueError(f"the inputs are not for {self.source}: {error}") from error

    def examples(self) -> Inputs:
        """Strings and images to compare on, and random token ids and pixels for a checkpoint that hasn't got what it
        takes to make these of them."""
        ids = example_token_ids(self.config) if self.config.text else None
        pixels = example_pixels(self.config) if self.config.vision else None
        return Inputs(texts=TEXTS, images=example_images(), token_ids=ids, pixels=pixels)

    def process(self, inputs: Inputs) -> tuple[Inputs, list[str]]:
        """With the token ids and pixels that jaxclip makes of the strings and images, and notes.

        A checkpoint without a tokenizer or an image processor gets the token ids and pixels that are there, and a note
        says so. What a lone tower has no use for is left out. Raises CheckpointError where nothing can go in.
        """
        made, notes = inputs, []
        if not self.config.text:
            made = dataclasses.replace(made, texts=None, token_ids=None, attention_mask=None, position_ids=None)
        if not self.config.vision:
            made = dataclasses.replace(made, images=None, pixels=None)
        if made.texts is not None:
            try:
                made = dataclasses.replace(made, token_ids=self.clip.tokenizer(list(made.texts)))
            except CheckpointError as error:
                if made.token_ids is None:
                    raise
                made = dataclasses.replace(made, texts=None)
                notes.append(f"Texts are compared from their token ids on: {_first_sentence(error)}")
        if made.images is not None:
            try:
                made = dataclasses.replace(made, pixels=self.clip.image_processor(list(made.images)))
            except CheckpointError as error:
                if made.pixels is None:
                    raise
                made = dataclasses.replace(made, images=None)
                notes.append(f"Images are compared from their pixels on: {_first_sentence(error)}")
        if made.token_ids is None and made.pixels is None:
            tower, other = ("text", "images") if self.config.text else ("vision", "texts")
            raise CheckpointError(f"{self.source} has a {tower} tower alone, and there are only {other} to go in")
        return made, notes


def _first_sentence(error: Exception) -> str:
    return f"{str(error).partition('. ')[0].rstrip('.')}."
