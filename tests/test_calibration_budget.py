"""The search for the fewest layers: the smallest number on every monotone network, within the evaluations announced."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.calibration.budget import Drop, Search, Stopped, Trial, least_pictures, most_evaluations, search

MANY = 100_000


Asked = list[int]


def falling(needed: int) -> tuple[Asked, Callable[[int], Drop]]:
    """A network that keeps within any budget from so many layers on, and nowhere before."""
    asked: Asked = []

    def measure(left_out: int) -> Drop:
        asked.append(left_out)
        return Drop(0 if left_out >= needed else MANY // 2, 0, MANY)

    return asked, measure


@given(st.integers(1, 300), st.data())
def test_the_smallest_number_is_found_within_the_evaluations_that_were_announced(
    layers: int, data: st.DataObject
) -> None:
    needed = data.draw(st.integers(0, layers))
    asked, measure = falling(needed)
    found = search(layers, measure, 1.0)
    assert found.met == (needed if needed < layers else None)
    assert len(asked) == len(found.trials) <= most_evaluations(layers)
    assert len(set(asked)) == len(asked), "nothing is evaluated twice"
    assert asked[0] == 0
    assert max(asked) < layers


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 20))
def test_whatever_chance_does_the_number_found_was_seen_to_pass_and_one_less_to_fail(
    losses: list[int], allowed: int
) -> None:
    drops = [Drop(lost, 0, 200) for lost in losses]
    found = search(len(losses), lambda left_out: drops[left_out], allowed)
    seen = {trial.left_out: trial.drop.within(allowed) for trial in found.trials}
    assert len(found.trials) <= most_evaluations(len(losses))
    if found.met is not None:
        assert seen[found.met] and (found.met == 0 or not seen[found.met - 1])
    else:
        assert not any(seen.values()) and not seen[len(losses) - 1]


@given(st.integers(2, 100), st.data())
def test_a_search_cut_off_keeps_the_best_that_it_has_seen(layers: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(0, layers - 1))
    patience = data.draw(st.integers(0, most_evaluations(layers)))
    asked, measure = falling(needed)

    def impatient(left_out: int) -> Drop:
        if len(asked) == patience:
            raise Stopped
        return measure(left_out)

    found = search(layers, impatient, 1.0)
    passed = [trial.left_out for trial in found.trials if trial.left_out >= needed]
    assert found.met == (min(passed) if passed else None)
    assert found.stopped == (len(found.trials) == patience and not (passed and min(passed) == needed and done(found)))


def done(found: Search) -> bool:
    return found.met == 0 or any(trial.left_out == (found.met or 0) - 1 for trial in found.trials)


def test_other_errors_are_not_swallowed() -> None:
    def broken(left_out: int) -> Drop:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        search(1, broken, 1.0)


def test_a_network_of_one_layer_is_int8_or_refused() -> None:
    assert search(1, lambda left_out: Drop(0, 0, MANY), 1.0).met == 0
    found = search(1, lambda left_out: Drop(MANY, 0, MANY), 1.0)
    assert (found.met, [trial.left_out for trial in found.trials]) == (None, [0])


def test_each_trial_is_told_and_the_best_has_the_lowest_upper_end() -> None:
    told: list[Trial] = []
    drops = {0: Drop(50, 0, 100), 2: Drop(10, 0, 100), 3: Drop(20, 0, 100)}
    found = search(4, lambda left_out: drops[left_out], 1.0, on_trial=told.append)
    assert tuple(told) == found.trials
    assert found.best == Trial(2, drops[2])


@given(st.floats(0.05, 100))
def test_fewer_pictures_than_said_cannot_show_the_budget_and_as_many_can(allowed: float) -> None:
    least = least_pictures(allowed)
    for labelled in (True, False):
        assert Drop(0, 0, least, labelled).within(allowed)
        assert least == 1 or not Drop(0, 0, least - 1, labelled).within(allowed)


@pytest.mark.parametrize(("allowed", "least"), [(0.5, 765), (1.0, 381), (5.0, 73), (100.0, 1)])
def test_the_pictures_that_a_budget_takes(allowed: float, least: int) -> None:
    assert least_pictures(allowed) == least
    assert least == max(math.ceil(1.959964**2 * (1 - allowed / 100) / (allowed / 100)), 1)


@given(st.integers(1, 2000), st.data())
def test_other_answers_are_never_fewer_than_the_drop_that_labels_would_show(total: int, data: st.DataObject) -> None:
    """Whatever the labels are, a picture that is lost or gained has another answer than before."""
    lost = data.draw(st.integers(0, total))
    gained = data.draw(st.integers(0, total - lost))
    differing = data.draw(st.integers(lost + gained, total))
    labelled, unlabelled = Drop(lost, gained, total), Drop(differing, 0, total, labelled=False)
    assert labelled.points <= unlabelled.points
    assert labelled.interval[1] <= unlabelled.interval[1] + 1e-9
    assert unlabelled.interval[0] >= 0
    low, high = labelled.interval
    assert low <= labelled.points <= high


def test_the_budget_is_met_by_the_upper_end_and_not_by_what_was_seen() -> None:
    seen = Drop(3, 1, 1000)
    assert seen.points == pytest.approx(0.2)
    assert not seen.within(0.5)
    assert 0.5 < seen.interval[1] < 1.0  # of four pairs
    assert Drop(3, 1, 4000).within(0.5)
