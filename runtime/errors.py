"""The exceptions a user of engineworks meets.

    EngineworksError            anything below; its message is one line: what, expected, got, mend
    ├── BundleError             a folder that is no bundle, or is damaged, edited, or of a later schema
    ├── InputError              an array, an image or a file that the network cannot take
    ├── PlanError               a TensorRT plan that cannot be looked into: of an unknown version, or damaged
    ├── BackendError            no way to run the bundle on this host, or the chosen one refused
    │   ├── QueueFullError      too many requests wait already
    │   ├── DeadlineError       a request's time has passed
    │   └── CudaError           the NVIDIA driver refused a call; carries its number
    └── ExportError             (raised by engineworks.export) no bundle could be made
        ├── EngineError         the TensorRT compiler refused the graph; carries the compiler's own words
        └── ParityError         the outputs do not agree with the original

``engineworks.models`` imports nothing of ours; its own tree, ``ModelError``, stands beside this one.
"""

_OUT_OF_MEMORY = 2  # cuda.h, CUresult


class EngineworksError(Exception):
    """Root of every error that engineworks raises on purpose."""


class BundleError(EngineworksError):
    """The folder is not a bundle that this version can trust: absent, damaged, edited, or of a later schema."""


class InputError(EngineworksError):
    """An input does not fit the network: its name, dtype, shape or content."""


class PlanError(EngineworksError):
    """An engine's plan cannot be looked into: another compiler's, of a version that is not known, or damaged."""


class BackendError(EngineworksError):
    """No backend can run the bundle here, or the one that was asked for refused."""


class QueueFullError(BackendError):
    """The batcher's queue holds all it may; nothing was queued. Try again when some of it is done."""


class DeadlineError(BackendError):
    """The time that a request was given has passed; a request that still waited was not run."""


class CudaError(BackendError):
    """The driver refused a call; ``status`` is its number. Most of them mean that the GPU's context is lost."""

    def __init__(self, function: str, status: int, words: str) -> None:
        super().__init__(f"{function}: {words} (CUDA error {status})")
        self.function, self.status = function, status

    @property
    def is_passing(self) -> bool:
        """Whether only this call failed, for want of memory; anything else may have spoilt what the GPU holds."""
        return self.status == _OUT_OF_MEMORY and self.function in {"cuMemAlloc_v2", "cuMemAllocHost_v2"}


class ExportError(EngineworksError):
    """No bundle could be made; nothing was left behind."""


class EngineError(ExportError):
    """The TensorRT compiler refused; the message carries what its logger said."""


class ParityError(ExportError):
    """The exported graph does not answer as the PyTorch original does."""
