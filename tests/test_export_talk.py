"""What the command says: on stderr, and with ``quiet`` only what must not be missed."""

from typing import Any

import pytest

from engineworks.export.talk import Talk


def said(capsys: pytest.CaptureFixture[str], *, quiet: bool, lines: list[tuple[Any, ...]]) -> str:
    with Talk(quiet=quiet) as talk:
        for line in lines:
            talk.say(*line)
    out, err = capsys.readouterr()
    assert out == "", "stdout is for the result"
    return err


def test_each_step_is_one_line_without_colours_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, quiet=False, lines=[("build", "60.0 k parameters"), ("graph", "33 nodes")])
    assert err == "build              60.0 k parameters\ngraph              33 nodes\n"


def test_quiet_keeps_what_must_not_be_missed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        ("weights", "UNTRAINED (seed 0): its answers mean nothing.", True),
        ("graph", "33 nodes"),
        ("engine", "none: tensorrt is not installed", True),
        ("cache", "not kept: No space left on device", True),
    ]
    err = said(capsys, quiet=True, lines=lines)
    assert [line.split()[0] for line in err.splitlines()] == ["weights", "engine", "cache"]


def test_a_bar_is_only_drawn_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Talk() as talk:
        talk.download(10, 100)
        talk.download(100, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err


def test_quiet_draws_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Talk(quiet=True) as talk:
        talk.download(10, 100)
    assert capsys.readouterr() == ("", "")
