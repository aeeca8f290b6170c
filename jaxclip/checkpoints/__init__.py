"""Checkpoints: where their files come from, each dialect's names ↔ our parameters' paths, and saving.

`files` finds them (a folder or the Hub), `tensors` and `torch_archive` read them lazily and safely, `names` is the
table, `load` fills a model, `save` writes one.
"""

from jaxclip.checkpoints.errors import CheckpointError

__all__ = ["CheckpointError"]
