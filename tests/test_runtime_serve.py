"""The command ``serve-model``: its options from three places, and how it ends where it cannot start."""

import socket
from pathlib import Path

import click
import pytest

from engineworks.runtime import serve
from engineworks.runtime.serve_limits import MB
from engineworks.runtime.serve_run import Settings


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that the command would serve with; nothing is started."""
    found: list[Settings] = []

    def keep(settings: Settings) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr(serve, "serve", keep)
    return found


def test_only_this_host_is_served_and_nothing_is_controlled_unless_asked(taken: list[Settings]) -> None:
    assert serve.main(["a-bundle"]) == 0
    found = taken[0]
    assert (found.host, found.port, found.control, found.watch, found.token) == ("127.0.0.1", 8000, False, False, None)
    assert (found.limits.body, found.limits.json, found.limits.memory) == (64 * MB, 4 * MB, 512 * MB)


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    taken: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nhost = "::1"\nmax-queue = 3\nwatch = true\n', "utf-8")
    monkeypatch.setenv("SERVE_MODEL_PORT", "2")
    monkeypatch.setenv("SERVE_MODEL_MAX_QUEUE", "4")
    assert serve.main(["x", "--config", str(file), "--max-queue", "5"]) == 0
    assert (taken[0].port, taken[0].host, taken[0].opening.queue, taken[0].watch) == (2, "::1", 5, True)


def test_engines_are_built_where_that_is_asked_and_kept_where_it_is_said(
    taken: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path))
    for more in ([], ["--build-engines"], ["--build-engines", "--engine-cache", "here"]):
        assert serve.main(["x", *more]) == 0
    assert [one.engines for one in taken] == [None, tmp_path / "engines", Path("here")]


def test_a_user_without_a_cache_folder_must_name_one(
    taken: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "cache_folder", lambda: None)
    assert serve.main(["x", "--build-engines"]) == 1
    assert "Pass --engine-cache DIR" in capsys.readouterr().err and not taken


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected a BUNDLE"),
        (["x", "--port", "70000"], "70000"),
        (["x", "--tls-cert", "a.pem"], "go together"),
        (["x", "--engine-cache", "d"], "nothing is kept there without --build-engines"),
        (["x", "--build-engines", "--strict"], "--build-engines: --strict contradicts it"),
        (["x", "--build-engines", "--backend", "rtx"], "--build-engines: --backend contradicts it"),
        (["x", "--build-engines", "--device", "cpu"], "--build-engines: --device cpu contradicts it"),
        (["x", "--max-memory-mb", "8"], "at least --max-body-mb"),
        (["x", "--config", "nowhere.toml"], "cannot be read"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_two(
    taken: list[Settings], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert serve.main(arguments) == 2
    assert told in capsys.readouterr().err and not taken


def test_a_file_with_an_option_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("prot = 1\n", "utf-8")
    assert serve.main(["x", "--config", str(file)]) == 2
    assert "knows no prot" in capsys.readouterr().err


def test_an_empty_token_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("\n", "utf-8")
    assert serve.main(["x", "--token-file", str(tmp_path / "token")]) == 1
    assert "is empty" in capsys.readouterr().err


def test_what_is_no_bundle_ends_it_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    assert serve.main([str(tmp_path), "--port", "0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_address_that_is_taken_ends_it_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], served_bundle: Path
) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert serve.main([str(served_bundle), "--port", str(other.getsockname()[1])]) == 1
    assert "Pass another --port" in capsys.readouterr().err


def test_every_option_says_what_it_is() -> None:
    command = serve._command
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert len(options) > 20 and all(one.help for one in options if one.name != "backend")
