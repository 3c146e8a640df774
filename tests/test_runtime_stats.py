"""Counts and quantiles are what they say."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.stats import Tally, quantile


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_its_share_does_not_exceed(values: list[float], share: float) -> None:
    found = quantile(sorted(values), share)
    assert found == np.quantile(values, share, method="inverted_cdf")


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100)])
def test_quantiles_of_one_to_a_hundred(share: float, expected: int) -> None:
    assert quantile(range(1, 101), share) == expected


def test_before_the_first_run_there_are_no_times() -> None:
    stats = Tally().read(queued=0, in_flight=0)
    assert (stats.calls, stats.rows_per_call, stats.p50_ms, stats.p99_ms) == (0, 0.0, None, None)


def test_runs_and_rows_are_counted_and_timed() -> None:
    tally = Tally()
    for rows, milliseconds in ((1, 1), (3, 2), (4, 9)):
        tally.ran(rows, milliseconds * 1_000_000)
    tally.add("padded", 5)
    stats = tally.read(queued=2, in_flight=1)
    assert (stats.calls, stats.rows, stats.padded, stats.queued, stats.in_flight) == (3, 8, 5, 2, 1)
    assert (stats.p50_ms, stats.p90_ms, stats.p99_ms) == (2.0, 9.0, 9.0)
    assert stats.rows_per_call == pytest.approx(8 / 3)


def test_times_are_of_the_latest_runs_alone() -> None:
    tally = Tally()
    for nanoseconds in [10**9] * 10 + [10**6] * 1024:
        tally.ran(1, nanoseconds)
    assert tally.read(queued=0, in_flight=0).p99_ms == 1.0


def test_counts_of_many_threads_add_up() -> None:
    tally = Tally()

    def count() -> None:
        for _ in range(1000):
            tally.ran(2, 1)
            tally.add("failed")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tally.counts["calls"], tally.counts["rows"], tally.counts["failed"]) == (8000, 16000, 8000)


def test_a_lock_that_the_parent_held_does_not_stop_a_forked_child() -> None:
    tally = Tally()
    tally._lock.acquire()
    tally.abandon()
    tally.ran(1, 1)
    assert tally.counts["calls"] == 1
