"""Commands end as they should, and progress is for terminals alone."""

import io
import subprocess
import sys
from typing import Any

import click
import pytest

from engineworks.runtime import InputError
from engineworks.runtime.command import DeviceType, Progress, duration, status_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def command(body: Any) -> click.Command:
    return click.Command("x", callback=body)


def raising(error: BaseException) -> Any:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raising(InputError("what, expected, got.")), 1, "x-model: what, expected, got.\n"),
        (raising(click.UsageError("not so")), 2, "Error: not so\n"),
        (raising(KeyboardInterrupt()), 130, ""),
        (raising(click.Abort()), 130, ""),
    ],
)
def test_a_command_ends_with_its_status_in_one_line(
    capsys: pytest.CaptureFixture[str], body: Any, status: int, told: str
) -> None:
    assert status_of(command(body), "x-model", []) == status
    err = capsys.readouterr().err
    assert err.endswith(told) and "Traceback" not in err
    assert bool(err.strip()) == bool(told)


def test_progress_tells_what_is_left_and_takes_its_line_away() -> None:
    now = iter([0.0, 0.05, 10.0, 10.1, 20.0])
    terminal = Terminal()
    progress = Progress("net", 400, terminal, lambda: next(now))
    for done in (1, 100, 101, 200):
        progress.at(done)
    progress.close()
    assert terminal.getvalue() == "\r\x1b[Knet: 100 of 400, 30 s left\r\x1b[Knet: 200 of 400, 20 s left\r\x1b[K"


def test_progress_is_silent_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress("net", 2, stream, iter([0.0, 9.0]).__next__)
    progress.at(1)
    progress.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_times_are_written_as_people_say_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize("name", ["bench", "evaluate", "host"])
def test_every_command_helps_without_loading_anything_heavy(name: str) -> None:
    script = (
        f"import sys; from engineworks.runtime.{name} import main; assert main(['--help']) == 0;"
        "assert not {'torch', 'onnx', 'onnxruntime', 'PIL'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_a_device_is_taken_as_it_is_written(device: str) -> None:
    assert DeviceType().convert(device, None, None) == device


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"])
def test_what_is_no_device_is_wrong_usage(device: str) -> None:
    with pytest.raises(click.UsageError):
        DeviceType().convert(device, None, None)
