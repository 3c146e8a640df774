"""A trace run node by node, as it is, rounded, and with other values put in."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from engineworks.export.interpret import interpreter, rounded, rounded_copy


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).eval())


@pytest.mark.parametrize(("kind", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_rounding_goes_to_the_type_and_back_and_leaves_whole_numbers(kind: Any, dtype: torch.dtype) -> None:
    x = torch.tensor([1.0001, 3.14159])
    assert torch.equal(rounded(x, kind), x.to(dtype).float())
    whole = torch.tensor([5, 7])
    assert rounded(whole, kind) is whole


def test_without_rounding_it_is_the_module_itself() -> None:
    module, x = traced(), torch.randn(5, 3)
    assert torch.equal(interpreter(module, None).run(x.clone()), module(x.clone()))


def test_a_rounded_copy_leaves_the_original_s_weights() -> None:
    module = traced()
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    copy = rounded_copy(module, "bf16")
    for name, tensor in module.named_parameters():
        assert torch.equal(tensor, before[name])
        layer, _, kind = name.rpartition(".")
        assert torch.equal(getattr(copy.get_submodule(layer), kind), rounded(before[name], "bf16"))


def test_what_after_returns_is_what_the_next_node_reads() -> None:
    module, x = traced(), torch.randn(2, 3)
    seen: list[str] = []

    def after(node: fx.Node, result: Any) -> Any:
        seen.append(node.name)
        return torch.zeros_like(result) if node.name == "_1" else result

    answer = interpreter(module, None, after).run(x)
    assert torch.equal(answer, module.get_submodule("2").bias.expand(2, 2))  # type: ignore[operator]
    assert seen == [node.name for node in module.graph.nodes]
