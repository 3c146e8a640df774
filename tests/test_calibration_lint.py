"""What TensorRT refuses or misreads in a Q/DQ graph, case by case; TensorRT-RTX itself is asked where it is there."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.lint import Finding, lint
from engineworks.calibration.placement import place
from engineworks.calibration.qdq import insert_qdq

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((16, 16, 3, 3)).astype(np.float32)
SCALES = (np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127).astype(np.float32)
STEPS = np.rint(WEIGHT / SCALES[:, None, None, None]).astype(np.int8)
BIAS = RNG.standard_normal(16).astype(np.float32)


def q(source: str, target: str, scale: str = "s", zero: str = "z", **attributes: Any) -> Any:
    return helper.make_node("QuantizeLinear", [source, scale, zero], [target], name=f"q_{target}", **attributes)


def dq(source: str, target: str, scale: str = "s", zero: str = "z", **attributes: Any) -> Any:
    return helper.make_node("DequantizeLinear", [source, scale, zero], [target], name=f"dq_{target}", **attributes)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def conv(inputs: str = "xd wd b", output: str = "c") -> Any:
    return node("Conv", inputs, output, pads=[1, 1, 1, 1])


QUANTISED_INPUT = [q("x", "xq"), dq("xq", "xd")]
WEIGHTS = dq("w8", "wd", "sw", "zw", axis=0)
LAYER = [*QUANTISED_INPUT, WEIGHTS, conv()]
GOOD = [*LAYER, node("Relu", "c", "y")]
STORED = {
    "s": np.array(0.03, np.float32), "z": np.array(0, np.int8), "w8": STEPS, "sw": SCALES, "zw": np.zeros(16, np.int8),
    "b": BIAS, "w": WEIGHT,
}  # fmt: skip


def model(nodes: list[Any] = GOOD, opset: int = 20, **stored: Any) -> Any:
    values = {**STORED, **stored}
    read = {name for part in nodes for name in part.input}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items() if name in read]
    graph = helper.make_graph(nodes, "g", [x], [y], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def told(found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.node, one.severity, one.rule) for one in found]


def both(severity: str, rule: str) -> list[tuple[str, str, str]]:
    return [("q_xq", severity, rule), ("dq_xd", severity, rule)]


BIAS32: dict[str, Any] = {
    "b8": np.rint(BIAS * 100).astype(np.int32),
    "sb": np.full(16, 0.01, np.float32),
    "zb": np.zeros(16, np.int32),
}
BIASED = [*LAYER[:3], dq("b8", "bd", "sb", "zb", axis=0), conv("xd wd bd"), GOOD[-1]]
DYNAMIC = helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "s1", "z1"], name="d")
BETWEEN = [*LAYER, q("c", "cq"), dq("cq", "cd")]

CASES: dict[str, tuple[Any, list[tuple[str, str, str]]]] = {
    "nothing in a graph of our own making": (model(), []),
    "uint8": (model(z=np.array(0, np.uint8)), both("refuse", "integer type")),
    "uint8 around 128": (
        model(z=np.array(128, np.uint8)),
        both("refuse", "integer type"),
    ),
    "int16": (model(z=np.array(0, np.int16), opset=21), both("refuse", "integer type")),
    "a zero point": (model(z=np.array(5, np.int8)), both("refuse", "zero point")),
    "an int32 bias": (model(BIASED, **BIAS32), [("dq_bd", "refuse", "int32 bias")]),
    "an int8 bias": (
        model(BIASED, b8=np.ones(16, np.int8), sb=np.full(16, 0.03, np.float32), zb=np.zeros(16, np.int8)),
        [("dq_bd", "warn", "constant")],
    ),
    "an int8 scalar": (
        model([*LAYER, dq("k", "kd"), node("Mul", "c kd", "y")], k=np.array(3, np.int8)),
        [("dq_kd", "refuse", "constant")],
    ),
    "a quantised float constant": (
        model([*LAYER, q("k", "kq"), dq("kq", "kd"), node("Mul", "c kd", "y")], k=np.array(3, np.float32)),
        [("dq_kd", "warn", "constant")],
    ),
    "a scale of 0": (model(s=np.array(0, np.float32)), both("refuse", "scale")),
    "a scale below 0": (model(s=np.array(-1, np.float32)), both("refuse", "scale")),
    "a scale of NaN": (model(s=np.array(np.nan, np.float32)), both("refuse", "scale")),
    "an infinite scale": (model(s=np.array(np.inf, np.float32)), both("refuse", "scale")),
    "a weight scale of 0": (model(sw=np.zeros(16, np.float32)), [("dq_wd", "refuse", "scale")]),
    "a computed scale": (
        model([node("ReduceMax", "x", "m", keepdims=0), q("x", "xq", "m"), dq("xq", "xd", "m"), *GOOD[2:]]),
        both("refuse", "scale"),
    ),
    "no DQ": (
        model([q("x", "xq"), node("Cast", "xq", "xd", to=1), *GOOD[2:]]),
        [("q_xq", "refuse", "pair"), ("c", "warn", "half quantised")],
    ),
    "an int8 output": (model([*LAYER, q("c", "y")]), [("q_y", "refuse", "pair")]),
    "a dynamic quantiser": (
        model([DYNAMIC, dq("xq", "xd", "s1", "z1"), *GOOD[2:]]),
        [("d", "refuse", "operator"), ("dq_xd", "refuse", "zero point"), ("dq_xd", "refuse", "scale")],
    ),
    "FP16 scales too early": (
        model(opset=18, s=np.array(0.03, np.float16)), both("refuse", "opset"),
    ),
    "a scale of shape (1,)": (
        model(s=np.array([0.03], np.float32)), both("warn", "scale shape"),
    ),
    "another scale behind": (
        model([q("x", "xq"), dq("xq", "xd", "s2"), *GOOD[2:]], s2=np.array(0.05, np.float32)),
        [("q_xq", "warn", "pair")],
    ),
    "scales per channel of an activation": (
        model([q("x", "xq", "sw", "zw", axis=1), dq("xq", "xd", "sw", "zw", axis=1), *GOOD[2:]]),
        both("warn", "per channel"),
    ),
    "weights along their inputs": (
        model([*GOOD[:2], dq("w8", "wd", "sw", "zw", axis=1), *GOOD[3:]]), [("dq_wd", "warn", "weight axis")],
    ),
    "float weights with a Q": (
        model([*GOOD[:2], q("w", "wq", "sw", "zw", axis=0), dq("wq", "wd", "sw", "zw", axis=0), *GOOD[3:]]),
        [("dq_wd", "warn", "float weight")],
    ),
    "data alone": (model([*QUANTISED_INPUT, conv("xd w b"), GOOD[-1]]), [("c", "warn", "half quantised")]),
    "weights alone": (model([WEIGHTS, conv("x wd b"), GOOD[-1]]), [("c", "warn", "half quantised")]),
    "both sides of a sum": (model([*BETWEEN, node("Add", "cd xd", "y")]), [("y", "warn", "residual sum")]),
    "Q before the activation": (model([*BETWEEN, node("Relu", "cd", "y")]), [("q_cq", "warn", "activation")]),
    "around an LRN": (model([*BETWEEN, node("LRN", "cd", "y", size=5)]), [("y", "warn", "float only")]),
    "around a Softmax": (model([*BETWEEN, node("Softmax", "cd", "y", axis=1)]), [("y", "warn", "float only")]),
    "an output rounded": (model([*LAYER, q("c", "cq"), dq("cq", "y")]), [("dq_y", "warn", "scores")]),
    "two Q on one tensor": (
        model([*LAYER, q("x", "xq2"), dq("xq2", "xd2"), node("Add", "c xd2", "y")]), [("q_xq2", "warn", "repeated")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_node_the_severity_and_the_rule_are_told(case: str) -> None:
    made, expected = CASES[case]
    found = lint(made)
    assert told(found) == expected
    assert all(one.what and one.mend.endswith((".", "?")) for one in found)


def test_a_q_without_a_zero_point_is_uint8() -> None:
    bare = [helper.make_node("QuantizeLinear", ["x", "s"], ["xq"], name="q"), *GOOD[1:]]
    bare[1] = helper.make_node("DequantizeLinear", ["xq", "s"], ["xd"], name="dq")
    assert told(lint(model(bare))) == [("q", "refuse", "integer type"), ("dq", "refuse", "integer type")]


def test_a_float_graph_has_nothing_to_find() -> None:
    assert lint(model([conv("x w b"), GOOD[-1]])) == []


def test_what_the_writer_writes_is_clean() -> None:
    plain = model([conv("x w b"), GOOD[-1]])
    assert lint(insert_qdq(plain, place(plain), {"x": 0.03})) == []


def test_gemm_weights_have_their_channels_where_transb_says() -> None:
    for turned, axis in ((0, 1), (1, 0)):
        nodes = [*QUANTISED_INPUT, dq("v", "vd", "sv", "zv", axis=axis), node("Gemm", "xd vd", "y", transB=turned)]
        stored: dict[str, Any] = {
            "v": np.ones((16, 16), np.int8),
            "sv": np.ones(16, np.float32),
            "zv": np.zeros(16, np.int8),
        }
        assert lint(model(nodes, **stored)) == []
        nodes[2] = dq("v", "vd", "sv", "zv", axis=1 - axis)
        assert told(lint(model(nodes, **stored))) == [("dq_vd", "warn", "weight axis")]


# --- strangers: what ONNX Runtime's own quantiser writes ---


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Quantise two layers with ``onnxruntime.quantization``; called with its options, returns the graph."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    folder = tmp_path_factory.mktemp("stranger")
    plain = model([conv("x w b"), node("Relu", "c", "r"), conv("r w b", "e"), node("Relu", "e", "y")])
    (folder / "plain.onnx").write_bytes(plain.SerializeToString())

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.rows = iter([{"x": RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)} for _ in range(2)])

        def get_next(self) -> Any:
            return next(self.rows, None)

    def quantise(**options: Any) -> Any:
        import onnx

        target = folder / "made.onnx"
        quantization.quantize_static(str(folder / "plain.onnx"), str(target), Reader(), per_channel=True, **options)
        return onnx.ModelProto.FromString(target.read_bytes())

    return quantise


def test_onnx_runtimes_defaults_have_int32_biases_and_zero_points(stranger: Any) -> None:
    rules = {(one.severity, one.rule) for one in lint(stranger())}
    assert ("refuse", "int32 bias") in rules
    assert rules & {("refuse", "zero point"), ("refuse", "integer type")}


def test_onnx_runtime_told_what_tensorrt_wants_has_nothing_refused(stranger: Any) -> None:
    extra = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv"],
    }
    assert [one for one in lint(stranger(extra_options=extra)) if one.severity == "refuse"] == []


# --- TensorRT-RTX's own word ---

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
BUILT_ALL_THE_SAME = {
    "uint8",
    "an infinite scale",
    "FP16 scales too early",
    "an int8 output",
    "no DQ",
}  # misread instead


def compiled(made: Any) -> Any:
    from engineworks.export.engine import compile_engine

    return compile_engine(made.SerializeToString(), flavour="rtx", batch=(1, 2, 4), targets=("sm89",))


@needs_rtx
@pytest.mark.parametrize("case", [name for name in CASES if name not in BUILT_ALL_THE_SAME | {"a computed scale"}])
def test_tensorrt_rtx_refuses_what_is_called_refused_and_builds_the_rest(case: str) -> None:
    from engineworks.runtime.errors import EngineError

    made, expected = CASES[case]
    if any(severity == "refuse" for _, severity, _ in expected):
        with pytest.raises(EngineError):
            compiled(made)
    else:
        assert compiled(made).plan


@needs_rtx
def test_tensorrt_rtx_takes_uint8_for_int8_with_a_warning_alone() -> None:
    assert any("UINT8" in line for line in compiled(CASES["uint8"][0]).warnings)


@needs_rtx
@pytest.mark.parametrize(
    "case",
    ["a scale of shape (1,)", "scales per channel of an activation", "weights along their inputs", "weights alone"],
)
def test_tensorrt_rtx_computes_these_layers_in_float_without_a_word(case: str) -> None:
    """Its plan names the sums of an int8 layer ``…_before_bias``; float layers add their bias in the same kernel."""
    good, other = compiled(model()), compiled(CASES[case][0])
    assert b"_before_bias" in good.plan
    assert b"_before_bias" not in other.plan
    assert other.warnings == ()


@needs_rtx
@pytest.mark.slow
def test_a_computed_scale_ends_the_process_of_tensorrt_rtx(tmp_path: Path) -> None:
    (tmp_path / "made.onnx").write_bytes(CASES["a computed scale"][0].SerializeToString())
    code = (
        "import pathlib, sys; from engineworks.export.engine import compile_engine; "
        "compile_engine(pathlib.Path(sys.argv[1]), flavour='rtx', batch=(1, 2, 4), targets=('sm89',))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "made.onnx")], capture_output=True, check=False)
    assert done.returncode < 0, "killed by a signal; lint refuses such a graph first"
