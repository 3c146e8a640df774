"""ONNX files of other makes: what is taken is proven against the file, what is not is refused by its cause."""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engineworks import runtime
from engineworks.export import onnx_file
from engineworks.export.inputs import parse_shape
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.errors import EngineworksError, ExportError
from engineworks.runtime.manifest import Batch

F, I64 = TensorProto.FLOAT, TensorProto.INT64
W = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
K = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
X = np.random.default_rng(2).standard_normal((3, 6)).astype(np.float32)
node = helper.make_node
Value = tuple[str, int, Sequence[str | int] | None]


def model(
    nodes: list[Any],
    inputs: Sequence[Value] = (("x", F, ("n", 6)),),
    outputs: Sequence[Value] = (("y", F, ("n", 4)),),
    stored: dict[str, Any] | None = None,
    opset: int = 20,
    ir: int = 10,
) -> Any:
    values = [[helper.make_tensor_value_info(*value) for value in some] for some in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (stored or {}).items()]
    graph = helper.make_graph(nodes, "g", values[0], values[1], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, producer_name="me")


def linear(x: str = "x", y: str = "y", batch: str | int = "n", **options: Any) -> Any:
    nodes = [node("MatMul", [x, "w"], ["t"]), node("Relu", ["t"], [y])]
    return model(nodes, [(x, F, [batch, 6])], [(y, F, [batch, 4])], {"w": W}, **options)


def relu(inputs: Sequence[Value], outputs: Sequence[Value]) -> Any:
    return model([node("Relu", [inputs[0][0]], [outputs[0][0]])], inputs, outputs)


def picture(height: str | int = 8, batch: str | int = "n", opset: int = 17) -> Any:
    nodes = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]), node("Flatten", ["p"], ["y"]),
    ]  # fmt: skip
    shape: list[str | int] = [batch, 3, height, height if height == 8 else "w"]
    return model(nodes, [("x", F, shape)], [("y", F, [batch, 4])], {"k": K}, opset=opset, ir=8)


def sizes(value: Any) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def recipe(made: Any, name: str = "net.onnx", shapes: Sequence[str] = (), **fields: Any) -> Recipe:
    """Write a file, and return the recipe that exports it."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    usual: dict[str, Any] = {"engine": "none", "batch": Batch(1, 2, 3), "shapes": tuple(map(parse_shape, shapes))}
    return Recipe(name, **(usual | fields))


def exported(made: Any, **fields: Any) -> Bundle:
    asked = recipe(made, **fields)
    return export_model(asked, Path(f"out{len(list(Path().iterdir()))}"), use_cache=False)


def refused(made: Any, **fields: Any) -> str:
    asked = recipe(made, **fields)
    before = sorted(Path().iterdir())
    with pytest.raises(EngineworksError) as caught:
        export_model(asked, Path("out"), use_cache=False)
    assert sorted(Path().iterdir()) == before, "nothing is left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def agrees(bundle: Bundle, made: Any, arrays: dict[str, npt.NDArray[Any]], atol: float = 1e-5) -> None:
    """Hold a bundle against ONNX's own reference evaluator on the file as it was given."""
    expected = ReferenceEvaluator(made).run(None, arrays)
    with runtime.load(bundle.path, device="cpu") as session:
        found = session.infer(arrays)
    for name, array in zip([value.name for value in made.graph.output], expected, strict=True):
        assert np.allclose(found[name], array, rtol=0, atol=atol), name  # sums of six products near 1, in float32


# --- what is taken


@pytest.mark.parametrize(
    ("precision", "atol"), [("fp32", 1e-5), ("fp16", 2e-2), ("bf16", 1e-1)]
)  # 2⁻¹¹, 2⁻⁸ of sums near 5
@pytest.mark.parametrize("simplifier", ["auto", "none"])
def test_a_file_answers_as_the_reference_evaluator_says(precision: Any, atol: float, simplifier: Any) -> None:
    bundle = exported(linear(), precision=precision, simplify=simplifier)
    agrees(bundle, linear(), {"x": X}, atol)
    assert {rung.reference for rung in bundle.manifest.parity} == {"onnx-original"}
    assert bundle.manifest.graph["simplifier"] == ("none" if simplifier == "none" else "onnxslim")


