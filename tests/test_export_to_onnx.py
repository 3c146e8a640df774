"""The stock route: what ``torch.onnx.export`` would get silently wrong is refused, and the rest is right."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engineworks.export.clean import clean, modules
from engineworks.export.to_onnx import Exported, lrn_as_one_node, to_onnx
from engineworks.runtime.backend import open_session
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

FREE = Batch(1, 4, 8)
CLOSE = 1e-5  # of the largest answer: float32 sums of a few dozen terms in another order


class Net(nn.Module):
    """Runs a function on itself; parts are modules, parameters, or tensors that become buffers."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Pair(Net):
    def forward(self, left: Tensor, right: Tensor) -> Any:  # type: ignore[override]
        return self.run(self, left, right)


def conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


def example(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 6, 6)), generator=torch.Generator().manual_seed(0))


def export(net: nn.Module, batch: Batch = FREE, rows: int = 2, **options: Any) -> Exported:
    return to_onnx(net, {"x": example(rows, 4, 6, 6)}, ("y",), batch=batch, **options)


def kinds(graph: Any) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def check(exported: Exported, net: nn.Module, *sizes: int) -> None:
    """Hold the graph's answers against the module's own at these batch sizes."""
    onnx.checker.check_model(exported.graph, full_check=True)
    inputs = [value.name for value in exported.graph.graph.input]
    outputs = [value.name for value in exported.graph.graph.output]
    session = open_session(exported.graph.SerializeToString(), "cpu", threads=1)
    for size in sizes:
        rows = [example(size, 4, 6, 6) + index for index in range(len(inputs))]
        with torch.no_grad():
            result = net(*(row.clone() for row in rows))
        expected = [result] if isinstance(result, Tensor) else torch.utils._pytree.tree_leaves(result)
        got = session.run({name: row.numpy() for name, row in zip(inputs, rows, strict=True)}, outputs)
        for right, array in zip(expected, got, strict=True):
            assert array.shape == tuple(right.shape)
            assert float(np.abs(array - right.numpy()).max() / right.abs().max().clamp_min(1e-6)) < CLOSE


TRAPS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a branch on the batch": (lambda n, x: n.c(x) * 2 if x.shape[0] > 4 else n.c(x), "for batches 1 to 8"),
    "a loop over the batch": (
        lambda n, x: torch.cat([n.c(x[i : i + 1]) for i in range(x.shape[0])]),
        "for batches 1 to 8",
    ),
    "a view that bakes the batch in": (lambda n, x: n.c(x).view(2, -1), "for batches 1 to 8"),
    "a branch on the data": (lambda n, x: n.c(x) if x.mean() > 0 else x, "data-dependent"),
    "a size that the data decide": (lambda n, x: n.c(x)[n.c(x) > 0], "depends on the data"),
    "a slice that the data decide": (lambda n, x: x[:, : int(x.sum())], "data-dependent"),
    "random numbers": (lambda n, x: n.c(x) + torch.rand(1), "random numbers"),
    "random numbers like the input": (lambda n, x: n.c(x) + torch.randn_like(x), "random numbers"),
    "coins": (lambda n, x: n.c(x) * torch.bernoulli(torch.full((4, 6, 6), 0.5)), "random numbers"),
    "dropout left on": (lambda n, x: functional.dropout(n.c(x)), "random numbers"),
    "dropout of maps left on": (lambda n, x: functional.dropout2d(n.c(x)), "random numbers"),
    "alpha dropout left on": (lambda n, x: functional.alpha_dropout(n.c(x), training=True), "random numbers"),
    "a buffer that is counted up": (lambda n, x: n.c(x) + n.seen.add_(1), r"own state \(seen\)"),
}


@pytest.mark.parametrize("what", TRAPS)
def test_a_forward_is_refused_that_holds(what: str) -> None:
    run, why = TRAPS[what]
    with pytest.raises(ExportError, match=why) as caught:
        export(Net(run, c=conv(), seen=torch.zeros(1)))
    assert "\n" not in str(caught.value)


def test_a_size_that_the_data_decide_is_refused_at_a_fixed_batch_too() -> None:
    with pytest.raises(ExportError, match="depends on the data"):
        export(Net(lambda n, x: x[x > 0]), batch=Batch(2, 2, 2))


