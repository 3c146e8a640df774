"""Ask a server on this host whether it is ready: what a container's health check runs, where there is no curl.

``python -m engineworks.runtime.serve_probe`` finds the server by the variables that the server itself reads, and exits
0 where it is ready, 1 where it is not. Readiness is asked without the token.
"""

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

from engineworks.runtime.command import leave

_SECONDS = 3.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(environment: Mapping[str, str] | None = None) -> int:
    """Ask once; return 0 where the server is ready, else 1, and say why not on stderr.

    Args:
        environment: ``SERVE_MODEL_HOST``, ``SERVE_MODEL_PORT`` and ``SERVE_MODEL_TLS_CERT`` are read, with the
            defaults of ``serve-model``; None for the process's own.
    """
    problem = ask(os.environ if environment is None else environment)
    if problem:
        sys.stderr.write(f"serve_probe: {problem}\n")
    return 1 if problem else 0


def ask(environment: Mapping[str, str]) -> str:
    """Return why the server is not ready; empty where it is."""
    host = environment.get("SERVE_MODEL_HOST") or "127.0.0.1"
    port = environment.get("SERVE_MODEL_PORT") or "8000"
    where = _ANYWHERE.get(host, host)
    try:
        connection = _connection(where, int(port), bool(environment.get("SERVE_MODEL_TLS_CERT")))
        try:
            connection.request("GET", "/v2/health/ready")
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{where}:{port} does not answer ({error})"
    return "" if status == 200 else f"{where}:{port} is not ready (status {status})"


def _connection(host: str, port: int, encrypted: bool) -> http.client.HTTPConnection:
    if not encrypted:
        return http.client.HTTPConnection(host, port, timeout=_SECONDS)
    context = ssl.create_default_context()
    context.check_hostname = False  # the server's own host: whoever stands between could as well answer for it
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)


if __name__ == "__main__":
    run()
