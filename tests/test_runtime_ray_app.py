"""The Ray application: one replica without Ray, and all of it on a cluster of two nodes of which one is killed."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import BackendError, BundleError, QueueFullError, ray_app
from engineworks.runtime.deploy import main as deploy
from engineworks.runtime.ray_app import Item, Replica, build, opening_of

HERE = Path(__file__).parent
ROW = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8) / 192


class Request:
    """What Ray gives to a replica, as far as it looks."""

    def __init__(self, method: str, path: str, body: bytes = b"", root: str = "") -> None:
        headers = [(b"host", b"here"), (b"content-length", b"%d" % len(body))]
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": root,
            "headers": headers,
        }
        self.scope |= {"query_string": b""}
        self._body = body

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}


def batch_all(bridge: Any, largest: int, contexts: int) -> Callable[[Item], Awaitable[Any]]:
    """Stand in for ``serve.batch``: whatever is asked in one turn of the loop is one batch."""
    waiting: list[tuple[Item, asyncio.Future[Any]]] = []

    async def leave() -> None:
        some = waiting[:]
        waiting.clear()
        answers = await ray_app.together(bridge, [item for item, _ in some])
        for (_, future), answer in zip(some, answers, strict=True):
            future.set_result(answer)

    tasks = set()

    async def gather(item: Item) -> Any:
        future = asyncio.get_running_loop().create_future()
        waiting.append((item, future))
        if len(waiting) == 1:
            tasks.add(asyncio.get_running_loop().create_task(leave()))
        return await future

    return gather


@pytest.fixture
def replica(served_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    for name in ("starlette", "orjson", "prometheus_client"):
        pytest.importorskip(name)
    monkeypatch.setattr(ray_app, "gathering", batch_all)
    made = Replica(str(served_bundle), {"device": "cpu", "contexts": 1})
    yield made
    made.close()


def infer(rows: Any) -> bytes:
    item = {"name": "image", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return json.dumps({"inputs": [item]}).encode()


def ask(replica: Replica, *requests: Request) -> list[tuple[int, Any]]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*map(replica, requests))

    answers = asyncio.run(all_at_once())
    return [(answer.status_code, json.loads(answer.body)) for answer in answers]


def test_requests_of_one_moment_are_one_run(replica: Replica) -> None:
    post = ("POST", "/v2/models/four-fp16/infer")
    answers = ask(replica, *(Request(*post, infer(ROW * number)) for number in range(4)))
    assert [status for status, _ in answers] == [200] * 4
    alone = replica._served.session.infer(np.concatenate([ROW * number for number in range(4)]))
    told = [content["outputs"][0]["data"] for _, content in answers]
    np.testing.assert_allclose(told, alone, rtol=1e-6)  # what decimal float32 keeps
    stats = replica._served.measure.read("four-fp16", "1")
    assert (stats["inference_count"], stats["execution_count"]) == (4, 1)


def test_a_request_that_does_not_fit_is_refused_and_its_neighbours_answered(replica: Replica) -> None:
    post = ("POST", "/v2/models/four-fp16/infer")
    bad = Request(*post, infer(ROW[:, :2]))
    answers = ask(replica, Request(*post, infer(ROW)), bad, Request(*post, b"{"), Request(*post, infer(ROW)))
    assert [status for status, _ in answers] == [200, 400, 400, 200]
    assert "expected" in answers[1][1]["error"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [(QueueFullError("full"), 503, "the queue is full"), (BackendError("/secret"), 503, "could not run")],
)
def test_an_error_of_ours_is_json_with_its_status_and_tells_no_path(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, line: str
) -> None:
    def refuse(asked: Any) -> Any:
        raise error

    monkeypatch.setattr(replica._served, "submit_all", refuse)
    (answer,) = ask(replica, Request("POST", "/v2/models/four-fp16/infer", infer(ROW)))
    assert answer[0] == status
    assert line in answer[1]["error"]
    assert "secret" not in answer[1]["error"]


def test_a_route_prefix_is_taken_off(replica: Replica) -> None:
    (answer,) = ask(replica, Request("GET", "/vision/v2/models/four-fp16", root="/vision"))
    assert (answer[0], answer[1]["name"]) == (200, "four-fp16")


def test_it_is_healthy_until_its_backend_fails_and_again_when_zeros_run(replica: Replica) -> None:
    replica.check_health()
    replica._served.failing = True
    replica._served.probing = True  # a probe that has not come back
    with pytest.raises(BackendError, match="the backend failed"):
        replica.check_health()
    assert replica._served.probe()
    replica.check_health()


def test_a_closed_replica_closes_again(replica: Replica) -> None:
    replica.close()
    replica.close()


def test_no_bundle_is_an_error_before_ray_is_asked_for_a_replica(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Replica(str(tmp_path), {})


def test_arguments_come_as_text_or_as_themselves() -> None:
    given = {"device": "cpu", "threads": "2", "contexts": 1, "strict": "true", "backend": "onnxruntime"}
    assert opening_of(given) == given | {"threads": 2, "strict": True}


@pytest.mark.parametrize(
    ("given", "why"), [({"treads": 2}, "got 'treads'"), ({"threads": "two"}, "threads: expected a whole number")]
)
def test_an_argument_without_a_meaning_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(BackendError, match=why):
        opening_of(given)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    with pytest.raises(BackendError, match=r"needs ray\. Run: pip install 'engineworks\[ray\]'"):
        build({"bundle": str(bundle)})


def run_with_all_that_it_starts(command: list[str], seconds: float) -> tuple[int, str, str]:
    """Run a command in a session of its own; where it takes too long, end it and every process of its group."""
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            said, errors = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said, errors


def test_a_script_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"sleep 300 & echo $! > {pid}; wait"
    with pytest.raises(subprocess.TimeoutExpired):
        run_with_all_that_it_starts(["sh", "-c", code], 1.0)
    end = time.monotonic() + 30.0
    while _runs(int(pid.read_text("utf-8"))):
        assert time.monotonic() < end, "what it started still runs"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_a_killed_node_costs_what_was_in_flight_on_it_and_a_retry_answers_that(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    file = tmp_path / "app.yaml"
    replicas = ["--gpus", "0", "--replicas", "2:2"]
    assert deploy([str(HERE / "data" / "lenet5-fp16"), "--ray", str(file), *replicas]) == 0
    command = [sys.executable, str(HERE / "ray_cluster.py"), str(file)]
    status, said, errors = run_with_all_that_it_starts(command, 900.0)
    assert status == 0, errors[-3000:]
    told = json.loads(said[said.index("{\n") :])
    print(json.dumps(told, indent=1))
    assert (told["nodes with a replica"], told["replicas killed"]) == (2, 1)
    assert told["answered by what was killed"] > 0
    assert told["status of half a request"] == 400
    assert told["rows in a run, on average"] > told["rows in a request"]
    assert told["failed before the kill"] == told["failed after that"] == told.get("wrong", 0) == 0
    # what failed, failed by the kill: Ray's proxy says so in plain words; ours would be JSON, a lost answer a timeout
    assert set(told["errors"]) <= {"500 b'Internal Server Error'"}
    failed = told.get("failed", 0)
    assert told.get("answered by a retry", 0) == failed
    assert told["sent"] > told["sent before the kill"] + failed
    assert told["sent during an update"] > 0 and told["failed during an update"] == 0
    # Ray's replicas speak to each other on a port of every address, whatever it is told; nothing else may
    assert {line.partition(" ")[0] for line in told["exposed"]} <= {"ray::ServeRepli"}
