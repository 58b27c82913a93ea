"""A fast simulated API in its own process. It sends prepared responses after a latency."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import random
from urllib.parse import parse_qs

from fleet import Fleet


@dataclass
class Api:
    """A running server: its endpoint, and the arrivals of its requests."""

    endpoint: str
    _pipe: Connection

    def arrivals(self) -> list[tuple[float, str, str]]:
        """Return each request since the last call: its monotonic time, access key id and space id."""
        self._pipe.send("arrivals")
        arrivals: list[tuple[float, str, str]] = self._pipe.recv()
        return arrivals


@contextmanager
def serving(fleet: Fleet, latency: float = 0.0, changing: float = 0.0) -> Iterator[Api]:
    """Run the API of a fleet on a free port. Half of the latency is before the arrival of a request.

    `changing` is the share of responses with changed ratings.
    """
    spawn = multiprocessing.get_context("spawn")
    pipe, far_end = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(fleet, latency, changing, far_end), daemon=True)
    process.start()
    try:
        yield Api(f"http://127.0.0.1:{pipe.recv()}", pipe)
    finally:
        process.kill()
        process.join()


def _serve(fleet: Fleet, latency: float, changing: float, pipe: Connection) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        arrivals: list[tuple[float, str, str]] = []
        server = await loop.create_server(
            lambda: _Exchange(fleet.responses, latency, changing, arrivals), "127.0.0.1", 0
        )
        pipe.send(server.sockets[0].getsockname()[1])
        while await asyncio.to_thread(pipe.recv):
            pipe.send(arrivals)
            arrivals.clear()

    asyncio.run(main())


@dataclass
class _Exchange(asyncio.Protocol):
    responses: dict[str, bytes]
    latency: float
    changing: float
    arrivals: list[tuple[float, str, str]]
    received: bytes = b""
    transport: asyncio.Transport | None = field(default=None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        head, end, self.received = (self.received + data).partition(b"\r\n\r\n")
        if not end:
            self.received = head
            return
        asyncio.get_running_loop().call_later(self.latency / 2, self._arrived, head.decode())

    def _arrived(self, head: str) -> None:
        target = head.split(" ", 2)[1]
        (space,) = parse_qs(target.partition("?")[2])["CustSpaceId"]
        key = head.partition("Credential=")[2].partition(",")[0]
        loop = asyncio.get_running_loop()
        self.arrivals.append((loop.time(), key, space))
        loop.call_later(self.latency / 2, self._respond, self.responses[space])

    def _respond(self, body: bytes) -> None:
        assert self.transport
        if random() < self.changing:
            body = body.replace(b"GREEN", b"RED")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
