"""The batcher: no delay when idle, one batch of what piled up, nothing lost, doubled or out of order."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.runtime import BackendError, DeadlineError, QueueFullError
from engineworks.runtime.batcher import Ask, Batcher
from engineworks.runtime.stats import Tally

Array = npt.NDArray[Any]
PATIENCE = 30  # seconds, for what takes microseconds: only a hang reaches it


class Backend:
    """A backend that doubles its rows, keeps what it saw, and stands still while its gate is shut."""

    def __init__(self, *, shut: bool = False, bad: frozenset[int] = frozenset()) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.entered, self.bad = threading.Event(), threading.Semaphore(0), bad
        self.error: BaseException = BackendError("bad row")
        if not shut:
            self.gate.set()

    def __call__(self, arrays: dict[str, Array], rows: int) -> list[Array]:
        self.batches.append([int(value) for value in arrays["x"][:, 0]])
        assert len(arrays["x"]) == rows
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if self.bad & set(self.batches[-1]):
            raise self.error
        return [arrays["x"] * 2]


Make = Callable[..., Batcher]


@pytest.fixture
def make() -> Iterator[Make]:
    """A batcher over a backend, closed at the end whatever happens."""
    made: list[tuple[Batcher, Backend]] = []

    def build(backend: Backend, **options: Any) -> Batcher:
        settings: dict[str, Any] = {"largest": 4, "joins": True, "capacity": 100, "workers": 1, "tally": Tally()}
        batcher = Batcher(backend, **settings | options)
        made.append((batcher, backend))
        return batcher

    yield build
    for batcher, backend in made:
        backend.gate.set()
        batcher.close()


def rows(*values: int) -> dict[str, Array]:
    return {"x": np.array(values, np.int64)[:, None]}


def value(future: "Future[Any]") -> list[int]:
    return [int(number) for number in future.result(PATIENCE)[0][:, 0]]


def busy(make: Make, **options: Any) -> tuple[Backend, Batcher, "Future[Any]"]:
    """A batcher of one worker that stands in the run of its first request, 0."""
    backend = Backend(shut=True, bad=options.pop("bad", frozenset()))
    batcher = make(backend, **options)
    first = batcher.submit(rows(0), 1)
    assert backend.entered.acquire(timeout=PATIENCE)
    return backend, batcher, first


def test_an_idle_batcher_runs_a_request_at_once_and_alone(make: Make) -> None:
    backend = Backend()
    batcher = make(backend)
    for number in range(5):
        assert value(batcher.submit(rows(number), 1)) == [2 * number]
    assert backend.batches == [[number] for number in range(5)]


def test_what_piled_up_leaves_as_one_batch_in_order(make: Make) -> None:
    backend, batcher, first = busy(make, largest=8)
    waiting = [batcher.submit(rows(number), 1) for number in range(1, 7)]
    backend.gate.set()
    assert [value(future) for future in (first, *waiting)] == [[2 * number] for number in range(7)]
    assert backend.batches == [[0], [1, 2, 3, 4, 5, 6]]


def test_no_batch_is_larger_than_the_largest_and_none_overtakes(make: Make) -> None:
    backend, batcher, _ = busy(make, largest=4)
    waiting = [batcher.submit(rows(*group), len(group)) for group in ([1, 2], [3], [4, 5, 6], [7], [8, 9])]
    backend.gate.set()
    assert [value(future) for future in waiting] == [[2, 4], [6], [8, 10, 12], [14], [16, 18]]
    assert backend.batches == [[0], [1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_requests_of_a_fixed_batch_share_none(make: Make) -> None:
    backend, batcher, _ = busy(make, joins=False)
    waiting = [batcher.submit(rows(number), 1) for number in (1, 2)]
    backend.gate.set()
    assert [value(future) for future in waiting] == [[2], [4]]
    assert backend.batches == [[0], [1], [2]]


def test_rows_of_another_shape_start_a_batch_of_their_own(make: Make) -> None:
    backend, batcher, _ = busy(make)
    wide = {"x": np.ones((1, 3), np.int64)}
    waiting = [batcher.submit(arrays, 1) for arrays in (rows(1), wide, rows(2))]
    backend.gate.set()
    assert [future.result(PATIENCE)[0].shape for future in waiting] == [(1, 1), (1, 3), (1, 1)]
    assert len(backend.batches) == 4


def test_answers_own_their_memory(make: Make) -> None:
    backend, batcher, _ = busy(make)
    waiting = [batcher.submit(rows(number), 1) for number in (1, 2)]
    backend.gate.set()
    assert all(future.result(PATIENCE)[0].base is None for future in waiting)


def test_the_future_holds_what_finish_makes(make: Make) -> None:
    future = make(Backend()).submit(rows(3), 1, lambda outputs: f"{outputs[0].item()}!")
    assert future.result(PATIENCE) == "6!"


def test_two_workers_have_two_batches_under_way(make: Make) -> None:
    backend = Backend(shut=True)
    batcher = make(backend, workers=2)
    futures = []
    for number in (1, 2):
        futures.append(batcher.submit(rows(number), 1))
        assert backend.entered.acquire(timeout=PATIENCE)
    backend.gate.set()
    assert [value(future) for future in futures] == [[2], [4]]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 3), st.integers(0, 2**32))
def test_whatever_comes_in_every_row_is_answered_once_and_by_its_own_answer(
    sizes: list[int], workers: int, seed: int
) -> None:
    backend, tally = Backend(), Tally()
    batcher = Batcher(backend, largest=4, joins=True, capacity=10_000, workers=workers, tally=tally)
    numbers = itertools.count()
    requests = [[next(numbers) for _ in range(size)] for size in sizes]
    random.Random(seed).shuffle(requests)
    answers: dict[int, list[int]] = {}

    def send(part: list[list[int]]) -> None:
        for request in part:
            answers[request[0]] = value(batcher.submit(rows(*request), len(request)))

    threads = [threading.Thread(target=send, args=(requests[start::3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert answers == {request[0]: [2 * number for number in request] for request in requests}
    assert sorted(number for batch in backend.batches for number in batch) == list(range(sum(sizes)))
    assert max(map(len, backend.batches)) <= 4


# --- cancellation and deadlines


def test_a_request_cancelled_while_it_waits_is_never_run(make: Make) -> None:
    tally = Tally()
    backend, batcher, _ = busy(make, tally=tally)
    waiting = [batcher.submit(rows(number), 1) for number in (1, 2, 3)]
    assert waiting[1].cancel()
    backend.gate.set()
    assert [value(waiting[0]), value(waiting[2])] == [[2], [6]]
    with pytest.raises(CancelledError):
        waiting[1].result(PATIENCE)
    assert backend.batches == [[0], [1, 3]]
    assert tally.counts["cancelled"] == 1


def test_a_request_that_is_under_way_cannot_be_cancelled(make: Make) -> None:
    backend, _, first = busy(make)
    assert not first.cancel()
    backend.gate.set()
    assert value(first) == [0]


def test_a_request_whose_time_passed_in_the_queue_is_told_and_not_run(make: Make) -> None:
    now, tally = [100.0], Tally()
    backend, batcher, _ = busy(make, clock=lambda: now[0], tally=tally)
    waiting = [batcher.submit(rows(number), 1, timeout=timeout) for number, timeout in ((1, 5.0), (2, 10.0), (3, None))]
    now[0] = 105.0
    backend.gate.set()
    assert [value(waiting[1]), value(waiting[2])] == [[4], [6]]
    with pytest.raises(DeadlineError, match=r"^submit: the request's time passed while it waited; it was not run\.$"):
        waiting[0].result(PATIENCE)
    assert backend.batches == [[0], [2, 3]]
    assert tally.counts["expired"] == 1


# --- a full queue


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(make: Make) -> None:
    tally = Tally()
    backend, batcher, first = busy(make, capacity=2, tally=tally)
    waiting = [batcher.submit(rows(number), 1) for number in (1, 2)]
    with pytest.raises(QueueFullError) as caught:
        batcher.submit(rows(3), 1)
    assert str(caught.value) == "submit: 2 requests wait already. Try again when some are done."
    assert (len(batcher), tally.counts["refused"]) == (2, 1)
    backend.gate.set()
    assert [value(future) for future in (first, *waiting)] == [[0], [2], [4]]
    assert value(batcher.submit(rows(3), 1)) == [6]


def test_a_cancelled_request_makes_room(make: Make) -> None:
    backend, batcher, _ = busy(make, capacity=1)
    batcher.submit(rows(1), 1).cancel()
    kept = batcher.submit(rows(2), 1)
    backend.gate.set()
    assert value(kept) == [4]


# --- failures


def test_a_bad_request_fails_alone(make: Make) -> None:
    backend, batcher, first = busy(make, bad=frozenset({2}))
    waiting = [batcher.submit(rows(number), 1) for number in (1, 2, 3)]
    backend.gate.set()
    assert [value(future) for future in (first, waiting[0], waiting[2])] == [[0], [2], [6]]
    with pytest.raises(BackendError, match=r"^bad row$"):
        waiting[1].result(PATIENCE)
    assert backend.batches == [[0], [1, 2, 3], [1], [2], [3]]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("odd"), "RuntimeError: odd"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
    ],
)
def test_whatever_is_raised_becomes_our_own_error_and_the_worker_works_on(
    make: Make, error: BaseException, told: str
) -> None:
    backend = Backend(bad=frozenset({1}))
    backend.error = error
    batcher = make(backend)
    failed = batcher.submit(rows(1), 1)
    with pytest.raises(BackendError) as caught:
        failed.result(PATIENCE)
    assert str(caught.value) == f"submit: the request could not be run ({told}). Call infer() to see it alone."
    assert caught.value.__cause__ is error
    assert value(batcher.submit(rows(2), 1)) == [4]


def test_an_error_in_finish_fails_its_own_request_alone(make: Make) -> None:
    backend, batcher, _ = busy(make)

    def raises(outputs: list[Array]) -> None:
        raise RuntimeError("no device")

    bad, good = batcher.submit(rows(1), 1, raises), batcher.submit(rows(2), 1)
    backend.gate.set()
    assert value(good) == [4]
    with pytest.raises(BackendError, match="RuntimeError: no device"):
        bad.result(PATIENCE)


@pytest.mark.parametrize("error", [RuntimeError("theirs"), SystemExit(1)])
def test_a_callback_that_raises_ends_nothing_and_is_logged(
    make: Make, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    backend, batcher, _ = busy(make)

    def raises(future: "Future[Any]") -> None:
        raise error

    waiting = [batcher.submit(rows(number), 1) for number in (1, 2)]
    waiting[0].add_done_callback(raises)
    backend.gate.set()
    assert value(waiting[1]) == [4]
    assert value(batcher.submit(rows(3), 1)) == [6]
    assert "callback" in caplog.text


def test_an_error_between_two_requests_is_told_and_survived(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, batcher, _ = busy(make)
    waiting = [batcher.submit(rows(number), 1) for number in (1, 2)]
    refuse, failures = batcher._refuse, [MemoryError()]

    def once(late: list[Any]) -> None:
        if failures:
            raise failures.pop()
        refuse(late)

    monkeypatch.setattr(batcher, "_refuse", once)
    backend.gate.set()
    for future in waiting:
        with pytest.raises(BackendError, match="out of memory"):
            future.result(PATIENCE)
    assert value(batcher.submit(rows(3), 1)) == [6]


def test_a_worker_that_died_is_replaced(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    batcher = make(backend)
    work = batcher._work
    monkeypatch.setattr(batcher, "_work", lambda: None)
    lost = batcher.submit(rows(1), 1)
    batcher._threads[0].join()
    monkeypatch.setattr(batcher, "_work", work)
    assert value(batcher.submit(rows(2), 1)) == [4]
    assert value(lost) == [2]


def test_a_thread_that_cannot_start_is_our_own_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = make(Backend())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BackendError, match=r"^submit: no thread can be started \(can't start new thread\)"):
            batcher.submit(rows(1), 1)
    assert len(batcher) == 0
    assert value(batcher.submit(rows(1), 1)) == [2]


# --- closing


def test_closing_finishes_what_was_taken_and_refuses_more(make: Make) -> None:
    backend, batcher, first = busy(make, largest=2)
    waiting = [batcher.submit(rows(number), 1) for number in (1, 2, 3)]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while not batcher._closed:
        closer.join(0.001)
    with pytest.raises(BackendError, match="is closed"):
        batcher.submit(rows(9), 1)
    assert not first.done()
    backend.gate.set()
    closer.join(PATIENCE)
    assert [value(future) for future in (first, *waiting)] == [[0], [2], [4], [6]]


def test_closing_again_and_closing_unused_do_nothing(make: Make) -> None:
    for used in (False, True):
        batcher = make(Backend())
        if used:
            value(batcher.submit(rows(1), 1))
        batcher.close()
        batcher.close()
        assert not any(thread.is_alive() for thread in batcher._threads)


def test_a_callback_may_close_and_submit(make: Make) -> None:
    backend, batcher, first = busy(make)
    seen: Future[Any] = Future()

    def closing(future: "Future[Any]") -> None:
        inner = batcher.submit(rows(5), 1)
        batcher.close()
        seen.set_result(inner)

    first.add_done_callback(closing)
    backend.gate.set()
    assert value(seen.result(PATIENCE)) == [10]


def test_after_a_fork_the_child_lets_go_without_taking_a_lock(make: Make) -> None:
    backend, batcher, first = busy(make)
    with batcher._lock:  # another thread of the parent holds it when the fork comes
        child = Batcher.__new__(Batcher)
        child.__dict__.update(batcher.__dict__)
        child.abandon()
        with pytest.raises(BackendError, match="is closed"):
            child.submit(rows(1), 1)
        child.close()
    backend.gate.set()
    assert value(first) == [0]


def test_what_was_gathered_already_leaves_as_one_batch_from_an_idle_batcher(make: Make) -> None:
    backend = Backend()
    futures = make(backend, workers=3).submit_all([Ask(rows(number), 1, list) for number in range(4)])
    assert [value(future) for future in futures] == [[0], [2], [4], [6]]
    assert backend.batches == [[0, 1, 2, 3]]


def test_more_than_fits_one_batch_leaves_as_several_and_a_bad_one_fails_alone(make: Make) -> None:
    backend = Backend(bad=frozenset({5}))
    futures = make(backend).submit_all([Ask(rows(number), 1, list) for number in range(6)])
    assert [value(future) for future in futures[:5]] == [[0], [2], [4], [6], [8]]
    with pytest.raises(BackendError, match="bad row"):
        futures[5].result(PATIENCE)


def test_of_what_was_gathered_all_is_queued_or_nothing(make: Make) -> None:
    backend, batcher, first = busy(make, capacity=3)
    with pytest.raises(QueueFullError):
        batcher.submit_all([Ask(rows(number), 1, list) for number in range(1, 5)])
    assert len(batcher) == 0
    late = batcher.submit_all([Ask(rows(1), 1, list, timeout=0.0), Ask(rows(2), 1, list)])
    backend.gate.set()
    assert (value(first), value(late[1])) == ([0], [4])
    with pytest.raises(DeadlineError):
        late[0].result(PATIENCE)
