"""What leaves with a graph: no paths and no traces, and each node's module."""

from typing import Any

from onnx import TensorProto, helper

from engineworks.export.clean import MODULE_KEY, clean, modules


def noisy() -> Any:
    """A graph of two nodes as the converter leaves it, with a graph inside the second."""

    def mark(proto: Any) -> None:
        proto.doc_string = "/home/someone/secret.py"
        proto.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/someone/secret.py", line 3')

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

    inner = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "inner", [], [info("b")])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="r"),
        helper.make_node("If", ["c"], ["y"], name="i", then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], value_info=[info("a"), info("w")])
    graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    model = helper.make_model(graph)
    branches = [item.g for item in model.graph.node[1].attribute]
    for proto in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        mark(proto)
    for branch in branches:
        mark(branch.node[0])
    scopes = "['', 'net', 'net.layer1.0.conv1', 'relu_1']"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    return model


def test_nothing_of_this_machine_is_left_anywhere() -> None:
    model = noisy()
    clean(model, "net")
    assert b"/home" not in model.SerializeToString()
    assert b"File" not in model.SerializeToString()
    assert model.graph.name == "net"


def test_each_node_keeps_its_innermost_module() -> None:
    model = noisy()
    clean(model, "net")
    assert modules(model) == {"a": "net.layer1.0.conv1"}
    assert [prop.key for prop in model.graph.node[0].metadata_props] == [MODULE_KEY]


def test_cleaning_twice_changes_nothing() -> None:
    model = noisy()
    clean(model, "net")
    before = model.SerializeToString(deterministic=True)
    clean(model, "net")
    assert model.SerializeToString(deterministic=True) == before


def test_a_node_that_lost_its_module_gets_it_back_by_its_value() -> None:
    model = noisy()
    for node in model.graph.node:
        node.ClearField("metadata_props")
    clean(model, "net", known={"a": "stem.0", "y": "head"})
    assert modules(model) == {"a": "stem.0", "y": "head"}


def test_initializers_are_not_described_twice() -> None:
    model = noisy()
    clean(model, "net")
    assert [value.name for value in model.graph.value_info] == ["a"]
