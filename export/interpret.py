"""Run a trace or a program node by node, as it is or with every tensor rounded to a half type."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engineworks.export.half import HalfType

if TYPE_CHECKING:
    import torch
    from torch import fx

After = Callable[["fx.Node", Any], Any]
"""Given each node and what it gave; returns what the nodes after it are to read."""


def rounded(tensor: "torch.Tensor", kind: HalfType) -> "torch.Tensor":
    """Return a float32 tensor rounded to ``kind`` and back; others as they are."""
    import torch

    half = torch.float16 if kind == "fp16" else torch.bfloat16
    return tensor.to(half).float() if tensor.dtype == torch.float32 else tensor


def rounded_copy(traced: "fx.GraphModule", kind: HalfType) -> "fx.GraphModule":
    """Copy a trace with all that its modules hold rounded to ``kind``."""
    held = [*traced.parameters(), *traced.buffers()]
    return copy.deepcopy(traced, {id(tensor): rounded(tensor.detach(), kind) for tensor in held})


def interpreter(traced: "fx.GraphModule", kind: HalfType | None, after: After | None = None) -> "fx.Interpreter":
    """Make an interpreter that rounds every float32 tensor it meets; ``after`` sees each, and may put another there."""
    import torch
    from torch.nn import functional

    class Stepwise(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if kind is not None and isinstance(result, torch.Tensor):
                result = rounded(result, kind)
            return result if after is None else after(n, result)

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if "onnx_symbolic" not in str(target):
                return super().call_function(target, args, kwargs)
            # torch evaluates its symbolic ONNX nodes to zeros; the only one that is made here is LRN
            alpha, beta, k = kwargs["attr_floats"]
            return functional.local_response_norm(args[0][0], kwargs["attr_ints"][0], alpha, beta, k)

    return Stepwise(traced)
