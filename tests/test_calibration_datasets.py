"""Data sets of any library are known by what their samples look like; made-up images say what they are."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engineworks.calibration.images import open_images
from engineworks.calibration.source import Images
from engineworks.runtime import InputError, Preprocessing, Tensor, preprocess

INPUTS = (Tensor("x", "float32", ("batch", 3, 8, 8)),)
RECIPE = Preprocessing("RGB", 8, "bilinear", (8, 8), 0, (0.5,) * 3, (0.25,) * 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 12, 10, 3), np.uint8)
READY = np.random.default_rng(1).standard_normal((20, 3, 8, 8)).astype(np.float32)
PREPARED = preprocess(list(PIXELS), RECIPE)


class FakeTensor:
    """What a tensor of another library looks like from outside."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def detach(self) -> "FakeTensor":
        return self

    def cpu(self) -> "FakeTensor":
        return self

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.values


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """A file with a factory that returns what the test puts into a module that both can import."""
    file = tmp_path / "my_data.py"
    file.write_text("import calibration_test_shelf\n\ndef images():\n    return calibration_test_shelf.make()\n")
    return f"{file}:images"


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``make`` of an importable module returns is put here by the test."""
    module = types.ModuleType("calibration_test_shelf")
    held: dict[str, Any] = {}
    module.__dict__["make"] = lambda: held["make"]()  # noqa: PLW0108 (what is held changes)
    monkeypatch.setitem(sys.modules, "calibration_test_shelf", module)
    return held


def opened(factory: str, recipe: Preprocessing | None = RECIPE, **options: Any) -> Images:
    return open_images(factory, INPUTS, recipe, **options)


def rows(images: Images) -> np.ndarray[Any, Any]:
    return np.concatenate([row["x"] for row in images])


SAMPLES: dict[str, Any] = {
    "hugging face": [{"image": Image.fromarray(one), "label": n} for n, one in enumerate(PIXELS)],
    "img key": [{"img": Image.fromarray(one), "labels": n} for n, one in enumerate(PIXELS)],
    "torchvision": [(Image.fromarray(one), n) for n, one in enumerate(PIXELS)],
    "pixels": [(one, np.int64(n)) for n, one in enumerate(PIXELS)],
    "tensor pixels": [(FakeTensor(one.transpose(2, 0, 1)), FakeTensor(np.array(n))) for n, one in enumerate(PIXELS)],
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_pictures_are_prepared_and_keep_their_labels(kind: str, factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: SAMPLES[kind]
    images = opened(factory)
    assert np.array_equal(rows(images), PREPARED)
    assert [label for _, label in images.labelled()] == list(range(20))
    assert images.description == "20 of 20 of my_data.py:images"


@pytest.mark.parametrize(
    "samples",
    [
        [{"pixel_values": FakeTensor(one)} for one in READY],
        [{"pixel_values": one[None]} for one in READY],
        [{"x": one} for one in READY],
        list(READY),
        [FakeTensor(one) for one in READY],
    ],
    ids=["pixel_values", "with a batch axis", "by the input's name", "arrays", "tensors"],
)
def test_arrays_of_the_inputs_shape_are_taken_as_they_are(samples: Any, factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: samples
    assert np.array_equal(rows(opened(factory, None)), READY)


def test_a_loader_of_batches_is_taken_apart(factory: str, shelf: dict[str, Any]) -> None:
    class Loader:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            for start in range(0, 20, 6):
                numbers = np.arange(start, min(start + 6, 20))
                yield FakeTensor(READY[numbers]), FakeTensor(numbers)

    shelf["make"] = Loader
    images = opened(factory, count=13)
    assert (len(images), images.description) == (13, "the first 13 of my_data.py:images")
    assert np.array_equal(rows(images), READY[:13]) and np.array_equal(rows(images), READY[:13])
    assert [label for _, label in images.labelled()] == list(range(13))


def test_what_can_be_read_only_once_is_made_anew(factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: ((Image.fromarray(one), 5) for one in PIXELS)
    images = opened(factory, count=9)
    assert np.array_equal(rows(images), PREPARED[:9]) and np.array_equal(rows(images), PREPARED[:9])
    assert images.sha256 == opened(factory, count=9).sha256


def test_a_part_is_chosen_by_index_in_order(factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: SAMPLES["torchvision"]
    labels = [label for _, label in opened(factory, count=8).labelled() if label is not None]
    assert labels == sorted(labels) and len(set(labels)) == 8 and labels != list(range(8))


def test_several_inputs_come_by_name(factory: str, shelf: dict[str, Any]) -> None:
    inputs = (*INPUTS, Tensor("y", "int64", ("batch", 2)))
    shelf["make"] = lambda: [{"x": one, "y": FakeTensor(np.array([n, n]))} for n, one in enumerate(READY)]
    found = list(open_images(factory, inputs, None))
    assert np.array_equal(np.concatenate([row["x"] for row in found]), READY)
    assert [row["y"].tolist() for row in found] == [[[n, n]] for n in range(20)]


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_hash_changes_with_one_pixel(kind: str, factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: SAMPLES[kind]
    before = opened(factory).sha256
    assert opened(factory).sha256 == before
    shelf["make"] = lambda: [*SAMPLES[kind][:-1], SAMPLES[kind][0]]
    assert opened(factory).sha256 != before


def test_a_module_is_imported_by_name(shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: list(READY)
    assert np.array_equal(rows(opened("calibration_test_shelf:make")), READY)


# --- refused, or left out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_here:make", "ModuleNotFoundError"),
        ("calibration_test_shelf:absent", "AttributeError"),
        ("absent.py:make", "FileNotFoundError"),
    ],
)
def test_a_factory_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(
        InputError, match=rf"^--calib-data {name}: expected module:factory or file\.py:factory.*{words}"
    ):
        opened(name)


def test_a_factory_that_fails_is_told_with_its_error(factory: str, shelf: dict[str, Any]) -> None:
    def fails() -> None:
        raise RuntimeError("no licence")

    shelf["make"] = fails
    with pytest.raises(InputError, match=r"the factory raised RuntimeError: no licence"):
        opened(factory)


def test_a_factory_that_returns_no_data_set_is_refused(factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: 5
    with pytest.raises(InputError, match=r"expected a data set or an iterable, got int"):
        opened(factory)


def test_a_sample_that_cannot_be_read_is_named_and_left_out(factory: str, shelf: dict[str, Any]) -> None:
    class Broken(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 7:
                raise OSError("bad sector")
            return READY[index]

    skipped: list[tuple[str, str]] = []
    shelf["make"] = lambda: Broken(range(20))
    images = opened(factory, on_skip=lambda *told: skipped.append(told))
    assert len(list(images)) == 19
    assert skipped == [("my_data.py:images[7]", "OSError: bad sector")]


def test_an_iteration_that_fails_is_told_with_its_error(factory: str, shelf: dict[str, Any]) -> None:
    def broken() -> Iterator[Any]:
        yield READY[0]
        raise OSError("bad sector")

    shelf["make"] = broken
    with pytest.raises(InputError, match=r"the data set raised OSError: bad sector"):
        opened(factory)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"text": "words"}, r"expected a sample with image, img, pixel_values or all inputs, got the keys text"),
        (READY[0].astype(np.float64), r"expected float32 \(3, 8, 8\), got float64 \(3, 8, 8\)"),
        (READY[0][:2], r"expected float32 \(3, 8, 8\), got float32 \(2, 8, 8\)"),
        (object(), r"expected a picture or several, got object"),
    ],
    ids=["no image", "float64", "shape", "object"],
)
def test_a_sample_of_another_kind_is_told(sample: Any, words: str, factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: [sample] * 9
    with pytest.raises(InputError, match=words):
        list(opened(factory))


def test_pictures_without_a_recipe_are_refused(factory: str, shelf: dict[str, Any]) -> None:
    shelf["make"] = lambda: SAMPLES["torchvision"]
    with pytest.raises(InputError, match=r"expected arrays, for the network has no preprocessing; got Image"):
        list(opened(factory, None, on_skip=lambda *_: None))


# --- made up


def test_synthetic_images_are_the_same_every_time_and_say_so() -> None:
    one, two = (open_images("synthetic", INPUTS, RECIPE, count=9) for _ in range(2))
    assert one.description == "9 synthetic images, which say nothing of accuracy"
    assert np.array_equal(rows(one), rows(two)) and one.sha256 == two.sha256
    assert not np.array_equal(rows(one), rows(open_images("synthetic", INPUTS, RECIPE, count=9, seed=1)))
    assert len({row["x"].tobytes() for row in one}) == 9


def test_synthetic_pictures_are_smooth_as_photographs_are() -> None:
    inputs = (Tensor("x", "float32", ("batch", 3, 64, 64)),)
    recipe = Preprocessing("RGB", 64, "bilinear", (64, 64), 0, (0.0,) * 3, (1.0,) * 3)
    values = np.concatenate([row["x"] for row in open_images("synthetic", inputs, recipe, count=16)])
    assert values.min() >= 0 and values.max() <= 1
    centred = values - values.mean((2, 3), keepdims=True)
    neighbours = (centred[..., 1:] * centred[..., :-1]).mean() / (centred**2).mean()
    assert 0.8 < neighbours < 0.99  # white noise: 0


def test_synthetic_inputs_without_a_recipe_are_normal() -> None:
    values = rows(open_images("synthetic", INPUTS, None, count=32))
    assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05  # four standard errors of 6,144 values


def test_synthetic_inputs_of_a_free_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"--calib-data synthetic: input 'x' has a free axis"):
        open_images("synthetic", (Tensor("x", "float32", ("batch", 3, "h", 8)),), None)
