"""Import torchvision where its compiled operators do not load, as beside a CPU build of torch."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType
from typing import Any

_kept: dict[str, Any] = {}  # operator → its torch.library.Library: the declaration lasts as long as that


def import_torchvision() -> tuple[ModuleType, bool]:
    """Import torchvision; its networks need none of its compiled operators, detectors apart.

    Returns:
        The module, and whether its compiled operators are missing: then those of detection (``nms``) fail.

    Raises:
        ImportError: torchvision is not installed.
    """
    while True:
        try:
            return importlib.import_module("torchvision"), bool(_kept)
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] in _kept:
                raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare(missing[1])


def _declare(operator: str) -> None:
    """Declare an operator whose absence stops the import (torchvision/_meta_registrations.py: nms and qnms)."""
    from torch.library import Library

    library: Any = Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept[operator] = library
