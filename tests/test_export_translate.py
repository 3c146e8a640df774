"""Our own translation: right where it answers, a refusal everywhere else, and the module as it was before."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from engineworks.export.clean import MODULE_KEY
from engineworks.export.emitter import CannotTranslate
from engineworks.export.translate import translate
from engineworks.runtime.backend import open_session
from engineworks.runtime.compare import sqnr
from engineworks.runtime.manifest import Batch

FREE = Batch(1, 4, 8)
SAME_DB = 90.0  # 15 of float32's 24 bits: what is left for sums in another order; anything else is another graph


class Net(nn.Module):
    """Runs a function on itself; parts are modules, parameters, or tensors that become buffers."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
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


def conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


def norm() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2)
    nn.init.normal_(layer.get_buffer("running_mean"))
    return layer


def example(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 6, 6)), generator=torch.Generator().manual_seed(0))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(example(*(shape or (4, 1, 1))))


def held(net: nn.Module) -> list[Any]:
    """Describe a module: its tensors to the bit, its attributes, hooks and modes."""
    tensors = [(name, value.numpy().tobytes()) for name, value in net.state_dict().items()]
    children = [
        (name, child, child.training, sorted(vars(child)), len(child._forward_hooks))
        for name, child in net.named_modules()
    ]
    return [tensors, [id(value) for value in (*net.parameters(), *net.buffers())], children]


def write(net: nn.Module, x: Tensor, outputs: tuple[str, ...] = ("y",), batch: Batch = FREE, opset: int = 20) -> Any:
    before = held(net)
    try:
        graph, *_ = translate(net, {"x": x}, outputs, batch=batch, opset=opset)
    finally:
        assert held(net) == before
    onnx.checker.check_model(graph, full_check=True)  # strict shape inference against the shapes written down
    return graph


