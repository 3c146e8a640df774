"""Thresholds against hand-computed cases, against slow and separate code, and against ONNX Runtime's calibrators."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.calibration.histogram import BINS, Histogram
from engineworks.calibration.observe import Statistics, TensorStatistics
from engineworks.calibration.scales import METHODS, SMALLEST_SCALE, Method, entropy, mse, percentile, scales
from engineworks.runtime.errors import ExportError

Floats = npt.NDArray[np.float32]


def counted(values: Any) -> tuple[Histogram, float]:
    magnitudes = np.abs(np.asarray(values, np.float32))
    histogram = Histogram()
    histogram.reach(float(magnitudes.max()))
    histogram.add(magnitudes)
    return histogram, float(magnitudes.max())


def observed(values: Any) -> Statistics:
    tensor = TensorStatistics()
    tensor.add(np.asarray(values, np.float32).reshape(1, -1), 1)
    return Statistics({"t": tensor}, 1, 1)


def activations(seed: int, size: int = 5000) -> Floats:
    """Draw what a layer gives: bell-shaped, one-sided with a spike at 0, or with a heavy tail."""
    generator = np.random.default_rng(seed)
    drawn = (
        generator.standard_normal(size),
        np.maximum(generator.standard_normal(size), 0),
        generator.standard_t(3, size),
        generator.exponential(size=size),
        generator.uniform(-1, 1, size),
        np.minimum(np.maximum(generator.normal(1, 3, size), 0), 6),
    )
    return (drawn[seed % len(drawn)] * generator.uniform(0.01, 50)).astype(np.float32)


SEEDS = pytest.mark.parametrize("seed", range(12))


# --- the same by slow and separate code


def brute_mse(histogram: Histogram) -> npt.NDArray[np.float64]:
    """The error of rounding every bin's middle, for a threshold at the end of each bin."""
    middles = (np.arange(BINS) + 0.5) * histogram.width
    errors = np.full(BINS, np.inf)
    for end in range(1, BINS + 1):
        scale = end * histogram.width / 127
        errors[end - 1] = (histogram.counts * (middles - np.clip(np.round(middles / scale), 0, 127) * scale) ** 2).sum()
    return errors


@SEEDS
def test_mse_is_the_least_error_of_rounding_every_bin(seed: int) -> None:
    histogram, largest = counted(activations(seed))
    found, errors = mse(histogram, largest), brute_mse(histogram)
    within = errors[: int(largest / histogram.width)]
    at = int(np.ceil(found / histogram.width))
    assert errors[at - 1] <= within.min() * (1 + 1e-2 if found == largest else 1 + 1e-9)


def brute_entropy(histogram: Histogram) -> float:
    """The published search, one candidate after the other, every distribution written out."""
    counts = histogram.counts.astype(np.float64)
    top = int(np.flatnonzero(counts)[-1]) + 1
    best, found = np.inf, histogram.width * top
    for size in range(128, top + 1):
        reference = counts[:size].copy()
        reference[-1] += counts[size:].sum()
        level = np.arange(size) * 128 // size
        filled = counts[:size] > 0
        held, places = np.bincount(level, counts[:size], 128), np.bincount(level, filled, 128)
        candidate = np.where(filled, held[level] / np.maximum(places[level], 1), 0)
        p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1)
        if ((p > 0) & (q == 0)).any():
            continue
        divergence = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
        if divergence < best - 1e-13:
            best, found = divergence, (size + 0.5) * histogram.width
    return found


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_entropy_is_the_published_search(seed: int) -> None:
    histogram, largest = counted(activations(seed, 20_000))
    assert entropy(histogram, largest) == pytest.approx(min(brute_entropy(histogram), largest), rel=1e-9)


@SEEDS
@pytest.mark.parametrize("percent", [99.99, 99.0, 50.0, 100.0])
def test_a_percentile_is_at_most_one_bin_above_numpys(seed: int, percent: float) -> None:
    values = activations(seed)
    histogram, largest = counted(values)
    exact = np.percentile(np.abs(values), percent, method="inverted_cdf")
    found = percentile(histogram, largest, percent)
    assert exact <= found <= exact + histogram.width or (exact == 0 and found == largest)


# --- ONNX Runtime's


@SEEDS
def test_minmax_is_that_of_onnx_runtime(seed: int) -> None:
    values = activations(seed)
    low, high = ort_range("percentile", values, 100.0)
    assert scales(observed(values), "minmax")["t"] == pytest.approx(max(-low, high) / 127, rel=1e-6)


@SEEDS
def test_percentiles_are_those_of_onnx_runtime_within_its_bins(seed: int) -> None:
    values = activations(seed, 200_000)  # so many that neighbours in the tail are less than a bin apart
    values = np.concatenate([values, -values])  # it cuts half of 1 % off each end
    found = scales(observed(values), "percentile", percent=99.0)["t"] * 127
    histogram, largest = counted(values)
    low, high = ort_range("percentile", values, 99.0)
    # its bins: 2,048 over both signs; ours: at least 2,048 over one
    assert abs(found - max(-low, high)) <= 2 * largest / 2048 + 2 * histogram.width


