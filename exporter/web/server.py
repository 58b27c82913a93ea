"""Sockets and uvicorn: a Starlette application on an address, until it is stopped."""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette

from exporter.web.connections import KEEP_ALIVE_SECONDS, MAX_CONNECTIONS, Connection, Connections
from exporter.web.guard import MAX_HEADER_BYTES

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<host>[a-zA-Z0-9._-]*)):(?P<port>[0-9]{1,5})")


class AddressError(ValueError):
    """Not an address; the text says what was expected."""


def bind(address: str) -> socket.socket:
    """A listening socket for host:port, [v6]:port or :port (every interface); port 0 takes a free one.

    Raises:
        AddressError: it is not such an address.
        OSError: the system does not allow it; the text says why.
    """
    found = _ADDRESS.fullmatch(address)
    if not found or int(found["port"]) > 65535:
        raise AddressError(f"expected an address such as :10144 or 127.0.0.1:10144, found {address!r}")
    host, port = found["ipv6"] or found["host"] or "", int(found["port"])
    dual_stack = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack or found["ipv6"] else socket.AF_INET
    try:
        return _with_nodelay(socket.create_server((host, port), family=family, dualstack_ipv6=dual_stack, backlog=512))
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # asyncio's and socket's repeat the address
        raise OSError(f"cannot listen on {address}: {reason}") from error


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The address of a listening socket for people: localhost if it listens on every interface."""
    host, port = listener.getsockname()[:2]
    if host in ("::", "0.0.0.0"):  # noqa: S104
        host = "localhost"
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _with_nodelay(listener: socket.socket) -> socket.socket:
    """The same socket, with its protocol named: without it asyncio leaves Nagle's algorithm on, and the last part of an
    answer would wait for 40 ms."""
    return socket.socket(listener.family, listener.type, socket.IPPROTO_TCP, fileno=listener.detach())


class _Server(uvicorn.Server):
    """uvicorn with our own way to accept connections, and without signal handlers: it would end the process by the
    signal, and the exporter ends with 0."""

    def __init__(self, config: uvicorn.Config, listeners: Sequence[socket.socket], connections: Connections) -> None:
        super().__init__(config)
        self._listeners = listeners
        self._connections = connections
        self._accept_tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._accept_tasks = [
            asyncio.create_task(self._connections.accept(listener, self._create_connection))
            for listener in self._listeners
        ]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accept_tasks:
            task.cancel()
        await asyncio.wait(self._accept_tasks)
        for listener in self._listeners:
            listener.close()
        self._connections.close_handshakes()
        await super().shutdown()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _create_connection(self, connections: Connections) -> Connection:
        return Connection(self.config, self.server_state, connections)


@asynccontextmanager
async def serving(
    app: Starlette,
    *listeners: socket.socket,
    tls: ssl.SSLContext | None = None,
    max_connections: Callable[[], int] = lambda: MAX_CONNECTIONS,
) -> AsyncIterator[None]:
    """Serve the application while the context lasts."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        workers=1,  # without it, uvicorn reads WEB_CONCURRENCY
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ssl_context_factory=(lambda _, __: tls) if tls else None,
    )
    server = _Server(config, listeners, Connections(max_connections))
    task = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await task
