"""Sockets and uvicorn: a Starlette application on an address, until it is told to stop."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from exporter.web.access import CurrentTls
from exporter.web.guard import MAX_HEADER_BYTES

REQUEST_SECONDS = 10.0
"""How long a client may take to begin, until the head of its request is complete."""
PATIENCE_SECONDS = 60.0
"""How long it may take from there on, until it has taken the answer."""
_MOST_CONNECTIONS = 200
"""So that open files are left for the polls and the state, whoever holds connections to us, and memory: an answer that
nobody takes waits in it, though of a scrape only a chunk."""

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})")


class AddressError(ValueError):
    """No address; the text says what was expected."""


def bind(address: str) -> socket.socket:
    """A listening socket for host:port, [v6]:port or :port (every interface); port 0 takes a free one.

    Raises:
        AddressError: it is no such address.
        OSError: the system refuses it; the text says why.
    """
    found = _ADDRESS.fullmatch(address)
    if not found or int(found["port"]) > 65535:
        raise AddressError(f"expected an address such as :10144 or 127.0.0.1:10144, found {address!r}")
    host, port = found["six"] or found["host"] or "", int(found["port"])
    try:
        if not host and socket.has_dualstack_ipv6():
            return _Listener(socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512))
        family = socket.AF_INET6 if found["six"] else socket.AF_INET
        return _Listener(socket.create_server((host, port), family=family, backlog=512))
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # asyncio's and socket's repeat the address
        raise OSError(f"cannot listen on {address}: {reason}") from error


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """Where people reach a listening socket: one on every interface, at localhost."""
    host, port = listener.getsockname()[:2]
    if host in ("::", "0.0.0.0"):  # noqa: S104
        host = "localhost"
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


class _Listener(socket.socket):
    """A listening socket that hangs up on whoever comes while too many are connected, before TLS costs anything."""

    def __init__(self, plain: socket.socket) -> None:
        # without the protocol asyncio leaves Nagle's algorithm on: the last piece of an answer would wait for 40 ms
        super().__init__(plain.family, plain.type, socket.IPPROTO_TCP, fileno=plain.detach())
        self._connected: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, object]:
        connection, address = super().accept()
        self._connected = [one for one in self._connected if one.fileno() >= 0]  # the others have been closed
        if len(self._connected) >= _MOST_CONNECTIONS:
            connection.close()
            raise ConnectionAbortedError  # as if it had gone away by itself, which asyncio expects
        self._connected.append(connection)
        return connection, address


class _Server(uvicorn.Server):
    """uvicorn with a time-out for handshakes, and without signal handlers: it would end the process by the signal, and
    the exporter ends with 0."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, tls: CurrentTls | None) -> None:
        super().__init__(config)
        self._listener = listener
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        listening = await asyncio.get_running_loop().create_server(
            lambda: _Impatient(self.config, self.server_state, app_state={}),
            sock=self._listener,
            ssl=self._tls,  # type: ignore[arg-type]  # asyncio uses no more of a context than this has
            backlog=self.config.backlog,
            ssl_handshake_timeout=REQUEST_SECONDS if self._tls else None,
        )
        self.servers.append(listening)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Impatient(H11Protocol):
    """A connection that is cut when its client dawdles.

    uvicorn itself waits for ever for the rest of a request, and for a client that does not read.
    """

    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        idle = self._is_idle()
        super().data_received(data)
        if idle and not self._is_idle():
            self._begin_again()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._begin_again()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _begin_again(self) -> None:
        self._deadline.cancel()
        self._begin()

    def _begin(self) -> None:
        waiting = self._is_idle() and not self.transport.get_write_buffer_size()
        seconds = REQUEST_SECONDS if waiting else PATIENCE_SECONDS
        self._deadline = self.loop.call_later(seconds, self.transport.abort)


@asynccontextmanager
async def serving(app: Starlette, listener: socket.socket, tls: CurrentTls | None = None) -> AsyncIterator[None]:
    """Serve the application as long as the context lasts."""
    config = uvicorn.Config(
        app,
        http=_Impatient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = _Server(config, listener, tls)
    task = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await task
