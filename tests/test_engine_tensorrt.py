"""The TensorRT path of compile_engine, on a stand-in made from the snapshots of its API."""

import dataclasses
import importlib.util
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engineworks.export import engine as engine_module
from engineworks.export.engine import BuildCancelled, Engine, compile_engine
from engineworks.export.trt_compilers import Gpu
from engineworks.runtime.errors import EngineError

SNAPSHOTS = Path(__file__).parent / "snapshots"
BATCH = (1, 8, 64)


def fake(monkeypatch: pytest.MonkeyPatch, *, api: str = "tensorrt-11.4", **scenario: Any) -> Any:
    """Put the stand-in for ``tensorrt`` in place, on a host with an sm90 GPU; gives its scenario."""
    spec = importlib.util.spec_from_file_location("fake_tensorrt", SNAPSHOTS / "fake_tensorrt.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fake_tensorrt", made)
    spec.loader.exec_module(made)
    story = made.Scenario(**scenario)
    snapshot = json.loads((SNAPSHOTS / f"{api}.json").read_text())
    monkeypatch.setitem(sys.modules, "tensorrt", made.fake_module(snapshot, story))
    monkeypatch.setattr(engine_module, "probe_gpu", lambda: Gpu("sm90"))
    return story


def build_fake(**options: Any) -> Engine:
    return compile_engine(b"graph", **{"flavour": "tensorrt", "batch": BATCH, **options})


@pytest.mark.parametrize(
    ("api", "version", "flag"), [("tensorrt-11.4", "11.4.0.106", 1), ("tensorrt-10.16", "10.16.1.11", 2)]
)
def test_tensorrt_compiles_for_the_gpu_of_this_host(
    monkeypatch: pytest.MonkeyPatch, api: str, version: str, flag: int
) -> None:
    story = fake(monkeypatch, api=api, log=(("WARNING", "a weight is small"), ("VERBOSE", "chatter")))
    engine = build_fake()
    assert dataclasses.replace(engine, seconds=0.0) == Engine(
        flavour="tensorrt",
        version=version,
        targets=("sm90",),
        left_out={},
        batch=BATCH,
        plan=b"plan",
        layers=1,
        layer_types={"convolution fp16": 1},
        tf32=True,
        warnings=("a weight is small",),
        seconds=0.0,
    )
    assert story.profiles == [("x", (1, 3, 8, 8), (8, 3, 8, 8), (64, 3, 8, 8))]
    assert story.flags == [flag], "STRONGLY_TYPED has another bit in 10 than in 11"
    assert build_fake(targets=("sm90",)).targets == ("sm90",)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ({"parsed": False}, r"cannot read the ONNX graph: node 'conv1' \(Conv\), INVALID_NODE: the kernel is odd$"),
        ({"plan": None}, r"tensorrt 11\.4\.0\.106 refused the graph: no reason was logged"),
        ({"profile_index": -1, "log": (("ERROR", "odd profile"),)}, r"batch 1:8:64 was refused"),
        ({"starts": False, "log": (("ERROR", "no memory"),)}, r"tensorrt 11\.4\.0\.106 does not start: no memory"),
        ({"shape": (-1, 3, 8, -1)}, r"input 'x': dimension 3 \(W\) is dynamic"),
    ],
    ids=["parse", "build", "profile", "start", "dynamic"],
)
def test_each_refusal_of_tensorrt_is_an_error(
    monkeypatch: pytest.MonkeyPatch, scenario: dict[str, Any], message: str
) -> None:
    fake(monkeypatch, **scenario)
    with pytest.raises(EngineError, match=message):
        build_fake()


def test_a_fixed_graph_needs_no_profile_in_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    story = fake(monkeypatch, shape=(2, 3, 8, 8))
    assert build_fake(batch=(2, 2, 2)).plan == b"plan"
    assert story.profiles == []


def test_a_build_of_tensorrt_is_cancelled_through_its_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    story = fake(monkeypatch)
    building = threading.Event()
    with pytest.raises(BuildCancelled):
        build_fake(on_progress=lambda *_: building.set(), cancelled=building.is_set)
    assert story.builds == 1


def test_tensorrt_serves_no_other_target_than_this_hosts_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    story = fake(monkeypatch)
    with pytest.raises(EngineError, match=r"compiles for this host's GPU, sm90, not for sm86"):
        build_fake(targets=("sm86",))
    assert story.flags == []


def test_tensorrt_is_not_touched_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    story = fake(monkeypatch)
    monkeypatch.setattr(engine_module, "probe_gpu", lambda: Gpu(None, "this host has no NVIDIA driver"))
    with pytest.raises(
        EngineError, match=r"compiles only where a GPU is: this host has no NVIDIA driver\. --engine rtx"
    ):
        build_fake()
    assert story.flags == []


def test_the_stand_in_lacks_what_tensorrt_11_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    trt: Any = sys.modules["tensorrt"]
    removed: list[Callable[[], object]] = [
        lambda: trt.BuilderFlag.FP16,
        lambda: trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
        lambda: trt.IInt8EntropyCalibrator2,
        lambda: trt.IBuilderConfig().int8_calibrator,
        lambda: setattr(trt.IBuilderConfig(), "max_workspace_size", 1),
    ]
    for use in removed:
        with pytest.raises(AttributeError):
            use()
    with pytest.raises(NotImplementedError, match=r"no behaviour for IBuilderConfig\.set_flag"):
        trt.IBuilderConfig().set_flag(trt.BuilderFlag.REFIT)
