"""Counts how many requests arrive at a server per second with three limiters of 10 queries per second.

    python tests/benchmarks/budget.py [--seconds 30]

For each latency profile and limiter, 300 callers send requests to a server process, which records the arrival of each
request. A random part of the latency is before the arrival and the rest is after it, as in a real network. The three
limiters of a profile run at the same time, each with its own server.

* *worst second*: the maximum number of arrivals in any window of one second.
* *per second*: responses per second. The first second is excluded, because a limiter starts with a full bucket or with
  all permits. Requests without a response at the end are excluded.
* *of the limit*: responses per second / 10.
* *of limit / (1 + latency)*: responses per second / (10 / (1 + mean)). The mean is the mean latency of the counted
  responses at the client. A limiter that releases a permit one second after the response reaches at most 100 %.

Exit status: 1 if the budget of the exporter exceeds the limit in a row or uses less than 93 % of this maximum.
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
MIN_SHARE = 0.93
EXPORTER = "exporter"

Limiter = Callable[[], AbstractAsyncContextManager[None]]


def constant() -> float:
    return 0.005


def uniform() -> float:
    return random.uniform(0.020, 0.200)


def spiky() -> float:
    return 3.0 if random.random() < 0.02 else random.uniform(0.020, 0.060)


PROFILES = {"5 ms": constant, "20-200 ms": uniform, "spiky (2 % take 3 s)": spiky}


class EvenlySpaced:
    """Allows a request every 1/qps seconds, independent of responses."""

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
    return {EXPORTER: budget.permit, "aiolimiter": lambda: bucket, "evenly spaced": lambda: spaced}


def serve(profile: str, pipe: Connection) -> None:
    """Run the server process: send its port to `pipe`, respond until a message arrives, then send the arrival times."""
    latency, clock = PROFILES[profile], SystemClock()
    arrivals: list[float] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(EOFError, ConnectionError, asyncio.CancelledError):  # requests are in flight at the end
            await reader.readuntil(b"\r\n\r\n")
            duration = latency()
            before_arrival = random.random() * duration
            await asyncio.sleep(before_arrival)
            arrivals.append(clock.monotonic())
            await asyncio.sleep(duration - before_arrival)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(respond, "127.0.0.1", 0, backlog=CALLERS)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        server.close()

    asyncio.run(main())
    pipe.send(arrivals)


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one profile and limiter. `latencies` are those of responses after the ramp, in seconds."""

    profile: str
    limiter: str
    arrivals: list[float]
    latencies: list[float]
    seconds: float

    @property
    def worst_second(self) -> int:
        times, first, worst = sorted(self.arrivals), 0, 0
        for last, time in enumerate(times):
            while times[first] + 1 <= time:
                first += 1
            worst = max(worst, last - first + 1)
        return worst

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def max_rate(self) -> float:
        return QPS / (1 + fmean(self.latencies))

    @property
    def passed(self) -> bool:
        return self.worst_second <= QPS and self.rate / self.max_rate >= MIN_SHARE


async def send_request(port: int) -> None:
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
                await send_request(port)
                answered_at = clock.monotonic()
            if answered_at >= counted_from:
                latencies.append(answered_at - sent_at)

    callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    failed, _ = await asyncio.wait(callers, timeout=RAMP_SECONDS + seconds, return_when=asyncio.FIRST_COMPLETED)
    counted = clock.monotonic() - counted_from
    for task in callers:
        task.cancel()
    await asyncio.wait(callers)
    for task in failed:
        task.result()
    pipe.send("stop")
    arrivals = await asyncio.to_thread(pipe.recv)
    return Row(profile, name, arrivals, latencies, counted)


async def rows(profile: str, seconds: float) -> list[Row]:
    """Measure the three limiters at the same time."""
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
    parser = argparse.ArgumentParser(description="Count arrivals at a server with three limiters.")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="seconds of measurement for each profile (default: 30)"
    )
    seconds = parser.parse_args().seconds
    print(f"{CALLERS} callers, limit {QPS} per second, {seconds:g} s per profile\n")
    print("| latency | limiter | worst second | requests | per second | of the limit | of limit / (1 + latency) |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    passed = True
    for profile in PROFILES:
        for row in asyncio.run(rows(profile, seconds)):
            print(
                f"| {row.profile} | {row.limiter} | {row.worst_second} | {len(row.arrivals)} | {row.rate:.2f} "
                f"| {row.rate / QPS:.1%} | {row.rate / row.max_rate:.1%} |",
                flush=True,
            )
            passed = passed and (row.limiter != EXPORTER or row.passed)
    print(f"\n{EXPORTER}: " + ("passed" if passed else f"FAILED: over the limit, or less than {MIN_SHARE:.0%} used"))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
