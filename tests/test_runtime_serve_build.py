"""Engines built beside the server: the real compiler for a GPU that is not there, and every way in which it may fail.

The GPU is a fake one (sm89), and so is the TensorRT-RTX that would run the engine; what compiles it, in a process of
its own, is the real one.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks import runtime
from engineworks.runtime.engine_cache import find_entry
from engineworks.runtime.manifest import Precision
from engineworks.runtime.serve_build import COMMAND, Build, better_by, gpu_of, visible
from engineworks.runtime.serve_metrics import Metrics
from engineworks.runtime.serve_model import Opening
from engineworks.runtime.serve_models import Models

pytest.importorskip("prometheus_client")
KEY = ("four", "1")
DATA = Path(__file__).parent / "data"
IMAGE = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
API = "tensorrt_rtx-1.7"


@pytest.fixture
def plain(make_bundle: Callable[..., Path]) -> Path:
    """A bundle in float32 without an engine."""
    files = {"model.onnx": (DATA / "four_classes.onnx").read_bytes()}
    return make_bundle("four", files, engines=(), precision=Precision("fp32", {"fp32": 1}))


class Place:
    """A server's models on a host with a fake GPU, and what builds engines for them."""

    def __init__(self, bundle: Path, cache: Path, *command: str) -> None:
        opening, self.cache, self.metrics = Opening(contexts=1), cache, Metrics()
        self.models = Models(opening, ThreadPoolExecutor(2), better=better_by(cache, opening))
        self.models.add(f"four={bundle}")
        self.build = Build(self.models, self.metrics, cache, seconds=0.01, command=command or COMMAND)

    @property
    def backend(self) -> str:
        return self.models.find("four").backend

    def count(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("engineworks_engine_builds_total", {"outcome": outcome}) or 0.0

    def close(self) -> None:
        for served in list(self.models.all()):
            served.close()
        self.models.threads.shutdown()


@pytest.fixture
def place(fake_host: Any, plain: Path, tmp_path: Path) -> Any:
    """Make a place with a command of one's own in the compiler's stead."""
    fake_host.install(API)
    made: list[Place] = []

    def make(*command: str) -> Place:
        made.append(Place(plain, tmp_path / "cache", *command))
        return made[-1]

    yield make
    for one in made:
        one.close()


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def looked(place: Place, times: int = 1) -> None:
    async def look() -> None:
        await place.models.load(KEY)
        for _ in range(times):
            await place.build.look()

    asyncio.run(look())


@pytest.mark.slow
def test_an_engine_is_compiled_and_takes_over_with_no_request_lost(place: Any) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
    here: Place = place()
    seen: list[str] = []

    async def ask() -> None:
        served = here.models.find("four")
        served.users += 1
        try:
            outcome = await asyncio.wrap_future(served.submit({"image": IMAGE}, None))
        finally:
            here.models.release(served)
        assert outcome.outputs["scores"].shape == (2, 4)
        seen.append(served.backend)

    async def scene() -> None:
        await here.models.load(KEY)
        assert here.backend == "onnxruntime-cpu"
        looking = asyncio.ensure_future(here.build.look())
        while not looking.done():
            await asyncio.gather(*(ask() for _ in range(8)))
        await looking
        await ask()

    asyncio.run(scene())
    assert here.backend == "rtx"
    assert seen[0] == "onnxruntime-cpu" and seen[-1] == "rtx"
    assert here.count("ok") == 1 and here.count("failed") == 0
    again: Place = place(*python("raise SystemExit('compiled again')"))
    looked(again)
    assert again.backend == "rtx", "the next start takes the engine from the cache at once"
    assert again.count("ok") == again.count("failed") == 0


def test_without_a_gpu_it_says_so_once_and_serves(
    plain: Path, tmp_path: Path, fake_host: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake_host.driver.gpus.clear()
    here = Place(plain, tmp_path / "cache")
    asyncio.run(asyncio.wait_for(here.build.run(), 5.0))
    assert [record.message for record in caplog.records] == [
        "--build-engines: the NVIDIA driver shows 0 GPUs (cuDeviceGetCount gave error 0). ONNX Runtime serves."
    ]
    here.close()


@pytest.mark.slow
def test_a_server_asked_to_build_on_a_host_without_a_gpu_says_so_once_and_answers(
    start: Any, served_bundle: Path, tmp_path: Path
) -> None:
    if gpu_of(Opening()).target is not None:
        pytest.skip("this host has a GPU")
    server = start(served_bundle, "--build-engines", "--engine-cache", tmp_path)
    end = time.monotonic() + 20.0
    while "ONNX Runtime serves." not in server.said and time.monotonic() < end:
        time.sleep(0.02)
    assert server.said.count("--build-engines: no NVIDIA driver") == 1
    assert server.ask("GET", "/v2/health/ready")[0] == 200
    assert b"engineworks_engine_builds_total{" not in server.ask("GET", "/metrics")[2]


def test_without_a_compiler_it_says_how_to_get_one(
    plain: Path, tmp_path: Path, fake_host: Any, caplog: pytest.LogCaptureFixture
) -> None:
    here = Place(plain, tmp_path / "cache")
    asyncio.run(asyncio.wait_for(here.build.run(), 5.0))
    (record,) = caplog.records
    assert 'pip install "engineworks[rtx]"' in record.message
    here.close()


FAILURES = {
    "a sentence": ("sys.stderr.write('x\\nrebuild: rtx: no.\\n'); sys.exit(1)", "rtx: no. (status 1)"),
    "a crash": ("os.kill(os.getpid(), 11)", "it said nothing (signal 11)"),
    "out of memory": ("os.kill(os.getpid(), 9)", "it said nothing (signal 9)"),
    "no engine after all": ("", "it was compiled, and does not open: onnxruntime-cpu"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_compiler_that_fails_is_told_once_and_onnx_runtime_serves_on(
    place: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, words = FAILURES[kind]
    here: Place = place(*python(f"import os, sys; {code}"))
    looked(here, times=3)
    assert here.backend == "onnxruntime-cpu"
    assert here.count("failed") == 1
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert f"model four version 1: no engine, ONNX Runtime serves on: {words}" in errors[0]


@pytest.mark.parametrize("fault", ["the process", "the load"])
def test_what_the_system_refuses_is_counted_and_told_as_a_build_that_failed(
    place: Any, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here: Place = place(*python("")) if fault == "the load" else place(str(tmp_path / "no-such-program"))

    async def refuse(key: Any) -> Any:
        raise OSError(24, "Too many open files")

    async def look() -> None:
        await here.models.load(KEY)
        monkeypatch.setattr(here.models, "load", refuse)
        for _ in range(2):
            await here.build.look()

    asyncio.run(look())
    assert here.count("failed") == 1
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    words = "OSError: [Errno 24] Too many open files" if fault == "the load" else "FileNotFoundError"
    assert f"no engine, ONNX Runtime serves on: {words}" in error


def test_a_compiler_that_hangs_is_ended_counted_and_told(
    place: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here: Place = place()
    here.build = Build(here.models, here.metrics, here.cache, limit=0.2, command=("sh", "-c", "exec sleep 300"))
    begin, begun = asyncio.create_subprocess_exec, list[Any]()

    async def remember(*command: str, **given: Any) -> Any:
        begun.append(await begin(*command, **given))
        return begun[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remember)
    looked(here, times=2)
    assert here.count("failed") == 1
    assert [process.returncode for process in begun] == [-signal.SIGKILL]
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "ONNX Runtime serves on: the compiler was not done after 0.2 s, and was ended" in error


def test_a_bundle_that_changed_is_tried_again(place: Any, plain: Path) -> None:
    here: Place = place(*python("raise SystemExit(1)"))
    looked(here)
    os.utime(plain / "manifest.json", (1, 1))
    looked(here)
    assert here.count("failed") == 2


def test_a_damaged_entry_is_passed_over_and_told(place: Any, plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    here: Place = place()
    here.cache.mkdir()
    entry = runtime.write_bundle(here.cache / "x", runtime.open_bundle(plain).manifest, {"model.onnx": b"no graph"})
    here.models.better = lambda path: entry.path
    looked(here, times=0)
    assert here.backend == "onnxruntime-cpu"
    assert "what was compiled here does not open" in caplog.records[0].getMessage()


def test_a_server_that_stops_ends_its_compiler(place: Any, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    here: Place = place(*python(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(40)"))

    async def stop() -> None:
        await here.models.load(KEY)
        running = asyncio.ensure_future(here.build.run())
        end = time.monotonic() + 30.0
        while not pid.exists() or not pid.read_text("utf-8"):
            assert time.monotonic() < end, "the compiler was not started"
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 15.0)

    asyncio.run(stop())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text("utf-8")), 0)


def test_a_bundle_that_does_not_open_keeps_its_own_folder(tmp_path: Path, fake_host: Any) -> None:
    assert better_by(tmp_path, Opening())(tmp_path / "nothing") == tmp_path / "nothing"


def test_a_bundle_without_an_entry_keeps_its_own_folder(plain: Path, tmp_path: Path, fake_host: Any) -> None:
    assert find_entry(runtime.open_bundle(plain), tmp_path / "cache", gpu_of(Opening())) is None
    assert better_by(tmp_path / "cache", Opening())(plain) == plain


def test_the_compiler_sees_the_gpu_that_is_served_on() -> None:
    assert visible({}, 1)["CUDA_VISIBLE_DEVICES"] == "1"
    assert visible({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}, 1)["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert visible({"PATH": "/bin"}, 0) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"}
