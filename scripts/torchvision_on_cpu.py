"""Lets torchvision import beside a CPU build of torch.

open_clip depends on torchvision, whose registry build is compiled for CUDA: beside CPU torch its operators don't load
and its import fails. Neither open_clip nor transformers needs any of them for CLIP, so that declaring their names is
enough. Import this before either of the two.
"""

import importlib
import importlib.util
import re

import torch

_declared = torch.library.Library("torchvision", "FRAGMENT")


def _declare_missing_operators() -> None:
    while importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _declared.define(f"{missing[1]}(Tensor x) -> Tensor")
        else:
            return


_declare_missing_operators()
