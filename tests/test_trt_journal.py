"""The compiler's log and progress: the cause without the noise, and nothing that escapes into C++."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.export.trt_journal import Journal, Progress, listening, shared_logger

NOISE = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is old)"


def journal(*errors: str) -> Journal:
    made = Journal()
    for message in errors:
        made.record("ERROR", message)
    return made


def test_the_cause_leaves_out_the_lines_that_follow_every_error_without_a_gpu() -> None:
    assert (
        journal("no profile", NOISE, "no profile", NOISE, "invalid\n  profile").cause() == "no profile; invalid profile"
    )


def test_noise_is_told_when_nothing_else_was_said() -> None:
    assert journal(NOISE).cause() == NOISE


def test_silence_is_called_silence() -> None:
    assert journal().cause() == "no reason was logged"


def test_warnings_are_kept_apart_and_chatter_is_dropped() -> None:
    made = journal("bad")
    for severity in ("WARNING", "WARNING", "INFO", "VERBOSE"):
        made.record(severity, f"a {severity}")
    made.record("WARNING", "WARNING The logger passed into createInferBuilder differs from one already registered")
    made.record("INTERNAL_ERROR", "worse")
    assert made.notices() == ("a WARNING",)
    assert made.cause() == "bad; worse"


def test_steps_are_fractions_of_their_phase() -> None:
    seen: list[tuple[str, float | None]] = []
    progress = Progress(lambda phase, done: seen.append((phase, done)), None)
    progress.start("outer", 2)
    progress.start("inner", 0)
    answers = [progress.step("inner", 0), progress.step("outer", 0), progress.step("outer", 1)]
    progress.finish("inner")
    assert answers == [True, True, True]
    assert seen == [("outer", 0.0), ("inner", None), ("inner", None), ("outer", 0.5), ("outer", 1.0), ("inner", 1.0)]


def test_without_callbacks_every_step_goes_on() -> None:
    progress = Progress(None, None)
    progress.start("phase", 1)
    assert progress.step("phase", 0) is True
    assert progress.check() is False


def test_a_wish_to_stop_is_kept_and_told_no_more_progress() -> None:
    seen: list[str] = []
    wishes = iter([False, True, False])
    progress = Progress(lambda phase, _: seen.append(phase), lambda: next(wishes))
    progress.start("phase", 9)
    assert progress.step("phase", 0) is False
    assert progress.step("phase", 1) is False
    progress.finish("phase")
    assert progress.check() is True
    assert seen == ["phase"]


@pytest.mark.parametrize("error", [ValueError("broken bar"), KeyboardInterrupt()])
def test_what_a_callback_raises_stops_the_build_and_is_kept(error: BaseException) -> None:
    def fail(_: str, __: float | None) -> None:
        raise error

    progress = Progress(fail, None)
    progress.start("phase", 1)
    assert progress.step("phase", 0) is False
    assert progress.failure is error


def stand_in() -> Any:
    """A module with an ILogger; hashable, as modules are."""
    module: Any = type("module", (), {"ILogger": type("ILogger", (), {})})
    return module


def test_each_thread_hears_its_own_log_and_every_one_hears_a_strangers() -> None:
    logger = shared_logger(stand_in())
    error = SimpleNamespace(name="ERROR")
    here, there = Journal(), Journal()
    both = threading.Barrier(2, timeout=10)

    def other() -> None:
        with listening(there):
            both.wait()
            logger.log(error, "there")
            both.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with listening(here):
        both.wait()
        logger.log(error, "here")
        stranger = threading.Thread(target=logger.log, args=(error, "strange"))
        stranger.start()
        stranger.join()
        both.wait()
    thread.join()
    logger.log(error, "nobody listens")
    assert sorted(here.errors) == ["here", "strange"]
    assert sorted(there.errors) == ["strange", "there"]


def test_a_module_has_one_logger() -> None:
    module = stand_in()
    assert shared_logger(module) is shared_logger(module)
    assert shared_logger(module) is not shared_logger(stand_in())
