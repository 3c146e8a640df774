"""Real TensorRT-RTX builds on the CPU; test_engine_tensorrt.py has the other compiler."""

import gc
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.export import engine as engine_module
from engineworks.export.engine import RTX_TARGETS, BuildCancelled, Engine, compile_engine, read_plan_header
from engineworks.runtime.errors import EngineError

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
BATCH = (1, 8, 64)
AMPERE_ON = RTX_TARGETS[1:]
rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def weights(name: str, shape: tuple[int, ...], dtype: int) -> Any:
    values = np.random.default_rng(0).standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(dtype))
    return numpy_helper.from_array(values, name)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> Any:
    graph = helper.make_graph(nodes, "net", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def cnn(precision: str = "fp32", *, batch: str | int = "N", height: str | int = 8, extra: str = "Relu") -> Any:
    """Conv, an activation, global pool, Gemm."""
    dtype = TYPES[precision]
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["x", "cw", "cb"], ["c"], "conv1", pads=[1] * 4),
        helper.make_node(extra, ["c"], ["r"], "act1"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "fw", "fb"], ["y"], "fc", transB=1),
    ]
    shapes = {"cw": (16, 3, 3, 3), "cb": (16,), "fw": (10, 16), "fb": (10,)}
    constants = [weights(name, shape, dtype) for name, shape in shapes.items()]
    return model(nodes, [value("x", dtype, [batch, 3, height, 8])], [value("y", dtype, [batch, 10])], constants)


def deep(layers: int) -> bytes:
    """Convolutions in a row, float16: about 4 ms of build for each layer and six targets."""
    value = helper.make_tensor_value_info
    nodes, constants, last = [], [], "x"
    for index in range(layers):
        nodes += [
            helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4),
            helper.make_node("Tanh", [f"c{index}"], [f"t{index}"]),
        ]
        constants.append(weights(f"w{index}", (16, 16 if index else 3, 3, 3), TensorProto.FLOAT16))
        last = f"t{index}"
    ends = [value("x", TensorProto.FLOAT16, ["N", 3, 8, 8])], [value(last, TensorProto.FLOAT16, ["N", 16, 8, 8])]
    return bytes(model(nodes, *ends, constants).SerializeToString())


def build(graph: Any, **options: Any) -> Engine:
    data = graph if isinstance(graph, (bytes, Path)) else graph.SerializeToString()
    return compile_engine(data, **{"flavour": "rtx", "batch": BATCH, **options})


@rtx
@pytest.mark.parametrize(
    ("precision", "targets"),
    [
        *[(precision, (target,)) for precision in TYPES for target in ("sm80", "sm89", "sm121")],
        *[(precision, targets) for precision in TYPES for targets in (("sm86", "sm89"), AMPERE_ON)],
        ("fp16", ("sm75",)),
        ("fp16", RTX_TARGETS),
    ],
)
def test_the_plan_is_for_the_targets_asked_for(precision: str, targets: tuple[str, ...]) -> None:
    engine = build(cnn(precision), targets=targets)
    header = read_plan_header(engine.plan)
    assert engine.targets == targets and engine.left_out == {}
    if engine.version.startswith("1.7."):
        assert header is not None
        assert (header.targets, header.size, header.version) == (targets, len(engine.plan), engine.version)
    assert engine.layer_types == {f"convolution {precision}": 1, f"matrix_multiply {precision}": 1}
    assert engine.layers > 4 and engine.seconds > 0


@rtx
@pytest.mark.parametrize(
    ("precision", "reason"),
    [("fp32", r"Turing \(SM75\): FP32 GEMM is not supported"), ("bf16", r"target\(s\) sm75, because .* b16")],
)
def test_the_default_leaves_out_turing_where_it_must_and_says_why(precision: str, reason: str) -> None:
    engine = build(cnn(precision))
    assert engine.targets == AMPERE_ON
    assert list(engine.left_out) == ["sm75"] and re.search(reason, engine.left_out["sm75"])
    with pytest.raises(EngineError, match=rf"{reason}.*Leave sm75 out of the targets"):
        build(cnn(precision), targets=("sm75", "sm86"))
    with pytest.raises(EngineError, match=rf"{reason}.*cpp:\d+\)$"):
        build(cnn(precision), targets=("sm75",))


@rtx
@pytest.mark.parametrize("again", [False, True], ids=["the same call", "the next call"])
def test_a_refusal_leaves_no_trace_in_the_plan_that_is_built_next(again: bool) -> None:
    """After TensorRT-RTX refused sm75 its next plan followed sm75's rules: a third longer, its Gemm not fused."""
    clean = build(cnn("fp32"), targets=AMPERE_ON)
    if again:
        with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
            build(cnn("fp32"), targets=("sm75",))
    after = build(cnn("fp32"), targets=AMPERE_ON if again else ())
    assert after.targets == clean.targets and len(after.plan) == len(clean.plan)
    assert after.plan.count(b"runtime_fusion={") == clean.plan.count(b"runtime_fusion={") == 1


