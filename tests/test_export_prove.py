"""The proof itself: clean networks pass in every precision, planted faults do not, overflow is named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from engineworks.export.ladder import Proven
from engineworks.export.parity import Yardstick, batches
from engineworks.export.prove import export_graph, prove
from engineworks.export.recipe import Recipe
from engineworks.export.reference import answer, answers_by_batch
from engineworks.export.to_onnx import Exported
from engineworks.runtime.errors import ExportError, ParityError
from engineworks.runtime.manifest import Batch

Floats = npt.NDArray[np.float32]
RECIPE = Recipe("small", batch=Batch(1, 4, 12))


class Small(nn.Module):
    """A convolution net with everything in it: BN folded and not, LRN, groups, a residual, two poolings, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.lrn = nn.LocalResponseNorm(5, alpha=0.2, k=2)
        self.body, self.alone = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16)
        self.fc1, self.fc2 = nn.Linear(16 * 9, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lrn(self.bn(self.stem(x)).relu())
        y = self.alone(functional.relu(self.body(y)) + y)
        y = functional.max_pool2d(y, 3, 2, ceil_mode=True)
        y = functional.avg_pool2d(y, 2)
        scores: Tensor = self.fc2(self.fc1(y.flatten(1)).tanh())
        return scores


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """The net with statistics from data, so that its answers differ from input to input."""
    torch.manual_seed(0)
    net = Small()
    for norm in (net.bn, net.alone):
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        net.train()(torch.randn(64, 3, 14, 14))
    return net.eval()


def samples(seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((8, 3, 14, 14)).astype(np.float32)


def measure(net: nn.Module, recipe: Recipe = RECIPE, inputs: Floats | None = None) -> Yardstick:
    given = {"x": samples() if inputs is None else inputs}
    reference = answer(net, given)
    return Yardstick(given, reference, answers_by_batch(net, given, reference, batches(recipe.batch)), "logits")


def make(net: nn.Module, recipe: Recipe = RECIPE) -> tuple[Exported, Yardstick]:
    yardstick = measure(net, recipe)
    return export_graph(net, dict(yardstick.inputs), ("y",), recipe), yardstick


def climb(exported: Exported, yardstick: Yardstick, recipe: Recipe = RECIPE) -> Proven:
    return prove(exported, recipe, yardstick, lambda content: None, lambda rung: None)


@pytest.fixture(scope="module")
def made(small: nn.Module) -> tuple[Exported, Yardstick]:
    return make(small)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_clean_network_passes_in_every_precision(small: nn.Module, precision: Any) -> None:
    recipe = replace(RECIPE, precision=precision)
    exported, yardstick = make(small, recipe)
    proven = climb(exported, yardstick, recipe)
    assert exported.route == "fx translation"
    assert {rung.batch for rung in proven.rungs} == {1, 4, 12}
    assert all(rung.sqnr_db is None or rung.sqnr_db >= rung.required_db for rung in proven.rungs)
    names = {"fp32": ["onnx-fp32"], "fp16": ["onnx-fp32", "onnx-fp16"], "bf16": ["onnx-fp32", "onnx-bf16-emulated"]}
    assert list(dict.fromkeys(rung.candidate for rung in proven.rungs)) == names[precision]
    assert (proven.cpu is not None) == (precision == "bf16")


def test_a_clean_network_passes_by_the_stock_route_too(small: nn.Module) -> None:
    hooked = nn.Sequential(small).eval()
    hooked.register_forward_hook(lambda *_: None)  # our own translation leaves hooks alone
    recipe = replace(RECIPE, precision="fp16")
    exported, yardstick = make(hooked, recipe)
    assert exported.route == "torch.export (fx translation stops at a forward hook on the module itself)"
    mine, _ = make(small, recipe)
    figures = [
        [rung.required_db for rung in climb(*each, recipe).rungs] for each in ((exported, yardstick), (mine, yardstick))
    ]
    # both routes round the same function; they round other intermediate tensors of it (BN folded or not, LRN whole)
    assert np.allclose(figures[0], figures[1], atol=3)


def weight(graph: Any, name: str) -> tuple[Any, Floats]:
    tensor = next(t for t in graph.graph.initializer if t.name == name)
    return tensor, numpy_helper.to_array(tensor).copy()


def store(tensor: Any, values: Floats) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def kernel_off_by_one_percent(graph: Any) -> None:
    tensor, values = weight(graph, "body.weight")
    store(tensor, values * np.float32(1.01))


def one_weight_wrong(graph: Any) -> None:
    tensor, values = weight(graph, "body.weight")
    values[3, 1, 2, 2] += np.float32(0.1)
    store(tensor, values)


def bias_zeroed(graph: Any) -> None:
    tensor, values = weight(graph, "fc2.bias")
    store(tensor, np.zeros_like(values))


def channels_swapped(graph: Any) -> None:
    tensor, values = weight(graph, "stem.weight")
    values[[2, 5]] = values[[5, 2]]
    store(tensor, values)


def wrong_activation(graph: Any) -> None:
    next(node for node in graph.graph.node if node.op_type == "Tanh").op_type = "Sigmoid"


def no_activation(graph: Any) -> None:
    next(node for node in graph.graph.node if node.op_type == "Relu").op_type = "Identity"


def wrong_epsilon(graph: Any) -> None:
    norm = next(node for node in graph.graph.node if node.op_type == "BatchNormalization")
    next(item for item in norm.attribute if item.name == "epsilon").f = 1e-2


def wrong_lrn(graph: Any) -> None:
    norm = next(node for node in graph.graph.node if node.op_type == "LRN")
    next(item for item in norm.attribute if item.name == "size").i = 3


def padding_counted_in(graph: Any) -> None:
    pool = next(node for node in graph.graph.node if node.op_type == "MaxPool")
    pads = next(item for item in pool.attribute if item.name == "pads")
    del pads.ints[:]
    pads.ints.extend([1, 1, 0, 0])


def rows_mixed(graph: Any) -> None:
    """Reverse the batch: right for one row, wrong for more."""
    from onnx import helper

    head = next(node for node in graph.graph.node if node.output[0] == "y")
    for name, value in (("minus", -1), ("least", -(2**31)), ("axis", 0)):
        graph.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    head.output[0] = "straight"
    graph.graph.node.append(helper.make_node("Slice", ["straight", "minus", "least", "axis", "minus"], ["y"], name="s"))


def infinite(graph: Any) -> None:
    tensor, values = weight(graph, "fc2.bias")
    values[0] = np.nan
    store(tensor, values)


FAULTS: tuple[Callable[[Any], None], ...] = (
    kernel_off_by_one_percent,
    one_weight_wrong,
    bias_zeroed,
    channels_swapped,
    wrong_activation,
    no_activation,
    wrong_epsilon,
    wrong_lrn,
    padding_counted_in,
    rows_mixed,
    infinite,
)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(
    made: tuple[Exported, Yardstick], fault: Callable[[Any], None], precision: Any
) -> None:
    exported, yardstick = made
    graph = type(exported.graph).FromString(exported.graph.SerializeToString())
    fault(graph)
    with pytest.raises(ExportError, match=r"needs \d|weight fc2.bias|FP16 overflows|onnx-fp"):
        climb(replace(exported, graph=graph), yardstick, replace(RECIPE, precision=precision))


def test_the_refusal_says_which_rung_which_batch_and_how_far(made: tuple[Exported, Yardstick]) -> None:
    exported, yardstick = made
    graph = type(exported.graph).FromString(exported.graph.SerializeToString())
    rows_mixed(graph)
    message = r"onnx-fp32, batch 4, output y: -?\d+\.\d dB against PyTorch, needs \d+\.\d \(fp16 rounding.*top-1 agrees"
    with pytest.raises(ParityError, match=message):
        climb(replace(exported, graph=graph), yardstick)


class Scaled(nn.Module):
    """Reaches a large value inside and comes back: float32 does not mind."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 1, bias=False), nn.Linear(8, 4)
        with torch.no_grad():
            self.head.weight.mul_(reach)
            self.tail.weight.div_(reach)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.tail(self.head(x).relu().mean([2, 3]))
        return scores


@pytest.mark.parametrize("simplify", ["auto", "onnxslim"])
def test_a_value_that_fp16_cannot_hold_is_named_with_its_layer(simplify: Any) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, precision="fp16", simplify=simplify)
    exported, yardstick = make(Scaled(1e5).eval(), recipe)
    with pytest.raises(
        ExportError, match=r"FP16 overflows: head \(head\) reaches \S+e\+05 .*FP16 ends at 65504 \(2 such"
    ):
        climb(exported, yardstick, recipe)


def test_what_fp16_cannot_carry_float32_and_bf16_can() -> None:
    torch.manual_seed(0)
    for precision in ("fp32", "bf16"):
        recipe = replace(RECIPE, precision=precision)
        proven = climb(*make(Scaled(1e5).eval(), recipe), recipe)
        assert proven.rungs[0].floor.startswith("bf16")


def test_coming_near_the_end_of_fp16_is_noted() -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, precision="fp16")
    proven = climb(*make(Scaled(2e4).eval(), recipe), recipe)
    assert len(proven.notes) == 1
    assert proven.notes[0].startswith("FP16 range: head (head) reaches ")
    assert "larger inputs may overflow" in proven.notes[0]


def test_a_network_that_mixes_its_rows_needs_a_fixed_batch() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x.mean([2, 3]).repeat(1, 3)[:, :8])
            return y - y.mean(0, keepdim=True)

    torch.manual_seed(0)
    with pytest.raises(ParityError, match="depends on its whole batch"):
        measure(Mixing().eval())
    fixed = replace(RECIPE, batch=Batch(4, 4, 4))
    rungs = climb(*make(Mixing().eval(), fixed), fixed).rungs
    assert rungs[0].required_db > 80, "the floor is of the same four rows"


@pytest.mark.parametrize("batch", [Batch(1, 1, 1), Batch(3, 3, 3), Batch(4, 8, 16), Batch(8, 8, 8), Batch(16, 16, 32)])
def test_every_range_of_batches_is_held_to_the_same_floor(small: nn.Module, batch: Batch) -> None:
    recipe = replace(RECIPE, precision="fp16", batch=batch)
    proven = climb(*make(small, recipe), recipe)
    assert {rung.batch for rung in proven.rungs} == {batch.min, batch.opt, batch.max}
    assert all(rung.required_db > (100 if rung.candidate == "onnx-fp32" else 50) for rung in proven.rungs)


def test_names_that_a_graph_should_not_have_are_refused(small: nn.Module) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    with pytest.raises(ExportError, match=r"not valid ONNX|inputs and outputs are"):
        export_graph(Two().eval(), {"x": samples()}, ("only",), RECIPE)


def test_the_compiler_is_given_the_typed_graph_before_the_comparison(made: tuple[Exported, Yardstick]) -> None:
    exported, yardstick = made
    order: list[str] = []
    proven = prove(
        exported,
        replace(RECIPE, precision="fp16"),
        yardstick,
        lambda content: order.append(f"compile {len(content)}"),
        lambda rung: order.append(rung.candidate),
    )
    assert order == [f"compile {len(proven.content)}", "onnx-fp32", "onnx-fp16"]


def test_a_cast_that_casts_nothing_is_no_fp16(
    made: tuple[Exported, Yardstick], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP16 asked, FP32 got, exit 0: the failure this exists against."""
    monkeypatch.setattr("engineworks.export.ladder.to_half", lambda graph, kind: graph)
    with pytest.raises(ExportError, match=r"asked for fp16, but 4 layers compute in another type: .* \(float32\)"):
        climb(*made, replace(RECIPE, precision="fp16"))


def test_a_network_that_fp16_rounds_away_is_refused_and_what_underflows_is_named() -> None:
    """Weights scaled down and made up for later: float32 does not notice, FP16 loses the digits between."""

    class Underflowing(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3, bias=False)
            self.neck, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)
            with torch.no_grad():
                self.body.weight.mul_(scale)
                self.neck.weight.div_(scale**0.5)
                self.head.weight.div_(scale**0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.neck(self.body(x).mean((2, 3))))
            return y

    torch.manual_seed(0)
    recipe = replace(RECIPE, precision="fp16")
    with pytest.raises(ExportError, match=r"fp16 cannot carry this network: .* Use --bf16 or --fp32"):
        climb(*make(Underflowing(5e-8).eval(), recipe), recipe)
    notes = climb(*make(Underflowing(2e-5).eval(), recipe), recipe).notes
    assert any(note.startswith("FP16 underflow: body (") for note in notes)


def test_all_samples_are_searched_for_overflow_and_not_only_the_first() -> None:
    torch.manual_seed(0)
    net, recipe = Scaled(1.0).eval(), replace(RECIPE, precision="fp16")
    inputs = samples()
    inputs[-1] *= 1e6
    with pytest.raises(ExportError, match="FP16 overflows"):
        climb(make(net, recipe)[0], measure(net, recipe, inputs), recipe)
