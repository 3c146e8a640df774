"""Memory that is given back: cycles are gone, and the resident size falls."""

import gc
import weakref
from pathlib import Path

import numpy as np

from engineworks.export.memory import give_back_memory


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_cycles_are_freed_although_the_collector_is_off() -> None:
    enabled = gc.isenabled()
    gc.disable()
    try:
        knot = weakref.ref(Knot())
        assert knot() is not None
        give_back_memory()
        assert knot() is None
    finally:
        if enabled:
            gc.enable()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_what_was_freed_between_other_blocks_goes_back_to_the_system() -> None:
    blocks = [np.ones(100_000 // 8) for _ in range(1000)]  # below the size that is mapped on its own
    del blocks[::2]
    before = resident()
    give_back_memory()
    assert before - resident() > 20e6, "half of 100 MB was free, in holes"
    del blocks
