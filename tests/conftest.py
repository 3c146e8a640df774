"""What several test files share: a bundle that a test may damage, and the pieces it is made of.

The fixtures need what ``engineworks.runtime`` needs, and no more: no torch, no onnx.
"""

import ctypes
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from engineworks import runtime
from engineworks.runtime import trt_journal
from engineworks.runtime.manifest import Batch, EngineRecord, Model, Precision, Rung, Weights

DATA = Path(__file__).parent / "data"

# The same examples in every run; `pytest --hypothesis-profile=fuzz` looks for new ones.
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=60)
settings.register_profile(
    "fuzz", deadline=None, max_examples=3000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def manifest() -> runtime.Manifest:
    """A manifest in which every field says something; ``dataclasses.replace`` makes others of it."""
    rung = Rung("onnx-fp16", "pytorch-fp32", "scores", 2, 1e-3, 2e-3, 0.999999, 60.5, 1.0, 1.0, 40.0, "derived")
    return runtime.Manifest(
        name="four-fp16",
        created="2026-01-02T03:04:05Z",
        model=Model("four", "tests", "nobody 2026", 16),
        weights=Weights("file", "four.safetensors", True, "0" * 64, "CC0-1.0"),
        precision=Precision("fp16", {"float16": 1}),
        inputs=(runtime.Tensor("image", "float32", ("batch", 3, 8, 8)),),
        outputs=(runtime.Tensor("scores", "float32", ("batch", 4)),),
        scores="logits",
        batch=Batch(1, 4, 8),
        preprocessing=runtime.Preprocessing("RGB", 8, "bilinear", (8, 8), 0, (0.0,) * 3, (1.0,) * 3).to_json(),
        labels=("red", "green", "blue", "dark"),
        graph={"nodes": 3, "opset": 18, "simplifier": "none", "cpu": "model.onnx"},
        parity=(rung, replace(rung, candidate="onnx-fp32", sqnr_db=None)),
        engines=(EngineRecord("engines/rtx.engine", "rtx", "1.7", ("sm_89",), 3, {"Half": 1}),),
        notes=("made for a test",),
        recipe={"precision": "fp16"},
        tools={"numpy": "2"},
        files={},
    )


@pytest.fixture(scope="session")
def contents() -> dict[str, bytes]:
    """The files of the bundle; the engine is not one, and nothing may ever open it."""
    engine = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(40))
    return {
        "model.onnx": (DATA / "four_classes.onnx").read_bytes(),
        "engines/rtx.engine": engine,
        "reference.npz": b"PK" + bytes(100),
    }


@pytest.fixture
def make_bundle(tmp_path: Path, manifest: runtime.Manifest, contents: dict[str, bytes]) -> Callable[..., Path]:
    """Write a bundle under a name, with fields of the manifest and files of one's own."""

    def make(name: str = "four-fp16", files: dict[str, bytes] | None = None, **fields: Any) -> Path:
        given = contents if files is None else files
        return runtime.write_bundle(tmp_path / name, replace(manifest, **fields), given).path

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    """A whole bundle of one picture input and four classes, with an engine file; a test may damage it."""
    return make_bundle()


@pytest.fixture
def two_inputs(make_bundle: Callable[..., Path]) -> Path:
    """A bundle with inputs ``left`` and ``right``, outputs ``sum`` and ``dot``, and no preprocessing."""
    return make_bundle(
        "two-fp32",
        files={"model.onnx": (DATA / "two_inputs.onnx").read_bytes()},
        inputs=tuple(runtime.Tensor(name, "float32", ("batch", 3)) for name in ("left", "right")),
        outputs=(runtime.Tensor("sum", "float32", ("batch", 3)), runtime.Tensor("dot", "float32", ("batch", 1))),
        preprocessing=None,
        engines=(),
        labels=(),
    )


@pytest.fixture(scope="session")
def pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Noise, 30 rows by 20 columns of three channels."""
    return np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)


# --- our own translation: the fixtures below need torch and onnx, and import them where they are used ---

SAME_DB = 90.0  # 15 of float32's 24 bits: what is left for sums in another order; anything else is another graph
OPSETS = (18, 23)  # the oldest and the newest on offer


@pytest.fixture(scope="session")
def as_module() -> Callable[[Any], Any]:
    """Make a module in eval mode of a module, or of a function of one tensor."""
    from torch import nn

    class Function(nn.Module):
        def __init__(self, run: Callable[..., Any]) -> None:
            super().__init__()
            self.run = run

        def forward(self, x: Any) -> Any:
            return self.run(x)

    return lambda net: (net if isinstance(net, nn.Module) else Function(net)).eval()


@pytest.fixture(scope="session")
def translated(as_module: Callable[[Any], Any]) -> Callable[..., Any]:
    """Translate at every opset on offer's ends; hold answers, shapes and FP16; return the last graph."""
    import onnx
    import torch

    from engineworks.export.half import to_half
    from engineworks.export.translate import translate
    from engineworks.runtime.backend import open_session
    from engineworks.runtime.compare import sqnr

    def check(net: Any, *shape: int, sizes: tuple[int, ...] = (1, 3, 8), half: bool = True) -> Any:
        module, graph = as_module(net), None
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(*shape, generator=generator)
        for opset in OPSETS:
            graph, *_ = translate(module, {"x": x}, ("y",), batch=Batch(1, 4, 8), opset=opset)
            onnx.checker.check_model(graph, full_check=True)
            session = open_session(graph.SerializeToString(), "cpu", threads=1)
            for size in sizes:
                rows = torch.randn(size, *shape[1:], generator=generator)
                with torch.no_grad():
                    right: Any = module(rows.clone()).numpy()
                got: Any = session.run({"x": rows.numpy()}, ["y"])[0]
                assert (got.shape, got.dtype) == (right.shape, right.dtype), f"opset {opset}, batch {size}"
                assert sqnr(right, got) > SAME_DB, f"opset {opset}, batch {size}"
            if half:
                typed = to_half(graph, "fp16")
                onnx.checker.check_model(typed, full_check=True)
                open_session(typed.SerializeToString(), "cpu", threads=1)
        return graph

    return check


