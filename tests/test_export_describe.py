"""An export in words, and files whose bytes depend on their content alone."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from engineworks.export import describe
from engineworks.export.engine import Choice, Engine
from engineworks.export.ladder import Proven
from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Rung, Weights

ARRAYS: dict[str, Any] = {
    "input:image": np.arange(12, dtype=np.float32).reshape(3, 4),
    "output:scores": np.array([[1, np.nan]], np.float32),
    "turned": np.arange(6, dtype=np.int64).reshape(2, 3).T,
}


def test_an_npz_repeats_to_the_byte() -> None:
    assert describe.npz(ARRAYS) == describe.npz({name: array.copy() for name, array in ARRAYS.items()})


def test_an_npz_knows_no_clock() -> None:
    with zipfile.ZipFile(io.BytesIO(describe.npz(ARRAYS))) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_npz_is_read_by_numpy_without_pickle() -> None:
    with np.load(io.BytesIO(describe.npz(ARRAYS)), allow_pickle=False) as file:
        assert sorted(file.files) == sorted(ARRAYS)
        for name, array in ARRAYS.items():
            assert np.array_equal(file[name], array, equal_nan=array.dtype == np.float32)
            assert file[name].dtype == array.dtype


def test_an_npz_takes_no_objects() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        describe.npz({"bad": np.array([object()])})


def test_untrained_weights_are_called_that_first() -> None:
    line = describe.weights_line(Weights("seed", "seed 0", False, None, None))
    assert line.startswith("UNTRAINED (seed 0)")
    assert "--weights imagenet or --weights FILE" in line


def test_trained_weights_come_with_their_licence() -> None:
    line = describe.weights_line(Weights("published", "https://example.org/x.pth", True, "0" * 64, "CC0"))
    assert line == "published: https://example.org/x.pth (CC0)"


@pytest.mark.parametrize(("number", "words"), [(60_000, "60.0 k"), (6_624_904, "6.6 M"), (999_999, "1000.0 k")])
def test_parameters_are_counted_as_people_do(number: int, words: str) -> None:
    assert describe.count(number) == words


def graph(batch: str | int, side: str | int) -> Any:
    """One 1x1 convolution from 3 to 2 channels on 4 rows of pixels."""
    from onnx import TensorProto, helper, numpy_helper

    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, side])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2, 4, side])],
            [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")],
        )
    )


def proven(made: Any) -> Proven:
    return Proven(made, b"", None, (), (), "fx translation", "none")


@pytest.mark.parametrize("batch", ["batch", 1, 5])
def test_the_graphs_record_counts_the_multiply_adds_of_one_image(batch: str | int) -> None:
    assert describe._graph_record(proven(graph(batch, 5)))["multiply_adds"] == 2 * 3 * 4 * 5


def test_the_graphs_record_is_silent_where_a_size_is_free() -> None:
    assert "multiply_adds" not in describe._graph_record(proven(graph("batch", "side")))


def test_a_rung_says_what_was_found_and_what_was_needed() -> None:
    rung = Rung("onnx-fp16", "pytorch-fp32", "y", 8, 0.1, 0.1, 1, 69.25, 0.875, 1, 61.9, "why")
    assert describe.rung_line(rung) == ("onnx-fp16", "69.2 dB against PyTorch (needs 61.9), top-1 agrees on 88%")
    exact = Rung("onnx-fp16", "pytorch-fp32", "y", 8, 0.1, 0.1, 1, None, 1, 1, 61.9, "why")
    assert describe.rung_line(exact)[1].startswith("equal, bit for bit")


def test_no_engine_is_said_with_its_reasons() -> None:
    choice = Choice(None, ("tensorrt is not installed", "tensorrt_rtx is not installed"))
    line = describe.engine_line(None, choice, Recipe("net"))
    assert line == "none: tensorrt is not installed; tensorrt_rtx is not installed"


def test_the_date_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert describe._now() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("text", ["yesterday", "9" * 30, "1.5"])
def test_a_date_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(ExportError, match="SOURCE_DATE_EPOCH: expected seconds since 1970"):
        describe._now()


def test_what_the_compiler_left_out_or_warned_of_is_noted() -> None:
    engine = Engine(
        flavour="rtx", version="1.7.1", targets=("sm86",), left_out={"sm75": "FP32 GEMM is not supported"},
        batch=(1, 2, 4), plan=b"", layers=1, layer_types={}, tf32=True, warnings=("a layout was changed",), seconds=0.1,
    )  # fmt: skip
    notes = describe._notes(Recipe("net"), engine, Choice("rtx", ("tensorrt is not installed",)))
    assert notes[1:3] == ["passed over: tensorrt is not installed", "engine without sm75: FP32 GEMM is not supported"]
    assert notes[3] == "the compiler warns: a layout was changed"
    assert "TF32" in notes[4]
    assert len(describe._notes(Recipe("net", precision="fp16"), engine, Choice("rtx"))) == 3, "FP16 has no TF32"


# --- labels, and what is said of pictures


def answers(*shapes: list[int | str]) -> Any:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    return helper.make_model(helper.make_graph([], "g", [], values))


def labelled(count: int) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(labels=tuple(map(str, range(count))))


def test_labels_stay_where_the_network_has_as_many_classes() -> None:
    assert describe.fitting_labels(labelled(4), Recipe("net"), answers(["batch", 4])) == ("0", "1", "2", "3")


@pytest.mark.parametrize("shapes", [(["batch", 5],), (["batch", 4], ["batch", 4]), (["batch", 4, 1],), (["batch"],)])
def test_usual_labels_are_dropped_where_they_do_not_fit(shapes: Any) -> None:
    assert describe.fitting_labels(labelled(4), Recipe("net"), answers(*shapes)) == ()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((["batch", 5],), "got 4 names for 5 classes"),
        ((["batch", 4], ["batch", 4]), "got 4 names for what is no classes"),
        ((["batch", 4, 1],), "got 4 names for what is no classes"),
    ],
)
def test_the_users_own_labels_are_refused_where_they_do_not_fit(shapes: Any, message: str) -> None:
    with pytest.raises(ExportError, match=f"^--labels: {message}"):
        describe.fitting_labels(labelled(4), Recipe("net", labels="names.txt"), answers(*shapes))


def test_what_pictures_are_taken_to_be_is_said_or_that_none_are() -> None:
    assert "classifies no pictures" in describe.pictures_line(None)
    line = describe.pictures_line({"mean": [0.5], "std": [0.25]})
    assert line == "taken to be normalised to a mean of 0.5 and a standard deviation of 0.25"
