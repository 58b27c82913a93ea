"""What a connection carries behind an answer, and what becomes of a connection that the server closed: real sockets."""

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
from world import StaticCredentials, busiest_second

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

OTHER = {"PhoneNumber": "1555", "QualityRating": "GREEN", "Status": "CONNECTED"}
VICTIM = {"PhoneNumber": "1666", "QualityRating": "RED", "Status": "BANNED"}


def body_of(number: Mapping[str, str]) -> bytes:
    return json.dumps({"Code": "OK", "PhoneNumbers": [number]}).encode()


def with_length(body: bytes, status: int = 200, headers: str = "") -> bytes:
    return b"HTTP/1.1 %d x\r\n%sContent-Length: %d\r\n\r\n" % (status, headers.encode(), len(body)) + body


def in_chunks(body: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:20], body[20:]))
    return b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@dataclass
class Received:
    """A request as the server sees it: for which space, and the how manieth of its connection."""

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
    """At this port, until every connection has ended."""
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


async def truth(request: Received) -> None:
    request.writer.write(with_length(body_of(VICTIM if request.space == "victim" else OTHER)))


@dataclass
class Server:
    """Replies to requests on real connections of this machine."""

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
WAYS = ["http", "https"]


def tls_of_server(way: str) -> ssl.SSLContext | None:
    if way == "http":
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(tls)
    return tls


def client(endpoint: str) -> httpx.AsyncClient:
    """The real one; one that trusts the test's certificates where it must."""
    if endpoint.startswith("http:"):
        return http_client(endpoint)
    tls = ssl.create_default_context()
    CA.configure_trust(tls)
    return httpx.AsyncClient(transport=Transport(tls), timeout=None)


def source_of(http: httpx.AsyncClient, endpoint: str) -> CamsSource:
    return CamsSource(http, endpoint, StaticCredentials(Credentials("id", "secret")), SystemClock())


async def query(source: CamsSource, space: str, attempts: list[str] | None = None) -> Answer | QueryError:
    """The answer to one query, with what became of each attempt."""

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


def queried(
    reply: Reply, *spaces: str, way: str = "http", between: Callable[[Server], None] = lambda _: None
) -> tuple[list[str], Server, list[str]]:
    """One query after the other: the statuses of the numbers (or the code of the error) of each; what the server saw;
    and the code of each attempt."""
    server, attempts = Server(reply, tls_of_server(way)), list[str]()

    async def main() -> list[str]:
        async with server.listening() as endpoint, client(endpoint) as http:
            source, results = source_of(http, endpoint), []
            for space in spaces:
                result = await query(source, space, attempts)
                shown = (
                    [number.status for number in result.phone_numbers] if isinstance(result, Answer) else [result.code]
                )
                results.append(" ".join(shown))
                between(server)
            return results

    return asyncio.run(main()), server, attempts


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_with_nothing_behind_its_answers_is_used_again(way: str) -> None:
    results, server, _ = queried(truth, "other", "victim", "other", way=way)

    assert results == ["CONNECTED", "BANNED", "CONNECTED"]
    assert len(server.connections) == 1


def test_an_answer_in_chunks_leaves_the_connection_in_use() -> None:
    async def reply(request: Received) -> None:
        for byte in in_chunks(body_of(OTHER)):
            request.writer.write(bytes([byte]))
            await request.writer.drain()

    results, server, _ = queried(reply, "other", "other")

    assert results == ["CONNECTED", "CONNECTED"]
    assert len(server.connections) == 1


STALE_ANSWER = with_length(body_of(OTHER))


def one_write(*parts: bytes) -> list[bytes]:
    return [b"".join(parts)]


