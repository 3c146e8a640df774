"""inspect-model --layers: each engine of a bundle, or an engine alone, kernel by kernel, with totals."""

import pytest

pytest.importorskip("onnx", reason="the graphs of these tests are written with onnx, which is not installed")

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engineworks.runtime import cuda
from engineworks.runtime.inspect import main
from engineworks.runtime.manifest import EngineRecord
from tests.test_runtime_xray import graph
from tests.written_information import GEMM, free, information, network
from tests.written_plan import small

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
FILE = "engines/rtx-sm86.engine"


@pytest.fixture
def make(make_bundle: Make) -> Callable[[bytes], Path]:
    """A bundle whose one engine is this plan, of a graph that asks for float16."""
    record = EngineRecord(FILE, "rtx", "1.7.1.116", ("sm86",), 4, {})
    return lambda plan: make_bundle(files={"model.onnx": graph(), FILE: plan}, engines=(record,))


def told(arguments: list[str], capsys: Capture, status: int = 0) -> str:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_every_kernel_is_a_line_and_totals_follow(make: Callable[[bytes], Path], capsys: Capture) -> None:
    lines = told([str(make(small())), "--layers"], capsys).splitlines()
    assert lines == [
        f"{FILE}: TensorRT-RTX 1.7.1.116 for sm86, batch 4",
        "  layers   module     asked    found               MB  kernel",
        "  cast_x   -          float16  float32→float16  0.005  __myl_Cast",
        "  conv +1  stem.conv  float16  float16          0.011  convolution",
        "  fc       -          float16  float16          0.009  __myl_FcAdd",
        "  total      3 kernels move 0.0 MB a batch of 4",
        "  realised   1 of 1 convolutions and 2 of 2 weighted layers as asked; multiply-adds: float16 100.0%",
    ]


def test_a_layer_in_another_type_is_named(make: Callable[[bytes], Path], capsys: Capture) -> None:
    lines = told([str(make(small(weights="float32"))), "--layers"], capsys).splitlines()
    assert "0 of 1 convolutions and 1 of 2 weighted layers as asked" in lines[-2]
    assert "float32 99.4%, float16 0.6%" in lines[-2]
    assert lines[-1] == "  not as asked  conv (stem.conv): asked float16, found float32"


def test_json_has_all_that_was_found(make: Callable[[bytes], Path], capsys: Capture) -> None:
    (content,) = json.loads(told([str(make(small())), "--layers", "--json"], capsys))
    assert content["engine"] == FILE and content["targets"] == ["sm86"]
    assert content["realised"] == {"layers": 2, "of": 2, "multiply_adds": {"float16": 1.0}}
    assert content["bytes"] == sum(row["bytes"] for row in content["rows"])
    assert content["layers"][0]["module"] == "stem.conv" and content["rows"][1]["layers"] == ["conv", "act"]


def test_a_free_batch_is_the_bundles_usual_one_or_the_one_asked_for(
    make: Callable[[bytes], Path], capsys: Capture
) -> None:
    path = str(make(small(batch="n")))
    assert "batch 4\n" in told([path, "--layers"], capsys)
    assert "batch 8\n" in told([path, "--layers", "--batch", "8"], capsys)
    assert "batch 9 is outside 1 to 8" in told([path, "--layers", "--batch", "9"], capsys, 1)


def test_an_engine_without_its_bundle_is_shown_without_what_was_asked(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "some.engine"
    file.write_bytes(small())
    out = told([str(file)], capsys)
    assert out.startswith("some.engine: TensorRT-RTX 1.7.1.116 for sm86, batch 4\n")
    assert "realised   not known: an engine alone does not say what was asked" in out


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (small(version=(1, 8, 0, 1)), "not readable: a plan of TensorRT-RTX 1.8.0.1; known is 1.7.1.116"),
        (b"a plan of TensorRT itself", "not readable: no TensorRT-RTX plan"),
    ],
)
def test_an_unknown_plan_is_not_readable_and_status_1(
    make: Callable[[bytes], Path], capsys: Capture, plan: bytes, message: str
) -> None:
    found = told([str(make(plan)), "--layers"], capsys, 1)
    assert re.fullmatch(rf"inspect-model: four-fp16, {FILE}: {re.escape(message)}\.\n", found)


# --- engines of TensorRT itself, on a recorded API and a fake GPU


@pytest.fixture
def of_tensorrt(make_bundle: Make, fake_host: Any) -> Path:
    """A bundle whose one engine is of TensorRT 11.4 for the fake host's GPU."""
    file = "engines/tensorrt-sm89.engine"
    record = EngineRecord(file, "tensorrt", "11.4.0.106", ("sm89",), 4, {})
    return make_bundle("trt", files={"model.onnx": graph(), file: b"plan"}, engines=(record,))