@rtx
def test_the_default_for_float16_is_every_target() -> None:
    engine = build(cnn("fp16"))
    assert (engine.targets, engine.left_out, engine.warnings, engine.tf32) == (RTX_TARGETS, {}, (), True)


@rtx
def quantised() -> bytes:
    """The same network in FP16, its convolution between Q and DQ."""
    net = cnn("fp16")
    int8: dict[str, Any] = {
        "xs": np.array(0.02, np.float16),
        "ws": np.full(16, 0.02, np.float16),
        "z": np.array(0, np.int8),
    }
    int8 |= {"wz": np.zeros(16, np.int8), "wq": np.ones((16, 3, 3, 3), np.int8)}
    net.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in int8.items())
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "xs", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "wd", axis=0),
        *net.graph.node,
    ]
    del net.graph.node[:]
    net.graph.node.extend(nodes)
    net.graph.node[3].input[:2] = ["d", "wd"]
    return bytes(net.SerializeToString())


@rtx
def test_turing_computes_int8_layers_in_float_and_is_left_out_or_refused() -> None:
    engine = compile_engine(quantised(), flavour="rtx", batch=BATCH)
    assert engine.layer_types == {"convolution int8": 1, "matrix_multiply fp16": 1}
    assert engine.targets == AMPERE_ON
    assert engine.left_out["sm75"] == "TensorRT-RTX computes int8 layers in float there, without a word"
    with pytest.raises(EngineError, match="sm75: TensorRT-RTX computes int8 layers in float there"):
        compile_engine(quantised(), flavour="rtx", batch=BATCH, targets=("sm75", "sm86"))


@rtx
def test_a_graph_with_a_fixed_batch_builds_for_that_batch_alone() -> None:
    assert build(cnn(batch=4), batch=(4, 4, 4), targets=("sm86",)).batch == (4, 4, 4)
    with pytest.raises(EngineError, match=r"fixed at 4, expected it to take 1:8:64"):
        build(cnn(batch=4))


@rtx
def test_two_inputs_share_the_batch() -> None:
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, ["N", 4]) for name in ("a", "b")]
    outputs = [value("y", TensorProto.FLOAT, ["N", 4])]
    assert build(model([helper.make_node("Add", ["a", "b"], ["y"])], inputs, outputs, []), targets=("sm86",)).plan


@rtx
def test_a_path_finds_weights_beside_it_and_bytes_without_them_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(cnn(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert build(path, targets=("sm86",)).plan
    with pytest.raises(EngineError, match="Failed to import initializer"):
        build(path.read_bytes(), targets=("sm86",))
    with pytest.raises(EngineError, match="Input file cannot be found"):
        build(tmp_path / "absent.onnx", targets=("sm86",))


@rtx
@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (b"no onnx at all", r"cannot read the ONNX graph: MODEL_DESERIALIZE_FAILED: .*Failed to parse the ONNX model"),
        (b"", r"Network must have at least one output"),
        (cnn(extra="Whatever"), r"node 'act1' \(Whatever\), INVALID_NODE: .*Plugin not found"),
        (cnn(extra="Det"), r"node 'act1' \(Det\), UNSUPPORTED_NODE"),
        (cnn(height="H"), r"input 'x': dimension 2 \(H\) is dynamic"),
    ],
    ids=["junk", "empty", "unknown-operator", "unsupported-operator", "dynamic-height"],
)
def test_a_graph_that_cannot_be_compiled_is_told_in_the_compilers_words(graph: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        build(graph)
    assert "cudaError" not in str(caught.value) and "\n" not in str(caught.value)


@rtx
def test_a_target_that_the_compiler_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx.IBuilderConfig, "set_compute_capability", lambda *_: False)
    with pytest.raises(EngineError, match=r"does not compile for sm86: no reason was logged"):
        build(cnn(), targets=("sm86",))


@rtx
def test_the_reason_of_one_attempt_is_not_told_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    real = tensorrt_rtx.IBuilderConfig.set_compute_capability
    monkeypatch.setattr(
        tensorrt_rtx.IBuilderConfig,
        "set_compute_capability",
        lambda config, target, index: config.num_compute_capabilities == 6 and real(config, target, index),
    )
    with pytest.raises(EngineError, match=r"does not compile for sm80: no reason was logged"):
        build(cnn("fp32"))


@rtx
def test_a_plan_for_other_targets_than_asked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    real = tensorrt_rtx.IBuilderConfig.set_compute_capability
    other = tensorrt_rtx.ComputeCapability.SM89
    monkeypatch.setattr(
        tensorrt_rtx.IBuilderConfig, "set_compute_capability", lambda config, _, index: real(config, other, index)
    )
    with pytest.raises(EngineError, match=r"was asked for sm86 and made a plan for sm89"):
        build(cnn(), targets=("sm86",))


