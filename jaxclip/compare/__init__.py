"""Do two implementations agree, at which tensor do they part, and why?

    here, there = capture(clip, texts, photos), load_capture("mine.safetensors")
    assert_close(here, there)             # in a test; the error has the verdict and the diagnosis
    found = diff(here, there)             # found.agree, found.first_divergence, found.diagnoses, found.rows

`capture` runs a model and keeps every intermediate under the name of the Hugging Face module; `diff` compares two
captures, judges them by what rounding does to the oracle (`jaxclip.reference`), and names the known mistake that
reproduces what is wrong. The command line does the same: `jaxclip diff A B`.
`inspect` says what a checkpoint is, and what in its files is known to mislead.
"""

from jaxclip.compare.capture import Capture, capture, load_capture
from jaxclip.compare.diagnosis import Diagnosis
from jaxclip.compare.diff import Diff, Row, assert_close, diff
from jaxclip.compare.inspect import Inspection, inspect

__all__ = [
    "Capture",
    "Diagnosis",
    "Diff",
    "Inspection",
    "Row",
    "assert_close",
    "capture",
    "diff",
    "inspect",
    "load_capture",
]
