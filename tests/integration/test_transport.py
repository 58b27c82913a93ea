"""Unexpected data after a response, and connections that the server closes, over real sockets."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trustme
from virtual_time import VirtualClock
from virtual_time import run as run_virtual
from world import StaticCredentials, max_per_second

from exporter.clock import SystemClock
from exporter.http import http_client
from exporter.metrics.instruments import Instruments
from exporter.model import Answer, Space
from exporter.polling.budget import Budget
from exporter.polling.poller import Poller
from exporter.source import QueryError
from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.source import CamsSource
from exporter.transport import IdleConnectionClosed, Transport

CONNECTED = {"PhoneNumber": "1555", "QualityRating": "GREEN", "Status": "CONNECTED"}
BANNED = {"PhoneNumber": "1666", "QualityRating": "RED", "Status": "BANNED"}
"""The phone numbers of the spaces "connected" and "banned"."""


def body_of(number: Mapping[str, str]) -> bytes:
    return json.dumps({"Code": "OK", "PhoneNumbers": [number]}).encode()


def http_response(body: bytes, status: int = 200, headers: str = "") -> bytes:
    return b"HTTP/1.1 %d x\r\n%sContent-Length: %d\r\n\r\n" % (status, headers.encode(), len(body)) + body


def in_chunks(body: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:20], body[20:]))
    return b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@dataclass
class Received:
    """A request at the server. `nth` is its position on the connection, from 1."""

    space: str
    nth: int
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Reply = Callable[[Received], Awaitable[None]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve on a free port. Yields the port, and closes all connections at the end."""
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks[asyncio.create_task(serve(reader, writer))] = writer

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in tasks.values():
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


async def reply_correctly(request: Received) -> None:
    request.writer.write(http_response(body_of(BANNED if request.space == "banned" else CONNECTED)))


@dataclass
class Server:
    """A server that answers each request with `reply`."""

    reply: Reply
    tls: ssl.SSLContext | None = None
    requests: list[Received] = field(default_factory=list)
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with listening(self._serve, self.tls) as port:
            yield f"http{'s' if self.tls else ''}://127.0.0.1:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        nth = 0
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                query = parse_qs(urlsplit(head.split(" ")[1]).query)
                nth += 1
                self.requests.append(Received(query.get("CustSpaceId", [""])[0], nth, writer))
                await self.reply(self.requests[-1])
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            writer.close()


CA = trustme.CA()
SCHEMES = ["http", "https"]


def server_tls(scheme: str) -> ssl.SSLContext | None:
    if scheme == "http":
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(tls)
    return tls


def client(endpoint: str) -> httpx.AsyncClient:
    """Return the real client for http, and a client that trusts the test's certificates for https."""
    if endpoint.startswith("http:"):
        return http_client(endpoint)
    tls = ssl.create_default_context()
    CA.configure_trust(tls)
    return httpx.AsyncClient(transport=Transport(tls), timeout=None)


def source_of(http: httpx.AsyncClient, endpoint: str) -> CamsSource:
    return CamsSource(http, endpoint, StaticCredentials(Credentials("id", "secret")), SystemClock())


async def query(source: CamsSource, space: str, attempts: list[str] | None = None) -> Answer | QueryError:
    """Send one query. Appends the result code of each attempt to `attempts`."""

    @asynccontextmanager
    async def attempt() -> AsyncIterator[None]:
        try:
            yield
        except QueryError as error:
            if attempts is not None:
                attempts.append(error.code)
            raise
        if attempts is not None:
            attempts.append("OK")

    try:
        return await source.query(Space(space), attempt)
    except QueryError as error:
        return error


def query_in_sequence(
    reply: Reply, *spaces: str, scheme: str = "http", between: Callable[[Server], None] = lambda _: None
) -> tuple[list[str], Server, list[str]]:
    """Query these spaces one after the other, and call `between` after each query.

    Return the result of each query (the status of the number or the error code), the server, and the result code of
    each attempt.
    """
    server, attempts = Server(reply, server_tls(scheme)), list[str]()

    async def main() -> list[str]:
        async with server.listening() as endpoint, client(endpoint) as http:
            source, results = source_of(http, endpoint), []
            for space in spaces:
                result = await query(source, space, attempts)
                if isinstance(result, Answer):
                    results.append(" ".join(number.status for number in result.phone_numbers))
                else:
                    results.append(result.code)
                between(server)
            return results

    return asyncio.run(main()), server, attempts


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_connection_without_unexpected_data_is_reused(scheme: str) -> None:
    results, server, _ = query_in_sequence(reply_correctly, "connected", "banned", "connected", scheme=scheme)

    assert results == ["CONNECTED", "BANNED", "CONNECTED"]
    assert len(server.connections) == 1


def test_a_connection_is_reused_after_a_chunked_response() -> None:
    async def reply(request: Received) -> None:
        for byte in in_chunks(body_of(CONNECTED)):
            request.writer.write(bytes([byte]))
            await request.writer.drain()

    results, server, _ = query_in_sequence(reply, "connected", "connected")

    assert results == ["CONNECTED", "CONNECTED"]
    assert len(server.connections) == 1


