"""A container's health check, asked of servers that are ready, that are not, and that are not there."""

import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engineworks.runtime import serve_probe


@contextmanager
def answering(status: int, certificate: Path | None = None) -> Iterator[int]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    asked: list[str] = []
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.timeout = 20.0
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        yield server.server_address[1]
        thread.join(20.0)
    assert asked == ["/v2/health/ready"]


def test_a_server_that_is_ready_is_found_ready(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200) as port:
        assert serve_probe.main({"SERVE_MODEL_PORT": str(port)}) == 0
    assert capsys.readouterr().err == ""


def test_an_address_that_means_everywhere_is_asked_at_home() -> None:
    with answering(200) as port:
        assert serve_probe.main({"SERVE_MODEL_HOST": "0.0.0.0", "SERVE_MODEL_PORT": str(port)}) == 0


def test_a_server_that_drains_is_not_ready_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(503) as port:
        assert serve_probe.main({"SERVE_MODEL_PORT": str(port)}) == 1
    assert capsys.readouterr().err == f"serve_probe: 127.0.0.1:{port} is not ready (status 503)\n"


def test_where_nobody_listens_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound and not listening: no other process can have it
        taken.bind(("127.0.0.1", 0))
        assert serve_probe.main({"SERVE_MODEL_PORT": str(taken.getsockname()[1])}) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_port_that_is_none_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_probe.main({"SERVE_MODEL_PORT": "http"}) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_server_with_a_certificate_is_asked_by_https(tmp_path: Path) -> None:
    file = tmp_path / "own.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=elsewhere -keyout KEY -out CERT"
    parts = [{"KEY": str(tmp_path / "key"), "CERT": str(tmp_path / "cert")}.get(part, part) for part in command.split()]
    try:
        subprocess.run(parts, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    file.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "cert").read_bytes())
    with answering(200, file) as port:
        given = {"SERVE_MODEL_PORT": str(port), "SERVE_MODEL_TLS_CERT": str(file)}
        assert serve_probe.main(given) == 0


def test_as_a_command_it_exits_with_the_answer() -> None:
    with answering(200) as port:
        done = subprocess.run(
            [sys.executable, "-m", "engineworks.runtime.serve_probe"],
            env=os.environ | {"SERVE_MODEL_PORT": str(port)},
            check=False,
            capture_output=True,
        )
    assert (done.returncode, done.stderr) == (0, b"")
