"""Simplifiers are believed only where the answers stay, bit for bit."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.export.simplify import simplify
from engineworks.runtime.backend import open_session
from engineworks.runtime.errors import ExportError

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
BOTH = pytest.mark.parametrize("how", ["onnxsim", "onnxslim"])


def model() -> Any:
    """y = relu(x·(w+w)), the sum of constants left for a simplifier."""

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])

    nodes = [
        helper.make_node("Add", ["w", "w"], ["twice"], name="add"),
        helper.make_node("MatMul", ["x", "twice"], ["a"], name="mul"),
        helper.make_node("Identity", ["a"], ["b"], name="same"),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]
    weight = numpy_helper.from_array(np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32), "w")
    made = helper.make_graph(nodes, "g", [info("x")], [info("y")], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(made: Any) -> Any:
    return open_session(made.SerializeToString(), "cpu").run({"x": X}, ["y"])[0]


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@BOTH
def test_a_real_simplifier_makes_it_smaller_and_keeps_every_bit(how: Any) -> None:
    made = model()
    before = made.SerializeToString(deterministic=True)
    simpler = simplify(made, how, {"x": X})
    onnx.checker.check_model(simpler, full_check=True)
    assert len(simpler.graph.node) < 4
    assert np.array_equal(answer(simpler), answer(made))
    assert made.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("how", ["auto", "none"])
def test_none_is_run_where_none_was_asked_for(how: Any) -> None:
    made = model()
    assert simplify(made, how, {"x": X}) is made


def changed(made: Any) -> Any:
    """The same graph with the last bits of its weights off."""
    copy = type(made).FromString(made.SerializeToString())
    values = numpy_helper.to_array(copy.graph.initializer[0]) * np.float32(1 + 2**-21)
    copy.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    return copy


def renamed(made: Any) -> Any:
    copy = type(made).FromString(made.SerializeToString())
    copy.graph.node[-1].output[0] = copy.graph.output[0].name = "z"
    return copy


def broken(made: Any) -> Any:
    raise ValueError("cannot broadcast\nsecond line")


def fake(monkeypatch: pytest.MonkeyPatch, how: str, work: Any) -> None:
    library = (
        SimpleNamespace(simplify=lambda made: (work(made), True)) if how == "onnxsim" else SimpleNamespace(slim=work)
    )
    monkeypatch.setitem(sys.modules, how, library)


@BOTH
def test_the_last_bits_of_the_weights_are_too_much(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    fake(monkeypatch, how, changed)
    with pytest.raises(ExportError, match=f"--simplify {how} changed the network's answers. Use --simplify none"):
        simplify(model(), how, {"x": X})


@BOTH
def test_outputs_must_keep_their_names(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    fake(monkeypatch, how, renamed)
    with pytest.raises(ExportError, match=f"--simplify {how} renamed the outputs"):
        simplify(model(), how, {"x": X})


@BOTH
def test_a_library_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    fake(monkeypatch, how, broken)
    with pytest.raises(ExportError, match=rf"^--simplify {how} failed: cannot broadcast\. Use --simplify none\.$"):
        simplify(model(), how, {"x": X})


@BOTH
def test_an_absent_library_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    monkeypatch.setitem(sys.modules, how, None)
    with pytest.raises(
        ExportError, match=rf'--simplify {how}: it is not installed\. pip install "engineworks\[export\]"'
    ):
        simplify(model(), how, {"x": X})


def test_onnxsims_own_doubt_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", SimpleNamespace(simplify=lambda made: (made, False)))
    with pytest.raises(ExportError, match="its own check found other answers"):
        simplify(model(), "onnxsim", {"x": X})
