"""Open a bundle and run it: everything an inference service needs to import.

Importing this package loads nothing but itself: numpy comes with the first name that is used, onnxruntime with the
first session, Pillow with the first picture, and torch never.

    from engineworks import runtime

    with runtime.load("demo/lenet5-fp16") as model:
        print(model.backend)
        print(model.classify("examples/seven.png", k=3))

Prepared arrays, numpy or torch or whatever speaks DLPack, come back in kind; any number of rows goes in batches:

    import numpy as np
    from engineworks import runtime

    with runtime.load("demo/lenet5-fp16", max_batch=8) as model:
        x = model.preprocess("examples/seven.png")
        distances = model.infer(x)
        rows = list(model.infer_batch(np.concatenate([x] * 20)))
        print(distances.shape, len(rows))

A service loads once, warms up, and lets its callers share batches; what waits too long or too much is refused:

    import asyncio
    from engineworks import runtime

    async def serve(model, x):
        try:
            return await model.ainfer(x, timeout=5.0)
        except (runtime.QueueFullError, runtime.DeadlineError) as error:
            return f"503: {error}"

    async def main():
        with runtime.load("demo/lenet5-fp16", contexts=2, nan="refuse") as model:
            model.warmup()
            x = model.preprocess("examples/seven.png")
            answers = await asyncio.gather(*(serve(model, x) for _ in range(100)))
            futures = [model.submit(x) for _ in range(10)]  # the same without asyncio
            print(len(answers), futures[0].result().shape, model.stats().rows_per_call)

    asyncio.run(main())

Load in the process that serves: a session does not survive a fork, and says so.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engineworks.runtime.backend import Backend
    from engineworks.runtime.bundle import Bundle, open_bundle, write_bundle
    from engineworks.runtime.classify import Prediction, softmax
    from engineworks.runtime.compare import Agreement, agreement
    from engineworks.runtime.errors import (
        BackendError,
        BundleError,
        CudaError,
        DeadlineError,
        EngineError,
        EngineworksError,
        ExportError,
        InputError,
        ParityError,
        PlanError,
        QueueFullError,
    )
    from engineworks.runtime.loading import load
    from engineworks.runtime.manifest import Manifest, Tensor
    from engineworks.runtime.preprocessing import Preprocessing, preprocess
    from engineworks.runtime.session import Session
    from engineworks.runtime.stats import Stats

__all__ = [
    "Agreement",
    "Backend",
    "BackendError",
    "Bundle",
    "BundleError",
    "CudaError",
    "DeadlineError",
    "EngineError",
    "EngineworksError",
    "ExportError",
    "InputError",
    "Manifest",
    "ParityError",
    "PlanError",
    "Prediction",
    "Preprocessing",
    "QueueFullError",
    "Session",
    "Stats",
    "Tensor",
    "agreement",
    "load",
    "open_bundle",
    "preprocess",
    "softmax",
    "write_bundle",
]

_HOMES = {
    "backend": ("Backend",),
    "bundle": ("Bundle", "open_bundle", "write_bundle"),
    "compare": ("Agreement", "agreement"),
    "errors": (
        "BackendError",
        "BundleError",
        "CudaError",
        "DeadlineError",
        "EngineError",
        "EngineworksError",
        "ExportError",
        "InputError",
        "ParityError",
        "PlanError",
        "QueueFullError",
    ),
    "manifest": ("Manifest", "Tensor"),
    "preprocessing": ("Preprocessing", "preprocess"),
    "classify": ("Prediction", "softmax"),
    "loading": ("load",),
    "session": ("Session",),
    "stats": ("Stats",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'engineworks.runtime' has no attribute {name!r}")
    value = getattr(import_module(f"engineworks.runtime.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
