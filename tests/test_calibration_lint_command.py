"""lint-model: a stranger's Q/DQ graph is judged node by node, and mended where that costs nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.lint_command import main

GOLDEN = Path(__file__).parent / "data" / "lenet5-fp16"


def stranger(kind: Any = np.uint8, zero: int = 128) -> onnx.ModelProto:
    """Return a product whose input is quantised with a zero point."""
    stored = {
        "s": np.array(0.1, np.float32),
        "z": np.array(zero, kind),
        "ws": np.array(0.02, np.float32),
        "wz": np.array(0, np.int8),
        "w": np.arange(-64, 64, dtype=np.int8).reshape(16, 8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wd"),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="y"),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c]) for n, c in (("x", 16), ("y", 8))]
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "net.onnx").write_bytes(stranger().SerializeToString())
    return tmp_path / "net.onnx"


def test_a_graph_that_tensorrt_refuses_exits_1_and_names_node_and_mend(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("refuse: q: ") and "Mend: " in lines[0] and "(--fix does it)" in lines[0]
    assert lines[-1] == "2 refused, 0 warned of"


def test_what_is_mechanical_is_mended_in_a_copy_that_computes_the_same(file: Path, tmp_path: Path) -> None:
    before, made = file.read_bytes(), tmp_path / "mended.onnx"
    assert main([str(file), "--fix", str(made)]) == 0
    assert main([str(made)]) == 0
    assert file.read_bytes() == before
    import onnxruntime as ort

    x = {"x": np.linspace(-20, 20, 160, dtype=np.float32).reshape(10, 16)}
    old, new = (ort.InferenceSession(f, providers=["CPUExecutionProvider"]).run(None, x)[0] for f in (file, made))
    assert np.array_equal(old, new)


def test_findings_come_as_json_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {one["node"] for one in found} == {"q", "d"}
    assert all(one["severity"] == "refuse" and one["mechanical"] for one in found)


def test_a_bundle_without_q_and_dq_has_nothing_to_find(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN)]) == 0
    assert capsys.readouterr().out == "nothing found\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "expected an ONNX file or a bundle"), (b"no onnx at all", "expected an ONNX"), (b"", "found no graph")],
)
def test_what_is_no_graph_is_one_line(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    assert main([str(tmp_path / "x")]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_weights_in_another_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = stranger()
    model.graph.initializer[-1].data_location = TensorProto.EXTERNAL
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    assert main([str(tmp_path / "net.onnx")]) == 1
    assert "its weights lie in another file" in capsys.readouterr().err


def test_a_file_that_stands_there_needs_force(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--fix", str(file)]) == 1
    assert "it is there already. Pass --force" in capsys.readouterr().err
    assert main([str(file), "--fix", str(file), "--force"]) == 0
    assert main([str(file)]) == 0
