"""How long a client may take, and which connection is closed when there are too many. Over the wire: test_crowds."""

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


class Wire(asyncio.Transport):
    """The way to a client, and when it was cut."""

    def __init__(self) -> None:
        super().__init__()
        self.cut_at: float | None = None
        self.protocol: Connection | None = None

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.cut_at is not None

    def abort(self) -> None:
        if self.cut_at is None and self.protocol:
            self.cut_at = asyncio.get_running_loop().time()
            self.protocol.connection_lost(None)

    def close(self) -> None:
        self.abort()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def hangs(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3600)


def connect(app: App = answers, among: Connections | None = None) -> tuple[Connection, Wire]:
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, timeout_keep_alive=3600)
    connection, wire = Connection(config, ServerState(), among or Connections(lambda: 100)), Wire()
    wire.protocol = connection
    connection.connection_made(wire)
    return connection, wire


def test_a_request_whose_headers_are_not_complete_after_ten_seconds_is_closed() -> None:
    async def main() -> tuple[float | None, float | None]:
        (_, silent), (dripping, drips) = connect(), connect()
        for byte in REQUEST[:20]:
            if not drips.is_closing():
                dripping.data_received(bytes([byte]))
            await asyncio.sleep(1)
        return silent.cut_at, drips.cut_at

    assert run(main()) == (10, 10)


def test_a_connection_stays_open_for_sixty_seconds_after_an_answer_and_its_next_request_has_ten() -> None:
    async def main() -> tuple[float | None, float | None, float | None]:
        (idle, kept), (asking, asks), (half, slow) = connect(), connect(), connect()
        for connection in (idle, asking, half):
            connection.data_received(REQUEST)
        await asyncio.sleep(30)
        half.data_received(REQUEST[:10])
        await asyncio.sleep(20)
        asking.data_received(REQUEST)
        await asyncio.sleep(200)
        return kept.cut_at, asks.cut_at, slow.cut_at

    kept, asks, slow = run(main())

    assert kept == pytest.approx(60, abs=0.1)
    assert asks == pytest.approx(110, abs=0.1)
    assert slow == pytest.approx(40, abs=0.1)


def test_an_answer_that_is_not_read_within_sixty_seconds_is_closed() -> None:
    async def main() -> float | None:
        connection, wire = connect(hangs)
        await asyncio.sleep(5)
        connection.data_received(REQUEST)
        await asyncio.sleep(100)
        return wire.cut_at

    assert run(main()) == pytest.approx(65, abs=0.1)


def test_a_request_behind_another_one_has_its_own_time() -> None:
    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(40)
        await answers(scope, receive, send)

    async def main() -> float | None:
        connection, wire = connect(slowly)
        connection.data_received(REQUEST * 2)
        await asyncio.sleep(300)
        return wire.cut_at

    assert run(main()) == pytest.approx(140, abs=0.1)  # 60 s after the second answer


def test_of_many_clients_that_do_not_read_the_one_that_has_not_read_for_longest_is_closed() -> None:
    async def main() -> list[bool]:
        among = Connections(lambda: 100)
        clients = [connect(hangs, among) for _ in range(MAX_STALLED + 1)]
        for connection, _ in clients:
            connection.data_received(REQUEST)
        for connection, _ in clients[:-1]:
            connection.pause_writing()
        first, _ = clients[0]
        first.resume_writing()  # it reads slowly, but it reads
        first.pause_writing()
        last, _ = clients[-1]
        last.pause_writing()
        return [wire.is_closing() for _, wire in clients]

    assert run(main()) == [False, True] + [False] * (MAX_STALLED - 1)


def test_a_client_that_sends_much_is_read_a_little_at_a_time() -> None:
    """A quarter of a MiB of chunks of one byte held the event loop for 200 ms."""

    async def main() -> int:
        connection, _ = connect()
        return len(connection.get_buffer(-1))

    assert run(main()) <= 8 * 1024


def test_above_the_limit_the_connection_that_has_waited_longest_for_a_request_is_closed() -> None:
    """Over real sockets; the first client has had its answer, and the second waits for one."""
    at_work, done = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/long":
            at_work.set()
            await done.wait()
        await answers(scope, receive, send)

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
            await at_work.wait()
            async with asyncio.timeout(10):
                closed = [await reader.read() for reader, _ in (streams[0], streams[2])]
            ended = [reader.at_eof() for reader, _ in streams]
            done.set()
            answer = await streams[1][0].readline()
            for _, writer in streams:
                writer.close()
            assert closed == [b"", b""]
            return ended, answer

    ended, answer = asyncio.run(main())

    assert ended == [True, False, True, False, False, False, False]
    assert answer == b"HTTP/1.1 200 OK\r\n"


def test_where_no_file_descriptor_is_left_a_client_that_waits_is_closed_and_a_scraper_is_answered() -> None:
    """Over real sockets, in a process that has two descriptors left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> bytes:
        loop, listener = asyncio.get_running_loop(), bind("127.0.0.1:0")
        async with serving(Starlette(routes=[Mount("/", answers)]), listener):
            with ExitStack() as stack:
                # the kernel accepts them; the server does so when this task waits
                half, scraper = REQUEST[:9], REQUEST
                for sent in (*[half] * 10, scraper):
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
def test_descriptors_are_reserved_for_polls_and_files(
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


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    given = "100" if hard == resource.RLIM_INFINITY else str(min(hard, 100))

    printed = subprocess.run((sys.executable, "-c", LIMITS, given), capture_output=True, text=True, check=True).stdout

    assert printed.split() == [given, given, given]