def test_one_submodule_in_training_mode_is_refused_by_name() -> None:
    drop = nn.Dropout(0.5)
    net = nn.Sequential(nn.Sequential(conv(), drop)).eval()
    drop.train()
    with pytest.raises(ExportError, match=r"training mode in 0\.1 and 0 more\. Call \.eval\(\)"):
        export(net)
    with pytest.raises(ExportError, match="training mode in the module itself and 3 more"):
        export(net.train())


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_beyond_what_is_tested_is_refused_and_not_replaced(opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset: expected 18 to 23, got {opset}"):
        export(nn.Sequential(conv()).eval(), opset=opset)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(18, 24))
def test_every_opset_on_offer_is_valid_and_right(opset: int) -> None:
    net = nn.Sequential(conv(), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Softmax(1)).eval()
    exported = export(net, opset=opset)
    assert exported.graph.opset_import[0].version == opset
    check(exported, net, 1, 8)


def test_one_export_with_much_in_it_is_right_at_every_batch_and_repeats_to_the_byte() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = functional.local_response_norm(net.stem(x) + x, 5, alpha=0.1)
        z = functional.adaptive_avg_pool2d(net.drop(y), 2)
        return {"scores": net.fc(z.flatten(1)), "maps": (y, z)}

    stem = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.LocalResponseNorm(3, alpha=1, k=2))
    whole = Net(forward, stem=stem, drop=nn.Dropout(0.5), fc=nn.Linear(16, 3))
    exported = to_onnx(whole, {"x": example()}, ("scores", "maps", "pooled"), batch=FREE)
    check(exported, whole, 1, 3, 4, 8)
    assert kinds(exported.graph).count("LRN") == 2
    assert not {"BatchNormalization", "Dropout"} & set(kinds(exported.graph))
    assert [value.name for value in exported.graph.graph.output] == ["scores", "maps", "pooled"]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in exported.graph.graph.output} == {"batch"}

    again = to_onnx(whole, {"x": example()}, ("scores", "maps", "pooled"), batch=FREE)
    for each in (exported, again):
        clean(each.graph, "net")
    first, second = (each.graph.SerializeToString(deterministic=True) for each in (exported, again))
    assert first == second
    assert not [word for word in (b"/tmp", b"/home", b"/root", b"site-packages", b".py", b"File ") if word in first]
    weighted = [node.output[0] for node in exported.graph.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert [modules(exported.graph)[name] for name in weighted] == ["stem.0", "fc"]


def test_several_inputs_share_one_batch() -> None:
    net = Pair(lambda n, a, b: (n.c(a) + b, a - b), c=conv())
    exported = to_onnx(net, {"left": example(), "right": example()}, ("sum", "difference"), batch=FREE)
    check(exported, net, 1, 5, 8)


@pytest.mark.parametrize("size", [1, 3])
def test_a_fixed_batch_is_exported_as_that(size: int) -> None:
    net = Net(lambda n, x: n.c(x).view(size, -1), c=conv())
    exported = export(net, batch=Batch(size, size, size), rows=size)
    check(exported, net, size)
    assert exported.graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value == size


def test_a_window_that_onnx_centres_elsewhere_is_no_lrn_node() -> None:
    net = Net(lambda n, x: functional.local_response_norm(n.c(x), 4, alpha=1), c=conv())
    exported = export(net)
    assert "LRN" not in kinds(exported.graph)
    check(exported, net, 1, 8)


def test_lrn_is_put_back_afterwards_whatever_happens() -> None:
    before = functional.local_response_norm
    with lrn_as_one_node():
        assert functional.local_response_norm is not before
    assert functional.local_response_norm is before
    with pytest.raises(ExportError):
        export(Net(lambda n, x: functional.local_response_norm(x, 3).view(2, -1)))
    assert functional.local_response_norm is before


def test_a_refusal_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.getLogger("torch").level
    with pytest.raises(ExportError):
        export(Net(lambda n, x: n.c(x) if x.mean() > 0 else x, c=conv()))
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch").level == level


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ExportError):
        export(nn.Sequential(net, Net(lambda n, x: x.view(2, -1))).eval())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert [type(part) for part in net] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert not net.training


@pytest.mark.slow
def test_graphs_inside_a_node_are_cleaned_too() -> None:
    net = Net(lambda n, x: torch.cond(x.sum() > 0, lambda y: n.c(y) * 2, lambda y: y + 1, (x,)), c=conv())
    exported = export(net)
    assert "If" in kinds(exported.graph)
    clean(exported.graph, "net")
    content = exported.graph.SerializeToString()
    assert not [word for word in (b"/tmp", b"/root", b"site-packages", b".py", b"File ") if word in content]
    check(exported, net, 1, 8)
