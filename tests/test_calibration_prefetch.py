"""Items come in order from another thread, a bounded number ahead; errors and early leaving end it."""

import threading
import time
from collections.abc import Iterator

import pytest

from engineworks.calibration.prefetch import prefetch


def running() -> bool:
    return "prefetch" in {thread.name for thread in threading.enumerate()}


def test_all_items_come_in_their_order() -> None:
    assert list(prefetch(range(100), 3)) == list(range(100))
    assert not running()


def test_nothing_comes_of_nothing() -> None:
    assert list(prefetch([])) == []


def test_no_more_than_the_depth_waits() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    reader = prefetch(items(), 2)
    assert next(reader) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one read, two that wait, one being put
    reader.close()
    assert not running()
    assert len(made) <= 4


def test_an_error_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    reader = prefetch(items())
    assert [next(reader), next(reader)] == [1, 2]
    with pytest.raises(KeyError, match=r"third"):
        next(reader)
    assert not running()
