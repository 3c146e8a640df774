"""Convolutions, linear layers, products and shuffles: right at every batch size and opset, in FP16 too, or refused."""

import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F


class Weighted(nn.Module):
    """Computes with parameters of its own: a kernel ``w``, a vector ``b`` and a matrix ``m``."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.run = run
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3, generator=generator))
        self.b = nn.Parameter(torch.randn(4, generator=generator))
        self.m = nn.Parameter(torch.randn(4, 4, generator=generator))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def standardised(net: Any, x: Tensor) -> Tensor:
    """A convolution whose weights are standardised in forward, as timm's StdConv2d does it."""
    w = F.batch_norm(net.w.reshape(1, 4, -1), None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(net.w)
    return F.conv2d(x, w, net.b, padding=1)


def padded_by_size(net: Any, x: Tensor) -> Tensor:
    """TensorFlow's SAME padding, which timm computes from the input's size."""
    height, width = x.size()[-2:]
    down, right = (max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in (height, width))
    return F.conv2d(F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2]), net.w, net.b, 2)


PICTURE, SIGNAL, VOLUME, TOKENS = (2, 4, 7, 6), (2, 4, 9), (2, 4, 5, 6, 4), (2, 5, 4)
RIGHT: dict[str, tuple[Any, tuple[int, ...]]] = {
    "padding by name, dilated": (nn.Conv2d(4, 6, (3, 2), padding="same", dilation=(1, 3)), PICTURE),
    "no padding, by name": (nn.Conv2d(4, 6, 3, padding="valid"), PICTURE),
    "padding by name along one axis": (nn.Conv1d(4, 6, 4, padding="same"), SIGNAL),
    "padding that reflects": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), PICTURE),
    "padding that repeats": (nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="replicate"), PICTURE),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), PICTURE),
    "transposed, grouped, dilated": (nn.ConvTranspose2d(4, 6, (2, 3), (1, 2), 0, 0, 2, False, 2), PICTURE),
    "transposed along one axis": (nn.ConvTranspose1d(4, 6, 3, stride=3), SIGNAL),
    "transposed along three axes": (nn.ConvTranspose3d(4, 6, 2, stride=2), VOLUME),
    "by function": (
        Weighted(lambda n, x: F.conv2d(x, n.w, n.b, 2, 1) + F.conv2d(x, n.w, stride=2, padding=1)), PICTURE,
    ),
    "transposed by function": (Weighted(lambda n, x: F.conv_transpose2d(x, n.w, n.b, stride=2)), PICTURE),
    "a standardised kernel": (Weighted(standardised), PICTURE),
    "padding by the input's size": (Weighted(padded_by_size), PICTURE),
    "a linear layer on tokens": (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False)), TOKENS),
    "a linear layer on the last axis": (nn.Linear(6, 3), PICTURE),
    "a product with a matrix": (Weighted(lambda n, x: x @ n.m + torch.matmul(n.m, x.transpose(1, 2)).mT), TOKENS),
    "a product of rows": (lambda x: torch.bmm(x, x.transpose(1, 2)), TOKENS),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1), (2, 2, 5, 4)),
    "attention by a scale": (lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3), TOKENS),
    "pixels shuffled": (nn.PixelShuffle(2), PICTURE),
    "pixels gathered": (nn.PixelUnshuffle(2), (2, 3, 4, 6)),
    "channels shuffled": (nn.ChannelShuffle(2), PICTURE),
    "a weight in two layouts": (
        Weighted(lambda n, x: F.linear(x, n.m) + F.linear(x.mean(1), n.m).unsqueeze(1)), TOKENS,
    ),
}  # fmt: skip


NOTICE = "ignore:Using padding='same' with even kernel lengths:UserWarning"  # of a copy that PyTorch makes


@pytest.mark.filterwarnings(NOTICE)
@pytest.mark.parametrize("what", RIGHT)
def test_it_is_right_about(what: str, translated: Any) -> None:
    net, shape = RIGHT[what]
    translated(nn.Sequential(net) if isinstance(net, nn.Module) else net, *shape)


REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "padding that goes round": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), PICTURE, "circular"),
    "a kernel that is computed": (lambda x: F.conv_transpose2d(x, x), (2, 2, 3, 3), "a kernel that is computed"),
    "a picture without a batch": (nn.ConvTranspose2d(2, 2, 3), (2, 6, 6), "3 axes where 4"),
    "a linear layer on a row": (Weighted(lambda n, x: F.linear(x, n.m)), (4,), "on a vector"),
    "a bias for each row": (Weighted(lambda n, x: F.linear(x, n.m, n.m)), (4, 4), "no vector"),
    "a product over the batch": (Weighted(lambda n, x: n.m[:, :2] @ x), (2, 4), "sums over the batch"),
    "a product of two matrices": (lambda x: x @ x, (3, 3), "do not meet"),
    "a product of values of different rank": (lambda x: x @ x.mean(1), (2, 2, 2, 2), "do not meet"),
    "a product with a batch of constants": (Weighted(lambda n, x: n.w @ x), (4, 4, 3, 5), "along the batch"),
    "a product with a vector": (Weighted(lambda n, x: x @ n.b), TOKENS, "with a vector"),
    "an output padded by as much as the stride": (
        nn.ConvTranspose2d(4, 4, 2, 1, output_padding=1, dilation=2), PICTURE, "as large as the stride",
    ),
    "attention with a mask": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), TOKENS, "a mask"),
    "attention across the batch": (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 4), "of different shape"),
    "channels shuffled, of a row": (lambda x: F.pixel_shuffle(x, 2), (4, 2, 2), "3 axes where 4"),
    "a batch norm by its own batch": (
        Weighted(lambda n, x: F.batch_norm(x, None, None, training=True)), PICTURE, "without stored statistics",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_is_refused(what: str, refusal: Any) -> None:
    net, shape, why = REFUSED[what]
    assert re.search(why, refusal(nn.Sequential(net) if isinstance(net, nn.Module) else net, *shape))


@pytest.mark.filterwarnings(NOTICE)
@settings(max_examples=30)
@given(data=st.data(), transposed=st.booleans(), dims=st.integers(1, 3), groups=st.sampled_from([1, 2]))
def test_any_convolution_is_right(
    data: st.DataObject, transposed: bool, dims: int, groups: int, translated: Any
) -> None:
    def number(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel, stride, dilation = number(1, 4), number(1, 3), number(1, 2)
    size = tuple(number(3, 7) for _ in range(dims))
    if transposed:
        extra = number(0, stride - 1)
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        net: nn.Module = kind(2, 4, kernel, stride, number(0, 1), extra, groups, True, dilation)
    else:
        padding: Any = "same" if data.draw(st.booleans()) and stride == 1 else number(0, 2)
        kind_of = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        net = kind_of(2, 4, kernel, stride, padding, dilation, groups)
    try:
        net(torch.zeros(1, 2, *size))
    except RuntimeError:  # a kernel larger than the picture
        assume(False)
    translated(nn.Sequential(net), 2, 2, *size, sizes=(1, 3), half=False)


def test_a_transposed_weight_keeps_its_name() -> None:
    from engineworks.export.translate import translate
    from engineworks.runtime.manifest import Batch

    net = nn.Sequential(nn.Linear(4, 6)).eval()
    graph, *_ = translate(net, {"x": torch.randn(2, 5, 4)}, ("y",), batch=Batch(1, 4, 8), opset=20)
    assert {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer} == {"0.weight": [4, 6], "0.bias": [6]}
