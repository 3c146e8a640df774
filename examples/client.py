"""Ask a ``serve-model`` with the standard library alone: ``python client.py URL MODEL VALUES [--json]``.

VALUES is a file of little-endian float32, as numpy's ``tofile`` writes: one prepared row after another. They travel as
bytes, or with ``--json`` as text, which is several times as long and slow.
"""

import json
import math
import sys
import time
import urllib.error
import urllib.request
from array import array
from pathlib import Path
from typing import Any

TRIES, SECONDS = 5, 10.0


def main(url: str, model: str, values: str, form: str = "--binary") -> None:
    """Print each row's outputs."""
    numbers = array("f", Path(values).read_bytes())
    for name, shape, answer in infer(f"{url}/v2/models/{model}", numbers, binary=form != "--json"):
        width = len(answer) // shape[0]
        for row in range(shape[0]):
            print(name, row, *(f"{value:.4g}" for value in answer[row * width : (row + 1) * width]))


def infer(model: str, numbers: "array[float]", *, binary: bool) -> list[tuple[str, list[int], "array[float]"]]:
    """Send rows to the only input of a model; return name, shape and values of its outputs."""
    told = json.loads(ask(model)[0])
    (tensor,) = told["inputs"]
    size = math.prod(tensor["shape"][1:])
    item = {"name": tensor["name"], "datatype": "FP32", "shape": [len(numbers) // size, *tensor["shape"][1:]]}
    if not binary:
        content = json.loads(
            ask(f"{model}/infer", json.dumps({"inputs": [item | {"data": list(numbers)}]}).encode())[0]
        )
        return [(one["name"], one["shape"], array("f", one["data"])) for one in content["outputs"]]
    raw = numbers.tobytes()
    request = {"inputs": [item | {"parameters": {"binary_data_size": len(raw)}}]}
    head = json.dumps(request | {"parameters": {"binary_data_output": True}}).encode()
    body, headers = ask(f"{model}/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))})
    at = int(headers["Inference-Header-Content-Length"])
    found = []
    for one in json.loads(body[:at])["outputs"]:
        end = at + one["parameters"]["binary_data_size"]
        found.append((one["name"], one["shape"], array("f", body[at:end])))
        at = end
    return found


def ask(address: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[bytes, Any]:
    """Ask, and again where the server is busy (503) or gone; a refusal of the request itself ends the program."""
    for last in (*[False] * (TRIES - 1), True):
        try:
            request = urllib.request.Request(address, body, headers or {})
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            if error.code != 503 or last:
                sys.exit(f"{error.code}: {json.loads(error.read())['error']}")
        except OSError as error:
            if last:
                sys.exit(f"{address}: {error}")
        time.sleep(1.0)
    raise AssertionError("the last try returns or exits")


if __name__ == "__main__":
    main(*sys.argv[1:])
