"""Accepts connections, and bounds how many there are and how long a client may take. Knows no path and no answer.

uvicorn waits without limit for the rest of a request, and for a client that does not read its answer. If no file
descriptor is left, asyncio tries to accept as often as the backlog is long, and logs a traceback each time.
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
"""How long a client may take for a TLS handshake, and then until the headers of its request are complete."""
RESPONSE_SECONDS = 60.0
"""How long it may take from there until it has read the answer."""
KEEP_ALIVE_SECONDS = 60
"""How long a connection without a request stays open: longer than most scrape intervals."""
MAX_CONNECTIONS = 1000
"""Also if more descriptors are free: a connection takes up to 30 kB of memory."""
MAX_TLS_CONNECTIONS = 200
"""The same with TLS, where asyncio and OpenSSL take 310 kB for each."""
MAX_STALLED = 10
"""Clients that do not read their answers: for each, up to 3.5 MB of a scrape wait in memory."""

_MAX_DESCRIPTORS = 65_536
"""What the soft limit is raised to at most; containers have a million and more."""
_RESERVED_DESCRIPTORS = 32
"""Descriptors for all that is neither a client nor a poll: standard streams, event loop, listening sockets, state file,
and the files that a reload or a scrape reads."""
_DESCRIPTORS_PER_QUERY = 2
"""Its connection; while it connects, one for DNS or for a second address."""
_MIN_IDLE_SECONDS = 0.1
"""How long a connection may wait for its request at least: a scraper sends it at once."""
_RECOVERY_SECONDS = 60.0
"""After so long without a connection that had to be closed, the log says that the crowd is gone."""
_BUFFER = memoryview(bytearray(8 * 1024))
"""Shared by all connections. To parse so many bytes of a body in chunks of one byte takes 10 ms."""

_log = structlog.get_logger()


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard one; how many the process may have then."""
    soft, hard = (_capped(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft < hard:
        with suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            return hard
    return soft


def _capped(limit: int) -> int:
    return _MAX_DESCRIPTORS if limit == resource.RLIM_INFINITY else min(limit, _MAX_DESCRIPTORS)


def max_connections(descriptors: int, queries: int, *, tls: bool) -> int:
    """How many clients may be connected while polls send so many queries at once. Where the descriptors are too few for
    both, clients get an eighth of them."""
    available = descriptors - _RESERVED_DESCRIPTORS - _DESCRIPTORS_PER_QUERY * queries
    return min(MAX_TLS_CONNECTIONS if tls else MAX_CONNECTIONS, max(available, descriptors // 8, 2))


class Connections:
    """The open connections of one server, on all its sockets. Above the limit, the connection that has waited longest
    for a request is closed: many that send none do not shut out a scraper."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._waiting: OrderedDict[Connection, float] = OrderedDict()
        """For a handshake or a request, with the loop's time when they started to wait."""
        self._active: OrderedDict[Connection, None] = OrderedDict()
        """Those whose request is being answered."""
        self._stalled: OrderedDict[Connection, None] = OrderedDict()
        """Those whose client does not read."""
        self._limit_reached_at: float | None = None

    async def accept(self, listener: socket.socket, create: Callable[["Connections"], "Connection"]) -> None:
        """Accept connections on a listening socket, until cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            await asyncio.sleep(0)  # others have their turn between two connections
            try:
                accepted, _ = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no file descriptor is left
                self._limit_reached(str(error.strerror))
                await self._close_longest_idle()
                await asyncio.sleep(_MIN_IDLE_SECONDS)
                continue
            connection = create(self)
            self._waiting[connection] = loop.time()
            connection.start(accepted)
            await self._enforce_limit()

    def mark_waiting(self, connection: "Connection") -> None:
        """Note that it waits for another request."""
        if self._active.pop(connection, self) is not self:
            self._waiting[connection] = asyncio.get_running_loop().time()

    def mark_active(self, connection: "Connection") -> None:
        """Note that its request is being answered."""
        if self._waiting.pop(connection, None) is not None:
            self._active[connection] = None

    def mark_stalled(self, connection: "Connection") -> None:
        """Note that its client does not read now."""
        self._stalled[connection] = None
        if len(self._stalled) > MAX_STALLED:
            next(iter(self._stalled)).close()

    def mark_reading(self, connection: "Connection") -> None:
        """Note that its client reads again."""
        self._stalled.pop(connection, None)

    def remove(self, connection: "Connection") -> None:
        """Note that it is closed."""
        for group in (self._waiting, self._active, self._stalled):
            group.pop(connection, None)

    def close_handshakes(self) -> None:
        """Close those that uvicorn does not know yet, for a stop."""
        for connection in [waiting for waiting in self._waiting if not waiting.is_established]:
            connection.close()

    async def _enforce_limit(self) -> None:
        limit, loop = self._limit(), asyncio.get_running_loop()
        while len(self._waiting) + len(self._active) > limit:
            self._limit_reached(f"{limit} connections are open")
            await self._close_longest_idle()
        if self._limit_reached_at is not None and loop.time() > self._limit_reached_at + _RECOVERY_SECONDS:
            self._limit_reached_at = None
            _log.info("connections within the limit again", limit=limit)

    async def _close_longest_idle(self) -> None:
        """Close the one that has waited longest, or that has been answered for longest if none waits. If none has
        waited long enough, wait for that and close none."""
        now = asyncio.get_running_loop().time()
        since = next(iter(self._waiting.values()), now - _MIN_IDLE_SECONDS)
        if now < since + _MIN_IDLE_SECONDS:
            await asyncio.sleep(since + _MIN_IDLE_SECONDS - now)
        elif oldest := next(iter(self._waiting or self._active), None):
            oldest.close()

    def _limit_reached(self, problem: str) -> None:
        if self._limit_reached_at is None:
            _log.warning("too many connections, closing those that wait longest for a request", problem=problem)
        self._limit_reached_at = asyncio.get_running_loop().time()


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """A connection that is closed when its client takes too long."""

    def __init__(self, config: uvicorn.Config, state: ServerState, connections: Connections) -> None:
        super().__init__(config, state, app_state={})
        self._connections = connections
        self._timeout: asyncio.TimerHandle | None = None
        self._is_idle = False
        """Whether nothing came since the last answer."""

    @property
    def is_established(self) -> bool:
        """Whether the TLS handshake is complete."""
        return bool(self.transport)

    def start(self, accepted: socket.socket) -> None:
        """Start the connection on an accepted socket."""
        self._starting = asyncio.create_task(self._start(accepted))

    def close(self) -> None:
        """Close it at once."""
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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
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
        if self.cycle is not previous:  # another request was there already
            self._set_timeout(RESPONSE_SECONDS)
        elif self.conn.their_state is h11.IDLE:  # else the rest of the request's body is still to come
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
