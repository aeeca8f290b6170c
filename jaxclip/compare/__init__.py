"""Do two implementations agree, at which tensor do they part, and why?

`capture` runs a model and keeps every intermediate under the name of the Hugging Face module.
"""

from jaxclip.compare.capture import Capture, capture, load_capture

__all__ = ["Capture", "capture", "load_capture"]
