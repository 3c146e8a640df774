"""The figures of a comparison: by hand, at the edges, and by the laws that they obey."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime import Agreement, InputError, agreement
from engineworks.runtime.compare import order, sqnr

Floats = npt.NDArray[np.float32]


def noisy(seed: int, rows: int = 8, classes: int = 10) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    reference = random.standard_normal((rows, classes)).astype(np.float32)
    return reference, random.standard_normal((rows, classes)).astype(np.float32)


SEEDS = st.integers(0, 2**32)


def test_equal_outputs_agree_fully() -> None:
    values, _ = noisy(0)
    found = agreement(values, values.copy())
    assert (found.max_abs, found.max_rel, found.sqnr_db, found.top1, found.top5) == (0.0, 0.0, math.inf, 1.0, 1.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-15)


def test_the_figures_of_a_case_worked_by_hand() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    candidate = np.array([[3.0, 4.5], [0.0, 0.0]], np.float32)
    found = agreement(reference, candidate)
    assert found.max_abs == 0.5
    assert found.max_rel == 0.5 / 4
    assert found.sqnr_db == pytest.approx(20.0, abs=1e-12)  # 10·log10(25 / 0.25)
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.sqrt(9 + 20.25)), abs=1e-15)


@pytest.mark.parametrize(("bits", "decibels"), [(1, 6.0206), (8, 48.1648), (10, 60.206)])
def test_noise_of_half_the_amplitude_is_a_bit_of_six_decibels(bits: int, decibels: float) -> None:
    signal = np.ones((1, 1000))
    assert sqnr(signal, signal * (1 + 2.0**-bits)) == pytest.approx(decibels, abs=1e-4)


def test_top1_is_the_share_of_rows_with_the_same_winner() -> None:
    reference = np.eye(4, dtype=np.float32)
    candidate = reference.copy()
    candidate[0] = [0, 0, 0, 9]
    assert agreement(reference, candidate).top1 == 0.75


def test_top5_asks_for_the_winner_of_the_reference_among_the_first_five() -> None:
    reference = np.zeros((2, 8), np.float32)
    reference[:, 0] = 9
    candidate = np.array([[4, 8, 7, 6, 5, 3, 2, 1], [3, 8, 7, 6, 5, 4, 2, 1]], np.float32)
    found = agreement(reference, candidate)
    assert (found.top1, found.top5) == (0.0, 0.5)


def test_among_distances_the_lowest_wins() -> None:
    reference = np.array([[0.0, 5.0, 9.0]], np.float32)
    same_lowest = np.array([[1.0, 9.0, 5.0]], np.float32)
    assert agreement(reference, same_lowest, "distances").top1 == 1.0
    assert agreement(reference, same_lowest, "logits").top1 == 0.0


def test_equal_scores_keep_the_lower_class_first_for_both_kinds_of_scores() -> None:
    tied = np.tile(np.array([0, 1], np.float32), 500)[None]
    zeros, ones = list(range(0, 1000, 2)), list(range(1, 1000, 2))
    assert order(tied, "logits").tolist() == [ones + zeros]
    assert order(tied, "distances").tolist() == [zeros + ones]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16", "float32", "bool"])
def test_order_is_right_for_every_type_of_output(dtype: str) -> None:
    values = np.array([[0, 1, 0]] if dtype == "bool" else [[0, 120, 1]]).astype(dtype)
    assert order(values, "logits")[0, 0] == 1
    assert order(values, "distances")[0, 0] == 0


def test_the_lowest_number_of_a_signed_type_is_the_worst_score() -> None:
    assert order(np.array([[-128, 0, 127]], np.int8), "logits").tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_candidate_that_is_not_finite_fails_every_figure(bad: float) -> None:
    reference, _ = noisy(0)
    candidate = reference.copy()
    candidate[3, 4] = bad
    assert agreement(reference, candidate) == Agreement(math.inf, math.inf, 0.0, -math.inf, 0.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_reference_that_is_not_finite_is_refused(bad: float) -> None:
    reference = np.array([[1.0, bad]], np.float32)
    with pytest.raises(InputError, match=r"^agreement: the reference holds values that are not finite"):
        agreement(reference, np.ones((1, 2), np.float32))


def test_a_reference_of_zeros_gives_no_division_by_zero() -> None:
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert agreement(zeros, zeros) == Agreement(0.0, 0.0, 1.0, math.inf, 1.0, 1.0)
    assert agreement(zeros, ones) == Agreement(1.0, 1.0, 0.0, -math.inf, 1.0, 1.0)


@pytest.mark.parametrize(("first", "second"), [((2, 3), (3, 2)), ((2, 3), (2,)), ((0, 3), (0, 3)), ((), ())])
def test_shapes_that_differ_or_hold_nothing_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        agreement(np.zeros(first, np.float32), np.zeros(second, np.float32))
    assert str(caught.value) == f"agreement: expected two arrays of one shape, got {first} and {second}."


def test_half_precision_is_compared_in_double_precision() -> None:
    reference = np.full((1, 4), 60000, np.float16)  # the square is past float16, and the sum too
    candidate = np.full((1, 4), 59968, np.float16)
    assert agreement(reference, candidate).sqnr_db == pytest.approx(20 * math.log10(60000 / 32), abs=1e-9)


def test_the_inputs_are_left_as_they_were() -> None:
    reference, candidate = noisy(1)
    before = reference.copy(), candidate.copy()
    agreement(reference, candidate)
    assert np.array_equal(reference, before[0])
    assert np.array_equal(candidate, before[1])


@given(SEEDS, st.integers(-60, 60))
def test_a_common_factor_changes_nothing_but_the_absolute_difference(seed: int, power: int) -> None:
    reference, candidate = noisy(seed)
    factor = np.float32(2.0**power)  # a power of two scales floats without rounding
    plain, scaled = agreement(reference, candidate), agreement(reference * factor, candidate * factor)
    assert scaled.sqnr_db == pytest.approx(plain.sqnr_db, abs=1e-9)
    assert scaled.cosine == pytest.approx(plain.cosine, abs=1e-12)
    assert scaled.max_abs == pytest.approx(plain.max_abs * float(factor), rel=1e-12)
    assert (scaled.max_rel, scaled.top1, scaled.top5) == (plain.max_rel, plain.top1, plain.top5)


@given(SEEDS)
def test_cosine_and_the_largest_difference_are_symmetric(seed: int) -> None:
    first, second = noisy(seed)
    one, other = agreement(first, second), agreement(second, first)
    assert one.cosine == pytest.approx(other.cosine, abs=1e-15)
    assert one.max_abs == other.max_abs


@given(SEEDS, st.integers(1, 5))
def test_ten_times_the_noise_is_twenty_decibels_less(seed: int, power: int) -> None:
    signal, noise = (values.astype(np.float64) for values in noisy(seed))
    small = sqnr(signal, signal + noise * 10.0**-power)
    assert small - sqnr(signal, signal + noise * 10.0 ** (1 - power)) == pytest.approx(20.0, abs=1e-6)


@given(SEEDS)
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    reference, candidate = noisy(seed)
    rows = np.random.default_rng(seed).permutation(len(reference))
    plain, shuffled = agreement(reference, candidate), agreement(reference[rows], candidate[rows])
    assert shuffled.sqnr_db == pytest.approx(plain.sqnr_db, abs=1e-9)
    assert (shuffled.top1, shuffled.top5, shuffled.max_abs) == (plain.top1, plain.top5, plain.max_abs)


@given(SEEDS)
def test_distances_are_the_negatives_of_logits(seed: int) -> None:
    reference, candidate = noisy(seed)
    logits, distances = agreement(reference, candidate), agreement(-reference, -candidate, "distances")
    assert (distances.top1, distances.top5) == (logits.top1, logits.top5)


@given(SEEDS)
def test_order_is_a_permutation_from_best_to_worst(seed: int) -> None:
    values, _ = noisy(seed)
    ranked = order(values, "logits")
    assert np.array_equal(np.sort(ranked, axis=1), np.tile(np.arange(10), (8, 1)))
    assert (np.diff(np.take_along_axis(values, ranked, axis=1), axis=1) <= 0).all()
