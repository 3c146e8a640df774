"""Give back memory between the steps of an export, where hundreds of megabytes are at stake."""

import contextlib
import ctypes
import gc


def give_back_memory() -> None:
    """Free what lies in reference cycles, and hand the allocator's free pages back to the system.

    PyTorch's interpreters leave every tensor they met in a cycle, and the command runs with the collector off.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
