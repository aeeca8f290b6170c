"""Every intermediate of a model by name, and the file that holds them."""

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from jaxclip.atomic import write_atomically
from jaxclip.checkpoints.load import model_parameters
from jaxclip.checkpoints.names import parameter_names
from jaxclip.clip import Clip
from jaxclip.compare.inputs import Inputs
from jaxclip.compare.names import GRADIENTS, in_order, module_name
from jaxclip.losses import clip_loss
from jaxclip.nn import CLIP, Tap, record
from jaxclip.nn.tap import scoped
from jaxclip.processing import ImageLike, ImageProcessor, is_single_image

SUFFIXES = (".safetensors", ".npz")
_AS_IT_IS = ImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)


class Capture(Mapping[str, np.ndarray]):
    """Tensors by name, in order of execution (`jaxclip.compare.names` and `jaxclip.reference.model` list the names).

    A mapping, and beside it `source`: the folder or Hub id of the checkpoint, where it is known. `save` and
    `load_capture` write and read it.
    """

    def __init__(self, tensors: Mapping[str, Any], *, source: str | None = None):
        self._tensors = {name: np.asarray(tensors[name]) for name in in_order(tensors)}
        self.source = source

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Capture({len(self)} tensors, source={self.source!r})"

    @property
    def inputs(self) -> Inputs:
        """What went in. Raises ValueError for what can't have."""
        pixels = self.get("pixel_values")
        if pixels is not None and pixels.ndim != 4:
            raise ValueError(f"pixel_values must be (images, channels, height, width), got {pixels.shape}")
        if pixels is not None and pixels.shape[1] > pixels.shape[3]:
            pixels = pixels.transpose(0, 3, 1, 2)  # Channels last, as jaxclip's own are.
        ids = self.get("input_ids")
        if ids is not None and (ids.ndim != 2 or ids.dtype.kind not in "iu"):
            raise ValueError(f"input_ids must be integers of shape (texts, tokens), got {ids.dtype} {ids.shape}")
        return Inputs(
            texts=self._numbered("texts.", _text),
            images=self._numbered("images.", _image),
            token_ids=ids,
            attention_mask=self.get("attention_mask"),
            position_ids=self.get("position_ids"),
            pixels=None if pixels is None else pixels.astype(np.float32).transpose(0, 2, 3, 1),
        )

    def _numbered(self, prefix: str, read: Callable[[str, np.ndarray], Any]) -> tuple[Any, ...] | None:
        names = [f"{prefix}{index}" for index in range(sum(name.startswith(prefix) for name in self))]
        if missing := [name for name in names if name not in self]:
            raise ValueError(f"{missing[0]} is missing: {prefix}0, {prefix}1, ... are numbered without a gap")
        return tuple(read(name, self[name]) for name in names) or None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file of safetensors, or of NumPy's (`.npz`), in which bfloat16 becomes float32. Raises
        ValueError for another suffix."""
        path = Path(path)
        if path.suffix == ".safetensors":
            tensors = {name: np.asarray(tensor, order="C") for name, tensor in self.items()}
            content = safetensors_bytes(tensors, {"source": self.source} if self.source else None)
        elif path.suffix == ".npz":
            tensors: Any = {n: t.astype(np.float32) if t.dtype.kind == "V" else t for n, t in self.items()}
            buffer = io.BytesIO()
            np.savez(buffer, **tensors)
            content = buffer.getvalue()
        else:
            raise ValueError(f"{path}: a capture is saved to a file that ends with {' or '.join(SUFFIXES)}")
        write_atomically(path, content)


def _text(name: str, value: np.ndarray) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be a text in UTF-8: {error}") from error


def _image(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        raise ValueError(f"{name} must be uint8 of shape (height, width, 3), got {value.dtype} {value.shape}")
    return value


def load_capture(path: str | os.PathLike[str]) -> Capture:
    """Reads a file of named tensors, ours or anyone's. Raises ValueError for one that is no such file or holds what is
    no real number, and FileNotFoundError."""
    path, source = Path(path), None
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as file, np.load(file) as arrays:
                tensors = {name: arrays[name] for name in arrays}
        else:
            with safe_open(path, framework="numpy") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.offset_keys()}
                source = (opened.metadata() or {}).get("source")
    except (SafetensorError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: is no whole file of tensors ({error}); write it again") from error
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "biufV":  # V is what NumPy has for bfloat16.
            raise ValueError(f"{path}: {name} holds no real numbers, but {tensor.dtype}")
    return Capture(tensors, source=source)


def capture(
    clip: Clip,
    texts: str | Iterable[str] | None = None,
    images: ImageLike | Iterable[ImageLike] | None = None,
    *,
    token_ids: Int[np.ndarray, "texts tokens"] | Int[Array, "texts tokens"] | None = None,
    attention_mask: Int[np.ndarray, "texts tokens"] | Bool[np.ndarray, "texts tokens"] | None = None,
    position_ids: Int[np.ndarray, "_ tokens"] | None = None,
    pixels: Float[np.ndarray, "n height width channels"] | Float[Array, "n height width channels"] | None = None,
    gradients: bool = False,
) -> Capture:
    """Every intermediate of one compiled forward pass, in the order and with the names of `jaxclip.reference.model`.

    Strings and images go through the handle's tokenizer and image processor and are kept in the capture, so that these
    can be compared, too; `token_ids` and `pixels` (as `clip.tokenizer` and `clip.image_processor` give them) go in as
    they are. Pixels of another size than the model's get its position embeddings interpolated. As many texts as images
    have a loss, CLIP's; `gradients` adds its gradient with respect to each parameter. Raises ValueError when there is
    nothing to capture, or no loss to differentiate.
    """
    strings = [texts] if isinstance(texts, str) else None if texts is None else list(texts)
    several: Any = None
    if images is not None:
        several = [images] if is_single_image(images) else list(cast(Iterable[ImageLike], images))
    if strings is not None and token_ids is None:
        token_ids = clip.tokenizer(strings)
    if several is not None and pixels is None:
        pixels = clip.image_processor(several)
    if token_ids is None and pixels is None:
        raise ValueError("there is nothing to capture: give texts or images, or token_ids or pixels")
    inputs = Inputs(
        texts=None if strings is None else tuple(strings),
        images=None if several is None else tuple(_AS_IT_IS(image)[0].astype(np.uint8) for image in several),
        token_ids=None if token_ids is None else np.asarray(token_ids),
        attention_mask=attention_mask,
        position_ids=position_ids,
        pixels=None if pixels is None else np.asarray(pixels),
    )
    kept = inputs.tensors()
    arrays = (inputs.token_ids, inputs.attention_mask, inputs.position_ids, inputs.pixels)
    given = [None if array is None else jax.numpy.asarray(array) for array in arrays]
    if gradients:
        if token_ids is None or pixels is None or len(token_ids) != len(pixels):
            raise ValueError("gradients are those of the loss, which needs as many texts as images")
        slopes, seen = _backward(clip.model, *given)
        parameters, table = model_parameters(slopes), parameter_names(clip.model.config)
        for path, (name, layout) in table.items():
            kept[GRADIENTS + name] = layout.theirs(np.asarray(parameters[path][...]))
    else:
        seen = _forward(clip.model, *given)[1]
    return Capture({**kept, **{name: np.asarray(value) for name, value in seen.items()}}, source=clip.source)


@jax.jit
def _forward(
    model: CLIP,
    token_ids: Int[Array, "texts tokens"] | None,
    attention_mask: Int[Array, "texts tokens"] | Bool[Array, "texts tokens"] | None,
    position_ids: Int[Array, "_ tokens"] | None,
    pixels: Float[Array, "images height width channels"] | None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss, 0 where there is none, and all that was seen on the way."""
    seen: dict[str, Array] = {}
    texts, sizes = (token_ids, attention_mask, position_ids), {}
    if pixels is not None:
        size = model.tower("vision").config.image_size
        sizes = {"interpolate_positions": pixels.shape[1:3] != (size, size)}
    if token_ids is None:
        _run_alone(model, "vision", pixels, tap=record(seen), **sizes)
    elif pixels is None:
        _run_alone(model, "text", *texts, tap=record(seen))
    else:
        model(token_ids, pixels, *texts[1:], tap=record(seen), **sizes)
    named, loss = {module_name(name): value for name, value in seen.items()}, jax.numpy.zeros(())
    if token_ids is not None and pixels is not None and len(token_ids) == len(pixels):
        assert model.logit_scale is not None  # With both towers it is there.
        named["loss"] = loss = clip_loss(named["image_embeds"], named["text_embeds"], model.logit_scale[...])
    return loss, named


def _run_alone(model: CLIP, tower: Literal["text", "vision"], *inputs: Any, tap: Tap, **options: Any) -> None:
    """One tower as far as it goes: into the joint space, or without a projection to the pooled row."""
    alone = model.tower(tower)
    if alone.projection is None:
        alone(*inputs, tap=scoped(tap, tower), **options)
    else:
        {"text": model.encode_text, "vision": model.encode_image}[tower](*inputs, tap=tap, **options)


_backward = jax.jit(jax.grad(_forward, has_aux=True))
