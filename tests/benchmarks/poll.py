"""What a poll costs beside the same call through the official SDK, against the same server.

    python tests/benchmarks/poll.py

Each in a process of its own, in CPU time of the whole process. Ours goes from the request to the rendered block:
budget, signature, httpx, answer, state, page, counters. The SDK's calls end with its own objects; bare httpx is what
of ours is not ours. Rounds take turns.
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
WITHOUT_WAITING = 1e6
"""A budget so large that only the work is measured."""

Round = Callable[[], Awaitable[None]]


@asynccontextmanager
async def ours(endpoint: str, fleet: Fleet = FLEET) -> AsyncIterator[Round]:
    """A poll of every space, one after the other."""
    settings = sources.Settings.model_validate(fleet.document(endpoint))
    (account,) = settings.accounts
    clock = SystemClock()
    source, recorder = account.open(SourceContext({}, clock, http_client)), Recorder(clock)
    recorder.apply(settings, frozenset(), {})
    budget = Budget(WITHOUT_WAITING, clock)
    poller = Poller(account.name, source, budget, budget, clock, recorder.instruments, lambda _: False)

    async def one_after_the_other() -> None:
        for space in account.polled_spaces:
            outcome = await poller.poll(space, due=0.0, retry=False)
            assert outcome.answer
            recorder.record(outcome)

    yield one_after_the_other
    await source.aclose()


@asynccontextmanager
async def sdk(endpoint: str) -> AsyncIterator[Round]:
    """The SDK's call as its documentation has it."""
    client = sdk_client(endpoint)

    async def each() -> None:
        for space in FLEET.answers:
            answer = client.query_chatapp_phone_numbers(QueryChatappPhoneNumbersRequest(cust_space_id=space))
            assert answer.body.phone_numbers

    yield each


@asynccontextmanager
async def sdk_async(endpoint: str) -> AsyncIterator[Round]:
    """The SDK's call for event loops."""
    client = sdk_client(endpoint)

    async def each() -> None:
        for space in FLEET.answers:
            request = QueryChatappPhoneNumbersRequest(cust_space_id=space)
            answer = await client.query_chatapp_phone_numbers_async(request)
            assert answer.body.phone_numbers

    yield each


@asynccontextmanager
async def bare_httpx(endpoint: str) -> AsyncIterator[Round]:
    """The HTTP client that we use, and nothing else."""
    async with httpx.AsyncClient() as http:

        async def each() -> None:
            for space in FLEET.answers:
                answer = await http.post(f"{endpoint}/?CustSpaceId={space}")
                assert answer.content

        yield each


def sdk_client(endpoint: str) -> SdkClient:
    config = Config(access_key_id="key", access_key_secret="secret", protocol="http")
    config.endpoint = endpoint.removeprefix("http://")
    return SdkClient(config)


SIDES = (ours, sdk, sdk_async, bare_httpx)


def side(index: int, endpoint: str, pipe: Connection) -> None:
    """A process: at each word a round, answered with the CPU seconds of a call."""

    async def main() -> None:
        async with SIDES[index](endpoint) as each:
            while await asyncio.to_thread(pipe.recv):
                started = time.process_time()
                await each()
                pipe.send((time.process_time() - started) / FLEET.spaces)

    configure_logs("error", "logfmt")
    asyncio.run(main())


def measured(endpoint: str) -> list[float]:
    """The median CPU seconds of a call, for each side."""
    spawn = multiprocessing.get_context("spawn")
    pipes, rounds = [], []
    for index in range(len(SIDES)):
        pipe, far_end = spawn.Pipe()
        spawn.Process(target=side, args=(index, endpoint, far_end), daemon=True).start()
        pipes.append(pipe)
    for _ in range(ROUNDS):
        for pipe in pipes:
            pipe.send(True)
            rounds.append(pipe.recv())
    for pipe in pipes:
        pipe.send(False)
    # the first round opens connections and imports what is imported late
    return [statistics.median(rounds[index + len(SIDES) :: len(SIDES)]) for index in range(len(SIDES))]


def cpu_of_a_poll(fleet: Fleet, endpoint: str) -> float:
    """Seconds of ours, with a fleet of this size."""

    async def main() -> float:
        async with ours(endpoint, fleet) as each:
            await each()
            started = time.process_time()
            await each()
            return (time.process_time() - started) / fleet.spaces

    configure_logs("error", "logfmt")
    return asyncio.run(main())


def main() -> int:
    table = Table(("poll", "ours", "beside", "ratio", "limit", "kept"))
    with serving(FLEET) as api:
        took, sdk_took, sdk_async_took, httpx_took = measured(api.endpoint)
    what = "CPU of a poll of 3 numbers", milliseconds(took)
    table.judged(*what, f"the SDK, async, {milliseconds(sdk_async_took)}", value=took / sdk_async_took, limit=0.5)
    table.judged(*what, f"the SDK, blocking, {milliseconds(sdk_took)}", value=took / sdk_took, limit=0.5)
    table.row(*what, f"bare httpx {milliseconds(httpx_took)}", f"{took / httpx_took:.3g}", "", "")
    return len(table.missed)


if __name__ == "__main__":
    sys.exit(main())
