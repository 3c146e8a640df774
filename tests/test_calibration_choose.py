"""Ranges are chosen for the whole network by its answers."""

import numpy as np
import pytest

from engineworks.calibration.choose import choose, typical_sqnr
from engineworks.runtime.errors import ExportError

REFERENCE = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_the_answers_nearest_to_the_reference_win_and_every_figure_is_kept() -> None:
    answers = {"far": REFERENCE + 1, "near": REFERENCE + np.float32(0.1), "middle": REFERENCE + np.float32(0.5)}
    found = choose(list(answers), REFERENCE, answers.__getitem__)
    assert found.method == "near"
    wanted = np.mean([10 * np.log10(power / 0.03) for power in (5, 50)])
    assert found.sqnr_db["near"] == pytest.approx(wanted, abs=0.01)
    assert found.sqnr_db["near"] > found.sqnr_db["middle"] > found.sqnr_db["far"]


def test_of_equal_ones_the_first_wins() -> None:
    assert choose(["a", "b"], REFERENCE, lambda name: REFERENCE).method == "a"


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ExportError, match="expected one set of ranges at least, got none"):
        choose([], REFERENCE, lambda name: REFERENCE)


def test_one_odd_image_does_not_decide() -> None:
    odd, even = REFERENCE.copy(), REFERENCE + np.float32(0.3)
    odd[1] += 3  # one row is exact, one is far off
    assert typical_sqnr(REFERENCE, odd) > typical_sqnr(REFERENCE, even)
