"""Fold batch norms into the convolutions before them, on a trace: weights change, and a node goes.

Unlike ``fold``, which prepares a module for the stock converter, this sees the trace that is exported itself, so that
it also folds what a forward computes by functions, and behind sizes that are computed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engineworks.export.fold import copy_module

if TYPE_CHECKING:
    import torch
    from torch import fx


def fold_batch_norms(traced: "fx.GraphModule", values: "Mapping[fx.Node, Any]") -> dict[str, str]:
    """Fold every batch norm that alone reads a convolution or linear layer; return each such layer's norm, by name.

    The layer has to be called once, and nothing else may read its weights; ``values`` tells every node's value. The
    module that the trace was taken of is left as it is.
    """
    folded: dict[str, str] = {}
    for node in list(traced.graph.nodes):
        found = _batch_norm(node, traced, values)
        source = node.all_input_nodes[0] if found else None
        if source is None or len(source.users) != 1 or not _fold(source, found, traced, values):
            continue
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
        folded[source.name] = node.name
    if folded:
        traced.recompile()
    return folded


def _batch_norm(node: "fx.Node", traced: "fx.GraphModule", values: "Mapping[fx.Node, Any]") -> Any:
    """Return a batch norm's mean, variance, weight, bias and epsilon; None for anything else."""
    from torch import nn
    from torch.nn import functional as F

    if not node.args or len(node.all_input_nodes) == 0 or node.args[0] is not node.all_input_nodes[0]:
        return None
    if node.op == "call_module":
        norm = traced.get_submodule(str(node.target))
        if type(norm) not in {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d} or len(node.args) != 1:
            return None
        held = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return None if held[0] is None or held[1] is None else (*held, norm.eps)
    if node.op != "call_function" or node.target is not F.batch_norm:
        return None
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    if given.get("training", False) is not False:
        return None
    tensors = [_weight(given.get(name), values) for name in names[:4]]
    return None if tensors[0] is None or tensors[1] is None else (*tensors, given.get("eps", 1e-5))


def _weight(node: Any, values: "Mapping[fx.Node, Any]") -> Any:
    """Return one of the module's own tensors, read as it is."""
    return values[node] if getattr(node, "op", "") == "get_attr" else None


def _fold(node: "fx.Node", norm: Any, traced: "fx.GraphModule", values: "Mapping[fx.Node, Any]") -> bool:
    """Fold into a layer's module, or into the weights that a function reads."""
    if node.op == "call_module":
        return _fold_module(node, norm, traced, values)
    return node.op == "call_function" and _fold_function(node, norm, traced, values)


def _fold_module(node: "fx.Node", norm: Any, traced: "fx.GraphModule", values: "Mapping[fx.Node, Any]") -> bool:
    from torch import nn

    name = str(node.target)
    layer: Any = traced.get_submodule(name)
    calls = [other for other in traced.graph.nodes if other.op == "call_module" and other.target == name]
    read = any(other.op == "get_attr" and str(other.target).startswith(f"{name}.") for other in traced.graph.nodes)
    transposed = type(layer) in {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
    known = transposed or type(layer) in {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear}
    if not known or len(calls) != 1 or read or (transposed and layer.groups != 1):
        return False
    if values[node].dim() != layer.weight.dim():  # then its axis 1 is not the channels
        return False
    weight, bias = _folded(layer.weight, layer.bias, norm, transposed)
    fused: Any = copy_module(layer, layer.parameters())
    fused.weight, fused.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    traced.set_submodule(name, fused)
    return True


def _fold_function(node: "fx.Node", norm: Any, traced: "fx.GraphModule", values: "Mapping[fx.Node, Any]") -> bool:
    from torch import nn
    from torch.nn import functional as F

    if node.target not in {F.conv1d, F.conv2d, F.conv3d} or len(node.args) < 2:
        return False
    source: Any = node.args[1]
    given: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    weight, bias = _weight(source, values), _weight(given, values)
    if weight is None or len(source.users) != 1 or (given is not None and bias is None) or source.target == "weight":
        return False
    home, _, leaf = str(source.target).rpartition(".")
    owner = traced.get_submodule(home)
    if leaf != "weight" or values[node].dim() != weight.dim() or (bias is None and hasattr(owner, "bias")):
        return False
    if bias is not None and (str(given.target) != f"{home}.bias" or len(given.users) != 1):
        return False
    made = _folded(weight, bias, norm, False)
    owner.weight, owner.bias = nn.Parameter(made[0], False), nn.Parameter(made[1], False)
    if bias is None:
        with traced.graph.inserting_before(node):
            given = traced.graph.get_attr(f"{home}.bias")
    node.args = (*node.args[:2], given, *node.args[3:])
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}
    return True


def _folded(weight: Any, bias: Any, norm: Any, transposed: bool) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the weights and bias that do both."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    mean, var, gain, shift, eps = norm
    made = fuse_conv_bn_weights(weight, bias, mean, var, eps, gain, shift, transposed)
    return made[0].detach(), made[1].detach()
