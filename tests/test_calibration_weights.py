"""Weights on the int8 grid: half a step at most, scales that their type holds, nothing silently infinite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.calibration.weights import channel_scales, nearest, round_scales
from engineworks.runtime.errors import ExportError


@settings(max_examples=30)
@given(seed=st.integers(0, 999), size=st.floats(1e-4, 1e4), rest=st.sampled_from(["fp16", "fp32"]))
def test_no_weight_is_further_than_half_a_step_from_itself(seed: int, size: float, rest: str) -> None:
    rows = (np.random.default_rng(seed).standard_normal((4, 9)) * size).astype(np.float32)
    scales = channel_scales(rows, rest)  # type: ignore[arg-type]
    steps = nearest(rows, scales)
    assert (np.abs(steps * scales[:, None] - rows) <= scales[:, None] * 0.5001).all()


def test_scales_beside_fp16_are_numbers_of_fp16_and_never_zero() -> None:
    found = round_scales(np.array([1e-12, 1e-5, 0.1, 500.0]), "fp16")
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert (found > 0).all()
    assert found[0] == 2.0**-24


def test_a_row_of_zeros_has_a_scale_of_one() -> None:
    assert channel_scales(np.zeros((2, 3), np.float32), "fp16").tolist() == [1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_scales_that_fp16_cannot_hold_are_refused(value: float) -> None:
    with pytest.raises(ExportError, match="expected finite scales up to"):
        round_scales(np.array([1.0, value]), "fp16")