@pytest.mark.parametrize("seed", [0, 2])
def test_entropy_is_near_that_of_onnx_runtime_on_symmetric_values(seed: int) -> None:
    values = activations(seed, 100_000)
    both = np.concatenate([values, -values])
    low, high = ort_range("entropy", both, 0.0)
    histogram, largest = counted(both)
    # another merging of bins into levels, and 1,024 bins a side against 2,048 or more: the minimum is flat
    assert entropy(histogram, largest) == pytest.approx(max(-low, high), rel=0.25)


def ort_range(method: str, values: Floats, percent: float) -> tuple[float, float]:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, 2048, 128, percent, None)
    collector.collect({"t": [values]})
    found = collector.compute_collection_result()["t"]
    low, high = found[:2] if isinstance(found, tuple) else found.range_value
    return float(low), float(high)


# --- by hand


def test_mse_cuts_off_a_lone_outlier_of_many_values() -> None:
    # 10^6 values evenly in [0, 127): step 1 rounds with error 1/12 each; reaching 254 costs 4/12 each, four times
    # that; clipping the outlier of 254 at t costs (254 - t)²: 16129 at 127, far less than 10^6 · 3/12
    values = np.append(np.linspace(0, 127, 1_000_000, endpoint=False), 254.0)
    histogram, largest = counted(values)
    assert mse(histogram, largest) == pytest.approx(127, rel=0.02)


def test_mse_keeps_an_outlier_that_costs_more_than_the_finer_step_saves() -> None:
    values = np.append(np.linspace(0, 127, 1_000), [254.0] * 10)  # 10 · 127² against 1,000 · 3/12
    histogram, largest = counted(values)
    assert mse(histogram, largest) == pytest.approx(254, rel=0.02)


def test_the_percentile_counts_zeros_among_the_values() -> None:
    histogram, largest = counted([0.0] * 50 + list(range(1, 51)))
    # 50 % of 100 values are 0; the 80th of them is 30, alone in its bin of width 1/64
    assert percentile(histogram, largest, 80.0) == 30 + histogram.width


def test_a_percentile_of_zero_says_nothing_and_nothing_is_clipped() -> None:
    histogram, largest = counted([0.0] * 100_000 + [3.0])
    assert percentile(histogram, largest, 99.99) == 3.0


def test_entropy_does_not_look_at_exact_zeros() -> None:
    values = activations(3)
    few, many = counted(values), counted(np.append(values, np.zeros(100_000)))
    assert entropy(*few) == entropy(*many)


def test_entropy_spreads_a_level_over_its_filled_bins_as_computed_by_hand() -> None:
    # 129 bins of one value each, width 1, in a range that ends at 4096: with 128 bins the last holds 2 of 129 values
    # in P and 1 of 128 in Q: 127/129 ln(128/129) + 2/129 ln(2 · 128/129) = 0.0029; with 129 bins P equals Q: 0
    histogram = Histogram(exponent=0)
    histogram.counts[:129] = 1
    assert entropy(histogram, 200.0) == 129.5
    histogram.counts[129] = 0
    histogram.counts[:128] = 1000  # now the 129th bin is worth less than what merging two unequal ones costs
    histogram.counts[0] = 1
    assert entropy(histogram, 200.0) == 128.5


# --- the ends of what occurs


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_gets_a_threshold_of_one(method: Method) -> None:
    assert scales(observed([0.0, -0.0, 0.0]), method) == {"t": float(np.float32(1 / 127))}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [3.0, -3.0, 6.0, 1e-30, -1e30, 0.1])
def test_one_value_is_its_own_threshold(method: Method, value: float) -> None:
    scale = scales(observed([value] * 9), method)["t"]
    assert scale == pytest.approx(abs(np.float32(value)) / 127, rel=2**-11)


@pytest.mark.parametrize("method", METHODS)
def test_denormals_get_the_smallest_normal_scale(method: Method) -> None:
    assert scales(observed([1e-42, 3e-42]), method) == {"t": SMALLEST_SCALE}


@pytest.mark.parametrize("method", METHODS)
def test_only_the_magnitude_counts(method: Method) -> None:
    values = np.abs(activations(2))
    assert scales(observed(values), method) == scales(observed(-values), method)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30)
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_every_scale_is_a_positive_float32_and_clips_nothing_beyond_what_was_seen(
    method: Method, values: list[float]
) -> None:
    scale = scales(observed(values), method)["t"]
    assert scale == float(np.float32(scale)) and scale >= SMALLEST_SCALE
    largest = max(map(abs, values))
    assert not largest or scale <= max(float(np.float32(largest / 127)), SMALLEST_SCALE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_a_power_of_two_on_the_values_is_one_on_the_scale(method: Method, factor: float) -> None:
    values = activations(1)
    assert scales(observed(values * np.float32(factor)), method)["t"] == scales(observed(values), method)["t"] * factor


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ExportError, match=r"a method of minmax, percentile, mse, entropy.* got 'max', 99\.99\.$"):
        scales(observed([1.0]), "max")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"a percentage in \(0, 100\].*got 'percentile', 0\."):
        scales(observed([1.0]), "percentile", percent=0)
