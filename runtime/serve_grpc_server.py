"""gRPC's own server, beside that of HTTP: started before it, ended after it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engineworks.runtime.errors import BackendError
from engineworks.runtime.serve_log import say

_FINISH = 10.0  # seconds


@asynccontextmanager
async def beside(
    host: str, port: int | None, service: Callable[[], Any], limits: tuple[int, int], tls: tuple[str, str] | None
) -> AsyncIterator[None]:
    """Answer gRPC while the block lasts, then finish what is under way; without a port, do nothing.

    Args:
        host: the address.
        port: 0 for a free one, which is printed.
        service: makes what answers.
        limits: bytes of a message, and calls at once.
        tls: certificate and key, as files.

    Raises:
        BackendError: the address is taken, or the certificate cannot be read.
    """
    if port is None:
        yield
        return
    try:
        server, taken = await _started(service(), f"{host}:{port}", limits, tls)
    except (OSError, RuntimeError) as error:
        raise BackendError(f"gRPC cannot listen on {host}:{port} ({error}). Pass another --grpc-port.") from error
    say(f"serve-model: gRPC on {host}:{taken}")
    try:
        yield
    finally:
        await server.stop(_FINISH)


async def _started(service: Any, address: str, limits: tuple[int, int], tls: tuple[str, str] | None) -> Any:
    import grpc

    options = [("grpc.max_receive_message_length", limits[0]), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits[1])
    server.add_generic_rpc_handlers((service.handler(),))
    if tls is None:
        port = server.add_insecure_port(address)
    else:
        pair = (Path(tls[1]).read_bytes(), Path(tls[0]).read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    await server.start()
    return server, port
