"""Ctrl-C waits while libraries start, and is not lost."""

import os
import signal
import threading

import pytest

from engineworks.export.interrupts import first_interrupt_asks, interrupts_held_back


def test_an_interrupt_is_raised_at_the_end_and_not_within() -> None:
    before, reached = signal.getsignal(signal.SIGINT), list[int]()

    def start() -> None:
        with interrupts_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(1)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_happens_and_the_handler_is_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_held_back():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_within_goes_through_with_the_handler_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ImportError, match="absent"), interrupts_held_back():
        raise ImportError("absent")
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_leaves_the_process_alone() -> None:
    seen = []

    def work() -> None:
        with interrupts_held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_the_first_interrupt_is_noted_and_the_second_raised() -> None:
    before, reached = signal.getsignal(signal.SIGINT), list[bool]()

    def press() -> None:
        with first_interrupt_asks() as asked:
            reached.append(asked())
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(asked())
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(asked())

    with pytest.raises(KeyboardInterrupt):
        press()
    assert reached == [False, True]
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_no_interrupt_is_noted_and_the_process_left_alone() -> None:
    seen = []

    def work() -> None:
        with first_interrupt_asks() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]
