"""What samples cannot show: values read into Python, state that is kept, ways that only other inputs take."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from engineworks.export.probe import Probes, examine, hold
from engineworks.runtime.backend import OrtSession, open_session
from engineworks.runtime.errors import ExportError, ParityError
from engineworks.runtime.manifest import Batch

X = {"x": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)}
FREE = Batch(1, 4, 8)


class Net(nn.Module):
    """Runs a function on itself."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def probe(run: Callable[[Any, Tensor], Any], batch: Batch = FREE, **parts: Any) -> Probes:
    net = Net(run, **parts)
    return examine(net, net, X, batch)


def session(*operators: str) -> OrtSession:
    """A graph of one operator after the other, from x to y."""
    names = ["x", *(f"v{index}" for index in range(len(operators) - 1)), "y"]
    nodes = [helper.make_node(kind, [names[i]], [names[i + 1]]) for i, kind in enumerate(operators)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return open_session(model.SerializeToString(), "cpu", threads=1)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: x.max().item(),
        lambda x: float(x[0, 0]),
        lambda x: x.numpy(),
        lambda x: np.asarray(x, np.float64),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
        lambda x: x.data_ptr(),
        lambda x: 1.0 in x,
        lambda x: (x * 0 + torch.ones(6)).mean().item(),
    ],
)
def test_a_read_of_the_data_is_refused_whatever_follows_of_it(read: Callable[[Tensor], Any]) -> None:
    def tried(net: Any, x: Tensor) -> Tensor:
        try:
            read(x)
        except RuntimeError:
            return x
        return x * 2

    with pytest.raises(
        ExportError, match=r"reads values of the data into Python; .*\. At test_export_probe.py:\d+, in "
    ):
        probe(tried)


@pytest.mark.parametrize(
    "run",
    [
        lambda n, x: x * n.b.sum().item(),
        lambda n, x: x * (2 if n.b.any() else 1),
        lambda n, x: x.reshape(x.shape[0], -1) if x.dim() == 2 else x,
        lambda n, x: (repr(x), f"{x.shape}", x)[-1],
    ],
)
def test_reads_of_weights_and_of_shapes_are_not(run: Any) -> None:
    assert len(probe(run, b=torch.ones(2)).answers[0]) == 3


def counted(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return x if net.calls < 99 else -x


def filled(net: Any, x: Tensor) -> Tensor:
    if net.table is None:
        net.table = x.new_ones(6)
    y: Tensor = x * net.table
    return y


def kept_for_others(net: Any, x: Tensor) -> Tensor:
    net.last = x * 2
    net.shape = tuple(x.shape)
    return x


def written(net: Any, x: Tensor) -> Tensor:
    net.b.add_(1)
    return x


def switched(net: Any, x: Tensor) -> Tensor:
    net.training = True
    return x


@pytest.mark.parametrize(
    ("run", "parts", "what"),
    [
        (counted, {"calls": 0}, r"\(calls\).*in counted: net.calls \+= 1"),
        (filled, {"table": None}, r"\(table\).*in filled: net.table = "),
        (written, {"b": torch.zeros(1)}, r"\(b\).*in written: net.b.add_\(1\)"),
        (switched, {}, r"\(training\).*in switched: net.training = True"),
    ],
)
def test_state_that_is_kept_is_refused_with_the_line_that_writes_it(run: Any, parts: Any, what: str) -> None:
    with pytest.raises(ExportError, match=f"own state {what}"):
        probe(run, **parts)


def test_an_attribute_that_nothing_reads_is_let_be_and_put_back() -> None:
    net = Net(kept_for_others, last=None)
    examine(net, net, X, FREE)
    assert net.last is None and not hasattr(net, "shape")


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (lambda n, x: [*x][7], "raises IndexError at a batch of 3: list index out of range. At test_export_probe.py"),
        (lambda n, x: x.sum(), r"an output of shape \(\) for 3 rows.* At "),
        (lambda n, x: (x, "scores"), "a str among its outputs"),
        (lambda n, x: None, "returns nothing"),
        (lambda n, x: x * 1j, "torch.complex64"),
    ],
)
def test_outputs_that_are_no_rows_of_tensors_are_refused(run: Any, why: str) -> None:
    with pytest.raises(ExportError, match=why):
        probe(run)


def test_a_layer_without_a_size_is_refused_by_name() -> None:
    net = nn.Sequential(nn.LazyLinear(3)).eval()
    with pytest.raises(ExportError, match=r"0\.weight has no size yet\. Call the module once"):
        examine(net, net, X, FREE)


def test_the_rows_are_unlike_the_samples_and_as_many_as_the_batch_allows() -> None:
    probes = probe(lambda n, x: x)
    rows = probes.inputs["x"]
    assert np.array_equal(rows[0], -X["x"][0]) and np.array_equal(rows[1], 16 * X["x"][-1])
    assert rows.dtype == np.float32 and len(rows) == 3
    assert [len(probe(lambda n, x: x, Batch(size, size, size)).inputs["x"]) for size in (1, 2, 5)] == [1, 2, 5]


def test_a_graph_that_is_the_same_function_passes_and_another_does_not() -> None:
    def clipped(net: Any, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return x.tanh()
        return x.tanh() * (1 + (x > 20))

    hold(session("Tanh"), ["y"], probe(lambda n, x: x.tanh()), 1, free=True)
    hold(session("Tanh"), ["y"], probe(lambda n, x: x.tanh(), Batch(2, 2, 2)), 2, free=False)
    with pytest.raises(
        ParityError, match=r"on inputs unlike the samples .* takes another way.*: if torch.compiler.is_exp"
    ):
        hold(session("Tanh"), ["y"], probe(clipped), 1, free=True)


def test_a_row_that_depends_on_the_rows_before_it_is_seen() -> None:
    with pytest.raises(ParityError, match=r"depends on its whole batch.* At .*x\.cumsum\(0\)"):
        hold(session("Identity"), ["y"], probe(lambda n, x: x.cumsum(0)), 1, free=True)
