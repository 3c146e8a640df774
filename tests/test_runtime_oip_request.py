"""An inference request as a whole; what a hostile one comes to."""

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("orjson")

from hypothesis import given
from hypothesis import strategies as st

from engineworks import runtime
from engineworks.runtime.checks import contract
from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.oip_request import Request, Wanted, header_length, read_request

PICTURE = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)


def read(manifest: runtime.Manifest, content: Any, tail: bytes = b"", limit: int = 1 << 20) -> Request:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_request(text + tail, len(text), manifest, contract(manifest.inputs, manifest.batch), limit)


def tensor(**changes: Any) -> dict[str, Any]:
    made = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": PICTURE.tolist()} | changes
    return {name: value for name, value in made.items() if value is not None}


def binary(size: int = 768, **changes: Any) -> dict[str, Any]:
    return tensor(data=None, parameters={"binary_data_size": size}, **changes)


def test_numbers_and_bytes_are_read_alike(manifest: runtime.Manifest) -> None:
    one = read(manifest, {"inputs": [tensor()], "id": "a", "parameters": {"timeout": 2_000_000}})
    other = read(manifest, {"inputs": [binary()], "parameters": {"binary_data_output": True}}, PICTURE.tobytes())
    assert (one.arrays["image"] == PICTURE).all() and (other.arrays["image"] == PICTURE).all()
    assert (one.id, one.rows, one.timeout) == ("a", 1, 2.0)
    assert (one.wanted, other.wanted) == ((Wanted("scores", False),), (Wanted("scores", True),))


def test_an_outputs_own_wish_goes_before_that_of_the_request(manifest: runtime.Manifest) -> None:
    outputs = [{"name": "scores", "parameters": {"binary_data": False, "classification": 3}}]
    asked = read(manifest, {"inputs": [tensor()], "outputs": outputs, "parameters": {"binary_data_output": True}})
    assert asked.wanted == (Wanted("scores", False, 3),)


@pytest.mark.parametrize(
    ("content", "tail", "told"),
    [
        ({}, b"", "image is missing"),
        ({"inputs": []}, b"", "image is missing"),
        ({"inputs": "image"}, b"", "list of objects"),
        ({"inputs": [tensor(name="other")]}, b"", "none of that name, but image"),
        ({"inputs": [tensor(), tensor()]}, b"", "given twice"),
        ({"inputs": [tensor()] * 50}, b"", "at most"),
        ({"inputs": [binary(767)]}, PICTURE.tobytes(), "expected 768 bytes"),
        ({"inputs": [binary(768)]}, PICTURE.tobytes()[:-1], "only 767 bytes are left"),
        ({"inputs": [binary(768)]}, PICTURE.tobytes() + b"x", "1 bytes follow the last input"),
        ({"inputs": [binary(-1)]}, b"", "whole number"),
        ({"inputs": [binary(10**18)]}, b"", "only 0 bytes are left"),
        ({"inputs": [binary(10**30)]}, b"", "whole number"),
        ({"inputs": [tensor(parameters={"binary_data_size": 768})]}, PICTURE.tobytes(), "got both"),
        ({"inputs": [tensor(parameters={"shared_memory_region": "x"})]}, b"", "shared memory is not offered"),
        ({"inputs": [tensor()], "outputs": [{"name": "other"}]}, b"", "none of that name, but scores"),
        ({"inputs": [tensor()], "outputs": [{"name": "scores"}] * 2}, b"", "asked for twice"),
        ({"inputs": [tensor()], "outputs": [{"name": "scores", "parameters": {"classification": -1}}]}, b"", "whole"),
        ({"inputs": [tensor()], "id": 5}, b"", "'id' to be a string"),
        ({"inputs": [tensor()], "parameters": {"sequence_id": 3}}, b"", "models that keep state"),
        ({"inputs": [tensor()], "parameters": {"timeout": "soon"}}, b"", "whole number"),
        ({"inputs": [tensor()], "parameters": []}, b"", "'parameters' to be an object"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(
    manifest: runtime.Manifest, content: Any, tail: bytes, told: str
) -> None:
    with pytest.raises(Refusal, match=told) as refused:
        read(manifest, content, tail)
    assert refused.value.status == 400


@pytest.mark.parametrize("header", [b"-5", b"0", b"101", b"1e2", b"0x10", b"", b"9" * 400, "١".encode()])
def test_a_header_length_that_lies_is_refused(header: bytes) -> None:
    with pytest.raises(Refusal, match="expected 1 to 100"):
        header_length(header, 100)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "classification"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "scores", ""]) | JSON,
        "datatype": st.sampled_from(["FP32", "FP16", "BYTES"]) | JSON,
        "shape": st.just([1, 3, 8, 8]) | st.lists(st.integers(-3, 2**65), max_size=5) | JSON,
        "data": st.lists(st.floats(allow_nan=False), max_size=200) | JSON,
        "parameters": JSON | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 800)}),
    },
)


@given(
    st.fixed_dictionaries(
        {}, optional={"inputs": st.lists(PARTS, max_size=3) | JSON, "outputs": JSON, "parameters": JSON, "id": JSON}
    ),
    st.binary(max_size=800),
)
def test_whatever_comes_is_read_or_refused_as_the_clients_fault(
    manifest: runtime.Manifest, content: dict[str, Any], tail: bytes
) -> None:
    found: Any = None
    try:
        found = read(manifest, content, tail)
    except Refusal as refused:
        found = refused
    assert isinstance(found, Request) or (found.status in {400, 413} and len(str(found)) < 500)
