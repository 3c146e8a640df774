"""Noise floors against torch's own half precision, and what the original is asked."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engineworks.export.half import HalfType
from engineworks.export.reference import (
    RoundedRun,
    answer,
    answers_by_batch,
    float32_floor,
    noise_floor,
    noise_floors,
    rounded_program,
    rounded_trace,
    worst_sqnr,
)
from engineworks.export.to_onnx import lrn_as_one_node
from engineworks.export.translate import translate
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import ParityError
from engineworks.runtime.manifest import Batch

Floats = npt.NDArray[np.float32]


class Plain(nn.Module):
    """A net whose every operator torch's CPU has in both half types."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)
        nn.init.uniform_(self.norm.get_buffer("running_var"), 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = functional.max_pool2d(self.norm(self.b(y) + y), 2)
        scores: Tensor = self.fc(y.mean([2, 3]))
        return scores


def make(net: type[nn.Module], *arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return net(*arguments).eval()


def pictures(rows: int = 8) -> Floats:
    return np.random.default_rng(0).standard_normal((rows, 3, 12, 12)).astype(np.float32)


def by_trace(net: nn.Module) -> RoundedRun:
    return rounded_trace(
        translate(net, {"x": torch.from_numpy(pictures(2))}, ("y",), batch=Batch(1, 4, 8), opset=20)[1]
    )


def by_program(net: nn.Module) -> RoundedRun:
    axis = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad(), lrn_as_one_node():
        example = (torch.from_numpy(pictures(2)),)
        return rounded_program(torch.export.export(net, example, dynamic_shapes=({0: axis},), strict=False))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("route", [by_trace, by_program])
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_the_floor_is_what_torch_itself_loses_in_that_type(route: Any, kind: HalfType) -> None:
    net, x = make(Plain), pictures()
    dtype = torch.float16 if kind == "fp16" else torch.bfloat16
    with torch.no_grad():
        half = copy.deepcopy(net).to(dtype)(torch.from_numpy(x).to(dtype)).float().numpy()
    exact = answer(net, {"x": x})
    (floor,) = noise_floor(route(net), {"x": x}, exact, kind)
    assert abs(floor - sqnr(exact[0], half)) < 1


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("route", [by_trace, by_program])
def test_lrn_is_rounded_and_not_zeroed(route: Any) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(5, alpha=0.5, k=2)).eval(), pictures(2)
    (rounded,) = route(net)({"x": x}, "fp16")
    exact = answer(net, {"x": x})[0]
    assert 55 < sqnr(exact, rounded) < 80  # a rounding is 2⁻¹² at most: 72 dB; a few of them, some that cancel


def test_inputs_weights_and_every_tensor_between_are_rounded() -> None:
    net = nn.Linear(2, 1, bias=False).eval()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0001, 0.3]]))
    (got,) = by_trace_of(net, 2)({"x": np.array([[1.0001, 0.3]], np.float32)}, "fp16")
    w = np.array([1.0001, 0.3], np.float16)
    assert got.item() == np.float16(float(w[0]) ** 2 + float(w[1]) ** 2)


def by_trace_of(net: nn.Module, width: int) -> RoundedRun:
    return rounded_trace(translate(net, {"x": torch.ones(2, width)}, ("y",), batch=Batch(1, 4, 8), opset=20)[1])


def test_the_original_keeps_its_weights() -> None:
    net = make(Plain)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    by_trace(net)({"x": pictures(2)}, "bf16")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_overflow_leaves_nothing() -> None:
    net = nn.Linear(2, 2).eval()
    with torch.no_grad():
        net.weight.mul_(1e6)
    x = np.array([[1, 2], [3, 4]], np.float32)
    exact = answer(net, {"x": x})
    assert noise_floor(by_trace_of(net, 2), {"x": x}, exact, "fp16") == [-np.inf]
    assert noise_floor(by_trace_of(net, 2), {"x": x}, exact, "bf16")[0] > 30


def test_what_rounding_does_not_touch_has_no_noise() -> None:
    x = np.array([[1, -2], [0.5, 4]], np.float32)
    net = nn.ReLU().eval()
    assert noise_floor(by_trace_of(net, 2), {"x": x}, answer(net, {"x": x}), "bf16") == [np.inf]


def test_rows_that_are_not_the_same_are_not_stretched() -> None:
    net, x = make(Plain), pictures()
    with pytest.raises(AssertionError, match="stretch"):
        noise_floor(by_trace(net), {"x": x[:1]}, answer(net, {"x": x}), "fp16")


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "ReduceMean", "ReduceSum"])
def test_an_average_is_a_sum_too(operator: str) -> None:
    info = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4, side, side])
        for name, side in (("x", 100), ("y", 1))
    ]
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    made = onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:]))
    assert float32_floor(60.0, "fp16", made) == pytest.approx(60 + 13 * 6.0206 - 40, abs=0.01)  # 10·log10(100 × 100)


def test_float32_gains_its_bits_and_pays_for_its_longest_sum() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(256, 2)).eval()
    graph, *_ = translate(net, {"x": torch.from_numpy(pictures(2))}, ("y",), batch=Batch(1, 4, 8), opset=20)
    assert float32_floor(60.0, "fp16", graph) == pytest.approx(60 + 13 * 6.0206 - 24.08, abs=0.01)  # 10·log10(256)
    assert float32_floor(60.0, "bf16", graph) == pytest.approx(60 + 16 * 6.0206 - 24.08, abs=0.01)