@pytest.mark.parametrize(
    ("opset", "ir", "expected"),
    [
        (7, 3, 18),
        (9, 4, 18),
        (11, 6, 18),
        (13, 7, 18),
        (17, 8, 18),
        (18, 8, 18),
        (21, 10, 21),
        (23, 11, 23),
        (24, 12, 23),
    ],
)
def test_operator_sets_that_are_not_tested_are_converted_to_the_nearest(opset: int, ir: int, expected: int) -> None:
    made = linear(opset=opset, ir=ir)
    if ir == 3:  # as old exporters had to: weights stand among the inputs
        made.graph.input.append(helper.make_tensor_value_info("w", F, [6, 4]))
    bundle = exported(made)
    assert bundle.manifest.graph["opset"] == expected
    agrees(bundle, linear(), {"x": X})


def test_an_operator_set_is_kept_unless_another_is_asked_for() -> None:
    assert exported(linear(opset=21), opset=18).manifest.graph["opset"] == 18
    assert exported(linear(opset=17), opset=23).manifest.graph["opset"] == 23
    assert exported(linear(opset=17), precision="bf16").manifest.graph["opset"] == 22


def test_the_batch_is_named_in_the_graph_itself() -> None:
    for batch, name in ((Batch(1, 2, 3), "batch"), (Batch(2, 2, 2), 2)):
        bundle = exported(linear(batch="whatever"), batch=batch)
        graph = onnx.ModelProto.FromString(bundle.read("model.onnx")).graph
        assert [sizes(graph.input[0]), sizes(graph.output[0])] == [[name, 6], [name, 4]]
        assert bundle.manifest.inputs[0].shape == (name, 6)
        assert bundle.manifest.outputs[0].shape == (name, 4)


def test_a_batch_that_a_reshape_hides_is_named_all_the_same() -> None:
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    made = model(nodes, [("x", F, ("n", 2, 3))], stored={"s": np.array([-1, 6]), "w": W})
    assert exported(made).manifest.outputs[0].shape == ("batch", 4)
    assert exported(made, batch=Batch(2, 2, 2)).manifest.outputs[0].shape == (2, 4)


def test_a_free_height_and_width_are_given_by_shape_and_stand_in_the_graph() -> None:
    assert "axis 2 of input x is free (h), and only the batch may be. Add --shape x:SIZES" in refused(picture("h"))
    bundle = exported(picture("h"), shapes=["x:3x8x8"])
    graph = onnx.ModelProto.FromString(bundle.read("model.onnx")).graph
    assert sizes(graph.input[0]) == ["batch", 3, 8, 8]
    agrees(bundle, picture("h"), {"x": np.ones((2, 3, 8, 8), np.float32)}, 1e-4)


def test_axes_that_share_the_batchs_name_are_told_apart() -> None:
    made = relu([("x", F, ("batch", "batch"))], [("y", F, ("batch", "batch"))])
    assert "axis 1 of input x is free (batch)" in refused(made)
    assert exported(made, shapes=["4"]).manifest.outputs[0].shape == ("batch", 4)


