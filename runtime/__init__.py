"""Open a bundle and run it: everything an inference service needs to import.

Importing this package loads numpy alone; onnxruntime comes with the first session, Pillow with the first picture, and
torch never.

    from engineworks import runtime

    with runtime.load("googlenet-fp16") as model:
        print(model.backend)
        print(model.classify("cat.jpg", k=3))
"""

from engineworks.runtime.backend import Backend
from engineworks.runtime.bundle import Bundle, open_bundle, write_bundle
from engineworks.runtime.compare import Agreement, agreement
from engineworks.runtime.errors import (
    BackendError,
    BundleError,
    EngineError,
    EngineworksError,
    ExportError,
    InputError,
    ParityError,
)
from engineworks.runtime.manifest import Manifest, Tensor
from engineworks.runtime.preprocess import Preprocessing, preprocess
from engineworks.runtime.session import Prediction, Session, load, softmax

__all__ = [
    "Agreement",
    "Backend",
    "BackendError",
    "Bundle",
    "BundleError",
    "EngineError",
    "EngineworksError",
    "ExportError",
    "InputError",
    "Manifest",
    "ParityError",
    "Prediction",
    "Preprocessing",
    "Session",
    "Tensor",
    "agreement",
    "load",
    "open_bundle",
    "preprocess",
    "softmax",
    "write_bundle",
]
