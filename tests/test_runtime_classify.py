"""Scores become probabilities and named classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime import BackendError, InputError, Prediction, softmax
from engineworks.runtime.classify import label_of, predictions


def test_softmax_of_a_case_worked_by_hand() -> None:
    found = softmax(np.log([[1.0, 2.0, 5.0]]))
    assert np.allclose(found, [[0.125, 0.25, 0.625]], rtol=0, atol=1e-15)


def test_softmax_of_distances_takes_their_negatives() -> None:
    scores = np.random.default_rng(0).random((4, 48), np.float32)
    assert np.array_equal(softmax(scores, "distances"), softmax(-scores))


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=9))
def test_softmax_sums_to_one_and_never_overflows(row: list[float]) -> None:
    found = softmax(np.array([row]))
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert ((found >= 0) & (found <= 1)).all()


def test_a_missing_batch_axis_is_named_and_mended() -> None:
    with pytest.raises(InputError, match=r"expected \(N, K\), got \(10,\)\. Add a batch axis"):
        softmax(np.zeros(10, np.float32))


def test_the_best_classes_come_first_with_their_shares() -> None:
    found = predictions(np.log(np.array([1.0, 5.0, 2.0])), 2, "logits", ("a", "b"), "x")
    assert [(best.label, best.index) for best in found] == [("b", 1), ("2", 2)]
    assert [best.probability for best in found] == pytest.approx([0.625, 0.25], abs=1e-12)
    assert isinstance(found[0], Prediction)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_of_scores_that_are_not_finite_no_probability_is_made(bad: float) -> None:
    with pytest.raises(BackendError, match=r"^bundle x: the network answered NaN or infinity to this picture\.$"):
        predictions(np.array([0.0, bad]), 1, "logits", (), "x")


def test_a_class_without_a_name_goes_by_its_number() -> None:
    assert [label_of(index, ("red",)) for index in (0, 1)] == ["red", "1"]
