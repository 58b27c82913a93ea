"""Measures the CPU time of a poll, compared with the same call of the official SDK to the same server.

    python tests/benchmarks/poll.py

Each client runs in its own process, and the CPU time of the process is measured. A poll of the exporter includes the
budget, signature, httpx, decoding, record, rendered lines and counters. A call of the SDK returns objects of the SDK.
Bare httpx shows the share of httpx in a poll. The rounds of the clients alternate.
"""

import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

import httpx
from alibabacloud_cams20200606.client import Client as SdkClient
from alibabacloud_cams20200606.models import QueryChatappPhoneNumbersRequest
from alibabacloud_tea_openapi.models import Config
from api import serving
from fleet import Fleet
from measure import Table, milliseconds

from exporter import sources
from exporter.clock import SystemClock
from exporter.http import http_client
from exporter.logs import configure_logs
from exporter.polling.budget import Budget
from exporter.polling.poller import Poller
from exporter.runtime.recorder import Recorder
from exporter.source import SourceContext

ROUNDS = 7
FLEET = Fleet(1_000, 300)
UNLIMITED_QPS = 1e6
"""A rate without waits, so that only CPU time is measured."""

Round = Callable[[], Awaitable[None]]


@asynccontextmanager
async def exporter(endpoint: str, fleet: Fleet = FLEET) -> AsyncIterator[Round]:
    """Poll all spaces, one after the other, with the exporter's code."""
    settings = sources.Settings.model_validate(fleet.document(endpoint))
    (account,) = settings.accounts
    clock = SystemClock()
    source, recorder = account.open(SourceContext({}, clock, http_client)), Recorder(clock)
    recorder.apply(settings, frozenset(), {})
    budget = Budget(UNLIMITED_QPS, clock)
    poller = Poller(account.name, source, budget, budget, clock, recorder.instruments, lambda _: False)

    async def poll_all() -> None:
        for space in account.polled_spaces:
            outcome = await poller.poll(space, due=0.0, retry=False)
            assert outcome.answer
            recorder.record(outcome)

    yield poll_all
    await source.aclose()


@asynccontextmanager
async def sdk(endpoint: str) -> AsyncIterator[Round]:
    """Query all spaces with the blocking call of the SDK."""
    client = sdk_client(endpoint)

    async def query_all() -> None:
        for space in FLEET.responses:
            response = client.query_chatapp_phone_numbers(QueryChatappPhoneNumbersRequest(cust_space_id=space))
            assert response.body.phone_numbers

    yield query_all


@asynccontextmanager
async def sdk_async(endpoint: str) -> AsyncIterator[Round]:
    """Query all spaces with the async call of the SDK."""
    client = sdk_client(endpoint)

    async def query_all() -> None:
        for space in FLEET.responses:
            request = QueryChatappPhoneNumbersRequest(cust_space_id=space)
            response = await client.query_chatapp_phone_numbers_async(request)
            assert response.body.phone_numbers

    yield query_all


@asynccontextmanager
async def bare_httpx(endpoint: str) -> AsyncIterator[Round]:
    """Send the requests with httpx alone."""
    async with httpx.AsyncClient() as http:

        async def query_all() -> None:
            for space in FLEET.responses:
                response = await http.post(f"{endpoint}/?CustSpaceId={space}")
                assert response.content

        yield query_all


def sdk_client(endpoint: str) -> SdkClient:
    config = Config(access_key_id="key", access_key_secret="secret", protocol="http")
    config.endpoint = endpoint.removeprefix("http://")
    return SdkClient(config)


CLIENTS = (exporter, sdk, sdk_async, bare_httpx)


def run_client(index: int, endpoint: str, pipe: Connection) -> None:
    """Run a client process. For each message, run a round and send the CPU seconds per call."""

    async def main() -> None:
        async with CLIENTS[index](endpoint) as run_round:
            while await asyncio.to_thread(pipe.recv):
                started = time.process_time()
                await run_round()
                pipe.send((time.process_time() - started) / FLEET.spaces)

    configure_logs("error", "logfmt")
    asyncio.run(main())


def measured(endpoint: str) -> list[float]:
    """Return the median CPU seconds per call of each client."""
    spawn = multiprocessing.get_context("spawn")
    pipes, rounds = [], []
    for index in range(len(CLIENTS)):
        pipe, far_end = spawn.Pipe()
        spawn.Process(target=run_client, args=(index, endpoint, far_end), daemon=True).start()
        pipes.append(pipe)
    for _ in range(ROUNDS):
        for pipe in pipes:
            pipe.send(True)
            rounds.append(pipe.recv())
    for pipe in pipes:
        pipe.send(False)
    # without the first round, which opens connections and imports modules
    return [statistics.median(rounds[index + len(CLIENTS) :: len(CLIENTS)]) for index in range(len(CLIENTS))]


def cpu_per_poll(fleet: Fleet, endpoint: str) -> float:
    """Return the CPU seconds per poll of the exporter with this fleet."""

    async def main() -> float:
        async with exporter(endpoint, fleet) as run_round:
            await run_round()
            started = time.process_time()
            await run_round()
            return (time.process_time() - started) / fleet.spaces

    configure_logs("error", "logfmt")
    return asyncio.run(main())


def main() -> int:
    table = Table(("poll", "exporter", "compared with", "ratio", "limit", "within limit"))
    with serving(FLEET) as api:
        seconds, sdk_seconds, sdk_async_seconds, httpx_seconds = measured(api.endpoint)
    cells = "CPU per poll of 3 numbers", milliseconds(seconds)
    for name, other in (("async", sdk_async_seconds), ("blocking", sdk_seconds)):
        table.row_with_limit(*cells, f"SDK, {name}, {milliseconds(other)}", value=seconds / other, limit=0.5)
    table.row(*cells, f"bare httpx {milliseconds(httpx_seconds)}", f"{seconds / httpx_seconds:.3g}", "", "")
    return len(table.exceeded)


if __name__ == "__main__":
    sys.exit(main())
