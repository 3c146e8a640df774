"""Gain and offset of a channel: recovered where they are, never worse than none."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.calibration.affine import Correction, Moments, error, fit


def moments(wanted: object, computed: object, batches: int = 1) -> Moments:
    found = Moments()
    for one, two in zip(
        np.array_split(np.asarray(wanted, np.float32), batches),
        np.array_split(np.asarray(computed, np.float32), batches),
        strict=True,
    ):
        found.add(one, two)
    return found


@settings(max_examples=25)
@given(seed=st.integers(0, 999), mean=st.sampled_from([0.0, 3.0, 1000.0]))
def test_a_gain_and_an_offset_are_found_again(seed: int, mean: float) -> None:
    rng = np.random.default_rng(seed)
    computed = rng.normal(mean, 1, (4, 3, 5, 5)).astype(np.float32)
    gain, offset = rng.uniform(0.6, 1.8, 3), rng.normal(0, 5, 3)
    wanted = computed * gain[:, None, None] + offset[:, None, None]
    found = fit(moments(wanted, computed, 2))
    # float32 inputs of magnitude 1000 are known to 6e-5, and vary by 1
    assert np.allclose(found.gain, gain, atol=2e-3)
    assert np.allclose(
        found.gain * computed.mean(axis=(0, 2, 3)) + found.offset, wanted.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-3
    )


@settings(max_examples=25)
@given(seed=st.integers(0, 999), noise=st.floats(0.0, 30.0))
def test_no_channel_is_further_from_what_was_wanted_after_the_fit(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.normal(1, 2, (3, 4, 6)).astype(np.float32)
    computed = wanted + rng.normal(0, noise, wanted.shape).astype(np.float32)
    found = moments(wanted, computed)
    none = Correction(np.ones(4, np.float32), np.zeros(4, np.float32))
    fitted = fit(found)
    kept = Correction(np.ones(4, np.float32), fitted.offset)
    free = 2**-20 * (1 + noise**2)  # float32 sums
    assert (error(found, fitted) <= error(found, none) + free).all()
    assert (error(found, fitted) <= error(found, kept) + free).all()


def test_the_error_is_the_mean_square_of_what_is_left() -> None:
    rng = np.random.default_rng(0)
    wanted, computed = rng.normal(0, 1, (2, 5, 3, 8)).astype(np.float32)
    some = Correction(np.full(3, 1.5, np.float32), np.array([0.1, 0.2, 0.3], np.float32))
    left = wanted - (computed * 1.5 + some.offset[:, None])
    assert np.allclose(error(moments(wanted, computed, 3), some), (left**2).mean(axis=(0, 2)), rtol=1e-4)


def test_batches_count_as_one() -> None:
    rng = np.random.default_rng(1)
    wanted, computed = rng.normal(5, 1, (2, 6, 3, 8)).astype(np.float32)
    one, many = fit(moments(wanted, computed)), fit(moments(wanted, computed, 6))
    assert np.allclose(one.gain, many.gain, atol=1e-5)


def test_a_channel_that_does_not_vary_keeps_its_gain() -> None:
    wanted, computed = np.full((2, 2, 3), 4.0), np.full((2, 2, 3), 1.0)
    found = fit(moments(wanted, computed))
    assert found.gain.tolist() == [1, 1]
    assert found.offset.tolist() == [3, 3]


def test_a_gain_that_is_no_layers_is_not_taken() -> None:
    rng = np.random.default_rng(2)
    computed = rng.normal(0, 1, (4, 1, 50)).astype(np.float32)
    assert fit(moments(computed * 10, computed)).gain.tolist() == [1]
    assert fit(moments(-computed, computed)).gain.tolist() == [1]


def test_without_offsets_the_gain_alone_is_fitted() -> None:
    rng = np.random.default_rng(3)
    computed = rng.normal(2, 1, (4, 2, 50)).astype(np.float32)
    found = fit(moments(computed * 1.25, computed), offsets=False)
    assert np.allclose(found.gain, 1.25, atol=1e-5)
    assert not found.offset.any()
