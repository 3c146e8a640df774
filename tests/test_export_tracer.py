"""The tracer that runs: sizes are numbers, the batch is none, values are those of an eager run."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from engineworks.export.emitter import CannotTranslate
from engineworks.export.tracer import RunningTracer


class Net(nn.Module):
    """Runs a function on itself; it holds a convolution, a buffer and a subclass of a layer."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run, self.c, self.own = run, nn.Conv2d(3, 4, 3), Own()
        self.register_buffer("b", torch.ones(2, 3))

    def forward(self, x: Tensor, factor: float = 2.0) -> Any:
        return self.run(self, x, factor)


class Own(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return -input


def follow(run: Callable[..., Any], rows: int = 2) -> tuple[RunningTracer, fx.Graph, Tensor]:
    x = torch.randn(rows, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    tracer = RunningTracer([x], frozenset({nn.Conv2d, nn.ReLU}))
    with torch.no_grad():
        return tracer, tracer.follow(Net(run).eval()), x


def kinds(graph: fx.Graph) -> list[str]:
    return [str(getattr(node.target, "__name__", node.target)) for node in graph.nodes if node.op != "output"]


def test_every_value_is_that_of_an_eager_run() -> None:
    tracer, graph, x = follow(lambda n, x, f: F.relu(n.c(x)) * f)
    assert kinds(graph) == ["x", "c", "relu", "mul"]
    relu, mul = (next(node for node in graph.nodes if node.name == name) for name in ("relu", "mul"))
    assert torch.equal(tracer.values[mul], tracer.values[relu] * 2)
    assert torch.equal(tracer.result, tracer.values[mul])
    assert torch.equal(tracer.values[next(iter(graph.nodes))], x)


def test_sizes_are_numbers_and_the_batch_is_a_node() -> None:
    def run(net: Any, x: Tensor, factor: float) -> Tensor:
        rows, channels, height, width = x.shape
        assert (channels, height, width, x.dim(), x.size(-1)) == (3, 8, 6, 4, 6)
        assert not isinstance(rows, int)
        assert x.shape == (x * 2).shape  # one node stands for the batch of all
        return x.view(rows, -1)

    _, graph, _ = follow(run)
    assert kinds(graph) == ["x", "getattr", "getitem", "mul", "view"]
    view = list(graph.nodes)[-2]
    assert view.args[1].target is operator.getitem


def test_a_batch_that_nobody_reads_leaves_no_node() -> None:
    _, graph, _ = follow(lambda n, x, f: x * x.shape[2])
    assert kinds(graph) == ["x", "mul"]


def test_the_modules_own_tensors_are_nodes_and_their_sizes_are_numbers() -> None:
    tracer, graph, _ = follow(lambda n, x, f: F.conv2d(x, n.c.weight * n.c.weight.shape[0]) + n.b.shape[0])
    assert kinds(graph) == ["x", "c.weight", "mul", "conv2d", "b", "add"]
    assert {node.name for node in tracer.fixed} == {"c_weight", "mul", "b"}


def test_a_subclass_is_followed_and_a_known_layer_is_not() -> None:
    _, graph, _ = follow(lambda n, x, f: n.own(n.c(x)))
    assert kinds(graph) == ["x", "c", "neg"]


def test_writes_are_seen_where_they_happen() -> None:
    def run(net: Any, x: Tensor, factor: float) -> Tensor:
        y = net.c(x)
        y += 1
        return F.relu(y.add_(1), inplace=True)

    tracer, _, _ = follow(run)
    assert {node.name for node in tracer.writing} == {"iadd", "add_", "relu"}


def test_several_values_can_be_counted_and_taken_apart() -> None:
    def run(net: Any, x: Tensor, factor: float) -> Tensor:
        parts = x.chunk(3, 1)
        assert len(parts) == 3
        return sum(part * 2 for part in parts)  # type: ignore[return-value]

    assert kinds(follow(run)[1]).count("getitem") == 3


def test_what_a_value_has_not_its_stand_in_has_not() -> None:
    def run(net: Any, x: Tensor, factor: float) -> Tensor:
        assert not hasattr(x, "nothing") and hasattr(x, "relu") and x.dtype == torch.float32 and not x.is_cuda
        assert x.is_floating_point() and x.is_contiguous()
        return x

    follow(run)


@pytest.mark.parametrize(
    ("run", "error", "why"),
    [
        (lambda n, x, f: x if x.shape[0] == 2 else -x, fx.proxy.TraceError, "control flow"),
        (lambda n, x, f: [x[i] for i in range(x.shape[0])], CannotTranslate, "the value as index"),
        (lambda n, x, f: x if x.sum() > 0 else -x, fx.proxy.TraceError, "control flow"),
        (lambda n, x, f: x * x.mean().shape[0], CannotTranslate, "no batch axis"),
        (lambda n, x, f: len(x), CannotTranslate, "the length of x"),
        (lambda n, x, f: list(x), fx.proxy.TraceError, "iterated"),
        (lambda n, x, f: x.nothing, AttributeError, "nothing"),
    ],
)
def test_decisions_by_the_batch_or_the_data_are_refused(run: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        follow(run)


def test_inputs_that_do_not_fit_are_refused() -> None:
    tracer = RunningTracer([torch.zeros(1, 3, 4, 4)] * 3, frozenset())
    with pytest.raises(CannotTranslate, match="does not take 3 inputs"):
        tracer.follow(Net(lambda n, x, f: x))
