"""Batch profiles and layer counts, on plain stand-ins for the compiler's network."""

from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.export.trt_journal import Journal
from engineworks.export.trt_network import Batch, add_batch_profile, count_layer_types
from engineworks.runtime.errors import EngineError


def add(shapes: dict[str, tuple[int, ...]], batch: Batch, *, index: int = 0) -> list[tuple[Any, ...]]:
    """Add a profile for inputs of these shapes; gives the calls of set_shape."""
    calls: list[tuple[Any, ...]] = []
    tensors = [
        SimpleNamespace(name=name, shape=shape, get_dimension_name=lambda axis: "NCHW"[axis] if axis < 3 else "")
        for name, shape in shapes.items()
    ]
    network = SimpleNamespace(num_inputs=len(tensors), get_input=lambda index: tensors[index])
    profile = SimpleNamespace(set_shape=lambda *shape: calls.append(shape))
    builder = SimpleNamespace(create_optimization_profile=lambda: profile)
    config = SimpleNamespace(add_optimization_profile=lambda _: index)
    journal = Journal()
    journal.record("ERROR", "the profile is odd")
    add_batch_profile(builder, config, network, batch=batch, journal=journal)
    return calls


def layer(kind: str, dtype: str = "FLOAT", inputs: tuple[str | None, ...] = ("x",), output: str = "y") -> Any:
    operands = [None if name is None else SimpleNamespace(name=name) for name in inputs]
    made = SimpleNamespace(name=output, dtype=SimpleNamespace(name=dtype))
    return SimpleNamespace(
        type=SimpleNamespace(name=kind),
        num_inputs=len(operands),
        get_input=lambda index: operands[index],
        get_output=lambda _: made,
    )


def count(*layers: Any) -> dict[str, int]:
    return count_layer_types(SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index]))


def test_every_input_with_a_dynamic_batch_gets_the_three_sizes() -> None:
    calls = add({"a": (-1, 3, 8, 8), "fixed": (4,), "b": (-1, 2)}, (1, 8, 64))
    assert calls == [
        ("a", (1, 3, 8, 8), (8, 3, 8, 8), (64, 3, 8, 8)),
        ("b", (1, 2), (8, 2), (64, 2)),
    ]


def test_another_dynamic_dimension_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"input 'x': dimension 2 \(H\) is dynamic, in \(-1, 3, -1, 8\)"):
        add({"x": (-1, 3, -1, 8)}, (1, 1, 1))
    with pytest.raises(EngineError, match=r"dimension 3 \(unnamed\)"):
        add({"x": (2, 3, 8, -1)}, (2, 2, 2))


def test_a_fixed_batch_needs_no_profile_but_must_be_the_one_asked_for() -> None:
    assert add({"x": (2, 3, 8, 8), "scalar": ()}, (2, 2, 2)) == []
    with pytest.raises(EngineError, match=r"fixed at 2, expected it to take 1:2:4\. .* or ask for 2:2:2"):
        add({"x": (2, 3, 8, 8)}, (1, 2, 4))


def test_a_refused_profile_is_an_error_with_the_compilers_words() -> None:
    with pytest.raises(EngineError, match=r"batch 1:2:4 was refused: the profile is odd"):
        add({"x": (-1, 3)}, (1, 2, 4), index=-1)


def test_layers_are_counted_by_their_type() -> None:
    assert count(
        layer("CONVOLUTION", "HALF"),
        layer("CONVOLUTION", "HALF"),
        layer("CONVOLUTION", "BF16"),
        layer("ACTIVATION"),
        layer("MATRIX_MULTIPLY", "FLOAT", ("a", "b")),
        layer("DECONVOLUTION", "FP8"),
    ) == {
        "convolution bf16": 1,
        "convolution fp16": 2,
        "deconvolution fp8": 1,
        "matrix_multiply fp32": 1,
    }


def test_a_layer_is_int8_only_when_both_operands_are_dequantised() -> None:
    dequantised = (layer("DEQUANTIZE", output="qx"), layer("DEQUANTIZE", output="qw"))
    found = count(
        *dequantised,
        layer("CONVOLUTION", "HALF", ("qx", "qw")),
        layer("CONVOLUTION", "HALF", ("qx", "w")),
        layer("CONVOLUTION", "HALF", ("qx", None)),
        layer("CONVOLUTION", "HALF", ("qx",)),
    )
    assert found == {"convolution fp16": 3, "convolution int8": 1}
