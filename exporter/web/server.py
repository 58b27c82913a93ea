"""Sockets and uvicorn: a Starlette application on an address, until it is told to stop."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})")


class AddressError(ValueError):
    """An address that cannot be listened on; the text says which and why."""


def bind(address: str) -> socket.socket:
    """A listening socket for host:port, [v6]:port or :port (every interface); port 0 takes a free one.

    Raises:
        AddressError: it is no such address, or the system refuses it.
    """
    found = _ADDRESS.fullmatch(address)
    if not found or int(found["port"]) > 65535:
        raise AddressError(f"expected an address such as :10144 or 127.0.0.1:10144, found {address!r}")
    host, port = found["six"] or found["host"] or "", int(found["port"])
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
        family = socket.AF_INET6 if found["six"] else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror or error}") from error


def url_of(listener: socket.socket) -> str:
    """Where people reach a listening socket: one on every interface, at localhost."""
    host, port = listener.getsockname()[:2]
    if host in ("::", "0.0.0.0"):  # noqa: S104
        return f"http://localhost:{port}"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would end the process by the signal, and the exporter ends with 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    """Serve the application as long as the context lasts."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=2
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
