"""Image-text pairs to batches: shuffled, shared out among processes, decoded by threads, resumable to the batch."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from jaxclip.batching import processors
from jaxclip.processing import ImageProcessor, Tokenizer, open_image
from jaxclip.training.augmentation import Augmentation
from jaxclip.training.captions import CaptionedFolder, Sample, Source
from jaxclip.training.webdataset import WebDataset

Batch = dict[str, np.ndarray]

# Reasons that are kept; the number says how many there are.
_REASONS = 10


@dataclass(frozen=True)
class BadSample:
    """A sample that can't be used: its number in the source, and why."""

    index: int
    reason: str


class Batches(Iterator[Batch]):
    """Batches of training data, without end or for some epochs: NumPy arrays of fixed shapes by name.

    - "pixels": (batch, height, width, 3) float32, as the image processor scales and normalises them; with two views of
      each image (SimCLR, MoCo) "views" (batch, 2, height, width, 3) instead; or, with `image_features`,
    - "image_features": (batch, width) float32
    - "image_ids": (batch,) int32, the images' numbers in the source
    - "token_ids": (batch, text_length) int32
    - "caption_ids": (batch,) int32, the same for captions of the same tokens, in every process. (A hash: among 4,096
      captions in a batch two different ones have the same with a probability of 0.002.)

    Of an image's captions one is drawn each time. The order, the captions and the augmentations follow from `seed`, the
    epoch and the image's number alone, so that threads, interruptions and the number of processes change nothing in
    them. Batches run on from an epoch into the next; what doesn't fill one at the end of the last is dropped. Photos
    are turned as their EXIF orientation says.

    A sample that can't be used (a damaged image, no caption) is left out, the next one takes its place, and `skipped`
    counts it, each time that it would have come; `bad_samples` are the first ten.

    - `source`: image-text pairs
    - `batch_size`: of this process
    - `image_processor`, `tokenizer`: the checkpoint's, `clip.image_processor` and `clip.tokenizer`; without a tokenizer
      there are no texts
    - `image_features`: (len(source), width), in place of pixels (`cache_image_features`);
      a row that is not finite makes a bad sample
    - `augmentation`: of the images, by default none: each as for inference
    - `views`: how many augmentations of each image, 1 or 2
    - `text_length`: tokens, by default all that the tokenizer allows; longer captions are cut
    - `epochs`: how often each sample comes, or None for a stream without end, which several processes should have:
      some may have a sample more than others
    - `process_index`, `process_count`: each process has every `process_count`-th sample of an epoch; by default JAX's
    - `threads`: that read and decode, by default one for each processor that this process may use

    As an attribute, `samples` is the number of an epoch's in this process.

    Raises ValueError for arguments that don't fit, and, from the iterator, when one epoch or two have none to use;
    ImportError without grain, which the extra "train" installs.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        image_processor: ImageProcessor | None = None,
        tokenizer: Tokenizer | None = None,
        image_features: Float[np.ndarray, "samples width"] | None = None,
        augmentation: Augmentation | None = None,
        views: int = 1,
        text_length: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
        process_index: int | None = None,
        process_count: int | None = None,
        threads: int | None = None,
    ):
        import grain  # Takes a second or two; who brings their own batches needs none of it.

        index = jax.process_index() if process_index is None else process_index
        count = jax.process_count() if process_count is None else process_count
        threads = threads or processors()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= index < count <= len(source):
            raise ValueError(f"process {index} of {count} has no part in {len(source)} samples")
        if image_features is not None and len(image_features) != len(source):
            raise ValueError(f"image_features has {len(image_features)} rows, and the source {len(source)} samples")
        if views not in (1, 2) or (views == 2 and augmentation is None):
            raise ValueError(f"views must be 1, or 2 with an augmentation, got {views}")
        if image_processor is not None and image_features is None:
            images = _Pixels(image_processor, augmentation, views)
        elif image_features is not None and image_processor is None and augmentation is None:
            images = _Features(image_features)
        else:
            raise ValueError("pass either image_processor, with augmentation or without, or image_features")

        self.samples = len(range(index, len(source), count))
        if epochs is not None and self.samples * epochs < batch_size:
            raise ValueError(f"{epochs} epochs of {self.samples} samples make no batch of {batch_size}")
        self.skipped = self._in_a_row = 0
        self.bad_samples: list[BadSample] = []
        self._of = {"seed": seed, "samples": len(source), "batch_size": batch_size, "process": [index, count]}
        texts = _Texts(tokenizer, text_length) if tokenizer else None
        read = _Reader(source, images, texts, seed)
        # Shuffled before it is shared out: every process then sees all images in the course of the epochs.
        dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()[index::count].repeat(epochs)
        dataset = dataset.map_with_index(lambda place, number: read(place // self.samples, int(number)))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * batch_size))
        # Bad samples come this far, and are counted when it is their turn, not when a thread was ahead.
        dataset = dataset.to_iter_dataset(options).filter(self._is_good)
        self._batches = iter(dataset.batch(batch_size, drop_remainder=True))

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except StopIteration:
            self._check_some_are_good(self.samples)
            raise

    def get_state(self) -> dict[str, Any]:
        """Where it is, as JSON can hold it: `set_state` goes on with the next batch, in another process too."""
        bad = [dataclasses.asdict(sample) for sample in self.bad_samples]
        return {"of": self._of, "place": self._batches.get_state(), "skipped": self.skipped, "bad_samples": bad}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called. Raises ValueError when that was with another seed, batch size, number
        of samples or part of the processes: what follows would not be the same."""
        if state["of"] != self._of:
            raise ValueError(f"the state is of {state['of']}, and these are batches of {self._of}")
        self._batches.set_state(state["place"])
        self.skipped, self._in_a_row = state["skipped"], 0
        self.bad_samples = [BadSample(**sample) for sample in state["bad_samples"]]

    def close(self) -> None:
        """Ends the threads."""
        self._batches.close()

    def _is_good(self, sample: Batch | BadSample) -> bool:
        if not isinstance(sample, BadSample):
            self._in_a_row = 0
            return True
        self.skipped += 1
        self._in_a_row += 1
        if len(self.bad_samples) < _REASONS:
            self.bad_samples.append(sample)
        # One good sample may come first in an epoch and last in the next.
        self._check_some_are_good(2 * self.samples)
        return False

    def _check_some_are_good(self, limit: int) -> None:
        if self._in_a_row >= limit:
            reasons = "; ".join(sample.reason for sample in self.bad_samples[:3])
            raise ValueError(f"not one of the last {self._in_a_row} samples can be used: {reasons}")