@pytest.mark.parametrize(
    ("x", "y"), [("input:0", "Stateful/out:0"), ("1", "495"), ("图 像/é", "sälida"), ("/in", "/out"), ("x", "x_out")]
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_names_are_kept_as_other_tools_write_them(x: str, y: str, precision: Any) -> None:
    bundle = exported(linear(x, y), precision=precision)
    assert [bundle.manifest.inputs[0].name, bundle.manifest.outputs[0].name] == [x, y]
    with runtime.load(bundle.path, device="cpu") as session:
        assert list(session.infer({x: X})) == [y]
    assert exported(linear(x, y), shapes=[f"{x}:6"]).manifest.inputs[0].name == x


def test_several_inputs_share_one_batch_whatever_it_is_called() -> None:
    made = model([node("Add", ["a", "b"], ["y"])], [("a", F, ("n", 6)), ("b", F, ("m", 6))], [("y", F, ("k", 6))])
    bundle = exported(made)
    assert [tensor.shape for tensor in (*bundle.manifest.inputs, *bundle.manifest.outputs)] == [("batch", 6)] * 3
    agrees(bundle, made, {"a": X, "b": X[::-1].copy()})


def test_bytes_and_indices_are_inputs_too() -> None:
    nodes = [node("Cast", ["x"], ["f"], to=F), node("MatMul", ["f", "w"], ["y"])]
    made = model(nodes, [("x", TensorProto.UINT8, ("n", 6))], stored={"w": W})
    agrees(exported(made), made, {"x": np.arange(12, dtype=np.uint8).reshape(2, 6)}, 1e-3)
    table = model([node("Gather", ["e", "x"], ["y"])], [("x", I64, ("n", 6))], [("y", F, ("n", 6, 4))], {"e": W})
    assert exported(table, precision="fp16").manifest.inputs[0].dtype == "int64"


def test_weights_among_the_inputs_are_weights() -> None:
    made = linear()
    made.graph.input.insert(0, helper.make_tensor_value_info("w", F, [6, 4]))
    assert [tensor.name for tensor in exported(made).manifest.inputs] == ["x"]


def test_nodes_without_a_name_or_with_one_name_get_their_own() -> None:
    nodes = [node("Relu", ["x"], ["t"], name="a"), node("Neg", ["t"], ["u"], name="a"), node("Abs", ["u"], ["y"])]
    bundle = exported(model(nodes, outputs=[("y", F, ("n", 6))]), simplify="none")
    graph = onnx.ModelProto.FromString(bundle.read("model.onnx")).graph
    assert [item.name for item in graph.node] == ["a", "a_2", "Abs_y"]


def test_an_input_that_nothing_reads_stays_an_input() -> None:
    """Simplifiers take it away; a service would then call the bundle with a name that it does not know."""
    made = relu([("x", F, ("n", 6)), ("spare", F, ("n", 6))], [("y", F, ("n", 6))])
    bundle = exported(made)
    assert [tensor.name for tensor in bundle.manifest.inputs] == ["x", "spare"]
    assert bundle.manifest.graph["simplifier"] == "none"
    assert "took an input away" in str(bundle.manifest.graph["route"])
    assert "--simplify onnxslim took an input away" in refused(made, simplify="onnxslim")


def branches() -> Any:
    inner = [
        helper.make_graph(
            [node("Mul", ["x", name], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", F, ("n", 6))],
        )
        for name in ("one", "two")
    ]
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0), node("Greater", ["m", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=inner[0], else_branch=inner[1]),
    ]  # fmt: skip
    stored = {"zero": np.float32(-100), "one": np.array([1], np.float32), "two": np.array([2], np.float32)}
    return model(nodes, outputs=[("y", F, ("n", 6))], stored=stored)


def test_control_flow_is_taken_in_float32_and_refused_in_half() -> None:
    agrees(exported(branches()), branches(), {"x": X})
    assert "cannot cast the graph: If at If_y. Export this network with --fp32" in refused(branches(), precision="fp16")


def test_sequences_are_taken_in_float32_and_refused_in_half() -> None:
    nodes = [node("SequenceConstruct", ["x", "x"], ["s"]), node("SequenceAt", ["s", "i"], ["y"])]
    made = model(nodes, outputs=[("y", F, ("n", 6))], stored={"i": np.array(0)})
    agrees(exported(made), made, {"x": X})
    assert "onnxruntime refuses the graph" in refused(made, precision="fp16")


def test_dropout_that_sleeps_is_taken() -> None:
    nodes = [node("Dropout", ["x", "p", "t"], ["d"]), node("Dropout", ["d"], ["y"])]
    made = model(nodes, outputs=[("y", F, ("n", 6))], stored={"p": np.float32(0.5), "t": np.array(False)})
    agrees(exported(made), made, {"x": X})


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_that_is_fixed_inside_is_taken_at_that_batch(count: int) -> None:
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    made = model(nodes, [("x", F, ("n", 2, 3))], stored={"s": np.array([count, 6]), "w": W})
    assert "does not run at batch 8; is its batch fixed inside? Pass --batch N." in refused(made)
    agrees(exported(made, batch=Batch(count, count, count)), made, {"x": X[:count].reshape(count, 2, 3)})


def test_a_fixed_batch_is_taken_by_its_number_alone() -> None:
    message = "the batch of input x is fixed to 3. Pass --batch 3, or export it with a free one."
    assert message in refused(linear(batch=3))
    assert message in refused(linear(batch=3), batch=Batch(4, 4, 4))
    agrees(exported(linear(batch=3), batch=Batch(3, 3, 3)), linear(batch=3), {"x": X})


def test_what_a_failing_graph_logs_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [node("Reshape", ["x", "s"], ["y"])]
    refused(model(nodes, [("x", F, ("n", 2, 3))], [("y", F, (1, 6))], {"s": np.array([1, 6])}))
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of the legacy exporter's end
@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("axes", [None, {"x": {0: "N"}, "out": {0: "N"}}, {"x": {0: "N", 2: "H", 3: "W"}}])
def test_what_the_legacy_exporter_writes_is_taken(opset: int, axes: Any) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Dropout(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5),
    ).eval()  # fmt: skip
    example = torch.randn(2, 3, 16, 16)
    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["out"], "dynamic_axes": axes}
    torch.onnx.export(net, (example,), "legacy.onnx", dynamo=False, opset_version=opset, **options)
    batch = Batch(2, 2, 2) if axes is None else Batch(1, 2, 3)
    shapes = ["3x16x16"] if axes and "out" not in axes else []
    bundle = exported(Path("legacy.onnx").read_bytes(), shapes=shapes, batch=batch, precision="fp16")
    with torch.no_grad(), runtime.load(bundle.path, device="cpu") as session:
        expected, found = net(example).numpy(), session.infer(example.numpy())
    assert np.abs(found - expected).max() < 5e-3  # FP16: 2⁻¹¹ of values near 1, some layers deep


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("made", [linear(), branches(), picture(), linear("input:0", "Stateful/out:0")])
def test_the_engine_is_built_from_what_was_given(made: Any) -> None:
    assert len(exported(made, engine="rtx").manifest.engines) == 1


