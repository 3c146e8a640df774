"""Remove average pools that do nothing: a 1×1 window with stride 1 and no padding.

Adaptive pooling to the size that is already there (AlexNet, VGG) is exported so, and no simplifier takes it out.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def remove_empty_pools(model: "ModelProto") -> int:
    """Take every no-op AveragePool out of ``model`` in place; return how many there were.

    A pool that produces a graph output stays, for outputs keep their names.
    """
    outputs = {value.name for value in model.graph.output}
    empty = [node for node in model.graph.node if _does_nothing(node) and node.output[0] not in outputs]
    source = {node.output[0]: node.input[0] for node in empty}
    for node in empty:
        model.graph.node.remove(node)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = _origin(name, source)
    infos = [value for value in model.graph.value_info if value.name not in source]
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(infos)
    return len(empty)


def _origin(name: str, source: dict[str, str]) -> str:
    while name in source:
        name = source[name]
    return name


def _does_nothing(node: "NodeProto") -> bool:
    from onnx import helper

    if node.op_type != "AveragePool" or node.domain:
        return False
    values: dict[str, Any] = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    kernel = values["kernel_shape"]
    ones = all(size == 1 for size in (*kernel, *values.get("strides", ()), *values.get("dilations", ())))
    return ones and not any(values.get("pads", ()))
