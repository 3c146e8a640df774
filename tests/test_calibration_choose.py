"""Ranges are chosen for the whole network by its answers."""

import numpy as np
import pytest

from engineworks.calibration.choose import choose
from engineworks.runtime.errors import ExportError

REFERENCE = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_the_answers_nearest_to_the_reference_win_and_every_figure_is_kept() -> None:
    answers = {"far": REFERENCE + 1, "near": REFERENCE + np.float32(0.1), "middle": REFERENCE + np.float32(0.5)}
    found = choose(list(answers), REFERENCE, answers.__getitem__)
    assert found.method == "near"
    assert found.sqnr_db["near"] == pytest.approx(10 * np.log10(55 / 0.06), abs=0.01)
    assert found.sqnr_db["near"] > found.sqnr_db["middle"] > found.sqnr_db["far"]


def test_of_equal_ones_the_first_wins() -> None:
    assert choose(["a", "b"], REFERENCE, lambda name: REFERENCE).method == "a"


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ExportError, match="expected one set of ranges at least, got none"):
        choose([], REFERENCE, lambda name: REFERENCE)
