"""Networks of torchvision and timm: taken by our own translation, right and no larger than by the stock route."""

import copy
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engineworks.export.clean import clean, modules
from engineworks.export.emitter import CannotTranslate
from engineworks.export.half import to_half
from engineworks.export.pools import remove_empty_pools
from engineworks.export.to_onnx import to_onnx
from engineworks.export.translate import translate
from engineworks.models.initialise import synthetic_images
from engineworks.models.zoo_import import import_torchvision
from engineworks.runtime.backend import open_session
from engineworks.runtime.compare import sqnr
from engineworks.runtime.manifest import Batch

pytestmark = [pytest.mark.slow, pytest.mark.zoo]

SIZE = 64
SIZES = {"alexnet": 224, "vgg11_bn": 224, "vit_b_16": 224, "maxvit_t": 224, "inception_v3": 160, "vgg11": 224}
# One of each way of building a network; MORE of the same ways are run where ENGINEWORKS_WHOLE_ZOO is set.
TORCHVISION = (
    "vgg11_bn", "googlenet", "inception_v3", "densenet121", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small",
    "convnext_tiny",
)  # fmt: skip
TIMM = (
    "res2net50_26w_4s", "tf_efficientnet_lite0", "mobilenetv3_small_100", "ghostnet_100", "regnety_002", "rexnet_100",
    "dla34", "nfnet_l0", "tf_mixnet_s", "resnetv2_50", "skresnet18", "dpn68", "fastvit_t8", "repvgg_a0",
    "ese_vovnet19b_dw", "efficientvit_b0", "poolformer_s12",
)  # fmt: skip
MORE = (
    "torchvision:alexnet", "torchvision:resnet18", "torchvision:resnext50_32x4d", "torchvision:wide_resnet50_2",
    "torchvision:mnasnet0_5", "torchvision:mobilenet_v2", "torchvision:efficientnet_b0",
    "torchvision:efficientnet_v2_s", "torchvision:regnet_y_400mf", "timm:resnet18", "timm:resnet50d",
    "timm:seresnet50", "timm:efficientnet_b0", "timm:tf_efficientnet_b0", "timm:convnext_atto", "timm:hrnet_w18_small",
    "timm:densenet121", "timm:vgg11", "timm:xception41", "timm:mixnet_s", "timm:cspresnet50", "timm:ecaresnet26t",
    "timm:mobilenetv4_conv_small", "timm:lcnet_050",
)  # fmt: skip
NAMES = [*(f"torchvision:{n}" for n in TORCHVISION), *(f"timm:{n}" for n in TIMM)]
NAMES += MORE if os.environ.get("ENGINEWORKS_WHOLE_ZOO") else ()
LEFT = {
    "torchvision:vit_b_16": "control flow",  # nn.MultiheadAttention asks whether query and key are one tensor
    "torchvision:swin_t": "_get_relative_position_bias",
    "torchvision:maxvit_t": "einsum",
    "timm:edgenext_xx_small": "index of getitem",  # positions looked up where a mask is nought
    "timm:vit_tiny_patch16_224": "moves the batch",  # queries, keys and values are taken apart along the first axis
}
BITS = 20 * math.log10(2)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network with statistics of its own, and eight synthetic images."""
    source, _, kind = name.partition(":")
    for package in ("torchvision", *([source] if source == "timm" else [])):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    torchvision, _ = import_torchvision()
    torch.manual_seed(0)
    if source == "timm":
        import timm

        net: nn.Module = timm.create_model(kind, pretrained=False)
    else:
        options = {"init_weights": False} if kind in {"googlenet", "inception_v3"} else {}
        net = torchvision.models.get_model(kind, weights=None, **options)
    size = SIZES.get(kind, 224 if "224" in kind else SIZE)
    images = synthetic_images(8, (3, size, size), torch.Generator().manual_seed(0))
    return enlivened(net.eval(), images), images


def enlivened(net: nn.Module, images: Tensor) -> nn.Module:
    """Fill the statistics of batch norms from the images, and open gates that start shut (a scale of 1e-6, or of 0)."""
    norms = [part for part in net.modules() if isinstance(part, _BatchNorm)]
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            shut = parameter.numel() and float(parameter.abs().max()) < 1e-3 and not name.endswith("bias")
            if shut or any(isinstance(norm, _BatchNorm) and parameter is norm.weight for norm in norms):
                nn.init.uniform_(parameter, 0.5, 1.0)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        net(images)
    for norm in norms:
        norm.momentum = 0.1
        if norm.affine:
            norm.weight.data.mul_(0.7)  # at full gain random depths let float32's last bits grow tenfold and more
    return net.eval()


def run(graph: Any, rows: Tensor) -> Any:
    return open_session(graph.SerializeToString(), "cpu", threads=1).run({"input": rows.numpy()}, ["output"])[0]


@pytest.mark.filterwarnings("ignore")  # the packages' own
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_taken_and_is_no_larger_than_by_the_stock_route(name: str) -> None:
    net, images = build(name)
    example = {"input": images[:2]}
    graph, traced, *_ = translate(net, example, ("output",), batch=Batch(1, 4, 8), opset=20)
    onnx.checker.check_model(graph, full_check=True)
    check_names(graph, net, traced)
    stock = to_onnx(net, example, ("output",), batch=Batch(1, 4, 8)).graph
    clean(stock, "graph")
    remove_empty_pools(stock)
    assert len(graph.graph.node) <= len(stock.graph.node)
    exact = copy.deepcopy(net).double()
    for size in (1, 2, 5):
        rows = images[:size]
        with torch.no_grad():
            truth, single = exact(rows.double()).numpy(), net(rows).numpy()
        ours, theirs = run(graph, rows), run(stock, rows)
        # float32's own error in PyTorch's order of sums; two bits for another order, one for the sum of two errors
        own = sqnr(truth, single)
        assert own > 60, "these weights tell nothing"
        assert sqnr(truth, ours) > own - 2 * BITS
        assert sqnr(theirs, ours) > own - 3 * BITS
        assert np.abs(single).std(axis=-1).min() > 0
    open_session(to_half(graph, "fp16").SerializeToString(), "cpu", threads=1)


def check_names(graph: Any, net: nn.Module, traced: Any) -> None:
    """Hold weights to PyTorch's names, values to the trace's, and weighted nodes to their modules."""
    known = {*net.state_dict(), *(name.replace(".weight", ".bias") for name in net.state_dict())}
    nodes = {node.name for node in traced.graph.nodes} | {"output"}
    made = {f"{value}/" for value in nodes}
    for tensor in graph.graph.initializer:
        weights = tensor.data_type == onnx.TensorProto.FLOAT and numpy_helper.to_array(tensor).size > 4
        assert tensor.name in known or (not weights and tensor.name.partition("/")[0] + "/" in made) or computed(tensor)
    for node in graph.graph.node:
        assert all(value.partition("/")[0] in nodes for value in node.output)
    where = modules(graph)
    for node in graph.graph.node:
        if node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
            assert where[node.output[0]] in dict(net.named_modules())


def computed(tensor: Any) -> bool:
    """Tell weights that forward makes of others, as standardised kernels are: they are called after their reader."""
    return "/" in tensor.name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LEFT)
def test_a_network_is_left_to_the_stock_route_for_a_reason(name: str) -> None:
    net, images = build(name)
    with pytest.raises(CannotTranslate, match=LEFT[name]):
        translate(net, {"input": images[:2]}, ("output",), batch=Batch(1, 4, 8), opset=20)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["torchvision:convnext_tiny", "timm:mobilenetv3_small_100", "timm:tf_mixnet_s"])
def test_a_network_leads_to_an_engine(name: str, tmp_path: Path) -> None:
    from engineworks.export.engine import compile_engine

    net, images = build(name)
    graph, *_ = translate(net, {"input": images[:2]}, ("output",), batch=Batch(1, 4, 8), opset=20)
    engine = compile_engine(
        to_half(graph, "fp16").SerializeToString(), flavour="rtx", batch=(1, 4, 8), targets=("sm89",)
    )
    assert all(kind.endswith(" fp16") for kind in engine.layer_types)
