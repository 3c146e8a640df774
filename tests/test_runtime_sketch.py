"""A few values of a tensor, the same places every time, of every channel."""

import numpy as np
import pytest

from engineworks.runtime.sketch import sketch


@pytest.mark.parametrize("shape", [(2, 3, 224, 224), (2, 4096), (1, 5), (7,), (2, 512, 7, 7), (2, 1, 1, 1)])
def test_every_channel_is_in_it_and_it_stays_small(shape: tuple[int, ...]) -> None:
    channels = shape[1] if len(shape) > 1 else 1
    index = (
        np.broadcast_to(np.arange(channels).reshape(1, -1, *[1] * (len(shape) - 2)), shape) if len(shape) > 1 else None
    )
    kept = sketch(np.zeros(shape) if index is None else index)
    assert kept.dtype == np.float32 and kept.shape[0] == channels
    assert kept.size <= max(4096, 4 * channels)
    if index is not None:
        assert (kept == np.arange(channels)[:, None]).all()


def test_all_rows_are_in_it() -> None:
    values = np.zeros((2, 3, 64, 64))
    values[1] = 1
    assert 0.4 < sketch(values).mean() < 0.6


def test_its_noise_is_the_tensors_noise() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 8, 56, 56))
    assert np.sqrt(np.square(sketch(noise)).mean()) == pytest.approx(1, rel=0.05)
