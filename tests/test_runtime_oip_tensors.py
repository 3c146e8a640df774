"""Tensors of a request: every lie about a shape is refused before memory is taken."""

from typing import Any

import numpy as np
import pytest

from engineworks.runtime.manifest import Tensor
from engineworks.runtime.oip_dtypes import DTYPES, protocol_name
from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.oip_tensors import declared, from_bytes, from_json

IMAGE = Tensor("image", "float32", ("batch", 3, 8, 8))
FREE = Tensor("x", "float32", ("batch", "height", "width"))


@pytest.mark.parametrize(
    "shape",
    [
        [2**62, 3, 8, 8],
        [2**64, 3, 8, 8],
        [10**400, 3, 8, 8],
        [-1, 3, 8, 8],
        [0, 3, 8, 8],
        [1.0, 3, 8, 8],
        [True, 3, 8, 8],
        ["1", 3, 8, 8],
        [None, 3, 8, 8],
        [1, 3, 8],
        [1, 3, 8, 8, 1],
        [9, 3, 8, 8],
        [],
        {},
        None,
        "1388",
    ],
)
def test_a_shape_that_cannot_be_is_refused(shape: object) -> None:
    with pytest.raises(Refusal, match="input 'image': expected"):
        declared(IMAGE, "FP32", shape, 8)


def test_a_product_that_would_wrap_to_nought_meets_too_few_bytes() -> None:
    shape = declared(FREE, "FP32", [1, 2**32, 2**32], 8)
    with pytest.raises(Refusal, match="expected 73786976294838206464 bytes"):
        from_bytes("x", "FP32", shape, memoryview(b""))
    with pytest.raises(Refusal, match="expected 18446744073709551616 numbers"):
        from_json("x", "FP32", shape, [1.0])


def test_another_datatype_is_refused() -> None:
    for datatype in ("FP64", "fp32", "BYTES", None, 5, ["FP32"]):
        with pytest.raises(Refusal, match="expected datatype FP32"):
            declared(IMAGE, datatype, [1, 3, 8, 8], 8)


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_bytes_and_numbers_make_the_same_tensor(datatype: str) -> None:
    given = np.arange(6).reshape(2, 3).astype(DTYPES[datatype])
    made = from_bytes("x", datatype, (2, 3), memoryview(b"?" + given.tobytes())[1:])
    for data in (given.tolist(), given.reshape(-1).tolist()):
        again = from_json("x", datatype, (2, 3), data)
        assert again.dtype == made.dtype == given.dtype and (again == given).all() and (made == given).all()
    assert made.flags.aligned and protocol_name(given.dtype.name) == datatype


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [1.0, "2", 3.0]),
        ("FP32", [1.0, None, 3.0]),
        ("FP32", [1.0, True, 3.0]),
        ("FP32", [1.0, [2.0], 3.0]),
        ("FP32", [[1.0, 2.0], [3.0]]),
        ("FP32", [[[1.0, 2.0, 3.0]]]),
        ("FP32", [1.0, 2.0]),
        ("FP32", [1.0, 1e300, 3.0]),
        ("FP16", [1.0, 1e6, 3.0]),
        ("UINT8", [1, 256, 3]),
        ("UINT8", [1, -1, 3]),
        ("INT64", [1, 2**70, 3]),
        ("INT32", [1, 2.0, 3]),
        ("BOOL", [1, 0, 1]),
        ("FP32", {"0": 1}),
        ("FP32", None),
        ("FP32", ["a" * 4096, *[0.0] * 2]),
    ],
)
def test_data_of_another_kind_size_or_range_is_refused(datatype: str, data: Any) -> None:
    with pytest.raises(Refusal, match="input 'x'") as refused:
        from_json("x", datatype, (3,), data)
    assert refused.value.status == 400
