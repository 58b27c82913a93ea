"""The real exporter on the simulated API in one process, under virtual time: what most tests start from."""

import asyncio
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import httpx
from starlette.responses import Response
from virtual_time import VirtualClock

from exporter.clock import Clock
from exporter.config.effective import UNSHARDED, Shard
from exporter.config.settings import Settings
from exporter.polling.plan import Progress
from exporter.runtime.reload import Loader, Reloader
from exporter.runtime.service import ConfigChange, Service
from exporter.runtime.sweep import SweepResult, sweep
from exporter.runtime.view import ReloadState, View
from exporter.simulator.api import SimulatedApi, create_simulator
from exporter.simulator.demo import demo_settings
from exporter.simulator.scenario import Scenario
from exporter.source import SourceContext
from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.wire import LIST_INSTANCES, QUERY_PHONE_NUMBERS, encode_request

Result = TypeVar("Result")


def scenario(
    spaces: int = 1,
    *,
    accounts: Sequence[str] = ("acme",),
    events: tuple[Mapping[str, Any], ...] = (),
    **account: Any,
) -> Scenario:
    """A scenario with one account `acme`, or these, without latency unless their settings say so."""
    document = {
        "latency": account.pop("latency", "0s"),
        "accounts": [
            {
                "name": name,
                "access_key_id": f"key-{name}",
                "access_key_secret": f"secret-{name}",
                "spaces": spaces,
                **account,
            }
            for name in accounts
        ],
        "events": [{"account": "acme", **event} for event in events],
    }
    return Scenario.model_validate(document)