# --- what is refused


def quantised() -> Any:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    return model(nodes, outputs=[("y", F, ("n", 6))], stored={"s": np.float32(0.1), "z": np.int8(0)})


def dynamic() -> Any:
    """What ONNX Runtime's dynamic quantisation writes: no layer in it is one of float32."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("MatMulInteger", ["q", "w", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=F), node("Mul", ["f", "s"], ["y"]),
    ]  # fmt: skip
    return model(nodes, stored={"w": (W * 20).astype(np.int8)})


def custom() -> Any:
    made = model([node("Fused", ["x"], ["y"], domain="com.me")], outputs=[("y", F, ("n", 6))])
    made.opset_import.append(helper.make_opsetid("com.me", 1))
    return made


def inside(op: Any) -> Any:
    """The same operator, hidden in a branch."""
    inner = helper.make_graph([op], "b", [], [helper.make_tensor_value_info(op.output[0], F, ("n", 6))])
    made = model(
        [node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        outputs=[("y", F, ("n", 6))],
        stored={"c": np.array(True)},
    )
    made.opset_import.append(helper.make_opsetid("com.me", 1))
    return made


SAME: list[Value] = [("y", F, ("n", 6))]
SAME_IN: list[Value] = [("x", F, ("n", 6))]


def halves() -> Any:
    half = W.astype(np.float16)
    return model([node("MatMul", ["x", "w"], ["y"])], [("x", 10, ("n", 6))], [("y", 10, ("n", 4))], {"w": half})


def cast_to(kind: int, constant: Any) -> Any:
    """Compute in another type between float32 and float32."""
    nodes = [node("Cast", ["x"], ["a"], to=kind), constant, node("MatMul", ["a", "w"], ["t"])]
    return model([*nodes, node("Cast", ["t"], ["y"], to=F)])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (b"", "net.onnx: holds no graph."),
        (b"this is no protobuf at all", "net.onnx: is no ONNX file, or a damaged one."),
        (linear().SerializeToString()[:-5], "is no ONNX file, or a damaged one"),
        (custom(), "Fused at y is no operator of ONNX (com.me); TensorRT does not take it"),
        (inside(node("Fused", ["x"], ["i"], domain="com.me")), "Fused at i is no operator of ONNX"),
        (inside(node("RandomNormalLike", ["x"], ["i"])), "RandomNormalLike at i draws random numbers"),
        (quantised(), "is quantised already (QuantizeLinear). Give the float32 network."),
        (dynamic(), "is quantised already (DynamicQuantizeLinear). Give the float32 network."),
        (halves(), "w is stored in half precision. Give the float32 network; --fp16 casts it."),
        (cast_to(10, node("Constant", [], ["w"], value=numpy_helper.from_array(W.astype(np.float16)))),
         "a constant is stored in half precision"),
        (cast_to(11, node("Constant", [], ["w"], value=numpy_helper.from_array(W.astype(np.float64)))),
         "1 layers compute in another type: MatMul_t (float64)"),
        (relu([("x", 11, ("n", 6))], [("y", 11, ("n", 6))]), "input x has a type that is not taken here"),
        (model([node("Cast", ["x"], ["y"], to=11)], outputs=[("y", 11, ("n", 6))]),
         "output y: torch.float64 is not exported"),
        (relu([("x", F, ())], [("y", F, ())]), "input x has no axes"),
        (relu([("x", F, None)], [("y", F, None)]), "is not valid ONNX: Field 'shape' of 'type' is required"),
        (relu([("x", F, ("n", 0))], [("y", F, ("n", 0))]), "axis 1 of input x is free"),
        (model([node("Identity", ["w"], ["y"])], [], [("y", F, (6, 4))], {"w": W}), "net.onnx: takes no input."),
        (relu(SAME_IN, [*SAME, ("x", F, ("n", 6))]), "output x is an input or a constant, passed through"),
        (model([node("Relu", ["x"], ["y"])], outputs=[*SAME, ("w", F, (6, 4))], stored={"w": W}),
         "output w is an input or a constant, passed through"),
        (model([node("Relu", ["x"], ["y"])], outputs=[*SAME, *SAME]), "lists its output y twice"),
        (model([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])], outputs=SAME), "is not valid ONNX"),
        (model([node("Relu", ["nowhere"], ["y"])], outputs=SAME), "is not valid ONNX"),
        (model([node("NonZero", ["x"], ["y"])], outputs=[("y", I64, (2, "k"))]),
         "the size of output y depends on the data"),
        (model([node("NonZero", ["x"], ["z"]), node("Transpose", ["z"], ["y"])], outputs=[("y", I64, ("k", 2))]),
         "output y: expected the batch as its first axis (8 rows), got (48, 2)"),
        (model([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], outputs=SAME),
         "RandomNormalLike at r draws random numbers"),
        (model([node("Dropout", ["x", "p", "t"], ["y"])], outputs=SAME, stored={"p": np.float32(0.5),
         "t": np.array(1, bool)}),
         "Dropout at y draws random numbers"),
        (model([node("Sub", ["x", "m"], ["y"])], outputs=SAME, stored={"m": np.zeros((2, 6), np.float32)}),
         "does not run at batch"),
        (model([node("ReduceMean", ["x", "a"], ["m"]), node("Sub", ["x", "m"], ["y"])],
               outputs=SAME, stored={"a": np.array([0])}),
         "depends on its whole batch. Fix the batch: --batch N."),
        (model([node("Mul", ["x", "z"], ["y"])], outputs=SAME, stored={"z": np.zeros(1, np.float32)}),
         "answers every input alike"),
    ],
)  # fmt: skip
def test_what_is_not_taken_is_refused_by_its_cause(made: Any, message: str) -> None:
    assert message in refused(made)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["z:3x8x8"], "--shape: net.onnx takes the inputs x; got z."),
        (["4x8x8"], "--shape: net.onnx takes x float32 (N, 3, 8, 8), got input float32 (N, 4, 8, 8)."),
        (["3x8x8:uint8"], "got input uint8 (N, 3, 8, 8)"),
        (["3x8x8x8"], "got input float32 (N, 3, 8, 8, 8)"),
        (["3x8"], "axis 3 of input x is free (w)"),
        (["x:3x8x8", "x:3x9x9"], "name each input of net.onnx once"),
        (["3x8x8", "x:3x9x9"], "name each input of net.onnx once"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shapes: list[str], message: str) -> None:
    assert message in refused(picture("h"), shapes=shapes)


def test_one_shape_without_a_name_is_no_answer_for_two_inputs() -> None:
    made = model([node("Add", ["a", "b"], ["y"])], [("a", F, ("n", "k")), ("b", F, ("n", "k"))], SAME)
    assert "name each input of net.onnx once, as NAME:SIZES; it takes a, b." in refused(made, shapes=["6"])


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    Path("folder.onnx").mkdir()
    os.mkfifo("pipe.onnx")
    for name in ("none.onnx", "folder.onnx", "pipe.onnx"):
        with pytest.raises(ExportError, match=f"^{name}: there is no such file"):
            export_model(Recipe(name), tmp_path / "out")


def test_a_tools_name_cannot_write_on_the_terminal() -> None:
    made = linear()
    made.producer_name = "\n\x1b[31mevil"
    assert exported(made).manifest.model.paper == "the file net.onnx, written by [31mevil"


def test_nothing_of_another_machine_stands_in_the_bundle() -> None:
    made, secret = linear(), "/home/someone/secret"
    made.doc_string = made.graph.doc_string = made.graph.name = secret
    made.metadata_props.add(key="path", value=secret)
    made.graph.node[0].doc_string = secret
    made.graph.node[0].metadata_props.add(key="trace", value=secret)
    for simplifier in ("none", "auto"):
        bundle = exported(made, simplify=simplifier)
        assert not [entry.name for entry in bundle.path.iterdir() if b"someone" in entry.read_bytes()]


# --- data outside the file


def outside(location: str, folder: str = "d", data: bytes | None = None, **keys: Any) -> str:
    """Write a file whose weight lies at ``location``; return the file's path."""
    made = linear()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **keys}.items():
        tensor.external_data.add(key=key, value=str(value))
    Path(folder).mkdir(exist_ok=True)
    Path(f"{folder}/net.onnx").write_bytes(made.SerializeToString())
    if data is not None:
        Path(folder, location).parent.mkdir(exist_ok=True)
        Path(folder, location).write_bytes(data)
    return f"{folder}/net.onnx"


