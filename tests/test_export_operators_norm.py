"""Normalisations: right at every batch size and opset, in FP16 too, or refused."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PICTURE, SIGNAL, VOLUME, ROWS = (2, 4, 7, 6), (2, 4, 9), (2, 4, 5, 6, 4), (2, 4)


def lively(layer: nn.Module) -> nn.Module:
    """Give a norm weights and statistics that are not the neutral ones."""
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2) if "var" in name or name == "weight" else nn.init.normal_(tensor)
    return layer


class LayerNorm2d(nn.LayerNorm):
    """torchvision's and timm's: over the channels of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class NormAct(nn.BatchNorm2d):
    """timm's BatchNormAct2d: a batch norm by function, then an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps).relu()


RIGHT: dict[str, tuple[Any, tuple[int, ...]]] = {
    "batch norm of rows": (lively(nn.BatchNorm1d(4)), ROWS),
    "batch norm along one axis": (lively(nn.BatchNorm1d(4)), SIGNAL),
    "batch norm along three": (lively(nn.BatchNorm3d(4)), VOLUME),
    "batch norm without weights": (lively(nn.BatchNorm2d(4, affine=False)), PICTURE),
    "batch norm by function": (lively(NormAct(4)), PICTURE),
    "layer norm": (lively(nn.LayerNorm(6)), PICTURE),
    "layer norm over three axes": (lively(nn.LayerNorm((4, 7, 6))), PICTURE),
    "layer norm without weights": (nn.LayerNorm(4, elementwise_affine=False), ROWS),
    "layer norm without bias": (lively(nn.LayerNorm(6, bias=False)), PICTURE),
    "layer norm of channels": (lively(LayerNorm2d(4)), PICTURE),
    "group norm": (lively(nn.GroupNorm(2, 4)), PICTURE),
    "group norm of one group, of rows with an axis": (lively(nn.GroupNorm(1, 4)), SIGNAL),
    "group norm without weights": (nn.GroupNorm(2, 4, affine=False), VOLUME),
    "instance norm": (lively(nn.InstanceNorm2d(4, affine=True)), PICTURE),
    "instance norm without weights": (nn.InstanceNorm1d(4), SIGNAL),
    "instance norm with statistics": (lively(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), PICTURE),
    "norms by functions": (lambda x: F.instance_norm(x) + F.group_norm(x, 2) + F.layer_norm(x, (6,)), PICTURE),
    "rows of length one": (lambda x: F.normalize(x) + F.normalize(x, dim=-1), PICTURE),
    "rows of nothing": (lambda x: F.normalize(x * 0, dim=1) + x, ROWS),
}


@pytest.mark.parametrize("what", RIGHT)
def test_it_is_right_about(what: str, translated: Any) -> None:
    net, shape = RIGHT[what]
    translated(nn.Sequential(net) if isinstance(net, nn.Module) else net, *shape)


REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "batch norm without statistics": (nn.BatchNorm2d(4, track_running_stats=False), PICTURE, "stored statistics"),
    "batch norm of a picture without a batch": (nn.BatchNorm1d(4), (4, 4, 3, 3), "cannot follow|axes where"),
    "layer norm over the batch": (lambda x: F.layer_norm(x, (2, 4)), ROWS, "over the batch"),
    "layer norm by a value": (lambda x: F.layer_norm(x, (4,), x[:, 0].mean(1)), (4, 4, 4), "computed|no batch"),
    "normalising by the first norm": (lambda x: F.normalize(x, p=1), ROWS, "another norm"),
    "normalising over the batch": (lambda x: F.normalize(x, dim=0), ROWS, "along the batch"),
    "instance norm without a batch": (nn.InstanceNorm2d(4), (4, 7, 6), "3 axes where 4"),
    "root mean square norm": (nn.RMSNorm(6), PICTURE, "the operator rms_norm"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_is_refused(what: str, refusal: Any) -> None:
    net, shape, why = REFUSED[what]
    assert re.search(why, refusal(nn.Sequential(net) if isinstance(net, nn.Module) else net, *shape))


def test_a_layer_norm_of_channels_needs_no_more_than_two_transpositions(translated: Any) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), lively(LayerNorm2d(4)), nn.Conv2d(4, 4, 1))
    kinds = [node.op_type for node in translated(net, *PICTURE).graph.node]
    assert kinds == ["Conv", "Transpose", "LayerNormalization", "Transpose", "Conv"]


def test_neutral_weights_are_made_where_there_are_none(translated: Any) -> None:
    graph = translated(nn.Sequential(nn.BatchNorm2d(4, affine=False)), *PICTURE)
    assert sorted(tensor.name for tensor in graph.graph.initializer) == [
        "0.running_mean", "0.running_var", "_0/bias", "_0/weight",
    ]  # fmt: skip
    assert torch.equal(torch.ones(4), torch.frombuffer(bytearray(
        next(t.raw_data for t in graph.graph.initializer if t.name == "_0/weight")), dtype=torch.float32))  # fmt: skip
