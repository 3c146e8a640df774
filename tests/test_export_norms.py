"""What batch norms kept of training is found by folding them; the data doctor then tells wrong pictures at export."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from engineworks.calibration.doctor import examine
from engineworks.export.apart import whole
from engineworks.export.norms import seen_in_training
from engineworks.export.prove import export_graph
from engineworks.export.recipe import Recipe
from engineworks.models.samples import photograph
from engineworks.runtime import Preprocessing, preprocess
from engineworks.runtime.manifest import Batch

RECIPE = Preprocessing("RGB", 64, "bilinear", (64, 64), 0, (0.45, 0.45, 0.45), (0.25, 0.25, 0.25))


class Net(nn.Module):
    """Two convolutions with a batch norm each; the second norm stands first among the module's parts."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.BatchNorm2d(8)
        self.one, self.early, self.two = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.two(self.early(self.one(x)).relu())).relu().mean((2, 3))  # type: ignore[no-any-return]


def pictures() -> Any:
    """Sixteen squares of a photograph, prepared as RECIPE says."""
    from PIL import Image

    with Image.open(photograph()) as image:
        pixels = np.asarray(image.convert("RGB"))
    places = [(down, right) for down in range(4) for right in range(4)]
    steps = (pixels.shape[0] - 96) // 4, (pixels.shape[1] - 96) // 4
    return preprocess([pixels[d * steps[0] :][:96, r * steps[1] :][:, :96].copy() for d, r in places], RECIPE)


@pytest.fixture(scope="module")
def trained() -> tuple[Net, onnx.ModelProto, Any]:
    """A network whose batch norms have seen these pictures, and its folded graph."""
    torch.manual_seed(0)
    net, x = Net(), pictures()
    for norm in (net.early, net.late):
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    with torch.no_grad():
        net.train()(torch.from_numpy(x))
    return net.eval(), graph_of(net), x


def graph_of(net: nn.Module) -> onnx.ModelProto:
    example = {"x": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()}
    made = export_graph(net.eval(), example, ("y",), Recipe("net", batch=Batch(1, 2, 4)))
    graph: onnx.ModelProto = onnx.ModelProto.FromString(whole(made.graph, made.weights))
    return graph


def test_each_convolution_gets_the_norm_that_was_folded_into_it(trained: tuple[Net, onnx.ModelProto, Any]) -> None:
    net, graph, _ = trained
    convolutions = [node.output[0] for node in graph.graph.node if node.op_type == "Conv"]
    found = seen_in_training(net, graph)
    assert list(found) == convolutions
    for name, norm in zip(convolutions, (net.early, net.late), strict=True):
        mean, variance = (np.asarray(values) for values in found[name])
        assert np.array_equal(mean, norm.bias.detach().numpy())
        # on the very pictures that the norm saw: γ² times their variance over itself and ε, by hand
        assert norm.running_var is not None
        running = norm.running_var.double()
        by_hand = (norm.weight.double() ** 2 * running / (running + 1e-5)).detach().numpy()
        assert np.allclose(variance, by_hand, rtol=1e-6)


def test_right_pictures_pass_and_wrong_ones_are_named(trained: tuple[Net, onnx.ModelProto, Any]) -> None:
    net, graph, x = trained
    expected = seen_in_training(net, graph)

    def told(images: Any) -> set[str]:
        rows = [{"x": np.ascontiguousarray(images, np.float32)}]
        return {finding.fault for finding in examine(rows, RECIPE, model=graph, expected=expected)}

    assert told(x) == set()
    assert told((x - 0.45) / 0.25) == {"normalised-twice"}
    assert told(x[:, ::-1]) == {"swapped-channels"}


def test_a_network_without_such_norms_or_without_a_module_expects_nothing() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
    assert seen_in_training(plain, graph_of(plain)) == {}
    assert seen_in_training(None, graph_of(plain)) == {}


def test_another_networks_norms_are_not_taken_for_its_own(trained: tuple[Net, onnx.ModelProto, Any]) -> None:
    _, graph, _ = trained
    torch.manual_seed(1)
    assert seen_in_training(Net().eval(), graph) == {}
