"""Do two implementations agree, at which tensor do they part, and why?

`capture` runs a model and keeps every intermediate under the name of the Hugging Face module.
`inspect` says what a checkpoint is, and what in its files is known to mislead.
"""

from jaxclip.compare.capture import Capture, capture, load_capture
from jaxclip.compare.inspect import Inspection, inspect

__all__ = ["Capture", "Inspection", "capture", "inspect", "load_capture"]
