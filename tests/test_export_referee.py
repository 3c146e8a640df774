"""Graphs run beside other work: in order, errors where they are asked for, and at once over when the work fails."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from engineworks.export.referee import Referee
from engineworks.runtime.errors import BackendError

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def graph(repeat: int = 1, size: Any = "n") -> bytes:
    """Take off what is below zero, ``repeat`` times over."""

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])

    names = ["x", *(f"v{index}" for index in range(repeat - 1)), "y"]
    nodes = [helper.make_node("Relu", [a], [b], name=b) for a, b in itertools.pairwise(names)]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [info("x")], [info("y")]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return bytes(made.SerializeToString())


def slow() -> bytes:
    """A graph of many steps, each of which takes a while on a thousand wide rows."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["v0"])]
    nodes += [helper.make_node("MatMul", [f"v{index}", "x"], [f"v{index + 1}"]) for index in range(400)]
    nodes += [helper.make_node("Identity", ["v400"], ["y"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1000]) for name in ("x", "y")]
    made = helper.make_model(
        helper.make_graph(nodes, "g", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    return bytes(made.SerializeToString())


def test_every_size_is_answered_with_the_samples_repeated_or_cut() -> None:
    with Referee({"x": X}) as referee:
        answers = referee.answers(graph(), ["y"], [1, 4, 6])
        for size, future in answers.by_batch.items():
            assert np.array_equal(future.result()[0], np.maximum(X[np.arange(size) % 4], 0))


def test_ranges_and_graphs_may_be_asked_for_one_after_the_other_and_are_run_in_that_order() -> None:
    with Referee({"x": X}) as referee:
        ranges = referee.ranges(graph(2), {}, 4, 1)
        first, second = (referee.answers(graph(repeat), ["y"], [2]) for repeat in (1, 3))
        assert ranges.result() == {"v0": X.max(), "y": X.max()}
        assert np.array_equal(first.by_batch[2].result()[0], second.by_batch[2].result()[0])


def test_what_goes_wrong_is_raised_where_the_answer_is_asked_for() -> None:
    with Referee({"x": X}) as referee:
        broken = referee.answers(b"no graph", ["y"], [1, 2])
        narrow = referee.answers(graph(size=3), ["y"], [1])
        right = referee.answers(graph(), ["y"], [1])
        for size in (1, 2):
            with pytest.raises(BackendError, match="refuses the graph"):
                broken.by_batch[size].result()
        with pytest.raises(BackendError, match="invalid dimensions"):
            narrow.by_batch[1].result()
        assert len(right.by_batch[1].result()[0]) == 1


def leave(error: type[BaseException], began: Callable[[], object]) -> BaseException | None:
    """Leave a referee by an error while a run that takes long is under way; return how that run ended."""
    wide = np.eye(1000, dtype=np.float32)
    runs: list[Any] = []

    def work() -> None:
        with Referee({"x": wide}) as referee:
            answers = referee.answers(slow(), ["y"], [1000])
            runs.append(answers.by_batch[1000])
            while not runs[0].running():
                time.sleep(0.01)
            began()
            raise error

    with pytest.raises(error):
        work()
    ended: BaseException | None = runs[0].exception()
    return ended


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_ends_the_run_under_way_and_leaves_no_thread(error: type[BaseException]) -> None:
    before = threading.active_count()
    ended = leave(error, lambda: time.sleep(0.1))
    assert isinstance(ended, BackendError), "400 products of 1000 by 1000 were computed to their end"
    assert threading.active_count() == before


def test_a_referee_works_in_any_thread() -> None:
    found: list[Any] = []

    def work() -> None:
        with Referee({"x": X}) as referee:
            found.extend(referee.answers(graph(), ["y"], [4]).by_batch[4].result())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert np.array_equal(found[0], np.maximum(X, 0))
