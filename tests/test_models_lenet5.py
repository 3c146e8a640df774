import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from engineworks.models import find
from engineworks.models.lenet5 import (
    AMPLITUDE,
    C3_INPUTS,
    HELD_OUT,
    HELD_OUT_CORRECT,
    SLOPE,
    LeNet5,
    PartialConv2d,
    RadialBasis,
    Squash,
    Subsampling,
    bitmaps,
)
from engineworks.models.samples import digits
from engineworks.models.weights import build_network, read_checkpoint

Floats = npt.NDArray[np.float64]


def trained() -> nn.Module:
    network = find("lenet5")
    assert network.shipped_path
    return build_network(network, read_checkpoint(network.shipped_path))


def prepared(images: npt.NDArray[np.uint8]) -> Tensor:
    """Follow the registry's recipe by hand: pad, then background -0.1 and ink 1.175."""
    recipe = find("lenet5").preprocessing
    pad = recipe["pad"]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad)))[:, None].astype(np.float32)
    return torch.from_numpy((padded / 255 - np.float32(recipe["mean"][0])) / np.float32(recipe["std"][0]))


@pytest.mark.parametrize(
    ("layer", "shape", "parameters"),
    [  # LeCun et al. 1998, figure 2 and section II-B
        ("c1", (6, 28, 28), 156),
        ("s2", (6, 14, 14), 12),
        ("c3", (16, 10, 10), 1516),
        ("s4", (16, 5, 5), 32),
        ("c5", (120, 1, 1), 48_120),
        ("f6", (84,), 10_164),
        ("output", (10,), 0),
    ],
)
def test_a_layer_has_the_shape_and_the_trainable_parameters_of_the_paper(
    layer: str, shape: tuple[int, ...], parameters: int
) -> None:
    network, seen = LeNet5(), []
    module = network.get_submodule(layer)
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    network(torch.zeros(2, 1, 32, 32))
    assert seen == [(2, *shape)]
    assert sum(each.numel() for each in module.parameters() if each.requires_grad) == parameters


def test_the_whole_has_sixty_thousand_trainable_parameters() -> None:
    assert sum(each.numel() for each in LeNet5().parameters() if each.requires_grad) == 60_000


def test_table_one_holds_three_neighbours_four_neighbours_four_apart_and_all() -> None:
    """Section II-B says how the table is made; this follows its words, not the table."""
    around = [{(start + step) % 6 for step in range(3)} for start in range(6)]
    around += [{(start + step) % 6 for step in range(4)} for start in range(6)]
    assert [set(sources) for sources in C3_INPUTS[:12]] == around
    assert all(len(set(sources)) == 4 and set(sources) not in around for sources in C3_INPUTS[12:15])
    assert C3_INPUTS[15] == (0, 1, 2, 3, 4, 5)
    assert sum(map(len, C3_INPUTS)) == 60  # and each input map feeds ten, as in the printed table
    assert all(sum(source in sources for sources in C3_INPUTS) == 10 for source in range(6))


def test_c3_equals_one_small_convolution_for_each_map() -> None:
    torch.manual_seed(0)
    layer, x = PartialConv2d(C3_INPUTS, 6), torch.randn(2, 6, 14, 14)
    nn.init.normal_(layer.bias)
    expected, start = [], 0
    for output, sources in enumerate(C3_INPUTS):
        kernel = layer.weight[start : start + len(sources)].unsqueeze(0)
        expected.append(nn.functional.conv2d(x[:, list(sources)], kernel, layer.bias[output : output + 1]))
        start += len(sources)
    # sums of at most 150 float32 products of size 1, in another order
    torch.testing.assert_close(layer(x), torch.cat(expected, 1), rtol=1e-5, atol=1e-5)


def test_c3_is_blind_to_the_maps_it_is_not_connected_to() -> None:
    layer = PartialConv2d(C3_INPUTS, 6)
    dense = layer.kernel()
    for output, sources in enumerate(C3_INPUTS):
        for source in range(6):
            assert bool((dense[output, source] != 0).any()) == (source in sources)


def test_subsampling_is_coefficient_times_sum_plus_bias() -> None:
    layer = Subsampling(2)
    with torch.no_grad():
        layer.coefficient.copy_(torch.tensor([2.0, -1.0]).reshape(2, 1, 1))
        layer.bias.copy_(torch.tensor([0.5, 0.0]).reshape(2, 1, 1))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2)
    assert layer(x).flatten().tolist() == [2 * 10 + 0.5, -10.0]


def test_squashing_keeps_one_and_minus_one() -> None:
    """Appendix A: f(1) = 1 and f(-1) = -1; exact to the four decimals that 1.7159 has."""
    one = torch.tensor([1.0, -1.0])
    torch.testing.assert_close(Squash()(one), one, atol=5e-5, rtol=0)
    assert float(Squash()(torch.tensor(50.0))) == pytest.approx(1.7159)