@pytest.fixture(scope="session")
def refusal(as_module: Callable[[Any], Any]) -> Callable[..., str]:
    """Say why our own translation does not take a module, or a function of one tensor."""
    import torch

    from engineworks.export.emitter import CannotTranslate
    from engineworks.export.translate import translate

    def why(net: Any, *shape: int) -> str:
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        with pytest.raises(CannotTranslate) as refused:
            translate(as_module(net), {"x": x}, ("y",), batch=Batch(1, 4, 8), opset=20)
        return str(refused.value)

    return why


# --- a GPU that is not there: the driver and TensorRT from recorded names, see fake_cuda.py and fake_trt.py


def _module(name: str, path: Path) -> Any:
    """Load a file beside the tests as a module of its own, whatever the folder that pytest runs in."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class FakeHost:
    """A host with GPUs of one's choice; ``install`` puts a TensorRT on it, ``plan`` says how that behaves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = Path(__file__).parent
        self.cuda = _module("fake_cuda", folder / "fake_cuda.py")
        self.trt = _module("fake_trt", folder / "fake_trt.py")
        self._maker = _module("fake_tensorrt", folder / "snapshots" / "fake_tensorrt.py")
        self._monkeypatch = monkeypatch
        self.driver = self.cuda.FakeDriver()
        self.plan = self.trt.Plan()
        for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(trt_journal, "_loggers", {})  # else every fake module would live on in there
        real = ctypes.CDLL
        libraries = {"libcuda.so.1": self.driver}
        monkeypatch.setattr(
            ctypes, "CDLL", lambda name, *rest, **more: libraries.get(name) or real(name, *rest, **more)
        )

    def install(self, api: str = "tensorrt_rtx-1.7", **plan: Any) -> Any:
        """Put the module of a recorded API in place; gives it."""
        snapshot = json.loads((Path(__file__).parent / "snapshots" / f"{api}.json").read_text("utf-8"))
        for name, value in plan.items():
            assert hasattr(self.plan, name), name
            setattr(self.plan, name, value)
        made = self._maker.make_module(snapshot, lambda trt: self.trt.behaviours(trt, self.plan, self.driver))
        self._monkeypatch.setitem(sys.modules, snapshot["module"], made)
        return made


@pytest.fixture
def fake_host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host with one fake GPU, an L4 (sm89), and no TensorRT yet."""
    return FakeHost(monkeypatch)


# --- a server in a process of its own, see running_server.py


@pytest.fixture(scope="session")
def served_bundle(tmp_path_factory: pytest.TempPathFactory, manifest: runtime.Manifest) -> Path:
    """A bundle of four colours to be served; nobody may damage it."""
    files = {"model.onnx": (DATA / "four_classes.onnx").read_bytes()}
    folder = tmp_path_factory.mktemp("served")
    return runtime.write_bundle(folder / "four-fp16", replace(manifest, engines=()), files).path


@pytest.fixture(scope="session")
def two_bundle(tmp_path_factory: pytest.TempPathFactory, manifest: runtime.Manifest) -> Path:
    """A bundle of two inputs and two outputs to be served; nobody may damage it."""
    files = {"model.onnx": (DATA / "two_inputs.onnx").read_bytes()}
    two = replace(
        manifest,
        name="two-fp32",
        inputs=tuple(runtime.Tensor(name, "float32", ("batch", 3)) for name in ("left", "right")),
        outputs=(runtime.Tensor("sum", "float32", ("batch", 3)), runtime.Tensor("dot", "float32", ("batch", 1))),
        preprocessing=None,
        engines=(),
        labels=(),
    )
    return runtime.write_bundle(tmp_path_factory.mktemp("served") / "two-fp32", two, files).path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start ``serve-model`` with arguments and environment of one's own; it is ended after the test."""
    for name in ("uvicorn", "httptools", "orjson", "prometheus_client"):
        pytest.importorskip(name)
    running: list[Any] = []

    def begin(*arguments: object, **environment: str) -> Any:
        made = _module("running_server", Path(__file__).parent / "running_server.py")
        running.append(made.Running([str(argument) for argument in arguments], tmp_path, **environment))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def server(served_bundle: Path, two_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One server for all tests that leave it as it was: models ``four-fp16`` and ``two``."""
    for name in ("uvicorn", "httptools", "orjson", "prometheus_client"):
        pytest.importorskip(name)
    made = _module("running_server", Path(__file__).parent / "running_server.py")
    limits = ("--max-body-mb", "4", "--max-json-mb", "1", "--max-memory-mb", "32", "--body-seconds", "1")
    arguments = [str(served_bundle), f"two={two_bundle}", "--head-seconds", "1", "--access-log", "all", *limits]
    running = made.Running(arguments, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


# --- images built for real, see containers.py


@pytest.fixture(scope="session")
def containers() -> Any:
    """What builds an image and enters it; ``missing()`` says why that cannot be done here."""
    return _module("containers", Path(__file__).parent / "containers.py")