def answers(graph: Any, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    names = [value.name for value in graph.graph.output]
    return open_session(graph.SerializeToString(), "cpu", threads=1).run(dict(inputs), names)


def check(net: nn.Module, x: Tensor, sizes: tuple[int, ...] = (1, 2, 3, 7), **options: Any) -> Any:
    """Translate, and hold the answers against the module's own at these batch sizes."""
    graph = write(net, x, **options)
    for size in sizes:
        rows = example(size, *x.shape[1:])
        with torch.no_grad():
            expected = tree_leaves(net(rows.clone()))
        for right, got in zip(expected, answers(graph, {"x": rows.numpy()}), strict=True):
            assert (got.shape, str(right.dtype)) == (tuple(right.shape), f"torch.{got.dtype}")
            assert sqnr(right.numpy(), got) > SAME_DB, f"batch {size}"
    return graph


def summed(net: Any, x: Tensor) -> Tensor:
    total: Any = 0
    for _ in range(3):
        total += net.c(x)
    return total  # type: ignore[no-any-return]


def read_further_on(net: Any, x: Tensor) -> Any:
    y = net.c(x)
    return y, net.r(y)


def in_place_with_another_reader(net: Any, x: Tensor) -> Any:
    y = net.c(x)
    return y + F.relu(y, inplace=True)


def in_place_by_a_sign(net: Any, x: Tensor) -> Any:
    y = z = net.c(x)
    z += 1
    return y + z


def in_place_as_a_statement(net: Any, x: Tensor) -> Any:
    y = net.c(x)
    z = y * 3
    y.mul_(2)
    return y.relu() + y + z


def by_the_shape(net: Any, x: Tensor) -> Tensor:
    rows, channels, height, width = x.shape
    y: Tensor = net.c(x)
    assert y.shape == x.shape and x.dim() == 4 and x.dtype == torch.float32
    if height % 2 == 0 and len(y.chunk(2, 1)) == 2:
        y = F.pad(y, (0, max((width + 1) // 2 * 2 - width, 0), 1, 0))
    return y.view(rows, channels * y.size(-2), -1)


def by_an_attribute(net: Any, x: Tensor) -> Tensor:
    return x * 2 if hasattr(x, "nothing") else x


def given(forward: Callable[..., Tensor]) -> nn.Module:
    return type("Given", (nn.Module,), {"forward": forward})()  # type: ignore[no-any-return]


shared, statistics, tied = conv(), norm(), (conv(), conv())
tied[1].weight = tied[0].weight
RIGHT: dict[str, nn.Module] = {
    "one module called twice": Net(lambda n, x: n.c(n.c(x)), c=conv()),
    "a convolution under two names": Net(lambda n, x: n.b(n.d(x)), b=norm(), c=shared, d=shared),
    "a batch norm under two names": Net(lambda n, x: n.d(n.a(x)), a=conv(), c=statistics, d=statistics),
    "a batch norm behind two layers": Net(lambda n, x: n.b(n.c(x)) + n.b(n.d(x)), b=norm(), c=conv(), d=conv()),
    "outputs before and behind a batch norm": Net(read_further_on, r=norm(), c=conv()),
    "tied weights behind a batch norm": Net(lambda n, x: n.b(n.c(x)) + n.d(x), b=norm(), c=tied[0], d=tied[1]),
    "batch norm without weights, folded": Net(lambda n, x: n.b(n.c(x)), b=nn.BatchNorm2d(4, affine=False), c=conv()),
    "a buffer of another shape": Net(lambda n, x: x - n.m, m=example(1, 4, 1, 1)),
    "weights computed from weights": Net(lambda n, x: F.conv2d(x, n.w / n.w.norm()), w=weight(3, 4, 1, 1)),
    "a weight as a number": Net(lambda n, x: x * n.w.item(), w=weight(1)),
    "a sum that starts as a number": Net(summed, c=conv()),
    "an input that is the output": Net(lambda n, x: x),
    "outputs in a dict, a list and a tuple": Net(lambda n, x: {"b": {"z": x + 1, "a": x * 2}, "a": [x, (x,)]}),
    "a flag that says eval": Net(lambda n, x: x * 2 if n.training else F.dropout(x, 0.5, n.training)),
    "a module called output in the middle": Net(lambda n, x: n.y0(x).relu(), y0=conv()),
    "modules called output and its way out": Net(lambda n, x: n.y0_(n.y0(x)).tanh(), y0=conv(), y0_=conv()),
    "weights called output and its way out": Net(lambda n, x: x * n.y0 + n.y0_, y0=weight(), y0_=weight(4, 6, 6)),
    "a weight called as a node": Net(lambda n, x: x * 2 + n.mul, mul=weight()),
    "a weight called as the input": Net(lambda n, z: z * 2 + n.x, x=weight()),
    "a pool called as the input": Net(lambda n, z: n.x(z).relu(), x=nn.MaxPool2d(3, 2, ceil_mode=True)),
    "a flatten called as the input": Net(lambda n, z: n.x(z).relu(), x=nn.Flatten()),
    "a module with an odd name": Net(lambda n, x: n.m["ä b/!"](x), m=nn.ModuleDict({"ä b/!": conv()})),
    "a way chosen by sizes other than the batch": Net(by_the_shape, c=conv()),
    "a way chosen by an attribute": Net(by_an_attribute),
    "an argument that has a default": given(lambda self, x, mask=None: x + 1 if mask is None else x).eval(),
    "a buffer times two": Net(lambda n, x: x * (n.b * 2), b=torch.ones(1)),
    "in place with another reader, who sees it too": Net(in_place_with_another_reader, c=conv()),
    "in place by a sign, under two names": Net(in_place_by_a_sign, c=conv()),
    "in place as a statement": Net(in_place_as_a_statement, c=conv()),
    "in place by keyword": Net(lambda n, x: torch.relu_(input=n.c(x)), c=conv()),
    "in place on an output, which changes too": Net(read_further_on, c=conv(), r=nn.ReLU(True)),
    "the data of a parameter, read": Net(lambda n, x: x * n.w.data, w=weight()),
    "outputs that are read further on": Net(read_further_on, c=conv(), r=nn.ReLU()),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_it_is_right_about(what: str) -> None:
    net = RIGHT[what]
    with torch.no_grad():
        count = len(tree_leaves(net(example())))
    check(net, example(), outputs=tuple(f"y{index}" for index in range(count)))


def in_place_under_a_view(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.c(x)
    y.view(y.shape[0], -1).add_(1)
    return y


def in_place_by_a_module(net: Any, x: Tensor) -> Any:
    y = net.c(x)
    return net.r(y.flatten(1)).view(y.shape) + y


def put_elsewhere(net: Any, x: Tensor) -> Any:
    y = net.c(x)
    y.data = y * 2
    return y


def counted(net: Any, x: Tensor) -> Tensor:
    net.count += 1
    return x * 2 if net.count < 5 else x


def kept(net: Any, x: Tensor) -> Tensor:
    net.seen = net.seen + 1
    return x + net.seen  # type: ignore[no-any-return]


def kept_behind_autograd(net: Any, x: Tensor) -> Tensor:
    net.seen.data.add_(1)
    return x + net.seen  # type: ignore[no-any-return]


def kept_behind_all(net: Any, x: Tensor) -> Tensor:
    for parameter in net.parameters():
        parameter.data.mul_(2)
    return x * net.w  # type: ignore[no-any-return]


@torch.fx.wrap
def doubled(tensor: Tensor) -> Tensor:
    return tensor.data.mul_(2)


def in_half(net: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.c(x) + x


unregistered = Net(lambda n, x: x * n.t)
vars(unregistered)["t"] = torch.ones(1)
DRAWN = {"g": torch.Generator(), "rand": lambda generator: torch.rand(1, generator=generator)}
OWN, OTHERWISE, STATE = "own tensors", "answers otherwise", "changes the module"
REFUSED: dict[str, tuple[Net, str]] = {
    "a branch on the batch": (Net(lambda n, x: x * 2 if x.shape[0] > 4 else x), "control flow"),
    "a loop over the batch": (Net(lambda n, x: torch.cat([x[i] for i in range(x.shape[0])])), "the value as index"),
    "a branch on the data": (Net(lambda n, x: x if x.mean() > 0 else -x), "control flow"),
    "a branch on a weight": (Net(lambda n, x: x if n.w.sum() > 0 else -x, w=weight()), "control flow"),
    "a branch on what it is given": (Net(lambda n, x: x * 2 if isinstance(x, Tensor) else x), OTHERWISE),
    "an error without words": (Net(lambda n, x: [][x.shape[1] != 4]), "cannot follow"),
    "a step in bfloat16": (Net(in_half, c=conv()), "not float32"),
    "an assignment to data": (Net(put_elsewhere, c=conv()), OTHERWISE),
    "the time": (Net(lambda n, x: x * (time.perf_counter() % 1)), OTHERWISE),
    "random numbers": (Net(lambda n, x: x + torch.rand(1)), "random numbers"),
    "a random number": (Net(lambda n, x: x * torch.rand(1).item()), "random numbers"),
    "a random number of Python's": (Net(lambda n, x: x * random.choice([1, 1])), "random numbers"),
    "a random number of NumPy's": (Net(lambda n, x: x * float(np.random.rand())), "random numbers"),
    "random numbers like the input": (Net(lambda n, x: x + torch.rand_like(x)), "random numbers"),
    "random numbers like a weight": (Net(lambda n, x: x * torch.rand_like(n.w), w=weight()), "random numbers"),
    "dropout of a weight": (Net(lambda n, x: x * F.dropout(n.w), w=weight()), "random numbers"),
    "a generator of its own": (Net(lambda n, x: x * n.g.random(), g=random.Random(0)), STATE),
    "a generator of PyTorch's": (Net(lambda n, x: x * n.rand(generator=n.g).item(), **DRAWN), STATE),
    "a generator of NumPy's": (Net(lambda n, x: x * n.g.random(), g=np.random.default_rng(0)), STATE),
    "a function of unknown make": (Net(lambda n, x: x * doubled(n.w), w=weight()), "the function doubled"),
    "memory as it comes": (Net(lambda n, x: x * torch.empty_like(n.w), w=weight()), "not initialised"),
    "dropout left on": (Net(lambda n, x: F.dropout(x)), "random numbers"),
    "a tensor made inside": (Net(lambda n, x: x + torch.arange(6)), "made inside forward"),
    "a tensor that is no buffer": (unregistered, "made inside forward"),
    "a count": (Net(counted, count=0), STATE),
    "a list that grows": (Net(lambda n, x: (n.seen.append(1), x)[1], seen=[]), STATE),
    "a buffer that is counted up": (Net(lambda n, x: x + n.seen.add_(1), seen=torch.zeros(1)), OWN),
    "a buffer that is replaced": (Net(kept, seen=torch.zeros(1)), STATE),
    "a buffer that is written behind autograd's back": (Net(kept_behind_autograd, seen=torch.zeros(1)), OWN),
    "parameters that are written behind the trace's back": (Net(kept_behind_all, w=weight()), OTHERWISE),
    "a branch on the batch of two values": (Net(lambda n, x: x if x.shape[0] == 2 else -x), "control flow"),
    "padding by the batch": (Net(lambda n, x: F.pad(x, (0, x.shape[0]))), "padding by constant"),
    "a size of the batch in a slice": (Net(lambda n, x: x[:, : x.shape[0]]), "other than numbers"),
    "a length": (Net(lambda n, x: x * len(x)), "the length of"),
    "a parameter that is clamped": (Net(lambda n, x: x * n.w.clamp_(-0.1, 0.1), w=weight()), OWN),
    "a parameter's data": (Net(lambda n, x: x * n.w.data.mul_(2), w=weight()), OWN),
    "a parameter that is subtracted from": (Net(lambda n, x: x * n.w.__isub__(1), w=weight()), OWN),
    "a parameter through an in-place module": (Net(lambda n, x: x * n.r(n.w), w=weight(), r=nn.ReLU(True)), OWN),
    "a parameter through an in-place function": (Net(lambda n, x: x * F.relu(n.w, inplace=True), w=weight()), OWN),
    "a parameter under a view": (Net(lambda n, x: x * n.w[0].relu_(), w=weight(2, 4, 1, 1)), OWN),
    "a parameter as the place for it": (Net(lambda n, x: torch.mul(x, 2, out=n.w), w=weight(2, 4, 6, 6)), OWN),
    "in place on the input": (Net(lambda n, x: n.c(x.mul_(2)), c=conv()), "in-place"),
    "in place under a view": (Net(in_place_under_a_view, c=conv()), "in-place"),
    "in place by a module, behind a view": (Net(in_place_by_a_module, c=conv(), r=nn.ReLU(True)), "in-place"),
    "outputs without a batch": (Net(lambda n, x: (x, n.b), b=torch.ones(3)), "no batch axis"),
    "outputs that are none": (Net(lambda n, x: (x + 1, None)), "no tensor"),
    "outputs that are a size": (Net(lambda n, x: (x + 1, x.shape[0])), "no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_it_leaves_to_the_stock_route(what: str) -> None:
    net, why = REFUSED[what]
    with pytest.raises(CannotTranslate, match=why):
        write(net, example(), ("y", "z") if "output" in what else ("y",))


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    check(nn.Sequential(Doubled(4, 4, 1)).eval(), example())  # traced through: its own forward is what counts


def plain() -> nn.Sequential:
    return nn.Sequential(conv()).eval()


def changed(change: Callable[[Any], Any]) -> nn.Module:
    net = plain()
    change(net[0])
    return net


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: changed(lambda layer: layer.register_forward_hook(print)), "a forward hook on 0"),
        (lambda: changed(lambda layer: layer.register_forward_pre_hook(print)), "a forward hook on 0"),
        (lambda: changed(lambda layer: vars(layer).update(forward=len)), "a replaced forward in 0"),
        (lambda: changed(lambda layer: vars(layer).update(_conv_forward=max)), "a replaced forward in 0"),
        (
            lambda: nn.Sequential(type("Called", (nn.ReLU,), {"__call__": lambda self, x: -x})()).eval(),
            "a replaced forward in 0",
        ),
        (lambda: nn.utils.parametrizations.spectral_norm(plain()[0]), "a parametrisation in the module itself"),
        (lambda: nn.utils.parametrizations.weight_norm(plain()[0]), "a parametrisation in the module itself"),
        (lambda: changed(lambda layer: layer.train()), "training mode in 0"),
        (lambda: nn.Sequential(nn.Identity()), "training mode in the module itself"),
        (lambda: nn.Sequential(conv().to("meta")).eval(), r"not a plain one on the CPU \(0.weight\)"),
        (lambda: Net(lambda n, x: x * n.w, w=nn.Parameter(torch.eye(6).to_sparse())), r"not a plain one .* \(w\)"),
    ],
)
def test_what_a_trace_would_look_past_is_refused(make: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(CannotTranslate, match=why):
        translate(make(), {"x": example()}, ("y",), batch=FREE, opset=20)


def test_a_translation_under_autocast_is_refused() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(CannotTranslate, match="not float32"):
        write(plain(), example())


def test_a_hook_on_every_module_is_refused() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        with pytest.raises(CannotTranslate, match="global forward hooks"):
            write(plain(), example())
    finally:
        hook.remove()


TWO = given(lambda self, a, b: a - b).eval()


@pytest.mark.parametrize(
    ("net", "inputs", "outputs", "why"),
    [
        (given(lambda self, *x: x[0] + 1), {"x": example()}, ("y",), "does not take 1 inputs"),
        (given(lambda self, *, x: x + 1), {"x": example()}, ("y",), "does not take 1 inputs"),
        (TWO, {"x": example()}, ("y",), "cannot follow .* missing 1 required"),
        (plain(), {"x": example(), "z": example()}, ("y",), "does not take 2 inputs"),
        (TWO, {"x": example(), "z": example(1, 4, 6, 6)}, ("y",), "do not share a batch"),
        (TWO, {"x": example(2), "z": torch.tensor(1.0)}, ("y",), "do not share a batch"),
        (TWO, {"x": example(), "z": example().double()}, ("y",), "not float32"),
        (TWO, {"x": example(), "z": example()}, ("z",), "a name that two"),
        (plain(), {"x": example()}, ("y", "y"), "a name that two"),
        (plain(), {"x": example()}, ("y", "z"), "1 outputs where 2 were named"),
        (plain(), {"x": example(2, 3, 6, 6)}, ("y",), "cannot follow"),
        (Net(lambda n, x: ()), {"x": example()}, (), "0 outputs"),
    ],
)
def test_inputs_and_outputs_that_do_not_fit_are_refused(net: Any, inputs: Any, outputs: Any, why: str) -> None:
    with pytest.raises(CannotTranslate, match=why):
        translate(net.eval(), inputs, outputs, batch=FREE, opset=20)


def test_two_inputs_come_in_order_under_any_name() -> None:
    first, second = example(3, 4), example(3, 4) + 1
    graph, *_ = translate(TWO, {"b b": first, "a/ü": second}, ("sub",), batch=FREE, opset=20)
    assert np.array_equal(answers(graph, {"a/ü": second.numpy(), "b b": first.numpy()})[0], (first - second).numpy())


def test_a_fixed_batch_stays_fixed() -> None:
    graph = check(nn.Flatten(1).eval(), example(4, 4), sizes=(4,), batch=Batch(4, 4, 4))
    assert [axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim] == [4, 4]


def test_an_example_of_one_row_does_for_every_batch() -> None:
    check(Net(lambda n, x: n.c(x).flatten(1) + n.b, c=conv(), b=example(1, 144)), example(1, 4, 6, 6))


@pytest.mark.parametrize("opset", range(18, 24))
def test_every_opset_on_offer_is_valid_and_right(opset: int) -> None:
    layers = nn.Sequential(conv(), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2, ceil_mode=True))
    net = Net(lambda n, x: n.l(x).mean([2, 3]).softmax(1), l=layers)
    assert check(net, example(), opset=opset).opset_import[0].version == opset


def test_a_network_of_a_thousand_layers_is_no_deeper_than_one() -> None:
    layers = (nn.ReLU() if index % 2 else nn.Conv2d(4, 4, 1, groups=4) for index in range(1000))
    assert len(write(nn.Sequential(*layers).eval(), example()).graph.node) == 1000


def test_weights_keep_their_names_and_are_stored_once() -> None:
    layer = conv()
    graph = write(Net(lambda n, x: n.b(n.a(x)), a=layer, b=layer), example())
    assert sorted(tensor.name for tensor in graph.graph.initializer) == ["a.bias", "a.weight"]


def test_every_weighted_node_carries_its_module_at_each_call() -> None:
    net = Net(lambda n, x: n.head(n.body(n.body(x))), body=nn.Sequential(conv(), nn.ReLU()), head=nn.Flatten())
    marks = [prop for node in write(net, example()).graph.node for prop in node.metadata_props]
    assert [(prop.key, prop.value) for prop in marks] == [
        (MODULE_KEY, name) for name in ("body.0", "body.1", "body.0", "body.1", "head")
    ]


def test_two_translations_are_byte_identical_and_say_nothing_of_this_machine() -> None:
    net = nn.Sequential(conv(), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    first, second = (write(net, example()).SerializeToString() for _ in range(2))
    assert first == second
    assert b".py" not in first and b"/usr" not in first and b"home" not in first


class Many(nn.Module):
    """A small network of many operators, some of them several nodes of ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(True))
        self.norm, self.act, self.group = nn.LayerNorm(8), nn.GELU("tanh"), nn.GroupNorm(2, 8)
        self.up, self.deep = nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid(True))
        self.scale, self.head = nn.Parameter(torch.rand(8, 1, 1)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        first, second = self.act(self.deep(y)).chunk(2, 1)
        x = torch.cat((second, first), 1) * self.scale + x
        x *= self.gate(x)
        x = F.max_pool2d(F.pad(self.up(self.group(x)), (0, 1, 0, 1)), 3, 2)
        return self.head(torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1)).softmax(-1)  # type: ignore[no-any-return]


def test_every_value_of_the_graph_can_be_held_against_the_traces_own() -> None:
    torch.manual_seed(0)
    net, x = Many().eval(), example(3, 3, 16, 12)
    graph, traced, *_ = translate(net, {"x": x}, ("y",), batch=FREE, opset=20)
    values: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                values[n.name] = result.clone()  # what is written in place later on stays as it was here
            return result

    with torch.no_grad():
        Recorder(traced).run(x.clone())
    made = {output for node in graph.graph.node for output in node.output} - {"y"}
    taps = sorted(name for name in made if "/" not in name)
    assert set(taps) <= set(values)
    assert len(taps) > 20 and {"stem_2", "norm", "getitem", "group", "imul"} <= set(taps)
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in taps)
    for name, got in zip(["y", *taps], answers(graph, {"x": x.numpy()}), strict=True):
        right = values["softmax" if name == "y" else name].numpy()
        assert got.shape == right.shape and sqnr(right, got) > SAME_DB, name
