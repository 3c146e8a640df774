"""Rungs: what passes, what is refused, and what is written down of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper

from engineworks.export import parity
from engineworks.export.parity import MARGIN_DB, Yardstick, batches, check_alive
from engineworks.export.referee import Referee
from engineworks.export.samples import rows
from engineworks.runtime.errors import BackendError, ParityError
from engineworks.runtime.manifest import Batch, Rung

Floats = npt.NDArray[np.float32]
X = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def graph(operator: str = "Tanh", batch: Any = "batch") -> bytes:
    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4])

    nodes = [helper.make_node(operator, ["x"], ["y"], name="n")]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [info("x")], [info("y")]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return bytes(made.SerializeToString())


def yardstick(reference: Floats, sizes: Sequence[int] = (1, 4, 12), scores: Any = "logits") -> Yardstick:
    return Yardstick({"x": X}, [reference], {size: [rows(reference, size)] for size in sizes}, scores)


def climb(
    content: bytes, name: str, outputs: Sequence[str], stick: Yardstick, floors: Sequence[tuple[float, str]]
) -> tuple[Rung, ...]:
    with Referee(stick.inputs) as referee:
        return parity.climb(
            referee.answers(content, outputs, list(stick.answers)),
            name,
            outputs,
            stick,
            dict.fromkeys(stick.answers, floors),
        )


def test_equal_bits_are_said_so() -> None:
    rungs = climb(graph("Relu"), "onnx", ["y"], yardstick(np.maximum(X, 0)), [(70.0, "why")])
    assert [rung.batch for rung in rungs] == [1, 4, 12]
    assert all(rung.sqnr_db is None and rung.max_abs == 0 and rung.top1 == 1 for rung in rungs)
    assert rungs[0].required_db == pytest.approx(70 - MARGIN_DB, abs=0.05)
    assert rungs[0].floor == "why"


def test_a_floor_that_is_met_passes_and_one_that_is_not_does_not() -> None:
    noisy = (np.tanh(X) * np.float32(1 + 2**-10)).astype(np.float32)  # 60.2 dB
    rungs = climb(graph(), "onnx", ["y"], yardstick(noisy), [(66.0, "why")])
    assert all(rung.sqnr_db == pytest.approx(60.2, abs=0.1) for rung in rungs)
    with pytest.raises(ParityError, match=r"onnx, batch 1, output y: 60\.\d dB against PyTorch, needs 61\.0 \(why\)"):
        climb(graph(), "onnx", ["y"], yardstick(noisy), [(67.0, "why")])


def test_an_exact_floor_asks_for_equal_bits_or_nearly() -> None:
    with pytest.raises(ParityError, match=r"needs 294\.0"):
        climb(graph(), "onnx", ["y"], yardstick(np.tanh(X) + np.float32(1e-7)), [(np.inf, "exact")])


def test_a_floor_that_is_no_number_passes_nothing() -> None:
    with pytest.raises(ParityError):
        climb(graph(), "onnx", ["y"], yardstick(np.tanh(X) + np.float32(1e-7)), [(np.nan, "broken")])


def test_an_answer_that_is_not_finite_never_passes() -> None:
    with pytest.raises(ParityError, match=r"-inf dB against PyTorch.*largest difference inf"):
        climb(graph("Log"), "onnx", ["y"], yardstick(np.abs(X)), [(-300.0, "lax")])


def test_only_one_batch_wrong_is_enough() -> None:
    stick = yardstick(np.maximum(X, 0))
    stick.answers[12][0][11] += 1
    with pytest.raises(ParityError, match="batch 12"):
        climb(graph("Relu"), "onnx", ["y"], stick, [(60.0, "why")])


def test_a_graph_with_a_baked_in_batch_does_not_run() -> None:
    with pytest.raises(BackendError, match="Got invalid dimensions"):
        climb(graph("Relu", batch=4), "onnx", ["y"], yardstick(np.maximum(X, 0)), [(60.0, "why")])


def test_distances_rank_from_the_lowest() -> None:
    close = np.maximum(X, 0)
    (rung,) = climb(graph("Relu"), "onnx", ["y"], yardstick(close, (8,), "distances"), [(60.0, "why")])
    assert rung.top1 == 1


def test_the_batches_are_the_smallest_the_usual_and_the_largest() -> None:
    assert batches(Batch(1, 8, 32)) == [1, 8, 32]
    assert batches(Batch(2, 2, 5)) == [2, 5]
    assert batches(Batch(3, 3, 3)) == [3]


def test_a_dead_network_is_refused() -> None:
    with pytest.raises(ParityError, match="answers every input alike"):
        check_alive([np.ones((8, 10), np.float32)])
    with pytest.raises(ParityError, match="answers every input alike"):
        check_alive([X, np.zeros((8, 10), np.float32)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_original_that_is_not_finite_is_refused(value: float) -> None:
    broken = X.copy()
    broken[3, 2] = value
    with pytest.raises(ParityError, match="NaN or infinity; its weights are broken"):
        check_alive([broken])


def test_a_living_network_passes() -> None:
    check_alive([X])
    check_alive([X[:1]])
