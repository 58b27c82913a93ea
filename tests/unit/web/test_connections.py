"""Timeouts of client connections, and the limit of connections. tests/e2e has tests with many real clients."""

import asyncio
import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from structlog.testing import capture_logs
from uvicorn.server import ServerState
from virtual_time import run

from exporter.web.connections import (
    MAX_CONNECTIONS,
    MAX_STALLED,
    MAX_TLS_CONNECTIONS,
    Connection,
    Connections,
    max_connections,
)
from exporter.web.server import bind, serving

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
App = Callable[[Any, Any, Any], Awaitable[None]]


class FakeTransport(asyncio.Transport):
    """A transport that records when it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed_at: float | None = None
        self.protocol: Connection | None = None

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed_at is not None

    def abort(self) -> None:
        if self.closed_at is None and self.protocol:
            self.closed_at = asyncio.get_running_loop().time()
            self.protocol.connection_lost(None)

    def close(self) -> None:
        self.abort()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def respond(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def hang(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3600)


def connect(app: App = respond, connections: Connections | None = None) -> tuple[Connection, FakeTransport]:
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, timeout_keep_alive=3600)
    connection = Connection(config, ServerState(), connections or Connections(lambda: 100))
    transport = FakeTransport()
    transport.protocol = connection
    connection.connection_made(transport)
    return connection, transport


def test_a_connection_without_complete_headers_is_closed_after_ten_seconds() -> None:
    async def main() -> tuple[float | None, float | None]:
        (_, silent), (slow_connection, slow) = connect(), connect()
        for byte in REQUEST[:20]:
            if not slow.is_closing():
                slow_connection.data_received(bytes([byte]))
            await asyncio.sleep(1)
        return silent.closed_at, slow.closed_at

    assert run(main()) == (10, 10)


def test_an_idle_connection_is_closed_after_60_s_and_an_incomplete_second_request_after_10_s() -> None:
    async def main() -> tuple[float | None, float | None, float | None]:
        clients = [connect() for _ in range(3)]
        (_, idle), (second, active), (third, incomplete) = clients
        for connection, _ in clients:
            connection.data_received(REQUEST)
        await asyncio.sleep(30)
        third.data_received(REQUEST[:10])
        await asyncio.sleep(20)
        second.data_received(REQUEST)
        await asyncio.sleep(200)
        return idle.closed_at, active.closed_at, incomplete.closed_at

    idle, active, incomplete = run(main())

    assert idle == pytest.approx(60, abs=0.1)
    assert active == pytest.approx(110, abs=0.1)
    assert incomplete == pytest.approx(40, abs=0.1)


def test_a_connection_is_closed_if_its_response_is_not_complete_after_sixty_seconds() -> None:
    async def main() -> float | None:
        connection, transport = connect(hang)
        await asyncio.sleep(5)
        connection.data_received(REQUEST)
        await asyncio.sleep(100)
        return transport.closed_at

    assert run(main()) == pytest.approx(65, abs=0.1)


def test_the_timeout_of_a_pipelined_request_starts_after_the_previous_response() -> None:
    async def respond_slowly(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(40)
        await respond(scope, receive, send)

    async def main() -> float | None:
        connection, transport = connect(respond_slowly)
        connection.data_received(REQUEST * 2)
        await asyncio.sleep(300)
        return transport.closed_at

    assert run(main()) == pytest.approx(140, abs=0.1)  # 60 s after the second response


def test_above_the_limit_of_stalled_clients_the_longest_stalled_connection_is_closed() -> None:
    async def main() -> list[bool]:
        connections = Connections(lambda: 100)
        clients = [connect(hang, connections) for _ in range(MAX_STALLED + 1)]
        for connection, _ in clients:
            connection.data_received(REQUEST)
        for connection, _ in clients[:-1]:
            connection.pause_writing()
        first, _ = clients[0]
        first.resume_writing()  # the first client reads slowly
        first.pause_writing()
        last, _ = clients[-1]
        last.pause_writing()
        return [transport.is_closing() for _, transport in clients]

    assert run(main()) == [False, True] + [False] * (MAX_STALLED - 1)


def test_at_most_8_kib_of_a_request_are_read_at_once() -> None:
    """Parsing 256 KiB of 1-byte chunks blocked the event loop for 200 ms."""

    async def main() -> int:
        connection, _ = connect()
        return len(connection.get_buffer(-1))

    assert run(main()) <= 8 * 1024


def test_above_the_connection_limit_the_longest_idle_connections_are_closed() -> None:
    """Uses real sockets. The first client has its response, and the request of the second client is in flight."""
    in_flight, finish = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/long":
            in_flight.set()
            await finish.wait()
        await respond(scope, receive, send)

    async def main() -> tuple[list[bool], bytes]:
        listener = bind("127.0.0.1:0")
        async with serving(Starlette(routes=[Mount("/", app)]), listener, max_connections=lambda: 5):
            streams = []
            for sent in (REQUEST, REQUEST.replace(b"/ ", b"/long ", 1), *[REQUEST[:9]] * 5):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                streams.append((reader, writer))
                writer.write(sent)
                if sent is REQUEST:
                    await reader.readuntil(b"\r\n\r\n")
            await in_flight.wait()
            async with asyncio.timeout(10):
                closed = [await reader.read() for reader, _ in (streams[0], streams[2])]
            ended = [reader.at_eof() for reader, _ in streams]
            finish.set()
            status_line = await streams[1][0].readline()
            for _, writer in streams:
                writer.close()
            assert closed == [b"", b""]
            return ended, status_line

    ended, status_line = asyncio.run(main())

    assert ended == [True, False, True, False, False, False, False]
    assert status_line == b"HTTP/1.1 200 OK\r\n"


def test_without_a_free_file_descriptor_idle_connections_are_closed_and_a_scraper_is_served() -> None:
    """Uses real sockets, in a process with two free file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> bytes:
        loop, listener = asyncio.get_running_loop(), bind("127.0.0.1:0")
        async with serving(Starlette(routes=[Mount("/", respond)]), listener):
            with ExitStack() as stack:
                # the kernel accepts the connections at once, the server when this task waits
                for sent in (*[REQUEST[:9]] * 10, REQUEST):  # the last client sends a complete request
                    client = stack.enter_context(socket.create_connection(listener.getsockname()))
                    client.sendall(sent)
                client.setblocking(False)
                resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 3, hard))
                try:
                    async with asyncio.timeout(20):
                        return await loop.sock_recv(client, 17)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with capture_logs() as logs:
        assert asyncio.run(main()) == b"HTTP/1.1 200 OK\r\n"

    assert [(line["event"], line["problem"]) for line in logs] == [
        ("connection limit reached, closing the longest idle connections", "Too many open files")
    ]


@pytest.mark.parametrize(
    ("descriptors", "queries", "tls", "connections"),
    [
        (1_048_576, 10, False, MAX_CONNECTIONS),
        (1_048_576, 10, True, MAX_TLS_CONNECTIONS),
        (4_096, 10, False, MAX_CONNECTIONS),
        (1_024, 10, False, 972),
        (1_024, 300, False, 392),
        (1_024, 1_000, False, 128),
        (64, 10, False, 12),
        (20, 10, False, 2),
    ],
)
def test_the_connection_limit_reserves_descriptors_for_polls_and_files(
    descriptors: int, queries: int, tls: bool, connections: int
) -> None:
    assert max_connections(descriptors, queries, tls=tls) == connections


LIMITS = """
import resource, sys
from exporter.web.connections import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (32, int(sys.argv[1])))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_of_file_descriptors_is_raised_to_the_hard_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = "100" if hard == resource.RLIM_INFINITY else str(min(hard, 100))

    printed = subprocess.run((sys.executable, "-c", LIMITS, limit), capture_output=True, text=True, check=True).stdout

    assert printed.split() == [limit, limit, limit]