def read(path: str) -> tuple[Any, str]:
    return onnx_file.read_model(Path(path))


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin"])
def test_data_inside_the_folder_is_read(location: str) -> None:
    made, _ = read(outside(location, data=W.tobytes()))
    assert np.array_equal(numpy_helper.to_array(made.graph.initializer[0]), W)
    assert not made.graph.initializer[0].external_data


def test_a_part_of_a_data_file_is_read_by_its_offset() -> None:
    made, _ = read(outside("w.bin", data=b"head" + W.tobytes() + b"tail", offset=4, length=96))
    assert np.array_equal(numpy_helper.to_array(made.graph.initializer[0]), W)


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "link.bin", "folder/w.bin", "{absolute}", ""])
def test_data_outside_the_folder_is_not_read(location: str) -> None:
    Path("w.bin").write_bytes(W.tobytes())
    Path("elsewhere").mkdir()
    Path("elsewhere/w.bin").write_bytes(W.tobytes())
    path = outside(location.format(absolute=Path("w.bin").resolve()))
    Path("d/link.bin").symlink_to("../w.bin")
    Path("d/folder").symlink_to("../elsewhere")
    with pytest.raises(ExportError, match=r"net\.onnx: tensor w lies outside the file's folder; that is not read"):
        read(path)


def test_data_outside_is_not_read_for_a_constant_in_a_branch_either() -> None:
    tensor = TensorProto(name="c", data_type=F, dims=[6], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../w.bin")
    made = inside(node("Constant", [], ["i"], value=tensor))
    Path("w.bin").write_bytes(W.tobytes())
    assert "lies outside the file's folder" in refused(made, name="d/net.onnx")


@pytest.mark.parametrize(
    ("keys", "data", "message"),
    [
        ({}, None, r"its data file w\.bin is not beside it"),
        ({"offset": 0, "length": 96}, W.tobytes()[:50], r"tensor w cannot be read from w\.bin"),
        ({"offset": 90, "length": 96}, W.tobytes(), "cannot be read"),
        ({"offset": -4}, W.tobytes(), "cannot be read"),
        ({"offset": "x"}, W.tobytes(), "cannot be read"),
    ],
)
def test_data_that_is_missing_or_short_is_named(keys: dict[str, Any], data: bytes | None, message: str) -> None:
    path = outside("w.bin", data=data, **keys)
    with pytest.raises(ExportError, match=message):
        read(path)


def test_odd_places_are_no_traceback() -> None:
    for location in (".", "w\0.bin"):
        path = outside(location)
        with pytest.raises(ExportError, match=r"net\.onnx: "):
            read(path)
    os.mkfifo("d/pipe")
    with pytest.raises(ExportError, match="its data file pipe is not beside it"):
        read(outside("pipe"))


@pytest.mark.parametrize("cut", [0, 50])
def test_weights_that_are_too_short_are_refused(cut: int) -> None:
    path = outside("w.bin", data=W.tobytes()[:cut])
    with pytest.raises(ExportError, match=r"net\.onnx: "):
        export_model(Recipe(path, engine="none", batch=Batch(1, 2, 3)), Path("out"))
    assert not Path("out").exists()


# --- the cache


def made_again(asked: Recipe, name: str) -> list[str]:
    said: list[str] = []
    export_model(asked, Path(name), say=lambda step, *_: said.append(step))
    return said


def test_the_same_file_is_found_again_and_a_changed_one_is_not() -> None:
    asked = recipe(linear())
    assert "cache" not in made_again(asked, "a")
    assert "cache" in made_again(asked, "b")
    changed = linear()
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(-W, "w"))
    assert "cache" not in made_again(recipe(changed), "c")


