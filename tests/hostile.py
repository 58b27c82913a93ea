"""The simulated API on real sockets, with faults of the server and the network."""

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from exporter.clock import SystemClock
from exporter.simulator.api import SimulatedApi
from exporter.simulator.demo import demo_document
from exporter.simulator.scenario import Scenario

MEBIBYTE = 1024 * 1024


class SkewedClock(SystemClock):
    """A system clock that is fast by `skew` seconds."""

    skew = 0.0

    def now(self) -> float:
        return super().now() + self.skew


Fault = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request and its response."""

    query: str
    headers: Headers
    api_response: Callable[[], Response]
    writer: asyncio.StreamWriter

    async def send(self, status: int, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Send a complete response."""
        self.writer.write(head(status, len(body), headers) + body)
        await self.writer.drain()

    async def send_api_response(self) -> None:
        """Send the response of the simulated API."""
        response = self.api_response()
        await self.send(response.status_code, bytes(response.body), dict(response.headers))


def head(status: int, length: int, headers: Mapping[str, str]) -> bytes:
    """Return the status line and the headers of a response."""
    kept = {name: value for name, value in headers.items() if name.lower() not in ("content-length", "connection")}
    lines = [f"{name}: {value}" for name, value in {**kept, "content-length": str(length)}.items()]
    return ("\r\n".join([f"HTTP/1.1 {status} x", *lines]) + "\r\n\r\n").encode()


@dataclass
class HostileApi:
    """A simulated API on its own port. While `fault` is set, `fault` handles all requests."""

    scenario: Scenario
    latency: float = 0.01
    tls: ssl.SSLContext | None = None
    port: int = 0
    fault: Fault | None = None
    clock: SkewedClock = field(default_factory=SkewedClock)
    arrivals: list[float] = field(default_factory=list)
    """The arrival times of requests, in monotonic seconds."""

    def __post_init__(self) -> None:
        self.api = SimulatedApi(self.scenario, self.clock)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"http{'s' if self.tls else ''}://localhost:{self.port}"

    def account(self, **changes: object) -> dict[str, Any]:
        """Return the account of the API for a configuration file, with these keys changed."""
        (account,) = demo_document(self.scenario, self.endpoint)["accounts"]
        return {**account, **changes}

    async def open(self) -> None:
        """Listen. After a `close`, the port is the same as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Abort open connections. New connections are refused."""
        if self._server:
            self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.arrivals.append(self.clock.monotonic())
                await asyncio.sleep(self.latency)
                exchange = self._exchange(request, writer)
                await (self.fault(exchange) if self.fault else exchange.send_api_response())
        self._connections.discard(writer)
        writer.close()

    def _exchange(self, request: str, writer: asyncio.StreamWriter) -> Exchange:
        request_line, *lines = request.split("\r\n")
        method, target, _ = request_line.split(" ")
        query = target.partition("?")[2]
        headers = Headers(dict(line.split(": ", 1) for line in lines if line))
        return Exchange(query, headers, lambda: self.api.respond(method, query, headers, b""), writer)


def max_per_second(arrivals: list[float]) -> int:
    """Return the maximum number of arrivals within 1 second. `arrivals` is sorted."""
    first = maximum = 0
    for last, at in enumerate(arrivals):
        while arrivals[first] <= at - 1:
            first += 1
        maximum = max(maximum, last - first + 1)
    return maximum


@contextmanager
def serving(*apis: HostileApi) -> Iterator[Callable[[Awaitable[None]], None]]:
    """Run these APIs in a thread with its own event loop. Yields a function that runs an awaitable in this loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run_in_loop(work: Awaitable[None]) -> None:
        async def await_work() -> None:
            await work

        asyncio.run_coroutine_threadsafe(await_work(), loop).result(30)

    async def close() -> None:
        async with AsyncExitStack() as stack:
            for api in apis:
                stack.push_async_callback(api.close)

    try:
        for api in apis:
            run_in_loop(api.open())
        yield run_in_loop
    finally:
        run_in_loop(close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()


# ---- faults


def responds_with(status: int, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> Fault:
    """Return a fault that sends this response to all requests."""

    async def fault(exchange: Exchange) -> None:
        await exchange.send(status, body, headers)

    return fault


def rejects(
    code: str, status: int = 400, *, only: str | None = None, headers: Mapping[str, str] = MappingProxyType({})
) -> Fault:
    """Return a fault that sends this error Code to all requests, or to the queries of one space."""
    send_error = responds_with(status, json.dumps({"RequestId": "R", "Code": code, "Message": code}).encode(), headers)

    async def fault(exchange: Exchange) -> None:
        if only is None or only in exchange.query:
            await send_error(exchange)
        else:
            await exchange.send_api_response()

    return fault


async def resets_connection(exchange: Exchange) -> None:
    """Send half of a response, then reset the connection."""
    exchange.writer.write(head(200, 1000, {}) + b'{"Code": "OK", "PhoneNum')
    await exchange.writer.drain()
    connection = exchange.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()


async def never_finishes(exchange: Exchange) -> None:
    """Send one byte every 0.2 seconds and never complete the response."""
    exchange.writer.write(head(200, 100_000, {}) + b'{"Code": "OK", "PhoneNumbers": [')
    while True:
        exchange.writer.write(b" ")
        await exchange.writer.drain()
        await asyncio.sleep(0.2)


async def sends_64_mebibytes(exchange: Exchange) -> None:
    """Send a response with a body of 64 MiB."""
    exchange.writer.write(head(200, 64 * MEBIBYTE, {}))
    for _ in range(64):
        exchange.writer.write(b" " * MEBIBYTE)
        await exchange.writer.drain()


async def truncates_json(exchange: Exchange) -> None:
    """Send a complete response with truncated JSON."""
    body = bytes(exchange.api_response().body)
    await exchange.send(200, body[: len(body) // 2])


def responds_after(seconds: float) -> Fault:
    """Return a fault that delays the correct response by `seconds`."""

    async def fault(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await exchange.send_api_response()

    return fault