@pytest.mark.parametrize("batch", [(4, 1, 8), (1, 8, 4), (0, 1, 1), (-1, 1, 1)])
def test_a_batch_in_the_wrong_order_is_refused_before_any_compiler_is_loaded(
    monkeypatch: pytest.MonkeyPatch, batch: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(engine_module, "load_compiler", lambda _: pytest.fail("the compiler was loaded"))
    with pytest.raises(EngineError, match=r"expected MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got"):
        compile_engine(b"", flavour="rtx", batch=batch)
    with pytest.raises(EngineError, match="has no Hopper"):
        compile_engine(b"", flavour="rtx", batch=BATCH, targets=("sm90",))


@rtx
def test_progress_names_phases_and_stays_between_0_and_1() -> None:
    seen: list[tuple[str, float | None]] = []
    build(cnn(), targets=("sm86",), on_progress=lambda phase, done: seen.append((phase, done)))
    assert {"Building engine", "Cloning network graph"} <= {phase for phase, _ in seen}
    assert all(done is None or 0 <= done <= 1 for _, done in seen)
    assert (seen[0], seen[-1]) == (("Building engine", 0.0), ("Building engine", 1.0))


@rtx
def test_cancelling_stops_the_build_at_the_next_step() -> None:
    phases: list[str] = []

    def watch(phase: str, _: float | None) -> None:
        phases.append(phase)

    whole = build(deep(80), on_progress=watch).seconds
    steps = len(phases)
    phases.clear()
    began = time.perf_counter()
    with pytest.raises(BuildCancelled, match="the build was cancelled"):
        build(deep(80), on_progress=watch, cancelled=lambda: len(phases) >= 3)
    assert len(phases) == 3 < steps
    assert time.perf_counter() - began < max(0.5 * whole, 0.2)
    assert build(cnn(), targets=("sm86",)).plan


@rtx
def test_cancelling_before_the_start_parses_nothing() -> None:
    with pytest.raises(BuildCancelled):
        build(b"junk that would be refused", cancelled=lambda: True)


@rtx
@pytest.mark.parametrize("error", [ZeroDivisionError("a broken bar"), KeyboardInterrupt("pressed")])
def test_what_a_callback_raises_comes_out(error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> bool:
        raise error

    with pytest.raises(type(error), match=str(error)):
        build(cnn(), on_progress=fail)
    with pytest.raises(type(error), match=str(error)):
        build(cnn(), cancelled=fail)
    assert "Exception caught" not in capfd.readouterr().err


@rtx
def test_two_threads_build_at_once_and_each_gets_its_own_words() -> None:
    def fail(_: int) -> str:
        with pytest.raises(EngineError) as caught:
            build(cnn("bf16"), targets=("sm75",))
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:
        good = [pool.submit(build, cnn("fp16"), targets=("sm86",)) for _ in range(3)]
        bad = list(pool.map(fail, range(3)))
    assert all("b16" in message and "fc" not in message for message in bad)
    assert all(job.result().warnings == () for job in good)


@rtx
@pytest.mark.parametrize("ending", ["built", "refused", "cancelled", "callback"])
def test_no_builder_outlives_its_build_even_while_the_error_is_kept(
    monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A builder that dies later, in the garbage collector, can hang TensorRT: see trt_journal."""
    import tensorrt_rtx

    def fail(*_: object) -> None:
        raise ValueError("broken")

    builders: list[Any] = []
    real = tensorrt_rtx.Builder

    def make(logger: Any) -> Any:
        builder = real(logger)
        builders.append(weakref.ref(builder))
        return builder

    monkeypatch.setattr(tensorrt_rtx, "Builder", make)
    options: dict[str, dict[str, Any]] = {
        "built": {},
        "refused": {"targets": ("sm75",)},
        "cancelled": {"cancelled": lambda: bool(builders)},
        "callback": {"on_progress": fail},
    }
    kept: list[object] = []
    gc.disable()
    try:
        kept.append(build(cnn(), **options[ending]))
    except (EngineError, ValueError) as error:
        kept.append(error)
    finally:
        alive = [builder() is not None for builder in builders]
        gc.enable()
    assert alive == [False] and isinstance(kept[0], Engine) is (ending == "built")


@rtx
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_in_the_main_thread_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "deep.onnx").write_bytes(deep(150))
    code = """
import signal, sys
from pathlib import Path
from engineworks.export.engine import compile_engine
signal.signal(signal.SIGINT, signal.default_int_handler)
told = {}
def say(phase, done):
    if not told:
        print("building", flush=True)
    told[phase] = done
try:
    compile_engine(Path(sys.argv[1]), flavour="rtx", batch=(1, 8, 64), on_progress=say)
except KeyboardInterrupt:
    print("interrupted,", "to the end" if told["Building engine"] == 1 else "on the way")
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "deep.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "interrupted, on the way\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep.onnx"]
