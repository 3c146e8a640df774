"""Import torchvision where its compiled operators do not load: its classification networks need none of them.

A torchvision built for CUDA beside a CPU build of torch, or for another torch, fails at import with "operator
torchvision::nms does not exist": it describes its operators to torch, and torch does not know them. Here they are
declared first, by name and signature alone, so that the import succeeds; calling one still fails.
"""

import importlib
import sys
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # torchvision/csrc/ops/nms.cpp
_OPERATORS = ("nms", "qnms")  # those that torchvision describes to torch whether they are compiled or not
_declared: "list[torch.library.Library]" = []  # a declaration ends with its object


@cache
def import_torchvision() -> tuple[ModuleType, bool]:
    """Import torchvision, declaring its operators where they do not load; timm imports it too, so call this first.

    Returns:
        The package, and whether the operators had to be declared: then detection networks do not run.

    Raises:
        ImportError: torchvision is not installed, or needs more than these declarations.
    """
    try:
        return importlib.import_module("torchvision"), False
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise ImportError(f"torchvision does not load: {error}") from error
    _declare()
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    try:
        return importlib.import_module("torchvision"), True
    except RuntimeError as error:
        raise ImportError(f"torchvision does not load beside this torch: {error}") from error


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        library.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
    _declared.append(library)
