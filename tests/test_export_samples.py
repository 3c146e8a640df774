"""The samples of every comparison: real, all different, the same every time."""

import numpy as np
import pytest

from engineworks.export.samples import SAMPLES, rows, sample_inputs
from engineworks.models import NETWORKS
from engineworks.runtime.preprocessing import Preprocessing


@pytest.mark.parametrize("name", ["lenet5", "googlenet"])
def test_samples_are_different_rows_and_the_same_every_time(name: str) -> None:
    network = NETWORKS[name]
    recipe = Preprocessing.from_json(network.preprocessing)
    first, second = sample_inputs(recipe), sample_inputs(recipe)
    assert first.shape == (SAMPLES, *network.input_shape)
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert not [(i, j) for i in range(SAMPLES) for j in range(i) if np.array_equal(first[i], first[j])]


def test_rows_are_cut_or_repeated_in_order() -> None:
    three = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert rows(three, 2).tolist() == three[:2].tolist()
    assert rows(three, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    taken = rows(three, 3)
    taken += 1
    assert three[0, 0] == 0, "a copy: what is done to it does not reach the samples"