STALE_RESPONSE = http_response(body_of(CONNECTED))
HEAD_BYTES = len(http_response(b" " * 65_000)) - 65_000
"""Length of the head of a response whose body has 10,000 to 99,999 bytes."""
RESPONSE_OF_64_KIB = http_response(body_of(CONNECTED).ljust(65_536 - HEAD_BYTES))
assert len(RESPONSE_OF_64_KIB) == 65_536


def in_one_write(*parts: bytes) -> list[bytes]:
    return [b"".join(parts)]


UNEXPECTED_DATA = {
    "a second response": in_one_write(http_response(body_of(CONNECTED)), STALE_RESPONSE),
    "a second response, in a separate write": [http_response(body_of(CONNECTED)), STALE_RESPONSE],
    "after the last chunk": in_one_write(in_chunks(body_of(CONNECTED)), STALE_RESPONSE),
    "after the last chunk, in a separate write": [in_chunks(body_of(CONNECTED)), STALE_RESPONSE],
    "two more responses": in_one_write(http_response(body_of(CONNECTED)), STALE_RESPONSE, STALE_RESPONSE),
    "part of a response": in_one_write(http_response(body_of(CONNECTED)), STALE_RESPONSE[:40]),
    "an empty line": in_one_write(http_response(body_of(CONNECTED)), b"\r\n"),
    "a body after status 204": in_one_write(b"HTTP/1.1 204 x\r\n\r\n", STALE_RESPONSE),
    "a body after status 204, with Content-Length": in_one_write(http_response(STALE_RESPONSE, 204)),
    "a body longer than its Content-Length": in_one_write(
        b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % len(body_of(CONNECTED)), body_of(CONNECTED), STALE_RESPONSE
    ),
    "after a response of exactly 64 KiB": [RESPONSE_OF_64_KIB, STALE_RESPONSE],
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("data", UNEXPECTED_DATA)
def test_unexpected_data_is_never_used_as_the_response_for_another_space(data: str, scheme: str) -> None:
    async def reply(request: Received) -> None:
        if request.space == "banned":
            await reply_correctly(request)
        for part in UNEXPECTED_DATA[data] if request.space == "connected" else []:
            request.writer.write(part)

    results, server, _ = query_in_sequence(reply, "connected", "banned", "banned", "connected", "banned", scheme=scheme)

    assert [results[1], results[2], results[4]] == ["BANNED"] * 3
    assert len(server.connections) == 3  # each response with unexpected data ends its connection


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_response_that_arrives_on_an_idle_connection_is_not_used(scheme: str) -> None:
    results, server, _ = query_in_sequence(
        reply_correctly,
        "connected",
        "banned",
        scheme=scheme,
        between=lambda server: server.connections[0].write(STALE_RESPONSE),
    )

    assert results == ["CONNECTED", "BANNED"]
    assert len(server.connections) == 2


async def close_used_connection(request: Received) -> None:
    """Close the connection when its second request arrives, like a server whose idle timeout has just expired."""
    if request.nth > 1:
        request.writer.close()
    else:
        await reply_correctly(request)


async def reset_used_connection(request: Received) -> None:
    if request.nth > 1:
        request.reset()
    else:
        await reply_correctly(request)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("reply", [close_used_connection, reset_used_connection])
def test_after_a_used_connection_ends_without_a_response_a_new_connection_is_tried(reply: Reply, scheme: str) -> None:
    results, server, attempts = query_in_sequence(reply, "connected", "banned", "connected", scheme=scheme)

    assert results == ["CONNECTED", "BANNED", "CONNECTED"]
    assert attempts == ["OK", "transport", "OK", "transport", "OK"]
    assert [request.nth for request in server.requests] == [1, 2, 1, 2, 1]


def test_a_connection_that_was_closed_while_idle_is_not_reused() -> None:
    results, server, _ = query_in_sequence(
        reply_correctly, "connected", "banned", between=lambda server: server.connections[-1].transport.abort()
    )

    assert results == ["CONNECTED", "BANNED"]
    assert [request.nth for request in server.requests] == [1, 1]


def test_the_retry_uses_a_new_connection_and_not_another_idle_connection() -> None:
    server = Server(close_used_connection)

    async def main() -> list[Answer | QueryError]:
        async with server.listening() as endpoint, client(endpoint) as http:
            source = source_of(http, endpoint)
            await asyncio.gather(*(query(source, "connected") for _ in range(5)))  # five idle connections
            return [await query(source, "banned") for _ in range(3)]

    results = asyncio.run(main())

    assert [isinstance(result, Answer) for result in results] == [True] * 3
    assert [request.nth for request in server.requests[5:]] == [2, 1] * 3


async def close_every_connection(request: Received) -> None:
    request.writer.close()


async def cut_status_line_on_used_connection(request: Received) -> None:
    response = http_response(body_of(CONNECTED))
    request.writer.write(response if request.nth == 1 else response[:9])
    if request.nth > 1:
        request.writer.close()


async def cut_body_on_used_connection(request: Received) -> None:
    response = http_response(body_of(CONNECTED))
    request.writer.write(response if request.nth == 1 else response[:-9])
    if request.nth > 1:
        request.writer.close()


@pytest.mark.parametrize(
    ("reply", "expected_attempts"),
    [
        (close_every_connection, ["transport", "transport"]),
        (cut_status_line_on_used_connection, ["OK", "transport"]),
        (cut_body_on_used_connection, ["OK", "transport"]),
    ],
)
def test_errors_on_a_new_connection_or_in_a_partial_response_are_not_retried(
    reply: Reply, expected_attempts: list[str]
) -> None:
    results, server, attempts = query_in_sequence(reply, "connected", "banned")

    assert attempts == expected_attempts
    assert results[1] == "transport"
    assert len(server.requests) == 2


def test_a_failed_retry_is_not_retried() -> None:
    async def reply(request: Received) -> None:
        if request.space == "connected":
            await reply_correctly(request)
        else:
            request.writer.close()

    results, _, attempts = query_in_sequence(reply, "connected", "banned")

    assert results == ["CONNECTED", "transport"]
    assert attempts == ["OK", "transport", "transport"]


def test_a_refused_connection_is_not_retried() -> None:
    attempts: list[str] = []

    async def main() -> None:
        async with Server(reply_correctly).listening() as endpoint:
            pass
        async with client(endpoint) as http:
            await query(source_of(http, endpoint), "connected", attempts)

    asyncio.run(main())

    assert attempts == ["transport"]


def test_each_retry_takes_a_permit_and_has_its_own_nonce() -> None:
    class Stale(httpx.AsyncBaseTransport):
        """Fails each request that does not require a new connection, as if the server had closed the connection."""

        def __init__(self) -> None:
            self.sent: list[tuple[float, str]] = []

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.sent.append((asyncio.get_running_loop().time(), request.headers["x-acs-signature-nonce"]))
            if not request.extensions["new_connection"]:
                raise IdleConnectionClosed("closed")
            return httpx.Response(200, stream=httpx.ByteStream(body_of(CONNECTED)))

    transport, clock, instruments = Stale(), VirtualClock(), Instruments(["acme"])

    async def main() -> list[bool]:
        source = CamsSource(
            httpx.AsyncClient(transport=transport),
            "http://127.0.0.1:1",
            StaticCredentials(Credentials("a", "b")),
            clock,
        )
        poller = Poller("acme", source, Budget(5, clock), Budget(10, clock), clock, instruments, lambda _: False)
        outcomes = await asyncio.gather(*(poller.poll(Space(str(n)), due=0.0, retry=n % 2 == 0) for n in range(20)))
        return [outcome.error is None for outcome in outcomes]

    assert run_virtual(main()) == [True] * 20
    assert len({nonce for _, nonce in transport.sent}) == 40
    assert max_per_second([at for at, _ in transport.sent]) == 5


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, heads: list[str]) -> None:
    """A CONNECT proxy. Appends the head of each request to `heads`."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while received := await source.read(65536):
                target.write(received)
        target.close()

    heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
    host, port = heads[-1].split(" ")[1].split(":")
    from_server, to_server = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 x\r\n\r\n")
    await asyncio.gather(copy(reader, to_server), copy(from_server, writer))


def test_a_closed_connection_through_a_proxy_is_retried() -> None:
    server, heads = Server(reset_used_connection, server_tls("https")), list[str]()

    async def main() -> list[str]:
        tls = ssl.create_default_context()
        CA.configure_trust(tls)
        async with server.listening() as endpoint, listening(lambda *streams: tunnel(*streams, heads=heads)) as port:
            transport = Transport(tls, httpx.Proxy(f"http://ops:word@127.0.0.1:{port}"))
            async with httpx.AsyncClient(transport=transport, timeout=None) as http:
                source = source_of(http, endpoint)
                answers = [await source.query(Space(space), nullcontext) for space in ("connected", "banned")]
        return [number.status for answer in answers for number in answer.phone_numbers]

    assert asyncio.run(main()) == ["CONNECTED", "BANNED"]
    assert [request.nth for request in server.requests] == [1, 2, 1]
    assert len(heads) == 2
    assert all("Proxy-Authorization: Basic b3BzOndvcmQ=" in head for head in heads)


COOKIES = "".join(f"Set-Cookie: c{number}={'x' * 3000}; Path=/\r\n" for number in range(25))


@pytest.mark.parametrize("cut", [0, 5])
def test_cookies_are_never_stored_even_if_the_response_is_cut_off(cut: int) -> None:
    async def reply(request: Received) -> None:
        response = http_response(body_of(CONNECTED), headers=COOKIES)
        request.writer.write(response[: len(response) - cut])
        if cut:
            request.writer.close()

    server = Server(reply)

    async def main() -> list[str]:
        async with server.listening() as endpoint, client(endpoint) as http:
            for _ in range(3):
                await query(source_of(http, endpoint), "connected")
            return list(http.cookies)

    assert asyncio.run(main()) == []
    assert len(server.requests) == 3