def test_changed_data_beside_the_file_is_no_hit() -> None:
    asked = Recipe(outside("w.bin", data=W.tobytes()), engine="none", batch=Batch(1, 2, 3))
    assert "cache" not in made_again(asked, "a")
    assert "cache" in made_again(asked, "b")
    Path("d/w.bin").write_bytes((-W).tobytes())
    assert "cache" not in made_again(asked, "c")
    with runtime.load("a", device="cpu") as before, runtime.load("c", device="cpu") as after:
        assert not np.array_equal(before.infer(X), after.infer(X))


def test_a_changed_size_of_input_is_no_hit() -> None:
    assert "cache" not in made_again(recipe(picture("h"), shapes=["3x8x8"]), "a")
    assert "cache" not in made_again(recipe(picture("h"), shapes=["3x9x8"]), "b")


# --- simplifiers


def test_a_simplifier_that_changes_the_answers_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(given: Any) -> Any:
        other = onnx.ModelProto()
        other.CopyFrom(given)
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(W * np.float32(1 + 1e-6), "w"))
        return other

    monkeypatch.setattr("engineworks.export.simplify._onnxslim", wrong)
    bundle = exported(linear())
    assert bundle.manifest.graph["simplifier"] == "none"
    assert "changed the network's answers" in str(bundle.manifest.graph["route"])
    agrees(bundle, linear(), {"x": X})
    assert "--simplify onnxslim changed the network's answers" in refused(linear(), simplify="onnxslim")


def test_a_cast_that_goes_wrong_is_found_against_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the typed graph is another network."""
    from engineworks.export.half import to_half

    def wrong(given: Any, kind: Any) -> Any:
        cast = to_half(given, kind)
        values = numpy_helper.to_array(cast.graph.initializer[0]) * np.float16(1.02)
        cast.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
        return cast

    monkeypatch.setattr("engineworks.export.ladder.to_half", wrong)
    assert "against the file as given, needs" in refused(linear(), precision="fp16", simplify="none")


def test_the_command_needs_no_torch_to_refuse_a_file(tmp_path: Path) -> None:
    """A damaged file is told in a moment; the check is that nothing heavy is asked first."""
    Path("net.onnx").write_bytes(b"junk")
    code = (
        "import sys; from engineworks.export.cli import main; s = main(['net.onnx']); print(s, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_warnings_of_the_libraries_stay_their_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported(picture())
