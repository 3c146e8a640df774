"""What the first layers saw in training: PyTorch's batch norms, as the data doctor wants them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.calibration.doctor import Expected
from engineworks.export.clean import modules

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

_LAYERS = 2
_NEAR = 1e-3  # of the largest weight: batch norm folded in float32 or in float64


def seen_in_training(module: "nn.Module | None", graph: "ModelProto") -> Expected:
    """Return for the first two convolutions of a graph what their batch norm kept: output → (mean, variance), ``(C,)``.

    Args:
        module: the network that the graph was made of; None where there is none.
        graph: with batch norms folded into convolutions, and the modules' names at the nodes.

    A batch norm is taken for a convolution's own where folding it gives the graph's weights; empty where none does. Of
    its output's mean and variance in training, folding leaves β and γ² · v / (v + ε).
    """
    from onnx import numpy_helper
    from torch.nn.modules.batchnorm import _BatchNorm

    if module is None:
        return {}
    parts = dict(module.named_modules())
    norms = [part for part in parts.values() if isinstance(part, _BatchNorm) and part.running_var is not None]
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    where, found = modules(graph), dict[str, Any]()
    layers = [node for node in graph.graph.node if node.op_type == "Conv" and node.input[1] in stored]
    for node in layers[:_LAYERS]:
        own = parts.get(where.get(node.output[0], ""))
        folded = numpy_helper.to_array(stored[node.input[1]])
        norm = next((norm for norm in norms if _folds(own, norm, folded)), None)
        if norm is None:
            break
        assert norm.running_var is not None
        variance, gain = norm.running_var.detach(), norm.weight.detach()
        found[node.output[0]] = norm.bias.detach().numpy(), (gain**2 * variance / (variance + norm.eps)).numpy()
    return found


def _folds(layer: Any, norm: Any, folded: "np.ndarray[Any, Any]") -> bool:
    """Tell whether the layer's weights with the norm folded into them are these."""
    weight = getattr(layer, "weight", None)
    if weight is None or norm.weight is None or norm.bias is None or tuple(weight.shape) != folded.shape:
        return False
    if norm.num_features != len(folded):
        return False
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    made = weight.detach().numpy() * gain.reshape(-1, *[1] * (folded.ndim - 1))
    return bool(np.abs(made - folded).max() <= _NEAR * np.abs(folded).max())
