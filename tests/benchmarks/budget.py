"""What three limiters at 10 queries a second let through, counted where it matters: at the server.

    python tests/benchmarks/budget.py [--seconds 30]

For every latency profile and limiter, 300 callers ask a server in a process of its own, which notes when each request
arrives. Part of the latency lies before that moment and the rest after it, split at random, as on a network there and
back. The three limiters of a profile run side by side, each with its own server.

* *worst second*: the most arrivals in any window of one second, sliding over all of them.
* *rate*: answers a second. The first second is left out, for no limiter is in its stride then (a bucket starts full, a
  permit rule with every permit free), and so are requests without an answer at the end.
* *of the limit*: rate / 10. *of limit / (1 + latency)*: rate / (10 / (1 + mean)), where the mean is over the answers
  that were counted, as the client saw them: what a limiter can use that gives a permit back a second after the answer.

Exit status 1 when ours passes the limit in any row or uses less than 93 %.
"""

import argparse
import asyncio
import multiprocessing
import random
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import fmean

from aiolimiter import AsyncLimiter

from exporter.clock import SystemClock
from exporter.polling.budget import Budget

QPS = 10
CALLERS = 300
RAMP_SECONDS = 1.0
WANTED_SHARE = 0.93
OURS = "our budget"

Limiter = Callable[[], AbstractAsyncContextManager[None]]


def constant() -> float:
    return 0.005


def uniform() -> float:
    return random.uniform(0.020, 0.200)


def spiky() -> float:
    return 3.0 if random.random() < 0.02 else random.uniform(0.020, 0.060)


PROFILES = {"5 ms": constant, "20-200 ms": uniform, "spiky (2 % take 3 s)": spiky}


class EvenlySpaced:
    """A send every 1/qps seconds, whatever happens to it."""

    def __init__(self, qps: float) -> None:
        self._gap = 1 / qps
        self._next_slot = 0.0

    async def __aenter__(self) -> None:
        now = asyncio.get_running_loop().time()
        slot = max(now, self._next_slot)
        self._next_slot = slot + self._gap
        await asyncio.sleep(slot - now)

    async def __aexit__(self, *exc_info: object) -> None:
        pass


def limiters() -> dict[str, Limiter]:
    budget, bucket, spaced = Budget(QPS, SystemClock()), AsyncLimiter(QPS, 1), EvenlySpaced(QPS)
    return {OURS: budget.permit, "aiolimiter": lambda: bucket, "evenly spaced": lambda: spaced}


def serve(profile: str, pipe: Connection) -> None:
    """The server process: says its port, answers until anything is received, then says when requests arrived."""
    latency, clock = PROFILES[profile], SystemClock()
    arrivals: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(EOFError, ConnectionError, asyncio.CancelledError):  # callers and server end with requests open
            await reader.readuntil(b"\r\n\r\n")
            takes = latency()
            way_there = random.random() * takes
            await asyncio.sleep(way_there)
            arrivals.append(clock.monotonic())
            await asyncio.sleep(takes - way_there)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=CALLERS)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        server.close()

    asyncio.run(main())
    pipe.send(arrivals)


@dataclass(frozen=True, slots=True)
class Row:
    """One profile under one limiter; latencies in seconds, of the requests answered after the ramp."""

    profile: str
    limiter: str
    arrivals: list[float]
    latencies: list[float]
    seconds: float

    @property
    def worst_second(self) -> int:
        moments, first, worst = sorted(self.arrivals), 0, 0
        for last, moment in enumerate(moments):
            while moments[first] + 1 <= moment:
                first += 1
            worst = max(worst, last - first + 1)
        return worst

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def attainable(self) -> float:
        return QPS / (1 + fmean(self.latencies))

    @property
    def good(self) -> bool:
        return self.worst_second <= QPS and self.rate / self.attainable >= WANTED_SHARE


async def ask(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
    finally:
        writer.close()


async def measure(profile: str, name: str, limiter: Limiter, port: int, pipe: Connection, seconds: float) -> Row:
    clock = SystemClock()
    counted_from = clock.monotonic() + RAMP_SECONDS
    latencies: list[float] = []

    async def caller() -> None:
        while True:
            async with limiter():
                sent_at = clock.monotonic()
                await ask(port)
                answered_at = clock.monotonic()
            if answered_at >= counted_from:
                latencies.append(answered_at - sent_at)

    callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    broken, _ = await asyncio.wait(callers, timeout=RAMP_SECONDS + seconds, return_when=asyncio.FIRST_COMPLETED)
    counted = clock.monotonic() - counted_from
    for task in callers:
        task.cancel()
    await asyncio.wait(callers)
    for task in broken:
        task.result()
    pipe.send("enough")
    arrivals = await asyncio.to_thread(pipe.recv)
    return Row(profile, name, arrivals, latencies, counted)


async def rows(profile: str, seconds: float) -> list[Row]:
    """The three limiters side by side."""
    spawn = multiprocessing.get_context("spawn")
    servers, cells = [], []
    try:
        for name, limiter in limiters().items():
            pipe, far_end = spawn.Pipe()
            server = spawn.Process(target=serve, args=(profile, far_end))
            server.start()
            servers.append(server)
            cells.append((name, limiter, await asyncio.to_thread(pipe.recv), pipe))
        return await asyncio.gather(
            *(measure(profile, name, limiter, port, pipe, seconds) for name, limiter, port, pipe in cells)
        )
    finally:
        for server in servers:
            server.join(5)
            server.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(description="Arrivals at a server under three limiters.")
    parser.add_argument("--seconds", type=float, default=30.0, help="counted for each profile (default: 30)")
    seconds = parser.parse_args().seconds
    print(f"{CALLERS} callers, limit {QPS} a second, {seconds:g} s a profile\n")
    print("| latency | limiter | worst second | requests | a second | of the limit | of limit / (1 + latency) |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    passed = True
    for profile in PROFILES:
        for row in asyncio.run(rows(profile, seconds)):
            print(
                f"| {row.profile} | {row.limiter} | {row.worst_second} | {len(row.arrivals)} | {row.rate:.2f} "
                f"| {row.rate / QPS:.1%} | {row.rate / row.attainable:.1%} |",
                flush=True,
            )
            passed = passed and (row.limiter != OURS or row.good)
    print(f"\n{OURS}: " + ("within the limit and well used" if passed else "NOT as promised"))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
