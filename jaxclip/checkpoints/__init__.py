"""Checkpoints: where their files come from, each dialect's names ↔ our parameters' paths, and saving.

`files` finds them (a folder or the Hub), `tensors` and `torch_archive` read them lazily and safely, `names` is the
table, `load` fills a model, `save` writes one.
"""

from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.checkpoints.files import Files, locate, weight_files
from jaxclip.checkpoints.tensors import Tensor, open_tensors

__all__ = ["CheckpointError", "Files", "Tensor", "locate", "open_tensors", "weight_files"]
