"""Fold batch norm into the convolution before it: the module's own forward, fewer operators to export.

Only the *pairs* come from a symbolic trace; the module that is exported is a copy with the user's own ``forward`` and
hooks, so that a trace which misses something can make the fold smaller but never the graph wrong.
"""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from torch import fx, nn


def fold_batch_norm(module: "nn.Module") -> "nn.Module":
    """Return a copy whose convolutions hold the batch norms that followed them; parameters are shared, not copied.

    A batch norm is folded where it is the only reader of a convolution, both are called once, and ``forward`` reads
    the parameters of neither itself. Where the module cannot be traced or copied, or holds a layer under two names, it
    comes back as it is; the converter then folds what it finds in the graph.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    if len([*module.named_modules()]) != len([*module.named_modules(remove_duplicate=False)]):
        return module
    try:
        traced = copy_module(module, module.parameters())  # a trace marks what it runs, buffers too
        folded = copy_module(module, (*module.parameters(), *module.buffers()))
    except Exception:  # a lock, an open file, a tensor that is no leaf: then nothing is folded here
        return module
    pairs = _pairs(traced)
    if not pairs:
        return module
    for conv_name, norm_name in pairs:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        fused = fuse_conv_bn_eval(cast("nn.Conv2d", conv), cast("nn.BatchNorm2d", norm))
        folded.set_submodule(conv_name, fused.requires_grad_(False))
        folded.set_submodule(norm_name, nn.Identity())
    return folded.eval()


def copy_module(module: "nn.Module", shared: Iterable["torch.Tensor"]) -> "nn.Module":
    """Copy a module and what it holds, but for the tensors that are to be shared."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def _pairs(module: "nn.Module") -> list[tuple[str, str]]:
    """Name each convolution with the batch norm that alone reads it."""
    from torch import fx

    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # whatever the user's forward raises under proxies: then nothing is folded here
        return []
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    if any("_tensor_constant" in name for name in read):  # made by forward, perhaps of a convolution's weights
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    once = {node.target for node in calls if sum(other.target == node.target for other in calls) == 1}
    once -= {name.rpartition(".")[0] for name in read}
    return [
        (str(node.args[0].target), str(node.target))
        for node in calls
        if node.target in once and _foldable(node, module) and node.args[0].target in once
    ]


def _foldable(node: "fx.Node", module: "nn.Module") -> bool:
    from torch import fx, nn

    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return False
    conv, norm = module.get_submodule(str(source.target)), module.get_submodule(str(node.target))
    plain = type(conv) in {nn.Conv1d, nn.Conv2d, nn.Conv3d} and type(norm) in {
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
    }
    if not plain or norm.running_var is None or norm.running_mean is None or hasattr(conv, "parametrizations"):
        return False
    return not (conv._forward_hooks or conv._forward_pre_hooks or norm._forward_hooks or norm._forward_pre_hooks)
