"""The samples of every comparison: real, all different, the same every time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.export.inputs import InputSpec, parse_shape
from engineworks.export.samples import SAMPLES, rows, sample_inputs, samples_for
from engineworks.models import NETWORKS
from engineworks.runtime.errors import ExportError
from engineworks.runtime.preprocessing import Preprocessing


@pytest.mark.parametrize("name", ["lenet5", "googlenet"])
def test_samples_are_different_rows_and_the_same_every_time(name: str) -> None:
    network = NETWORKS[name]
    recipe = Preprocessing.from_json(network.preprocessing)
    first, second = sample_inputs(recipe), sample_inputs(recipe)
    assert first.shape == (SAMPLES, *network.input_shape)
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert not [(i, j) for i in range(SAMPLES) for j in range(i) if np.array_equal(first[i], first[j])]


def test_rows_are_cut_or_repeated_in_order() -> None:
    three = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert rows(three, 2).tolist() == three[:2].tolist()
    assert rows(three, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    taken = rows(three, 3)
    taken += 1
    assert three[0, 0] == 0, "a copy: what is done to it does not reach the samples"


# --- for any inputs


def spec(text: str) -> InputSpec:
    return parse_shape(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x:3x8x9", "pictures of about mean 0 and spread 1"),
        ("x:1x8x9", "pictures of about mean 0 and spread 1"),
        ("x:4x8x9", "random numbers of mean 0 and spread 1"),
        ("x:16", "random numbers of mean 0 and spread 1"),
        ("x:8x9x3:uint8", "random bytes"),
        ("x:12:int64", "random zeros and ones"),
        ("x:12:int8", "random zeros and ones"),
        ("x:N:bool", "random zeros and ones"),
    ],
)
def test_every_input_gets_different_rows_of_its_shape_and_dtype(text: str, words: str) -> None:
    made, said = samples_for([spec(text)], None, None)
    again, _ = samples_for([spec(text)], None, None)
    assert made["x"].shape == (SAMPLES, *spec(text).shape)
    assert made["x"].dtype == spec(text).dtype
    assert np.array_equal(made["x"], again["x"])
    assert said == f"{words} (--samples FILE.npz gives your own)"
    assert len(np.unique(made["x"].reshape(SAMPLES, -1), axis=0)) > 1


def test_two_inputs_of_one_shape_do_not_get_the_same_numbers() -> None:
    made, said = samples_for([spec("a:16"), spec("b:16"), spec("ids:3:int32")], None, None)
    assert not np.array_equal(made["a"], made["b"])
    assert list(made) == ["a", "b", "ids"]
    assert said.startswith("random numbers of mean 0 and spread 1, random zeros and ones (")


def test_indices_are_those_that_every_table_has() -> None:
    made, _ = samples_for([spec("ids:100:int64")], None, None)
    assert set(np.unique(made["ids"])) == {0, 1}


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "real.npz", **arrays)
    return str(folder / "real.npz")


def test_a_file_gives_its_rows_by_name_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    left, right = np.ones((3, 2), np.float32), np.arange(3, dtype=np.int64)
    made, said = samples_for([spec("l:2"), spec("r:N:int64")], None, npz(tmp_path, r=right, l=left[::-1]))
    assert list(made) == ["l", "r"]
    assert np.array_equal(made["r"], right)
    assert said == "rows of real.npz"


def test_a_file_goes_before_pictures_of_our_own(tmp_path: Path) -> None:
    network = NETWORKS["lenet5"]
    rows_given = np.zeros((2, 1, 32, 32), np.float32)
    made, _ = samples_for([spec("input:1x32x32")], network.preprocessing, npz(tmp_path, input=rows_given))
    assert np.array_equal(made["input"], rows_given)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected arrays x; got ."),
        ({"y": np.zeros((2, 4), np.float32)}, "expected arrays x; got y."),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(2)}, "expected arrays x; got x, y."),
        ({"x": np.zeros((2, 4))}, "expected x float32 (N, 4) with N of 2 or more for all; got float64 (2, 4)."),
        ({"x": np.zeros((2, 5), np.float32)}, "got float32 (2, 5)"),
        ({"x": np.zeros((1, 4), np.float32)}, "got float32 (1, 4)"),
        ({"x": np.zeros((0, 4), np.float32)}, "got float32 (0, 4)"),
        ({"x": np.float32(1)}, "got float32 ()"),
        ({"x": np.zeros((4,), np.float32)}, "got float32 (4,)"),
        ({"x": np.zeros((2, 4), ">f4")}, "got >f4 (2, 4)"),
    ],
)
def test_a_file_that_does_not_fit_says_what_would(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as caught:
        samples_for([spec("x:4")], None, npz(tmp_path, **arrays))
    assert str(caught.value).startswith("--samples real.npz: ")
    assert message in str(caught.value)


def test_inputs_of_different_numbers_of_rows_are_refused(tmp_path: Path) -> None:
    file = npz(tmp_path, a=np.zeros((2, 4), np.float32), b=np.zeros((3, 4), np.float32))
    with pytest.raises(ExportError, match="with N of 2 or more for all"):
        samples_for([spec("a:4"), spec("b:4")], None, file)


def test_what_is_no_npz_is_refused_and_no_pickle_is_opened(tmp_path: Path) -> None:
    class Innocent:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "fooled").mkdir, ()

    np.save(tmp_path / "plain.npy", np.zeros((2, 4), np.float32))
    np.savez(tmp_path / "objects.npz", x=np.array([Innocent()], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(Path(npz(tmp_path, x=np.zeros((2, 4), np.float32))).read_bytes()[:100])
    for name in ("plain.npy", "objects.npz", "text.npz", "empty.npz", "cut.npz"):
        with pytest.raises(ExportError, match=f"^--samples {name}: expected a .npz of arrays"):
            samples_for([spec("x:4")], None, str(tmp_path / name))
    assert not (tmp_path / "fooled").exists()