def one_product(kind: str, weights: tuple[int, ...], x: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    tensor = onnx.numpy_helper.from_array(np.zeros(weights, np.float32), "w")
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *x])
    ends = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [given], ends, [tensor]))


@pytest.mark.parametrize(
    ("made", "terms"),
    [
        pytest.param(one_product("MatMul", (8, 500), (6, 8)), 8, id="a transposed linear layer"),
        pytest.param(one_product("MatMul", (3, 8, 500), (6, 8)), 8, id="a stack of them"),
        pytest.param(one_product("MatMul", (8,), (6, 8)), 8, id="a vector"),
        pytest.param(one_product("Gemm", (500, 8), (8,), transB=1), 8, id="Gemm, transposed"),
        pytest.param(one_product("Gemm", (8, 500), (8,)), 8, id="Gemm"),
        pytest.param(one_product("Conv", (500, 2, 2, 2), (4, 9, 9), group=2), 8, id="a convolution in groups"),
        pytest.param(one_product("ConvTranspose", (4, 500, 2, 2), (4, 9, 9), group=2), 8, id="a transposed one"),
        pytest.param(one_product("Mul", (1, 500, 2, 2), (500, 2, 2)), 1, id="a product without a sum"),
    ],
)
def test_a_sum_has_as_many_terms_as_its_operator_adds_up(made: onnx.ModelProto, terms: int) -> None:
    assert float32_floor(60.0, "fp16", made) == pytest.approx(60 + 13 * 6.0206 - 10 * np.log10(terms), abs=0.01)


def test_a_product_of_two_values_counts_the_axis_that_goes() -> None:
    shapes: dict[str, tuple[int | str, ...]] = {"a": ("batch", 7, 100), "y": ("batch", 7, 7)}
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    node = onnx.helper.make_node("MatMul", ["a", "of no known shape"], ["y"])
    made = onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:]))
    assert float32_floor(60.0, "fp16", made) == pytest.approx(60 + 13 * 6.0206 - 20, abs=0.01)


def test_the_worst_rows_of_a_size_count_and_rows_of_no_signal_do_not() -> None:
    signal = np.array([[10.0], [10.0], [1.0], [0.0]], np.float32)
    other = signal + np.float32(0.1)
    one, two, four, more = (worst_sqnr(signal, other, size) for size in (1, 2, 4, 9))
    assert one == pytest.approx(20, abs=1e-4)  # 1 against 0.1
    assert two == pytest.approx(10 * np.log10(1 / 0.02), abs=1e-4)  # 1 and 0 against 0.1 twice
    assert four == more == pytest.approx(10 * np.log10(201 / 0.04), abs=1e-4)
    assert worst_sqnr(signal, np.full_like(signal, np.inf), 1) == -np.inf


def test_floors_of_each_size_come_of_one_rounded_run_and_never_exceed_that_of_all_rows() -> None:
    net, x = make(Plain), pictures(4)
    runs: list[str] = []
    run = by_trace(net)

    def counted(given: Any, kind: HalfType) -> list[Any]:
        runs.append(kind)
        return run(given, kind)

    found = noise_floors(counted, {"x": x}, answer(net, {"x": x}), "fp16", [1, 2, 4, 32])
    assert runs == ["fp16"]
    assert found[4] == found[32] == noise_floor(run, {"x": x}, answer(net, {"x": x}), "fp16")
    assert found[1][0] < found[2][0] < found[4][0]


def test_a_forward_that_works_in_place_does_not_spoil_the_samples() -> None:
    x = pictures(2)
    before = x.copy()
    answer(nn.ReLU(inplace=True), {"x": x})
    assert np.array_equal(x, before)


def test_outputs_come_flat_and_in_order() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"first": x, "rest": [x + 1, (x + 2,)]}

    got = answer(Several(), {"x": np.zeros((2, 3), np.float32)})
    assert [array[0, 0] for array in got] == [0, 1, 2]


def test_the_original_is_run_at_the_smallest_batch_and_believed_for_the_others() -> None:
    net, x = make(Plain), {"x": pictures()}
    reference = answer(net, x)
    answers = answers_by_batch(net, x, reference, [1, 8, 20])
    assert {size: len(output[0]) for size, output in answers.items()} == {1: 1, 8: 8, 20: 20}
    assert np.array_equal(answers[20][0][8:16], reference[0])
    assert sqnr(reference[0][:1], answers[1][0]) > 100


def test_an_output_that_is_not_the_batchs_is_refused() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0)

    net, x = Constant(), {"x": pictures()}
    with pytest.raises(ParityError, match="depends on its whole batch"):
        answers_by_batch(net, x, answer(net, x), [1, 8])


@pytest.mark.parametrize("sizes", [[1, 8, 32], [8, 16, 32], [16, 32]])
def test_an_answer_that_depends_on_the_batch_is_seen_at_every_smallest_size(sizes: list[int]) -> None:
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    x = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    with pytest.raises(ParityError, match="depends on its whole batch"):
        answers_by_batch(Centred(), {"x": x}, answer(Centred(), {"x": x}), sizes)
