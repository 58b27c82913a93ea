"""Accepts connections, limits their number and enforces timeouts. Independent of paths and responses.

uvicorn has no timeout for an incomplete request, or for a client that does not read its response. If no file descriptor
is available, asyncio retries to accept once per connection in the backlog, and logs a traceback each time.
"""

import asyncio
import resource
import socket
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

REQUEST_SECONDS = 10.0
"""Time limit for a TLS handshake, and then for complete request headers."""
RESPONSE_SECONDS = 60.0
"""Time limit from complete request headers until the client has read the response."""
KEEP_ALIVE_SECONDS = 60
"""How long an idle connection is kept open: longer than most scrape intervals."""
MAX_CONNECTIONS = 1000
"""Upper limit, because each connection uses up to 30 kB of memory."""
MAX_TLS_CONNECTIONS = 200
"""Upper limit with TLS, because asyncio and OpenSSL use 310 kB per connection."""
MAX_STALLED = 10
"""Limit of clients that do not read their response, because each keeps up to 3.5 MB of a scrape in memory."""

_MAX_DESCRIPTORS = 65_536
"""Upper bound for the raised soft limit: in containers, the hard limit can be over a million."""
_RESERVED_DESCRIPTORS = 32
"""For standard streams, event loop, listening sockets, state file, and files that a reload or a scrape reads."""
_DESCRIPTORS_PER_QUERY = 2
"""One for the connection and, while it is opened, one for DNS or a second address."""
_MIN_IDLE_SECONDS = 0.1
"""Minimum wait before an idle connection is closed. A scraper sends its request earlier."""
_RECOVERY_SECONDS = 60.0
"""The recovery is logged if the limit has not been reached for this time."""
_BUFFER = memoryview(bytearray(8 * 1024))
"""Shared by all connections. Parsing a full buffer of 1-byte chunks takes 10 ms."""

