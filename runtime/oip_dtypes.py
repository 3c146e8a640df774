"""The data types of the Open Inference Protocol and numpy's names for them (protocol v2, "Tensor Data Types").

BF16 has no numpy type and BYTES is no number: a network here takes neither. An output of classification is BYTES.
"""

import numpy as np

NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DTYPES = {name: np.dtype(numpy) for name, numpy in NUMPY.items()}  # hosts of GPUs are little endian, as the protocol is
_NAMES = {numpy: name for name, numpy in NUMPY.items()}


def protocol_name(numpy: str) -> str:
    """Return the protocol's name of a numpy type; ``BF16`` and the like keep a name of their own."""
    return _NAMES.get(numpy, {"bfloat16": "BF16"}.get(numpy, "BYTES"))
