"""TensorRT's log: the cause without the noise, each thread its own, and nothing that escapes into C++."""

import threading
from types import SimpleNamespace
from typing import Any

from engineworks.runtime.trt_journal import Journal, listening, shared_logger

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


def test_listening_within_listening_gives_the_outer_journal_back() -> None:
    logger, error = shared_logger(stand_in()), SimpleNamespace(name="ERROR")
    outer, inner = Journal(), Journal()
    with listening(outer):
        with listening(inner):
            logger.log(error, "inner")
        logger.log(error, "outer")
    assert (outer.errors, inner.errors) == (["outer"], ["inner"])


def test_exporting_and_running_share_one_logger() -> None:
    from engineworks.export import trt_journal

    assert trt_journal.shared_logger is shared_logger
