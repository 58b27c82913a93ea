"""Serves a Starlette application with uvicorn on listening sockets."""

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
    """An invalid listen address."""


def bind(address: str) -> socket.socket:
    """Open a listening socket for host:port, [ipv6]:port or :port (all interfaces). Port 0 selects a free port.

    Raises:
        AddressError: the address is invalid.
        OSError: the socket cannot be opened.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or int(match["port"]) > 65535:
        raise AddressError(f"expected an address such as :10144 or 127.0.0.1:10144, found {address!r}")
    host, port = match["ipv6"] or match["host"] or "", int(match["port"])
    dual_stack = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack or match["ipv6"] else socket.AF_INET
    try:
        return _with_nodelay(socket.create_server((host, port), family=family, dualstack_ipv6=dual_stack, backlog=512))
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # socket repeats the address in its message
        raise OSError(f"cannot listen on {address}: {reason}") from error


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """Return the URL of a listening socket, with localhost if the socket listens on all interfaces."""
    host, port = listener.getsockname()[:2]
    if host in ("::", "0.0.0.0"):  # noqa: S104
        host = "localhost"
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _with_nodelay(listener: socket.socket) -> socket.socket:
    """Set the protocol of the socket to TCP, so that asyncio sets TCP_NODELAY on connections. Nagle's algorithm delays
    the end of a response by 40 ms."""
    return socket.socket(listener.family, listener.type, socket.IPPROTO_TCP, fileno=listener.detach())


class _Server(uvicorn.Server):
    """uvicorn with `Connections`, and without the signal handlers of uvicorn. After a graceful stop, these handlers
    raise the signal again, so that the exit status is not 0."""

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
    """Serve the application until the context exits."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        workers=1,  # the default is the environment variable WEB_CONCURRENCY
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
