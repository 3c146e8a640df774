"""The index over a graph: who computes, who reads, what is constant."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engineworks.calibration.graph import MODULE_KEY, Graph, attribute, module_of, standard


def model() -> Any:
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Add", ["a", "w"], ["b"], name="same"),
        helper.make_node("Add", ["a", "b"], ["y"], name="same"),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(np.ones(2, np.float32), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_every_node_gets_a_name_of_its_own_and_the_model_given_keeps_its() -> None:
    made = model()
    assert list(Graph(made).by_name) == ["two", "a", "b", "y"]
    assert made.graph.node[2].name == "same"


def test_producers_readers_inputs_and_outputs_are_found() -> None:
    graph = Graph(model())
    assert graph.producer["b"].input[1] == "w"
    assert [(node.name, position) for node, position in graph.readers["a"]] == [("b", 0), ("y", 0)]
    assert (graph.inputs, graph.outputs, graph.opset) == (("x",), ("y",), 20)


def test_constants_come_from_initializers_and_constant_nodes() -> None:
    graph = Graph(model())
    found = graph.constant("w")
    assert found is not None and list(found) == [1, 1]
    assert graph.constant("two") == np.float32(2)
    assert graph.constant("a") is None
    assert [graph.is_constant(name) for name in ("w", "two", "a", "x")] == [True, True, False, False]


def test_constants_of_every_spelling_are_read() -> None:
    for value in (
        {"value_floats": [1.0, 2.0]},
        {"value_int": 3},
        {"value_ints": [3, 4]},
        {"value": numpy_helper.from_array(np.ones(1))},
    ):
        made = model()
        made.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["two"], **value))
        assert Graph(made).constant("two") is not None


def test_a_sole_reader_is_one_node_and_no_output() -> None:
    graph = Graph(model())
    assert [graph.sole_reader(name) for name in ("x", "a", "b", "y")] == [True, False, True, False]


def test_fresh_names_are_free_and_taken_once() -> None:
    graph = Graph(model())
    assert [graph.fresh("w"), graph.fresh("w"), graph.fresh("new")] == ["w_2", "w_3", "new"]


def test_ancestors_are_counted_by_the_shortest_way() -> None:
    assert Graph(model()).ancestors("y") == {"y": 0, "a": 1, "b": 1, "x": 2, "two": 2, "w": 2}


def test_attributes_modules_and_domains_are_read() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4)
    assert (attribute(node, "group"), attribute(node, "pads", [0])) == (4, [0])
    assert (module_of(None), module_of(node), standard(node)) == ("", "", True)
    node.metadata_props.add(key=MODULE_KEY, value="net.1")
    node.domain = "com.microsoft"
    assert (module_of(node), standard(node)) == ("net.1", False)
