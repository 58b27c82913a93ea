"""An httpx transport that never reuses a connection with unexpected data.

httpcore keeps bytes that arrive after a response, and parses them as the response to the next request, which can be for
another space. This transport does not reuse a connection that received unexpected bytes, whether they are in a buffer
of h11, TLS, asyncio or the kernel. It parses each response with h11 to find its end.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h11
import httpcore
import httpx

NEW_CONNECTION = "new_connection"
"""Name of an httpx request extension: if set, send the request on a new connection, and do not reuse older ones."""
_MAX_IDLE_CONNECTIONS = 20
_IDLE_SECONDS = 4.0
"""Servers close idle connections after 5 s or later."""
_READ_BYTES = 64 * 1024
_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


class IdleConnectionClosed(httpx.ReadError):
    """A reused connection was closed before the first byte of the response. The server closed the connection while it
    was idle, so a request on a new connection can succeed."""


class _IdleConnectionClosed(httpcore.ReadError):
    """The same error inside httpcore, which requires its own error types."""


class Transport(httpx.AsyncBaseTransport):
    """Like httpx.AsyncHTTPTransport, with the connections of this module."""

    def __init__(self, tls: ssl.SSLContext | None, proxy: httpx.Proxy | None = None) -> None:
        self._network = _NetworkBackend()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            proxy=_proxy(proxy) if proxy else None,
            max_connections=None,
            max_keepalive_connections=_MAX_IDLE_CONNECTIONS,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=self._network,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.extensions.get(NEW_CONNECTION):
            self._network.generation += 1
        core_request = httpcore.Request(
            request.method,
            _url(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx_errors():
            response = await self._pool.handle_async_request(core_request)
        body = _Body(response)
        return httpx.Response(response.status, headers=response.headers, stream=body, extensions=response.extensions)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for chunk in self._response.aiter_stream():
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    """Convert errors of httpcore to the errors of httpx with the same names."""
    try:
        yield
    except _IdleConnectionClosed as error:
        raise IdleConnectionClosed(str(error)) from error
    except _ERRORS as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


def _proxy(proxy: httpx.Proxy) -> httpcore.Proxy:
    return httpcore.Proxy(_url(proxy.url), proxy.raw_auth, proxy.headers.raw, proxy.ssl_context)


def _url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


class _NetworkBackend(httpcore.AnyIOBackend):
    """Opens connections. Connections of an earlier `generation` are not reused."""

    def __init__(self) -> None:
        self.generation = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that finds the end of each response.

    Between two requests, a read is pending. If this read completes, with bytes or the end of the connection, the data
    belongs to no request, and httpcore must not reuse the connection.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, network: _NetworkBackend) -> None:
        self._stream = stream
        self._network = network
        self._generation = network.generation
        self._parser: h11.Connection | None = None
        """Parses the current response; None between a response and the next request."""
        self._was_used = False
        """Whether a response on this connection was completed."""
        self._received_bytes = False
        """Whether a byte of the current response has arrived."""
        self._pending_read: asyncio.Task[bytes] | None = None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if buffer and self._parser is None:
            await self._expect_response(buffer)
        await self._stream.write(buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            received = await (self._pop_pending_read() or self._stream.read(max_bytes, timeout))
        except httpcore.ReadError as error:
            self._raise_if_closed_while_idle(error)
            raise
        if not received:
            self._raise_if_closed_while_idle(None)
        self._received_bytes = True
        if self._parser and self._is_complete(self._parser, received):
            self._finish_response(self._parser)
        return received

    async def aclose(self) -> None:
        if pending := self._pop_pending_read():
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._network)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # if true, httpcore closes the idle connection
            return self._generation != self._network.generation or not self._is_reusable()
        return self._stream.get_extra_info(info)

    def _is_reusable(self) -> bool:
        """Whether nothing has arrived after the last response."""
        return self._pending_read is not None and not self._pending_read.done()

    async def _expect_response(self, request: bytes) -> None:
        """Create the parser for the response to this request. Raises _IdleConnectionClosed if the connection cannot be
        reused."""
        if self._pending_read:
            await asyncio.wait([self._pending_read], timeout=0)  # process data that has already arrived
        if self._was_used and not self._is_reusable():
            raise _IdleConnectionClosed("the server closed the idle connection, or sent unexpected data")
        self._parser, self._received_bytes = h11.Connection(h11.CLIENT), False
        self._parser.send(h11.Request(method=request.split(b" ", 1)[0], target="/", headers=[("host", "server")]))
        self._parser.send(h11.EndOfMessage())

    def _pop_pending_read(self) -> "asyncio.Task[bytes] | None":
        pending, self._pending_read = self._pending_read, None
        return pending

    def _raise_if_closed_while_idle(self, error: Exception | None) -> None:
        """Raise if the connection was used before and was closed before the first byte of this response."""
        if self._was_used and not self._received_bytes:
            raise _IdleConnectionClosed("the server closed the connection while it was idle") from error

    def _finish_response(self, parser: h11.Connection) -> None:
        self._parser, self._was_used = None, True
        if not parser.trailing_data[0]:
            self._pending_read = asyncio.create_task(self._stream.read(_READ_BYTES))

    def _is_complete(self, parser: h11.Connection, received: bytes) -> bool:
        parser.receive_data(received)
        with suppress(h11.RemoteProtocolError):  # httpcore raises the same error
            while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.EndOfMessage):
                    return True
        return False
