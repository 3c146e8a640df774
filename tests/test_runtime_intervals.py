"""Intervals and p-values against published figures and brute force."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.intervals import mcnemar, wilson


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