def run_without_waiting(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of what waits for nothing on a virtual loop, where threads run at once."""
    try:
        work.send(None)
    except StopIteration as ended:
        result: Result = ended.value
        return result
    raise RuntimeError("it waits for something")


class Exporter:
    """A process: the service of some settings, prepared and committed but not started, and what can be seen of it."""

    def __init__(self, settings: Settings, context: SourceContext, shard: Shard = UNSHARDED) -> None:
        self.service = Service(context, random=Random(1), shard=shard)
        self.reloads = ReloadState(context.clock.now())
        self.view = View(self.service, self.reloads, context.clock)
        self._clock = context.clock
        self._waiting: list[ConfigChange] | None = []
        self._commit(settings)

    async def start(self, *, hold_off: bool = False) -> None:
        waiting, self._waiting = self._waiting or [], None
        for change in waiting:
            await self.service.retire(change, hold_off=hold_off)

    async def reconfigure(self, settings: Settings) -> None:
        if self._waiting is None:
            await self.service.apply(settings)
        else:
            self._commit(settings)

    def _commit(self, settings: Settings) -> None:
        change = run_without_waiting(self.service.prepare(settings))
        self.service.commit(change)
        self.service.recorder.sync_state_file(change.unsaved_spaces)
        self._waiting = [*(self._waiting or []), change]

    def reloader(self, loader: Loader) -> Reloader:
        return Reloader(loader, self.service, self.reloads, self._clock)

    async def sweep(self, watch: Callable[[Progress], None] = lambda _: None) -> SweepResult:
        return await sweep(self.service, watch)

    async def stop(self) -> None:
        await self.service.stop()

    def exposition(self, *, openmetrics: bool = False, names: Collection[str] = ()) -> list[bytes]:
        for _ in self.view.expire():
            pass
        return list(self.view.exposition(openmetrics=openmetrics, names=names))


class World:
    """An exporter and the API that it polls. Make it inside a running (virtual) loop."""

    def __init__(
        self, scenario: Scenario, *, settings: Settings | None = None, clock: Clock | None = None, **changes: Any
    ) -> None:
        self.clock = clock or VirtualClock()
        self.api = _ObservedApi(scenario, self.clock)
        self.settings = (settings or demo_settings(scenario, "http://127.0.0.1:1")).model_copy(update=changes)
        self._competing_requests = 0
        self.polls: list[tuple[float, str]] = []
        """When the API was asked, and for which space."""
        self.list_requests: list[tuple[float, int]] = []
        """When it was asked for which page of the instances."""
        self.endpoints: list[str] = []
        """Where accounts were told to ask, in order."""
        self._simulator = create_simulator(self.api)
        self.exporter = self.fresh_exporter()

    def fresh_exporter(self, spaces: int | None = None, shard: Shard = UNSHARDED) -> Exporter:
        """Another process on the same API, with nothing in its memory; it polls only the first so many `spaces`."""
        first = self.settings.accounts[0]
        accounts = [first.model_copy(update={"spaces": (first.spaces or [])[:spaces]}), *self.settings.accounts[1:]]
        settings = self.settings.model_copy(update={"accounts": accounts}) if spaces else self.settings
        return Exporter(settings, SourceContext({}, self.clock, self._client), shard)

    def space_id(self, number: int) -> str:
        """The id of a space of the first account, counted from 1."""
        return self.settings.accounts[0].polled_spaces[number - 1].id

    def polls_of(self, space_id: str) -> list[float]:
        return [at for at, space in self.polls if space == space_id]

    def samples(self, prefix: str = "") -> list[str]:
        """The sample lines of a scrape that start so, without the labels account and space."""
        lines = b"".join(self.exporter.exposition(openmetrics=False)).decode().splitlines()
        chosen = [line for line in lines if line.startswith(prefix) and not line.startswith("#")]
        return [re.sub(r'(account="acme"|space="[^"]*"),?', "", line).replace(",}", "}") for line in chosen]

    def send_competing_request(self) -> None:
        """One request with the account's key that is not the exporter's: it counts against the same limit."""
        self._competing_requests += 1
        credentials = Credentials("key-acme", "secret-acme")
        nonce = f"another-{self._competing_requests}"
        signed = encode_request("simulator", QUERY_PHONE_NUMBERS, {}, credentials, now=self.clock.now(), nonce=nonce)
        self.api.respond("POST", signed.query, httpx.Headers(dict(signed.headers)), b"")

    def _client(self, endpoint: str) -> httpx.AsyncClient:
        self.endpoints.append(endpoint)
        return httpx.AsyncClient(transport=_Recording(self, httpx.ASGITransport(self._simulator)))


class _ObservedApi(SimulatedApi):
    """The API, and when requests reached it; a `portal` before it, or before its listings, answers instead. While it
    `hangs`, it answers nothing."""

    def __init__(self, scenario: Scenario, clock: Clock) -> None:
        super().__init__(scenario, clock)
        self.arrivals: list[float] = []
        self.hangs = False
        self.fixed_response: Response | None = None
        self.fixed_list_response: Response | None = None
        self.next_responses: dict[str, list[Response]] = {}
        """By space, what its next queries are answered instead."""

    def respond(self, method: str, query: str, headers: Mapping[str, str], body: bytes) -> Response:
        self.arrivals.append(self._clock.monotonic())
        of_listings = self.fixed_list_response if headers["x-acs-action"] == LIST_INSTANCES else None
        if next_responses := self.next_responses.get(dict(parse_qsl(query)).get("CustSpaceId", "")):
            return next_responses.pop(0)
        return self.fixed_response or of_listings or super().respond(method, query, headers, body)


class _Recording(httpx.AsyncBaseTransport):
    def __init__(self, world: World, inner: httpx.AsyncBaseTransport) -> None:
        self._world = world
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        query, now = dict(parse_qsl(request.url.query.decode())), self._world.clock.monotonic()
        if request.headers["x-acs-action"] == LIST_INSTANCES:
            self._world.list_requests.append((now, int(query["PageIndex"])))
        else:
            self._world.polls.append((now, query.get("CustSpaceId", "")))
        if self._world.api.hangs:
            await asyncio.sleep(3600)
        return await self._inner.handle_async_request(request)


def max_per_second(arrivals: Sequence[float]) -> int:
    """The most arrivals that any one second saw; they are in order."""
    return max(bisect_left(arrivals, at + 1 - 1e-6) - index for index, at in enumerate(arrivals))


class StaticCredentials:
    """These credentials."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def current(self) -> Credentials:
        return self._credentials

    def changed(self) -> bool:
        return False
