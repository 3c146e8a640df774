"""The last steps on a graph: paddings and transpositions merge where nothing changes, what nobody reads goes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engineworks.export.tidy import tidy


@dataclass
class Graph:
    nodes: list[NodeProto]
    weights: dict[str, TensorProto]


def graph(*nodes: NodeProto, **constants: Any) -> Graph:
    arrays = {name: np.array(value) for name, value in constants.items()}
    return Graph(list(nodes), {name: numpy_helper.from_array(array, name) for name, array in arrays.items()})


def pad(amounts: str = "p", value: str = "v", mode: str = "constant") -> NodeProto:
    return helper.make_node("Pad", ["x", amounts, value], ["padded"], mode=mode)


def conv() -> NodeProto:
    return helper.make_node("Conv", ["padded", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def pool(kernel: int = 3) -> NodeProto:
    return helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[kernel] * 2, pads=[0] * 4)


ASIDE, ZERO, LEAST = [0, 0, 0, 1, 0, 0, 2, 0], np.float32(0), np.float32(-np.inf)


def kinds(made: Graph) -> list[str]:
    return [node.op_type for node in made.nodes]


def pads(node: NodeProto) -> list[int]:
    return next(list(item.ints) for item in node.attribute if item.name == "pads")


def test_zeros_go_into_the_convolution() -> None:
    made = graph(pad(), conv(), p=ASIDE, v=ZERO, w=np.ones((1, 1, 3, 3), np.float32))
    tidy(made, ["y"])
    assert kinds(made) == ["Conv"] and list(made.nodes[0].input) == ["x", "w"]
    assert pads(made.nodes[0]) == [1, 2, 3, 1]
    assert list(made.weights) == ["w"]


def test_minus_infinity_goes_into_the_pool() -> None:
    made = graph(pad(), pool(), p=ASIDE, v=LEAST)
    tidy(made, ["y"])
    assert kinds(made) == ["MaxPool"] and pads(made.nodes[0]) == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("nodes", "outputs", "amounts", "value"),
    [
        ((pad(), conv()), ["y"], ASIDE, np.float32(1)),
        ((pad(), pool()), ["y"], ASIDE, ZERO),
        ((pad(), pool(2)), ["y"], ASIDE, LEAST),
        ((pad(mode="reflect"), conv()), ["y"], ASIDE, ZERO),
        ((pad(), conv()), ["y"], [0, 1, 0, 0, 0, 0, 0, 0], ZERO),
        ((pad(), conv()), ["y", "padded"], ASIDE, ZERO),
        ((pad(), conv(), helper.make_node("Relu", ["padded"], ["z"])), ["y", "z"], ASIDE, ZERO),
    ],
    ids=[
        "another number",
        "zeros before a pool",
        "beyond the window",
        "reflected",
        "channels",
        "output",
        "two readers",
    ],
)
def test_other_paddings_stay(nodes: Any, outputs: list[str], amounts: list[int], value: Any) -> None:
    fresh = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    made = graph(*fresh, p=amounts, v=value, w=np.ones((1, 1, 3, 3), np.float32))
    tidy(made, outputs)
    assert kinds(made) == [node.op_type for node in nodes]


def turn(source: str, target: str, *order: int) -> NodeProto:
    return helper.make_node("Transpose", [source], [target], perm=order)


def test_two_transpositions_are_one() -> None:
    made = graph(turn("x", "a", 0, 2, 3, 1), turn("a", "y", 0, 2, 1, 3))
    tidy(made, ["y"])
    assert [(list(n.input), list(n.attribute[0].ints)) for n in made.nodes] == [(["x"], [0, 3, 2, 1])]


def test_two_transpositions_that_cancel_out_are_none() -> None:
    nodes = (turn("x", "a", 0, 2, 3, 1), turn("a", "b", 0, 3, 1, 2), helper.make_node("Relu", ["b"], ["y"]))
    made = graph(*nodes)
    tidy(made, ["y"])
    assert kinds(made) == ["Relu"] and list(made.nodes[0].input) == ["x"]


def test_a_transposition_that_is_an_output_stays() -> None:
    made = graph(turn("x", "a", 0, 2, 1), turn("a", "y", 0, 2, 1))
    tidy(made, ["y"])
    assert [(list(n.input), list(n.output)) for n in made.nodes] == [(["x"], ["y"])]


def clipped(name: str, limit: str) -> NodeProto:
    return helper.make_node("Clip", ["x", limit], [name])


def test_what_is_computed_twice_is_computed_once() -> None:
    nodes = clipped("a", "p"), clipped("b", "q"), helper.make_node("Add", ["a", "b"], ["y"])
    made = graph(*nodes, p=np.float32(1), q=np.float32(1))
    tidy(made, ["y"])
    assert kinds(made) == ["Clip", "Add"] and list(made.nodes[1].input) == ["a", "a"]


@pytest.mark.parametrize(("limit", "outputs"), [(2, ["y"]), (1, ["y", "b"])], ids=["another number", "an output"])
def test_what_only_looks_alike_stays(limit: float, outputs: list[str]) -> None:
    nodes = clipped("a", "p"), clipped("b", "q"), helper.make_node("Add", ["a", "b"], ["y"])
    made = graph(*nodes, p=np.float32(1), q=np.float32(limit))
    tidy(made, outputs)
    assert kinds(made) == ["Clip", "Clip", "Add"]


def test_what_nobody_reads_goes() -> None:
    made = graph(helper.make_node("Mul", ["x", "w"], ["dead"]), helper.make_node("Relu", ["x"], ["y"]), w=np.float32(2))
    tidy(made, ["y"])
    assert kinds(made) == ["Relu"] and made.weights == {}
