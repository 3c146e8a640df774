"""Counts are numpy's own, and the same for any order, grouping and start; the range grows by doubling alone."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.calibration.histogram import BINS, Histogram

Floats = npt.NDArray[np.float32]
MAGNITUDES = st.lists(st.floats(0, float(np.finfo(np.float32).max), width=32), min_size=1, max_size=30)


def made(*groups: Any) -> Histogram:
    histogram = Histogram()
    for group in groups:
        values = np.array(group, np.float32)
        histogram.reach(float(values.max()))
        histogram.add(values)
    return histogram


def same(one: Histogram, other: Histogram) -> bool:
    return np.array_equal(one.counts, other.counts) and one.exponent == other.exponent and one.zeros == other.zeros


def test_bins_are_those_counted_by_hand() -> None:
    found = made([0, 0, 1, 1.5, 2047.5, 4095])  # below 4096 = 4096 bins of width 1
    assert (found.width, found.zeros, found.total) == (1.0, 2, 6)
    assert {int(i): int(found.counts[i]) for i in np.flatnonzero(found.counts)} == {1: 2, 2047: 1, 4095: 1}


def test_a_power_of_two_begins_the_upper_half() -> None:
    assert made([4096]).width == 2.0
    assert np.flatnonzero(made([4096]).counts) == [2048]


@given(MAGNITUDES)
def test_counts_are_numpys_histogram_of_the_values_other_than_zero(values: list[float]) -> None:
    found = made(values)
    edges = np.ldexp(np.arange(BINS + 1.0), found.exponent)
    expected, _ = np.histogram([value for value in values if value], edges)
    assert np.array_equal(found.counts, expected)
    assert found.zeros == values.count(0)


@given(MAGNITUDES, st.lists(st.integers(1, 29), max_size=4), st.randoms(use_true_random=False))
def test_order_and_grouping_change_no_bit(values: list[float], cuts: list[int], random: Any) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)
    places = [0, *sorted(cut for cut in set(cuts) if cut < len(values)), len(values)]
    groups = [shuffled[start:end] for start, end in itertools.pairwise(places)]
    assert same(made(values), made(*groups))
    assert same(made(values), made(groups[0]).merge(made(*groups[1:]) if groups[1:] else Histogram()))


def test_the_range_is_never_more_than_twice_the_largest() -> None:
    for largest in (1e-30, 0.7, 1.0, 255.0, 3e38):
        found = made([largest])
        assert largest < BINS * found.width <= 2 * largest


def test_reaching_less_than_the_range_changes_nothing() -> None:
    found = made([5.0, 1.0])
    found.reach(0.25)
    found.reach(0.0)
    assert same(found, made([5.0, 1.0]))


def test_denormals_share_the_first_bin_and_are_not_zeros() -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    found = made([tiny, 3 * tiny, 0])
    assert (found.counts[0], found.zeros, found.exponent) == (2, 1, -126)


def test_one_far_value_leaves_the_others_counted() -> None:
    found = made([1e-20] * 5, [3e38])
    assert (found.counts[0], int(found.counts.sum())) == (5, 6)


def test_merging_leaves_both_parts_as_they_were() -> None:
    one, other = made([1.0]), made([100.0])
    one.merge(other)
    assert same(one, made([1.0])) and same(other, made([100.0]))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_alone_fill_no_bin(zero: float) -> None:
    found = made([zero, zero])
    assert (int(found.counts.sum()), found.zeros, found.total) == (0, 2, 2)