def test_the_output_is_the_squared_distance_to_each_code() -> None:
    codes, x = bitmaps(), torch.randn(3, 84, generator=torch.Generator().manual_seed(0))
    expected = torch.cdist(x.double(), codes.double()) ** 2
    torch.testing.assert_close(RadialBasis(codes)(x).double(), expected, rtol=1e-6, atol=0)
    assert RadialBasis(codes)(codes).diagonal().tolist() == [0.0] * 10


def test_the_codes_are_ten_different_bitmaps_of_plus_and_minus_one() -> None:
    codes = bitmaps()
    assert codes.shape == (10, 84)
    assert set(codes.flatten().tolist()) == {-1.0, 1.0}
    differing = (84 - codes @ codes.T) / 2
    assert int((differing + 84 * torch.eye(10)).min()) >= 10  # pixels between the two most alike


def test_the_codes_are_neither_trained_nor_stored() -> None:
    network = LeNet5()
    assert not any(name.startswith("output") for name, _ in network.named_parameters())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def pooled(x: Floats, coefficient: Tensor, bias: Tensor) -> Floats:
    sums = x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]
    return squashed(sums * coefficient.double().numpy() + bias.double().numpy())


def squashed(x: Floats) -> Floats:
    result: Floats = AMPLITUDE * np.tanh(SLOPE * x)
    return result


def convolved(x: Floats, kernel: Tensor, bias: Tensor | None) -> Floats:
    windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(2, 3))
    assert bias is not None
    sums: Floats = np.einsum("nchwij,ocij->nohw", windows, kernel.double().numpy())
    sums += bias.double().numpy()[:, None, None]
    return sums


def test_the_network_equals_the_same_arithmetic_in_numpy() -> None:
    network = trained()
    assert isinstance(network, LeNet5)
    images = prepared(digits()[0][:4])
    x: Floats = images.double().numpy()
    x = pooled(squashed(convolved(x, network.c1.weight, network.c1.bias)), network.s2.coefficient, network.s2.bias)
    x = pooled(squashed(convolved(x, network.c3.kernel(), network.c3.bias)), network.s4.coefficient, network.s4.bias)
    x = squashed(convolved(x, network.c5.weight, network.c5.bias)).reshape(len(x), 120)
    x = squashed(x @ network.f6.weight.double().numpy().T + network.f6.bias.double().numpy())
    distances = ((x[:, None] - bitmaps().double().numpy()) ** 2).sum(2)
    # float32 against float64 through seven layers: distances of some hundred keep four digits and more
    np.testing.assert_allclose(network(images).numpy(), distances, rtol=1e-4, atol=1e-3)


def correct(network: nn.Module, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> int:
    return int((network(prepared(images)).argmin(1).numpy() == labels).sum())


def test_the_shipped_weights_read_the_packaged_digits() -> None:
    assert correct(trained(), *digits()) >= 195  # of 200; 98.3 % of them would be 197


@pytest.mark.slow
def test_the_accuracy_stated_is_the_accuracy_on_all_digits_held_out(request: pytest.FixtureRequest) -> None:
    file = request.config.rootpath / "tests" / "data" / "held_out_digits.npz"
    with np.load(file, allow_pickle=False) as held_out:
        images, labels = held_out["images"], held_out["labels"]
    assert len(labels) == HELD_OUT == 2000
    assert np.array_equal(images[:200], digits()[0])
    assert correct(trained(), images, labels) == HELD_OUT_CORRECT
    assert HELD_OUT_CORRECT / HELD_OUT >= 0.983


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_the_exported_graph_is_small_has_a_dense_c3_and_answers_alike_at_every_batch() -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = trained()
    images = prepared(digits()[0][:64])
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: batch},), strict=False)
    exported = torch.onnx.export(
        program, dynamo=True, opset_version=20, dynamic_shapes=({0: "batch"},), input_names=["image"], verbose=False
    )
    assert exported is not None
    proto = exported.model_proto
    operators = {node.op_type for node in proto.graph.node}
    kernels = [list(each.dims) for each in proto.graph.initializer if len(each.dims) == 4]
    assert sorted(kernels) == [[6, 1, 5, 5], [16, 6, 5, 5], [120, 16, 5, 5]]
    assert operators == {
        "Conv",
        "Mul",
        "Tanh",
        "AveragePool",
        "Add",
        "Reshape",
        "Gemm",
        "Unsqueeze",
        "Sub",
        "ReduceSum",
    }
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in (1, 3, 64):
        answer = session.run(None, {"image": images[:size].numpy()})[0]
        np.testing.assert_allclose(answer, network(images[:size]).numpy(), rtol=1e-4, atol=1e-3)