EXCESSES = {
    "a second answer": one_write(with_length(body_of(OTHER)), STALE_ANSWER),
    "a second answer, in a record of its own": [with_length(body_of(OTHER)), STALE_ANSWER],
    "behind the last chunk": one_write(in_chunks(body_of(OTHER)), STALE_ANSWER),
    "behind the last chunk, in a record of its own": [in_chunks(body_of(OTHER)), STALE_ANSWER],
    "two more answers": one_write(with_length(body_of(OTHER)), STALE_ANSWER, STALE_ANSWER),
    "half an answer": one_write(with_length(body_of(OTHER)), STALE_ANSWER[:40]),
    "a line": one_write(with_length(body_of(OTHER)), b"\r\n"),
    "a body where the status has none": one_write(b"HTTP/1.1 204 x\r\n\r\n", STALE_ANSWER),
    "a body where the status has none, with its length": one_write(with_length(STALE_ANSWER, 204)),
    "a length that is too short": one_write(
        b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % len(body_of(OTHER)), body_of(OTHER), STALE_ANSWER
    ),
    "behind 64 KiB to the byte": [with_length(body_of(OTHER).ljust(65536 - 43)), STALE_ANSWER],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("excess", EXCESSES)
def test_bytes_behind_an_answer_never_answer_the_request_of_another_space(excess: str, way: str) -> None:
    async def reply(request: Received) -> None:
        if request.space == "victim":
            await truth(request)
        for part in EXCESSES[excess] if request.space == "other" else []:
            request.writer.write(part)

    results, server, _ = queried(reply, "other", "victim", "victim", "other", "victim", way=way)

    assert [results[1], results[2], results[4]] == ["BANNED"] * 3
    assert len(server.connections) == 3  # one ended with each of the two answers


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_arrives_on_an_idle_connection_answers_nothing(way: str) -> None:
    results, server, _ = queried(
        truth, "other", "victim", way=way, between=lambda server: server.connections[0].write(STALE_ANSWER)
    )

    assert results == ["CONNECTED", "BANNED"]
    assert len(server.connections) == 2


async def closes_used_connections(request: Received) -> None:
    """At the moment when the next request arrives, as a server does whose idle time has just passed."""
    if request.nth > 1:
        request.writer.close()
    else:
        await truth(request)


async def resets_used_connections(request: Received) -> None:
    if request.nth > 1:
        request.reset()
    else:
        await truth(request)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reply", [closes_used_connections, resets_used_connections])
def test_a_used_connection_that_ends_without_an_answer_is_followed_by_one_fresh_attempt(reply: Reply, way: str) -> None:
    results, server, attempts = queried(reply, "other", "victim", "other", way=way)

    assert results == ["CONNECTED", "BANNED", "CONNECTED"]
    assert attempts == ["OK", "transport", "OK", "transport", "OK"]
    assert [request.nth for request in server.requests] == [1, 2, 1, 2, 1]


def test_a_connection_that_was_closed_while_idle_is_not_used_again() -> None:
    results, server, _ = queried(
        truth, "other", "victim", between=lambda server: server.connections[-1].transport.abort()
    )

    assert results == ["CONNECTED", "BANNED"]
    assert [request.nth for request in server.requests] == [1, 1]


def test_the_fresh_attempt_does_not_use_the_next_used_connection() -> None:
    server = Server(closes_used_connections)

    async def main() -> list[Answer | QueryError]:
        async with server.listening() as endpoint, client(endpoint) as http:
            source = source_of(http, endpoint)
            await asyncio.gather(*(query(source, "other") for _ in range(5)))  # five idle connections
            return [await query(source, "victim") for _ in range(3)]

    results = asyncio.run(main())

    assert [isinstance(result, Answer) for result in results] == [True] * 3
    assert [request.nth for request in server.requests[5:]] == [2, 1] * 3


async def closes_every_connection(request: Received) -> None:
    request.writer.close()


async def starts_to_answer_used_connections(request: Received) -> None:
    answer = with_length(body_of(OTHER))
    request.writer.write(answer if request.nth == 1 else answer[:9])
    if request.nth > 1:
        request.writer.close()


async def cuts_the_body_on_used_connections(request: Received) -> None:
    answer = with_length(body_of(OTHER))
    request.writer.write(answer if request.nth == 1 else answer[:-9])
    if request.nth > 1:
        request.writer.close()


@pytest.mark.parametrize(
    ("reply", "attempts"),
    [
        (closes_every_connection, ["transport", "transport"]),
        (starts_to_answer_used_connections, ["OK", "transport"]),
        (cuts_the_body_on_used_connections, ["OK", "transport"]),
    ],
)
def test_a_new_connection_and_part_of_an_answer_are_followed_by_no_other_attempt(
    reply: Reply, attempts: list[str]
) -> None:
    results, server, made = queried(reply, "other", "victim")

    assert made == attempts
    assert results[1] == "transport"
    assert len(server.requests) == 2


def test_the_fresh_attempt_is_the_only_one() -> None:
    async def reply(request: Received) -> None:
        if server_has_answered:
            request.writer.close()
        else:
            server_has_answered.append(True)
            await truth(request)

    server_has_answered: list[bool] = []
    results, _, attempts = queried(reply, "other", "victim")

    assert results == ["CONNECTED", "transport"]
    assert attempts == ["OK", "transport", "transport"]


def test_a_connection_that_is_refused_is_followed_by_no_other_attempt() -> None:
    attempts: list[str] = []

    async def main() -> None:
        async with Server(truth).listening() as endpoint:
            pass
        async with client(endpoint) as http:
            await query(source_of(http, endpoint), "other", attempts)

    asyncio.run(main())

    assert attempts == ["transport"]


def test_fresh_attempts_take_permits_of_their_own_and_are_counted() -> None:
    class Stale(httpx.AsyncBaseTransport):
        """Every other request meets a connection that the server had closed."""

        def __init__(self) -> None:
            self.sent: list[tuple[float, str]] = []

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.sent.append((asyncio.get_running_loop().time(), request.headers["x-acs-signature-nonce"]))
            if not request.extensions["new_connection"]:
                raise IdleConnectionClosed("closed")
            return httpx.Response(200, stream=httpx.ByteStream(body_of(OTHER)))

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
    assert busiest_second([at for at, _ in transport.sent]) == 5


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, heads: list[str]) -> None:
    """A proxy that connects to where it is told."""

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