_log = structlog.get_logger()


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard limit, and return the new soft limit."""
    soft, hard = (_capped(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft < hard:
        with suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            return hard
    return soft


def _capped(limit: int) -> int:
    return _MAX_DESCRIPTORS if limit == resource.RLIM_INFINITY else min(limit, _MAX_DESCRIPTORS)


def max_connections(descriptors: int, queries: int, *, tls: bool) -> int:
    """Return the limit of client connections if polls send up to `queries` concurrent queries. If there are too few
    descriptors for both, clients get one eighth of the descriptors."""
    available = descriptors - _RESERVED_DESCRIPTORS - _DESCRIPTORS_PER_QUERY * queries
    return min(MAX_TLS_CONNECTIONS if tls else MAX_CONNECTIONS, max(available, descriptors // 8, 2))


class Connections:
    """The open connections of a server, on all its sockets. Above the limit, the connection that has been idle longest
    is closed, so that idle clients do not block a scraper. If no connection is idle, the connection with the oldest
    request in flight is closed."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._waiting: OrderedDict[Connection, float] = OrderedDict()
        """Connections that wait for a handshake or a request, with the start of the wait (time of the event loop)."""
        self._active: OrderedDict[Connection, None] = OrderedDict()
        """Connections with a request in flight."""
        self._stalled: OrderedDict[Connection, None] = OrderedDict()
        """Connections whose client does not read the response."""
        self._limit_reached_at: float | None = None

    async def accept(self, listener: socket.socket, create: Callable[["Connections"], "Connection"]) -> None:
        """Accept connections on a listening socket, until cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            await asyncio.sleep(0)  # let other tasks run between two connections
            try:
                accepted, _ = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no file descriptor is available
                self._limit_reached(str(error.strerror))
                await self._close_oldest()
                await asyncio.sleep(_MIN_IDLE_SECONDS)
                continue
            connection = create(self)
            self._waiting[connection] = loop.time()
            connection.start(accepted)
            await self._enforce_limit()

    def mark_waiting(self, connection: "Connection") -> None:
        """Record that the connection waits for the next request."""
        if connection in self._active:
            del self._active[connection]
            self._waiting[connection] = asyncio.get_running_loop().time()

    def mark_active(self, connection: "Connection") -> None:
        """Record that the connection has a request in flight."""
        if self._waiting.pop(connection, None) is not None:
            self._active[connection] = None

    def mark_stalled(self, connection: "Connection") -> None:
        """Record that the client does not read. Above MAX_STALLED, close the connection that stalled first."""
        self._stalled[connection] = None
        if len(self._stalled) > MAX_STALLED:
            next(iter(self._stalled)).close()

    def mark_reading(self, connection: "Connection") -> None:
        """Record that the client reads again."""
        self._stalled.pop(connection, None)

    def remove(self, connection: "Connection") -> None:
        """Record that the connection is closed."""
        for group in (self._waiting, self._active, self._stalled):
            group.pop(connection, None)

    def close_handshakes(self) -> None:
        """Close connections without a complete handshake. At shutdown, uvicorn closes only established connections."""
        for connection in [waiting for waiting in self._waiting if not waiting.is_established]:
            connection.close()

    async def _enforce_limit(self) -> None:
        limit, loop = self._limit(), asyncio.get_running_loop()
        while len(self._waiting) + len(self._active) > limit:
            self._limit_reached(f"{limit} connections are open")
            await self._close_oldest()
        if self._limit_reached_at is not None and loop.time() > self._limit_reached_at + _RECOVERY_SECONDS:
            self._limit_reached_at = None
            _log.info("connections below the limit again", limit=limit)

    async def _close_oldest(self) -> None:
        """Close the connection that has waited longest or, if no connection waits, the connection with the oldest
        request in flight. If the longest wait is shorter than _MIN_IDLE_SECONDS, sleep for the rest of this time and
        close no connection."""
        now = asyncio.get_running_loop().time()
        since = next(iter(self._waiting.values()), now - _MIN_IDLE_SECONDS)
        if now < since + _MIN_IDLE_SECONDS:
            await asyncio.sleep(since + _MIN_IDLE_SECONDS - now)
        elif oldest := next(iter(self._waiting or self._active), None):
            oldest.close()

    def _limit_reached(self, problem: str) -> None:
        if self._limit_reached_at is None:
            _log.warning("connection limit reached, closing the longest idle connections", problem=problem)
        self._limit_reached_at = asyncio.get_running_loop().time()


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """A connection with time limits for the request and the response."""

    def __init__(self, config: uvicorn.Config, state: ServerState, connections: Connections) -> None:
        super().__init__(config, state, app_state={})
        self._connections = connections
        self._timeout: asyncio.TimerHandle | None = None
        self._is_idle = False
        """Whether no data has arrived since the last response."""

    @property
    def is_established(self) -> bool:
        """Whether the TLS handshake is complete."""
        return bool(self.transport)

    def start(self, accepted: socket.socket) -> None:
        """Start the connection on an accepted socket."""
        self._starting = asyncio.create_task(self._start(accepted))

    def close(self) -> None:
        """Close the connection immediately."""
        self._connections.remove(self)
        if self.transport:
            self.transport.abort()
        else:
            self._starting.cancel()

    async def _start(self, accepted: socket.socket) -> None:
        tls = self.config.ssl
        try:
            with suppress(OSError):
                await self.loop.connect_accepted_socket(
                    lambda: self, accepted, ssl=tls, ssl_handshake_timeout=REQUEST_SECONDS if tls else None
                )
        finally:
            if not self.is_established:
                self._connections.remove(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # same as in uvicorn
        super().connection_made(transport)
        self._set_timeout(REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        if self._timeout:
            self._timeout.cancel()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_BUFFER[:nbytes]))

    def data_received(self, data: bytes) -> None:
        was_idle, self._is_idle, previous = self._is_idle, False, self.cycle
        super().data_received(data)
        if self.cycle is not previous:  # the headers of a request are complete
            self._connections.mark_active(self)
            self._set_timeout(RESPONSE_SECONDS)
        elif was_idle:
            self._set_timeout(REQUEST_SECONDS)

    def on_response_complete(self) -> None:
        previous = self.cycle
        super().on_response_complete()
        if self.cycle is not previous:  # the next request has already arrived
            self._set_timeout(RESPONSE_SECONDS)
        elif self.conn.their_state is h11.IDLE:  # else the request body is incomplete
            self._is_idle = True
            self._connections.mark_waiting(self)
            self._set_timeout(KEEP_ALIVE_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._connections.mark_stalled(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._connections.mark_reading(self)

    def _set_timeout(self, seconds: float) -> None:
        if self._timeout:
            self._timeout.cancel()
        self._timeout = self.loop.call_later(seconds, self.close)
