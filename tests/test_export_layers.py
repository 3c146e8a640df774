"""Every layer of a graph beside PyTorch's: no alarm on right graphs, and each planted fault named."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from engineworks.export.apart import whole
from engineworks.export.exposed import exposed_values
from engineworks.export.half import HalfType, half_weights, to_half
from engineworks.export.layers import Layer, compare_layers, first_wrong, sentence
from engineworks.export.prove import export_graph
from engineworks.export.recipe import Recipe
from engineworks.export.to_onnx import Exported

sys.path.insert(0, str(Path(__file__).parent))
import planted  # type: ignore[import-not-found]

Floats = npt.NDArray[np.float32]


class Net(nn.Module):
    """Runs a function on itself."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def forward(n: Any, x: Tensor) -> Tensor:
    y = F.relu(n.norm(n.first(x)))
    y = n.pool(n.lrn(y))
    z = torch.cat([n.left(y), n.right(y)], 1)
    z = torch.relu(n.mix(z) + y)
    scores: Tensor = n.head(z.mean([2, 3]))
    return scores


def net() -> nn.Module:
    torch.manual_seed(0)
    made = Net(
        forward,
        first=nn.Conv2d(3, 16, 3, padding=1),
        norm=nn.BatchNorm2d(16),
        lrn=nn.LocalResponseNorm(5, alpha=0.5),
        pool=nn.MaxPool2d(3, 2, padding=1),
        left=nn.Conv2d(16, 8, 1),
        right=nn.Conv2d(16, 8, 3, padding=1, groups=2),
        mix=nn.Conv2d(16, 16, 3, padding=1),
        head=nn.Linear(16, 10),
    ).eval()
    with torch.no_grad():
        for name, tensor in made.named_buffers():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2) if "var" in name else tensor.normal_()
        nn.init.normal_(made.get_parameter("norm.weight"), 1, 0.2)
        nn.init.normal_(made.get_parameter("norm.bias"), 0, 0.5)
    return made


def pictures() -> dict[str, Floats]:
    return {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export_graph(net(), dict(pictures()), ("y",), Recipe("net.py:net", batch=Recipe("lenet5").batch))


def typed(exported: Exported, kind: HalfType | None) -> ModelProto:
    graph, weights = exported.graph, exported.weights
    if kind is not None:
        graph = to_half(graph, kind)
        weights = half_weights(graph, weights, kind)
    model: ModelProto = ModelProto.FromString(whole(graph, weights))
    return model


def looked(exported: Exported, graph: ModelProto, kind: HalfType | None) -> list[Layer]:
    assert exported.taps is not None
    values = exposed_values(graph, pictures(), {}, kind)
    return compare_layers(exported.taps, graph, values, list(pictures().values()), kind)


@pytest.mark.parametrize("kind", [None, "fp16", "bf16"])
def test_no_layer_of_a_right_graph_is_blamed(exported: Exported, kind: HalfType | None) -> None:
    layers = looked(exported, typed(exported, kind), kind)
    assert len(layers) == len(exported.graph.graph.node)  # every node's value is compared
    assert first_wrong(layers) is None
    assert max(layer.excess for layer in layers) < 0.7


def test_a_batch_norm_that_was_folded_is_compared_as_one_with_its_layer(exported: Exported) -> None:
    first = looked(exported, typed(exported, None), None)[0]
    assert (first.value, first.module, first.channels) == ("first", "first", 16)
    assert first.db > 110


NOT_HERE = {  # less than one bit of FP16's rounding, which is the margin; and what this net has not
    "weights: rounded to BF16",
    "graph: a value goes through BF16",
    "graph: an average is a maximum",
}
ALONE = {
    name: fault
    for name, fault in planted.FAULTS.items()
    if not name.startswith("preprocessing") and name not in NOT_HERE
}


@pytest.mark.parametrize("name", ALONE)
def test_a_planted_fault_is_caught_and_named(exported: Exported, name: str) -> None:
    for seed in range(3):
        graph = typed(exported, "fp16")
        value = ALONE[name](graph, np.random.default_rng(seed))
        assert value is not None
        wrong = first_wrong(looked(exported, graph, "fp16"))
        assert wrong is not None, value
        named = {wrong.value, wrong.value.removesuffix("_fp16"), *wrong.through}
        assert value.removesuffix("_fp16") in named | {"head" if wrong.module == "head" else ""} or value == "y_fp16"


def test_the_sentence_names_module_value_channel_and_by_how_much(exported: Exported) -> None:
    graph = typed(exported, "fp16")
    name = next(tensor.name for tensor in graph.graph.initializer if tensor.name == "mix.bias")
    tensor = planted.stored(graph.graph, name)
    values = numpy_helper.to_array(tensor).copy()
    values[5] += np.float16(0.5)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    wrong = first_wrong(looked(exported, graph, "fp16"))
    assert wrong is not None
    assert (wrong.module, wrong.value, wrong.channel, wrong.channels) == ("mix", "mix", 5, 16)
    assert sentence(wrong).startswith("The error enters at mix (mix): on the same inputs its channel 5 of 16 keeps ")


def test_a_fault_shows_where_it_is_made_and_not_behind_it(exported: Exported) -> None:
    graph = typed(exported, "fp16")
    assert planted.on_weights(planted.no_bias, 2)(graph, np.random.default_rng(3)) is not None
    layers = looked(exported, graph, "fp16")
    assert sum(layer.wrong for layer in layers) == 1
    behind = layers[layers.index(first_wrong(layers)) :]  # type: ignore[arg-type]
    assert all(layer.db < 60 for layer in behind)  # how far it has come is told beside


def test_the_walk_leaves_the_module_and_what_it_is_given_as_they_were(exported: Exported) -> None:
    before = pictures()["x"].tobytes()
    given = pictures()
    graph = typed(exported, None)
    first = looked(exported, graph, None)
    assert given["x"].tobytes() == before
    assert looked(exported, graph, None) == first


def test_in_place_layers_do_not_spoil_what_they_read() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1), nn.Hardswish(inplace=True))
    made = export_graph(block.eval(), dict(pictures()), ("y",), Recipe("net.py:net"))
    layers = looked(made, typed(made, "fp16"), "fp16")
    assert [layer.value for layer in layers] == ["_0", "_1", "_2", "y"]
    assert first_wrong(layers) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.ConvTranspose2d(8, 6, 3, 2, groups=2), nn.Sigmoid()),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.LayerNorm(64), nn.SiLU(), nn.Linear(64, 8)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.AvgPool2d(2), nn.GroupNorm(2, 8), nn.Tanh()),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, bias=False), nn.ELU(), nn.Upsample(scale_factor=2)),
    ],
    ids=["turned", "normed", "averaged", "alone"],
)
@pytest.mark.parametrize("kind", [None, "fp16", "bf16"])
def test_other_kinds_of_layers_raise_no_alarm(make: Callable[[], nn.Module], kind: HalfType | None) -> None:
    torch.manual_seed(1)
    made = export_graph(make().eval(), dict(pictures()), ("y",), Recipe("net.py:net"))
    layers = looked(made, typed(made, kind), kind)
    wrong = first_wrong(layers)
    assert wrong is None, sentence(wrong)
    assert layers[-1].value.startswith("y")