def open_source(path: str | os.PathLike, *, split: str | None = None) -> Source:
    """Image-text pairs wherever they are: a `WebDataset` where `path` ends in .tar (a pattern, perhaps) or is a folder
    of .tar files, else a `CaptionedFolder`. Raises what these do, and ValueError for a split of shards."""
    if not (os.fspath(path).endswith(".tar") or (os.path.isdir(path) and any(Path(path).glob("*.tar")))):
        return CaptionedFolder(path, split=split)
    if split is not None:
        raise ValueError(f"{path}: shards have no split; name those of {split!r}")
    return WebDataset(path)


class _Reader:
    """Samples by epoch and number."""

    def __init__(self, source: Source, images: "_Pixels | _Features", texts: "_Texts | None", seed: int):
        self.source, self.images, self.texts, self.seed = source, images, texts, seed

    def __call__(self, epoch: int, index: int) -> Batch | BadSample:
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            sample = self.source[index]
        except (OSError, ValueError) as error:
            return BadSample(index, str(error))
        try:
            texts = self.texts(sample, rng) if self.texts else {}
            return {"image_ids": np.asarray(index, np.int32), **texts, **self.images(index, sample, rng)}
        except (OSError, ValueError) as error:
            return BadSample(index, f"{sample.id}: {error}")


class _Texts:
    def __init__(self, tokenizer: Tokenizer, length: int | None):
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Batch:
        if not sample.captions:
            raise ValueError("has no caption")
        caption = sample.captions[rng.integers(len(sample.captions))]
        token_ids = self.tokenizer(caption, padding="max_length", max_length=self.length)
        digest = hashlib.blake2b(token_ids.tobytes(), digest_size=4).digest()
        return {"token_ids": token_ids, "caption_ids": np.frombuffer(digest, "<i4").reshape(())}


class _Pixels:
    def __init__(self, processor: ImageProcessor, augmentation: Augmentation | None, views: int):
        self.processor, self.augmentation, self.views = processor, augmentation, views
        if processor.do_center_crop:
            size = processor.crop_size
        elif processor.do_resize and "height" in processor.size:
            size = processor.size
        else:
            raise ValueError("the image processor gives images of different sizes: set do_center_crop")
        self.size = size["height"], size["width"]
        # Both of one processor, so that what the checkpoint states is done once and in one place.
        self.scale = dataclasses.replace(processor, do_resize=False, do_center_crop=False)
        self.to_rgb = dataclasses.replace(self.scale, do_rescale=False, do_normalize=False, do_convert_rgb=True)

    def __call__(self, index: int, sample: Sample, rng: np.random.Generator) -> Batch:
        if self.augmentation is None:
            return {"pixels": self.processor(sample.image, exif_rotation=True)[0]}
        image = open_image(sample.image, exif_rotation=True)
        if image.mode != "RGB" or "transparency" in image.info:
            image = Image.fromarray(self.to_rgb(image)[0].astype(np.uint8))
        views = [self.augmentation(image, self.size, rng, resample=self.processor.resample) for _ in range(self.views)]
        pixels = self.scale(views)
        return {"pixels": pixels[0]} if self.views == 1 else {"views": pixels}


class _Features:
    def __init__(self, features: Float[np.ndarray, "samples width"]):
        self.features = features

    def __call__(self, index: int, sample: Sample, rng: np.random.Generator) -> Batch:
        features: Float32[np.ndarray, " width"] = np.array(self.features[index], np.float32)
        if not np.isfinite(features).all():
            raise ValueError("its features are not finite: the image couldn't be read")
        return {"image_features": features}
