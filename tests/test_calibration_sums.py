"""Sums are the true ones, and the same bits in any order."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engineworks.calibration.sums import ExactSums

LIMIT = float(np.finfo(np.float32).max)
TERMS = st.lists(st.floats(-LIMIT, LIMIT, width=32), min_size=1, max_size=40)


def added(terms: list[float]) -> ExactSums:
    sums = ExactSums.of(1)
    for term in terms:
        sums.add(np.array([term], np.float32))
    return sums


def exact(sums: ExactSums) -> Fraction:
    return sum((int(a) * Fraction(2) ** (16 * j - 176) for j, a in enumerate(sums.accumulators[:, 0])), Fraction(0))


@given(TERMS)
def test_the_accumulators_hold_the_exact_sum(terms: list[float]) -> None:
    assert exact(added(terms)) == sum(map(Fraction, terms), Fraction(0))


@given(TERMS)
def test_the_sum_is_that_of_math_fsum(terms: list[float]) -> None:
    # twenty additions in float64, each off by half a unit in the last place of at most the sum of the magnitudes
    bound = 20 * 2**-53 * math.fsum(map(abs, terms))
    assert abs(added(terms).values[0] - math.fsum(terms)) <= bound


@given(TERMS, st.randoms(use_true_random=False), st.integers(0, 40))
def test_order_and_merging_change_no_bit(terms: list[float], random: Any, cut: int) -> None:
    shuffled = terms.copy()
    random.shuffle(shuffled)
    merged = added(shuffled[:cut]).merge(added(shuffled[cut:]))
    assert np.array_equal(merged.accumulators, added(terms).accumulators)
    assert merged.values.tobytes() == added(terms).values.tobytes()


def test_float_addition_would_have_depended_on_the_order() -> None:
    terms = [1e8, 1.0, -1e8, 2.0**-149]
    assert added(terms).values[0] == 1.0 + 2.0**-149
    assert exact(added(terms)) == 1 + Fraction(2) ** -149


def test_channels_are_summed_apart() -> None:
    sums = ExactSums.of(3)
    sums.add(np.array([1, 2, -3], np.float32))
    sums.add(np.array([0.5, 0, -1e-30], np.float32))
    assert sums.values.tolist() == [1.5, 2.0, -3.0 - 1e-30]


def test_a_term_beyond_float32_is_rounded_to_its_digits() -> None:
    sums = ExactSums.of(1)
    sums.add(np.array([1e40 + 1e20]))
    assert abs(sums.values[0] - 1e40) <= 2**-24 * 1e40
