"""Every address of a running server: what it answers, and what it says to another method or name."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks import runtime

GREEN = np.zeros((1, 3, 8, 8), np.float32)
GREEN[:, 1] = 1
M = "/v2/models/four-fp16"


def body(array: Any = GREEN, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [*array.shape], "data": array.tolist()}], **more}


def binary(array: Any = GREEN, **more: Any) -> tuple[bytes, dict[str, str]]:
    part: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [*array.shape]}
    part["parameters"] = {"binary_data_size": array.nbytes}
    text = json.dumps({"inputs": [part], "parameters": {"binary_data_output": True}, **more}).encode()
    return text + array.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


def test_health_and_metadata(server: Any) -> None:
    assert server.json("GET", "/v2/health/live") == (200, {"live": True})
    assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})
    assert server.json("GET", M + "/ready")[0] == 200
    assert "binary_tensor_data" in server.json("GET", "/v2")[1]["extensions"]
    for path in (M, M + "/versions/1"):
        found = server.json("GET", path)[1]
        assert found["versions"] == ["1"] and found["inputs"][0]["shape"] == [-1, 3, 8, 8]
    config = server.json("GET", M + "/config")[1]
    assert config["max_batch_size"] == 8 and config["input"][0]["dims"] == [3, 8, 8]


def test_numbers_and_bytes_are_answered_as_the_session_answers(server: Any, served_bundle: Path) -> None:
    with runtime.load(served_bundle) as session:
        right = session.infer(GREEN)
    _, found = server.json("POST", M + "/infer", body(id="q"))
    assert found["id"] == "q" and found["outputs"][0]["data"] == right[0].tolist()
    status, headers, answer = server.ask("POST", M + "/versions/1/infer", *binary())
    length = int(headers["inference-header-content-length"])
    assert status == 200 and answer[length:] == right.tobytes()


def test_several_inputs_and_outputs_by_name(server: Any) -> None:
    parts = [{"name": name, "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]} for name in ("right", "left")]
    _, found = server.json("POST", "/v2/models/two/infer", {"inputs": parts, "outputs": [{"name": "dot"}]})
    assert [(one["name"], one["data"]) for one in found["outputs"]] == [("dot", [14.0])]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_and_answers(server: Any, encoding: str) -> None:
    import zlib

    plain, headers = binary()
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    packed = packer.compress(plain) + packer.flush()
    headers |= {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    assert server.ask("POST", M + "/infer", packed, headers)[0] == 200
    rows = np.repeat(GREEN, 8, axis=0)
    wide, more = binary(rows, outputs=[{"name": "scores", "parameters": {"classification": 4}}])
    status, told, answer = server.ask("POST", M + "/infer", wide, more | {"Accept-Encoding": encoding})
    if "content-encoding" in told:
        answer = zlib.decompress(answer, 47)
    assert status == 200 and b":1:green" in answer


def test_classes_are_named(server: Any) -> None:
    asked = body(outputs=[{"name": "scores", "parameters": {"classification": 2}}])
    _, found = server.json("POST", M + "/infer", asked)
    assert found["outputs"][0]["datatype"] == "BYTES" and found["outputs"][0]["shape"] == [1, 2]
    assert found["outputs"][0]["data"][0].endswith(":1:green")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_classified(server: Any, kind: str) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16), (0, 250, 0)).save(file, kind)
    status, _, answer = server.ask("POST", M + "/classify?k=2", file.getvalue())
    found = json.loads(answer)["predictions"]
    assert status == 200 and found[0]["label"] == "green" and len(found) == 2


def test_statistics_count_what_was_done(server: Any) -> None:
    before = server.json("GET", M + "/stats")[1]["model_stats"][0]
    server.json("POST", M + "/infer", body(np.repeat(GREEN, 3, axis=0)))
    server.json("POST", M + "/infer", {"inputs": []})
    after = server.json("GET", M + "/versions/1/stats")[1]["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["inference_stats"]["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert any(one["batch_size"] == 3 for one in after["batch_stats"])
    assert {one["name"] for one in server.json("GET", "/v2/models/stats")[1]["model_stats"]} == {"four-fp16", "two"}


def test_the_index_lists_and_control_is_off(server: Any) -> None:
    _, found = server.json("POST", "/v2/repository/index", {})
    assert [(one["name"], one["state"]) for one in found] == [("four-fp16", "READY"), ("two", "READY")]
    for action in ("load", "unload"):
        status, told = server.json("POST", f"/v2/repository/models/two/{action}", {})
        assert status == 403 and "--allow-repository-control" in told["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", M + "/versions/2", 404),
        ("GET", M + "/versions/one/ready", 404),
        ("GET", M + "/versions", 404),
        ("GET", M + "/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("DELETE", M, 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/else", 404),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v2/models/%00/ready", 404),
        ("GET", "/v2/models//etc/passwd", 404),
        ("GET", "/v2/models/%E2%80%AE/config", 404),
        ("GET", "/../../etc/passwd", 404),
    ],
)
def test_another_address_or_method_is_refused(server: Any, method: str, path: str, status: int) -> None:
    found, headers, answer = server.ask(method, path, b"{}" if method == "POST" else None)
    assert found == status and "error" in json.loads(answer) and b"passwd" not in answer
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 400), (b"GIF89a", 400), (b"\x89PNG\r\n\x1a\n" + bytes(40), 400)],
)
def test_no_picture_is_refused(server: Any, content: bytes, status: int) -> None:
    assert server.ask("POST", M + "/classify", content)[0] == status
    assert server.ask("POST", M + "/classify?k=0", content)[0] == 400
    assert server.ask("POST", "/v2/models/two/classify", content)[0] == 400


def test_a_picture_with_too_many_pixels_is_refused_by_its_head(server: Any) -> None:
    import zlib

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    before = server.memory()
    assert server.ask("POST", M + "/classify", bomb + b"\0\0\0\0IDAT5\xaf\x06\x1e")[0] in {400, 413}
    assert server.memory() - before < 50 << 20


def test_requests_are_traced_and_named(server: Any) -> None:
    sent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "x-request-id": "mine-1"}
    _, headers, _ = server.ask("GET", "/v2", None, sent)
    assert headers["x-request-id"] == "mine-1" and headers["traceresponse"].startswith("00-" + "a" * 32)
    end = time.monotonic() + 5
    while '"mine-1"' not in server.said and time.monotonic() < end:  # a thread of its own writes the log
        time.sleep(0.01)
    line = next(json.loads(line) for line in server.said.splitlines() if '"mine-1"' in line)
    assert (line["status"], line["trace_id"], line["parent_id"]) == (200, "a" * 32, "b" * 16)


def test_metrics_name_every_model_and_no_client(server: Any) -> None:
    server.json("POST", M + "/infer", body())
    server.ask("GET", "/v2/models/what-a-client-chose")
    text = server.ask("GET", "/metrics")[2].decode()
    assert 'engineworks_requests_total{model="four-fp16",status="200",version="1"}' in text
    assert 'engineworks_failures_total{reason="unknown_model"}' in text
    assert 'engineworks_batch_rows_bucket{le="1.0",model="four-fp16"' in text and "client-chose" not in text


def test_the_page_loads_nothing_from_elsewhere(server: Any) -> None:
    status, headers, page = server.ask("GET", "/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert b"http://" not in page and b"https://" not in page
    assert server.json("GET", "/status.json")[1]["models"][0]["parity"][0]["sqnr_db"] == 60.5


def test_pages_of_other_sites_are_not_answered(server: Any) -> None:
    assert server.ask("GET", "/v2", None, {"Origin": "http://evil.example"})[0] == 403
    assert server.ask("GET", "/v2", None, {"Origin": f"http://127.0.0.1:{server.port}"})[0] == 200
