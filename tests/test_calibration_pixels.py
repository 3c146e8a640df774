"""Inputs that no picture gives are told by the likeliest reason; right ones pass, whatever is on them."""

import numpy as np
import numpy.typing as npt
import pytest

from engineworks.calibration.pixels import levels, normal, others, witness
from engineworks.runtime import Preprocessing, preprocess

Floats = npt.NDArray[np.float32]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
RECIPES = {
    "imagenet": Preprocessing("RGB", 16, "bilinear", (16, 16), 0, *IMAGENET),
    "half": Preprocessing("RGB", 16, "bilinear", (16, 16), 0, *HALF),
    "unit": Preprocessing("RGB", 16, "bilinear", (16, 16), 0, (0.0,) * 3, (1.0,) * 3),
    "grey": Preprocessing("L", 16, "bilinear", (16, 16), 0, (0.1307,), (0.3081,)),
}
EVERY = pytest.mark.parametrize("kind", RECIPES)
SHIFTED = pytest.mark.parametrize("kind", ["imagenet", "half", "grey"])


def norm(kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return RECIPES[kind].mean, RECIPES[kind].std


def pictures(count: int = 10) -> list[npt.NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return [generator.integers(generator.integers(0, 40), 200, (16, 16, 3), np.uint8) for _ in range(count)]


def inputs(kind: str) -> Floats:
    return preprocess(pictures(), RECIPES[kind])


def faults(x: Floats, kind: str) -> list[str]:
    return [finding.fault for finding in witness(x, RECIPES[kind])]


@EVERY
def test_right_inputs_pass(kind: str) -> None:
    assert faults(inputs(kind), kind) == []


@pytest.mark.parametrize("kind", ["imagenet", "unit", "grey"])
@pytest.mark.parametrize("level", [(0, 255), (0, 1), (254, 255)], ids=["all of it", "night", "snow"])
def test_dark_and_bright_pictures_pass(kind: str, level: tuple[int, int]) -> None:
    some = [np.random.default_rng(n).integers(*level, (16, 16, 3), np.uint8, endpoint=True) for n in range(8)]
    assert faults(preprocess(some, RECIPES[kind]), kind) == []


@SHIFTED
def test_a_normalisation_left_out_is_told(kind: str) -> None:
    (found,) = witness(levels(inputs(kind), norm(kind)), RECIPES[kind])
    assert found.fault == "unnormalised"
    assert found.sentence.startswith("All values lie in 0…1 and no pixel of 10 images is darker than the mean: mean 0.")


@SHIFTED
def test_a_normalisation_applied_twice_is_told(kind: str) -> None:
    assert faults(normal(inputs(kind), *norm(kind)), kind) == ["normalised-twice"]


@EVERY
def test_bare_pixels_are_told(kind: str) -> None:
    (found,) = witness(levels(inputs(kind), norm(kind)) * 255, RECIPES[kind])
    assert found.fault == "unscaled"
    assert found.sentence.endswith(": divide by 255, then normalise them.")


@SHIFTED
def test_pixels_normalised_without_the_division_are_told(kind: str) -> None:
    (found,) = witness(normal(levels(inputs(kind), norm(kind)) * 255, *norm(kind)), RECIPES[kind])
    assert found.fault == "unscaled"
    assert found.sentence.endswith("normalised but not divided by 255.")


def test_another_usual_normalisation_is_told_by_its_numbers() -> None:
    (found,) = witness(inputs("imagenet"), RECIPES["half"])
    assert found.fault == "normalised-otherwise"
    assert "as mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225 give" in found.sentence


def test_any_other_values_are_shown_beside_those_expected() -> None:
    (found,) = witness(inputs("half") * 1e3, RECIPES["half"])
    assert found.fault == "values"
    assert "this network's preprocessing gives -1 to 1." in found.sentence


def test_grey_pictures_for_a_colour_network_are_told() -> None:
    grey = [np.repeat(picture[:, :, :1], 3, axis=2) for picture in pictures()]
    assert faults(preprocess(grey, RECIPES["imagenet"]), "imagenet") == ["grey"]
    some = [*grey[:4], *pictures()[4:]]
    assert faults(preprocess(some, RECIPES["imagenet"]), "imagenet") == [], "a few grey ones among others are usual"


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (np.inf, "infinities")])
def test_what_is_not_finite_is_told(value: float, words: str) -> None:
    x = inputs("half")
    x[3, 1, 2, 4] = value
    (found,) = witness(x, RECIPES["half"])
    assert (found.fault, found.sentence) == ("values", f"The inputs hold {words}. Mend what makes them.")


def test_no_picture_at_all_is_told() -> None:
    assert faults(np.zeros((9, 3, 4, 4), np.float32), "imagenet") == ["constant"]


@EVERY
def test_normal_undoes_levels(kind: str) -> None:
    x = inputs(kind)
    assert np.allclose(normal(levels(x, norm(kind)), *norm(kind)), x, atol=1e-5)  # two roundings of values up to 4


def test_near_normalisations_are_one() -> None:
    assert [kind[0][0] for kind in others(((0.498,) * 3, (0.502,) * 3))] == [0.485]
    assert [kind[0][0] for kind in others(IMAGENET)] == [0.5]
    assert len(others(norm("unit"))) == 2
