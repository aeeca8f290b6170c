"""A checkpoint as a comparison needs it: the oracle of its tensors, and what its strings and images become."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from jaxclip.checkpoints import CheckpointError, locate, open_tensors, weight_files
from jaxclip.checkpoints.files import read_json
from jaxclip.clip import Clip, load
from jaxclip.compare.inputs import TEXTS, Inputs, example_images, example_pixels, example_token_ids
from jaxclip.config import CLIPConfig
from jaxclip.reference import Oracle


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

    def examples(self) -> tuple[Inputs, list[str]]:
        """Strings and images to compare on, or random token ids and pixels where the checkpoint hasn't got what it
        takes to make these of them; and notes that say so."""
        inputs, notes = Inputs(), []
        if self.config.text:
            try:
                self.clip.tokenizer  # noqa: B018
                inputs = dataclasses.replace(inputs, texts=TEXTS)
            except CheckpointError as error:
                inputs = dataclasses.replace(inputs, token_ids=example_token_ids(self.config))
                notes.append(f"On random token ids: {_first_sentence(error)}")
        if self.config.vision:
            try:
                self.clip.image_processor  # noqa: B018
                inputs = dataclasses.replace(inputs, images=example_images())
            except CheckpointError as error:
                inputs = dataclasses.replace(inputs, pixels=example_pixels(self.config))
                notes.append(f"On random pixels: {_first_sentence(error)}")
        return inputs, notes

    def process(self, inputs: Inputs) -> Inputs:
        """With the token ids and pixels that jaxclip makes of strings and images, where there are any; and without
        what a lone tower has no use for."""
        made = inputs
        if not self.config.text:
            made = dataclasses.replace(made, texts=None, token_ids=None, attention_mask=None, position_ids=None)
        if not self.config.vision:
            made = dataclasses.replace(made, images=None, pixels=None)
        if made.texts is not None:
            made = dataclasses.replace(made, token_ids=self.clip.tokenizer(list(made.texts)))
        if made.images is not None:
            made = dataclasses.replace(made, pixels=self.clip.image_processor(list(made.images)))
        return made


def _first_sentence(error: Exception) -> str:
    return f"{str(error).partition('. ')[0].rstrip('.')}."