def test_an_engine_of_tensorrt_is_shown_as_its_inspector_tells_it(
    of_tensorrt: Path, fake_host: Any, capsys: Capture
) -> None:
    fake_host.install("tensorrt-11.4", information=free)
    assert told([str(of_tensorrt), "--layers"], capsys).splitlines() == [
        "engines/tensorrt-sm89.engine: TensorRT 11.4.0.106 for sm89, batch 4",
        "  layers   module     asked    found               MB  kernel",
        "  cast_x   -          float16  float32→float16  0.005  kgen",
        "  conv +1  stem.conv  float16  float16          0.011  CaskConvolution sm80_xmma_fprop_implicit_gemm",
        "  -        -          -        float16          0.008  kgen",
        f"  fc       -          float16  float16          0.001  gemm {GEMM}",
        "  total      4 kernels move 0.0 MB a batch of 4",
        "  realised   1 of 1 convolutions and 2 of 2 weighted layers as asked; multiply-adds: float16 100.0%",
    ]
    (content,) = json.loads(told([str(of_tensorrt), "--layers", "--json", "--batch", "8"], capsys))
    assert (content["compiler"], content["batch"]) == ("TensorRT", 8)


def test_a_layer_that_tensorrt_does_not_tell_of_makes_the_bytes_a_lower_bound_and_no_prediction(
    of_tensorrt: Path, fake_host: Any, capsys: Capture
) -> None:
    layers = network()
    layers[-1]["TacticName"] = "a kernel of cuBLAS"
    fake_host.install("tensorrt-11.4", information=lambda batch: information(layers))
    lines = told([str(of_tensorrt), "--layers"], capsys).splitlines()
    assert lines[-3] == "  total      4 kernels move at least 0.0 MB a batch of 4"
    assert lines[-1] == "  not as asked  fc: asked float16, found not seen"
    found = told([str(of_tensorrt), "--against", str(of_tensorrt)], capsys, 1)
    assert found == "inspect-model: A: what 1 of its layers cost is not seen, fc among them.\n"


def test_two_engines_of_tensorrt_are_predicted_as_any(of_tensorrt: Path, fake_host: Any, capsys: Capture) -> None:
    fake_host.install("tensorrt-11.4", information=free)
    out = told([str(of_tensorrt), "--against", str(of_tensorrt), "--gpu", "L4"], capsys)
    assert "too close to call (1.00 ×)" in out


def test_an_engine_of_tensorrt_says_that_it_wants_a_gpu_or_the_package(
    of_tensorrt: Path, fake_host: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = told([str(of_tensorrt), "--layers"], capsys, 1)
    assert found.startswith(
        "inspect-model: trt, engines/tensorrt-sm89.engine: not readable here: tensorrt is not installed. pip install"
    )
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu(None, "no NVIDIA driver"))
    found = told([str(of_tensorrt), "--layers"], capsys, 1)
    assert "not readable here: TensorRT reads its own engines, on a GPU alone, and no NVIDIA driver" in found


def test_an_engine_of_tensorrt_without_its_bundle_is_not_opened(
    of_tensorrt: Path, fake_host: Any, capsys: Capture
) -> None:
    fake_host.install("tensorrt-11.4", information=free)
    found = told([str(of_tensorrt / "engines" / "tensorrt-sm89.engine")], capsys, 1)
    assert found.endswith("no TensorRT-RTX plan; engines of TensorRT itself are read in their bundle.\n")
    assert fake_host.plan.events == []


def test_a_damaged_engine_of_tensorrt_never_reaches_it(of_tensorrt: Path, fake_host: Any, capsys: Capture) -> None:
    fake_host.install("tensorrt-11.4", information=free)
    (of_tensorrt / "engines" / "tensorrt-sm89.engine").write_bytes(b"evil")
    assert told([str(of_tensorrt), "--layers"], capsys, 1)
    assert fake_host.plan.events == []


def test_a_bundle_without_an_engine_is_told(make_bundle: Make, capsys: Capture) -> None:
    assert "has no engine to look into" in told([str(make_bundle(engines=())), "--layers"], capsys, 1)


@pytest.mark.parametrize("flags", [["--why", "--layers"], ["--why", "--json"], ["--batch", "4"], ["--batch", "0"]])
def test_flags_that_do_not_go_together_are_wrong_usage(bundle: Path, capsys: Capture, flags: list[str]) -> None:
    assert main([str(bundle), *flags]) == 2
    assert "Usage: inspect-model" in capsys.readouterr().err
