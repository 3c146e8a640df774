"""A ``serve-model`` in a process of its own, for tests: started on a free port, spoken to, ended by its own pid.

Run as a script it is the server; ``SERVE_TEST_DELAY`` makes every run of the network take that many seconds longer, and
``SERVE_TEST_DEAD`` names a file that makes every run fail while it exists, ``SERVE_TEST_CLOCK`` one that holds the
seconds by which the host's clock is off.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


class Running:
    """A server that is up: ``port``, ``process``, and what it has said so far."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str) -> None:
        self.log = folder / f"server-{time.monotonic_ns()}.log"
        command = [sys.executable, __file__, "--port", "0", *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment
            )
        self.port = self._port("listening on https?://", 60.0)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def _port(self, before: str, seconds: float) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(before + r"[\w.\[\]:]*:(\d+)", self.said):
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.stop()
        raise AssertionError(f"the server did not start: {self.said}")

    def grpc_port(self) -> int:
        return self._port("gRPC on ", 10.0)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        body = None if content is None else json.dumps(content).encode()
        status, _, answer = self.ask(method, path, body, headers)
        return status, json.loads(answer)

    @contextmanager
    def raw(self, seconds: float = 15.0) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            yield connection

    def send(self, *parts: bytes) -> int:
        """Send bytes as they are; return the status of the first answer, 0 where the connection was just closed."""
        with self.raw() as connection:
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:
                pass
            return status_of(connection)

    def ready_seconds(self) -> float:
        began = time.perf_counter()
        status, _, _ = self.ask("GET", "/v2/health/ready")
        assert status == 200
        return time.perf_counter() - began

    def memory(self, what: str = "VmRSS") -> int:
        """Bytes of memory, now or (``VmHWM``) at the highest."""
        text = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        found = re.search(rf"{what}:\s+(\d+) kB", text)
        assert found
        return int(found[1]) * 1024

    def end(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Send a signal and wait; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def status_of(connection: socket.socket) -> int:
    """Read the status line of an answer; 0 where there is none."""
    try:
        line = connection.recv(4096)
    except OSError:
        return 0
    found = re.match(rb"HTTP/1\.1 (\d{3})", line)
    return int(found[1]) if found else 0


def _set_clock(file: Path) -> None:
    """Let the wall clock of this process jump as the file says; what asks it again sees the jump."""
    wall, wall_ns = time.time, time.time_ns

    def off() -> float:
        return float(file.read_text("utf-8")) if file.exists() else 0.0

    setattr(time, "time", lambda: wall() + off())  # noqa: B010
    setattr(time, "time_ns", lambda: wall_ns() + int(off() * 1e9))  # noqa: B010


def _patch() -> None:
    if "SERVE_TEST_CLOCK" in os.environ:
        _set_clock(Path(os.environ["SERVE_TEST_CLOCK"]))
    from engineworks.runtime.errors import BackendError
    from engineworks.runtime.session import Session

    delay, dead = float(os.environ.get("SERVE_TEST_DELAY", "0")), os.environ.get("SERVE_TEST_DEAD")
    real: Any = Session.infer

    def infer(self: Session, inputs: Any) -> Any:
        if dead and Path(dead).exists():
            raise BackendError("the device at /dev/somewhere is gone")
        time.sleep(delay)
        return real(self, inputs)

    def warmup(self: Session, runs: int = 2) -> float:
        if dead and Path(dead).exists():
            raise BackendError("the device at /dev/somewhere is gone")
        return 0.0

    if delay or dead:
        setattr(Session, "infer", infer)  # noqa: B010
        setattr(Session, "warmup", warmup)  # noqa: B010


if __name__ == "__main__":
    _patch()
    from engineworks.runtime.serve import main

    sys.exit(main())
