"""Intervals and p-values against published figures and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.intervals import chance, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17, 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_figures_of_newcombes_table(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)  # printed with four digits


@given(st.integers(1, 100_000), st.data())
def test_the_interval_holds_the_share_and_stays_in_the_unit_range(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_share_of_coin_throws_at_least_as_uneven(first: int, second: int) -> None:
    total = first + second
    uneven = [math.comb(total, heads) for heads in range(total + 1) if abs(2 * heads - total) >= abs(first - second)]
    assert mcnemar(first, second) == pytest.approx(sum(uneven) / 2**total, abs=1e-12)


@pytest.mark.parametrize(("first", "second", "p"), [(0, 0, 1.0), (10, 0, 2 / 1024), (6, 16, 0.0524788)])
def test_mcnemar_of_known_cases(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p, abs=5e-6)  # twice the binomial tails, worked by hand


@pytest.mark.parametrize("difference", [0, 10, 60, 200])
def test_mcnemar_of_many_pictures_goes_on_where_exact_numbers_get_too_long(difference: int) -> None:
    few, many = (mcnemar(total // 2 - difference // 2, total - total // 2 + difference // 2) for total in (998, 1002))
    assert many == pytest.approx(few, rel=0.3)
    assert 0 <= mcnemar(100, 60_000) < 1e-300 or mcnemar(100, 60_000) == 0


def likeliest(lost: int, gained: int, total: int, fall: float) -> float:
    """The share of gained pictures that makes the counts likeliest under a fall, by golden search."""

    def unlikely(gain: float) -> float:
        parts = ((lost, gain + fall), (gained, gain), (total - lost - gained, 1 - 2 * gain - fall))
        return -sum(number * math.log(max(share, 1e-300)) for number, share in parts if number)

    low, high = max(0.0, -fall), (1 - fall) / 2
    for _ in range(200):
        first, second = low + 0.382 * (high - low), low + 0.618 * (high - low)
        low, high = (low, second) if unlikely(first) < unlikely(second) else (first, high)
    return (low + high) / 2


@given(st.integers(1, 300), st.data())
def test_each_end_of_a_paired_interval_is_a_fall_that_the_score_test_just_bears(
    total: int, data: st.DataObject
) -> None:
    lost = data.draw(st.integers(0, total))
    gained = data.draw(st.integers(0, total - lost))
    low, high = paired_difference(lost, gained, total)
    assert -1 <= low <= (lost - gained) / total <= high <= 1
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1 - 1e-9:
            gain = likeliest(lost, gained, total, end)
            deviation = math.sqrt(total * (2 * gain + end * (1 - end)))
            assert (lost - gained - total * end) / deviation == pytest.approx(sign * 1.959964, abs=2e-3)  # the search's


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Every outcome of 30 pictures, weighted by its chance."""
    for lose, gain in ((0.1, 0.1), (0.05, 0.02), (0.3, 0.2)):
        covered = 0.0
        for lost in range(31):
            for gained in range(31 - lost):
                ways = math.comb(30, lost) * math.comb(30 - lost, gained)
                chance = ways * lose**lost * gain**gained * (1 - lose - gain) ** (30 - lost - gained)
                low, high = paired_difference(lost, gained, 30)
                covered += chance * (low <= lose - gain <= high)
        assert 0.94 < covered < 0.99  # so few pairs come in steps; a score interval errs on the wide side


@given(st.integers(1, 5000), st.data())
def test_where_nothing_is_gained_the_upper_end_is_wilsons_and_swapping_turns_the_interval(
    total: int, data: st.DataObject
) -> None:
    lost = data.draw(st.integers(0, total))
    gained = data.draw(st.integers(0, total - lost))
    assert paired_difference(lost, 0, total)[1] == pytest.approx(wilson(lost, total)[1], abs=1e-9)
    low, high = paired_difference(lost, gained, total)
    assert paired_difference(gained, lost, total) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("count", [2, 8, 100])
def test_a_mean_of_squares_stays_below_chance(count: int) -> None:
    errors = np.random.default_rng(count).standard_normal((20_000, count))
    largest = np.sqrt(np.square(errors).mean(1)).max()
    assert 0.4 * chance(count) < largest < chance(count)
