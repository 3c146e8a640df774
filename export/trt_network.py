"""From an ONNX graph to TensorRT's network, and what is known of it before anything is compiled.

The network is strongly typed: a tensor's type in it is its type in the engine. So the counts taken here are those of
the precision the engine was asked for, readable without a GPU.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from engineworks.export.trt_journal import Journal
from engineworks.runtime.errors import EngineError

Batch = tuple[int, int, int]
"""Smallest, most usual and largest batch."""

_COUNTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_TYPE_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_SHOWN_ERRORS = 3


def create_network(trt: Any, builder: Any) -> Any:
    """Make an empty strongly typed network; versions 10 and 11 both take the flag."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def parse_model(trt: Any, network: Any, logger: Any, *, model: bytes | Path, journal: Journal) -> Any:
    """Fill the network from ONNX and return the parser, which owns its weights: keep it until the engine is built.

    A path lets weights in files beside the graph be found; bytes must hold everything.

    Raises:
        EngineError: the parser refused; the message names the nodes.
    """
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))
    if not parsed:
        raise EngineError(f"cannot read the ONNX graph: {_parser_errors(parser) or journal.cause()}")
    return parser


def add_batch_profile(builder: Any, config: Any, network: Any, *, batch: Batch, journal: Journal) -> None:
    """Allow each input with a dynamic batch the sizes of ``batch``; a graph of fixed shape needs no profile.

    Raises:
        EngineError: another dimension is dynamic, the fixed batch is not the one asked for, or the compiler refused.
    """
    shapes = {tensor.name: _input_shape(tensor) for tensor in map(network.get_input, range(network.num_inputs))}
    dynamic = {name: shape for name, shape in shapes.items() if shape and shape[0] < 0}
    if not dynamic:
        _require_fixed_batch(shapes, batch)
        return
    profile = builder.create_optimization_profile()
    for name, shape in dynamic.items():
        profile.set_shape(name, *((size, *shape[1:]) for size in batch))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"batch {_colons(batch)} was refused: {journal.cause()}")


def build_throwaway(trt: Any, builder: Any) -> None:
    """Compile one identity, and throw it away: what TensorRT-RTX needs after it refused a graph.

    Seen in the plans of 1.7.1.116: once it has refused a float32 graph because of sm75, the next build of the process
    follows sm75's rules whatever its targets (no fused matrix product, inputs padded to four channels), and the one
    after is right again. A refused or absent plan is nothing to us here.
    """
    config = builder.create_builder_config()
    if not hasattr(config, "set_compute_capability"):
        return  # TensorRT itself, which tries no targets
    network = create_network(trt, builder)
    layer = network.add_identity(network.add_input("x", trt.DataType.FLOAT, (1,)))
    network.mark_output(layer.get_output(0))
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    builder.build_serialized_network(network, config)


def count_layer_types(network: Any) -> dict[str, int]:
    """Count convolutions and matrix multiplications by the type they compute in, such as ``{"convolution fp16": 5}``.

    A layer both of whose operands come straight from a DequantizeLinear counts as int8, whatever its output type.
    """
    counts: Counter[str] = Counter()
    dequantised: set[str] = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        if kind == "DEQUANTIZE":
            tensor = layer.get_output(0)
            dequantised.add(tensor.name)
        elif kind in _COUNTED:
            counts[f"{kind.lower()} {_computes_in(layer, dequantised)}"] += 1
    return dict(sorted(counts.items()))


def _computes_in(layer: Any, dequantised: set[str]) -> str:
    operands = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
    if len(operands) == 2 and all(tensor is not None and tensor.name in dequantised for tensor in operands):
        return "int8"
    tensor = layer.get_output(0)
    name: str = tensor.dtype.name
    return _TYPE_NAMES.get(name, name.lower())


def _input_shape(tensor: Any) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    for axis, size in enumerate(shape):
        if axis > 0 and size < 0:
            name = tensor.get_dimension_name(axis)
            raise EngineError(
                f"input {tensor.name!r}: dimension {axis} ({name or 'unnamed'}) is dynamic, in {shape}; "
                "only the batch, dimension 0, may be. Export the model with a fixed size there"
            )
    return shape


def _require_fixed_batch(shapes: dict[str, tuple[int, ...]], batch: Batch) -> None:
    for name, shape in shapes.items():
        if shape and set(batch) != {shape[0]}:
            raise EngineError(
                f"input {name!r}: the graph's batch is fixed at {shape[0]}, expected it to take {_colons(batch)}. "
                f"Export with a dynamic batch, or ask for {_colons((shape[0],) * 3)}"
            )


def _parser_errors(parser: Any) -> str:
    count = parser.num_errors
    told = [_describe(parser.get_error(index)) for index in range(min(count, _SHOWN_ERRORS))]
    return "; ".join(told) + (f"; and {count - _SHOWN_ERRORS} more" if count > _SHOWN_ERRORS else "")


def _describe(error: Any) -> str:
    where = f"node {error.node_name()!r} ({error.node_operator()}), " if error.node() >= 0 else ""
    return f"{where}{error.code().name}: {' '.join(error.desc().split())}"


def _colons(batch: tuple[int, ...]) -> str:
    return ":".join(map(str, batch))
