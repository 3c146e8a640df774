"""The answer to an inference request: outputs as JSON or as bytes, or as classes.

A class is written ``score:index`` or ``score:index:label`` (the classification extension), best first as the network
means it: the highest logit, or the smallest distance.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.runtime.compare import order
from engineworks.runtime.manifest import Manifest
from engineworks.runtime.oip_dtypes import protocol_name
from engineworks.runtime.oip_errors import bad
from engineworks.runtime.oip_request import Wanted

Array = npt.NDArray[Any]


def write_response(
    name: str, version: str, id: str, outputs: Mapping[str, Array], wanted: Sequence[Wanted], model: Manifest
) -> tuple[bytes, int | None]:
    """Write the answer.

    Args:
        name: of the model, as it is served.
        version: the one that ran.
        id: what the request called itself; left out where it is empty.
        outputs: by name.
        wanted: which of them, and how.
        model: its labels, and what its scores mean.

    Returns:
        The body, and how many bytes of it are JSON; None where all of it is.

    Raises:
        Refusal: 400; NaN or infinity that JSON cannot hold, or classes of an output that has none.
    """
    import orjson

    described, tails = list[dict[str, Any]](), list[bytes]()
    for want in wanted:
        item, tail = _output(want, outputs[want.name], model)
        described.append(item)
        if want.binary:
            tails.append(tail)
    content: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": described}
    if id:
        content["id"] = id
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *tails)), len(text)) if tails else (text, None)


def _output(want: Wanted, array: Array, model: Manifest) -> tuple[dict[str, Any], bytes]:
    if want.classes:
        return _classified(want, array, model)
    item: dict[str, Any] = {
        "name": want.name,
        "datatype": protocol_name(array.dtype.name),
        "shape": list(array.shape),
    }
    if want.binary:
        item["parameters"] = {"binary_data_size": array.nbytes}
        return item, array.tobytes()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise bad(f"output {want.name!r} holds NaN or infinity, which JSON cannot. Ask for it as binary data.")
    item["data"] = np.ascontiguousarray(array).reshape(-1)
    return item, b""


def _classified(want: Wanted, array: Array, model: Manifest) -> tuple[dict[str, Any], bytes]:
    texts = classes(want.name, array, want.classes, model)
    rows = [len(texts), len(texts[0])]
    item: dict[str, Any] = {"name": want.name, "datatype": "BYTES", "shape": rows}
    flat = [text for row in texts for text in row]
    if not want.binary:
        return item | {"data": flat}, b""
    tail = byte_strings(flat)
    return item | {"parameters": {"binary_data_size": len(tail)}}, tail


def classes(output: str, array: Array, k: int, model: Manifest) -> list[list[str]]:
    """Return the k best classes of every row, written as the classification extension does.

    Raises:
        Refusal: 400; the output is no ``(N, K)`` of scores, or holds NaN.
    """
    if array.ndim != 2:
        raise bad(f"output {output!r}: classification needs scores (N, K), and this has shape {list(array.shape)}.")
    if np.isnan(array).any():
        raise bad(f"output {output!r} holds NaN, of which no classes can be named.")
    best = order(array, model.scores)[:, :k]
    labels = model.labels
    return [
        [f"{row[index]:f}:{index}" + (f":{labels[index]}" if index < len(labels) else "") for index in indices]
        for row, indices in zip(array, best, strict=True)
    ]


def byte_strings(texts: Sequence[str]) -> bytes:
    """Write strings as the protocol's BYTES: four bytes of length, little endian, before each."""
    parts = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)