def test_all_of_it_holds_through_a_proxy() -> None:
    server, heads = Server(resets_used_connections, tls_of_server("https")), list[str]()

    async def main() -> list[str]:
        tls = ssl.create_default_context()
        CA.configure_trust(tls)
        async with server.listening() as endpoint, listening(lambda *streams: tunnel(*streams, heads=heads)) as port:
            transport = Transport(tls, httpx.Proxy(f"http://ops:word@127.0.0.1:{port}"))
            async with httpx.AsyncClient(transport=transport, timeout=None) as http:
                source = source_of(http, endpoint)
                answers = [await source.query(Space(space), nullcontext) for space in ("other", "victim")]
        return [number.status for answer in answers for number in answer.phone_numbers]

    assert asyncio.run(main()) == ["CONNECTED", "BANNED"]
    assert [request.nth for request in server.requests] == [1, 2, 1]
    assert len(heads) == 2
    assert all("Proxy-Authorization: Basic b3BzOndvcmQ=" in head for head in heads)


COOKIES = "".join(f"Set-Cookie: c{number}={'x' * 3000}; Path=/\r\n" for number in range(25))


@pytest.mark.parametrize("cut", [0, 5])
def test_cookies_are_never_kept_even_if_the_answer_is_cut(cut: int) -> None:
    async def reply(request: Received) -> None:
        answer = with_length(body_of(OTHER), headers=COOKIES)
        request.writer.write(answer[: len(answer) - cut])
        if cut:
            request.writer.close()

    server = Server(reply)

    async def main() -> list[str]:
        async with server.listening() as endpoint, client(endpoint) as http:
            for _ in range(3):
                await query(source_of(http, endpoint), "other")
            return list(http.cookies)

    assert asyncio.run(main()) == []
    assert len(server.requests) == 3
