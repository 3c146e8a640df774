"""The compiler's progress: passed on, stoppable, and nothing that escapes into C++."""

import pytest

from engineworks.export.trt_journal import Progress


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
