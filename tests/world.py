"""The exporter and the simulated API in one process, in virtual time. Most integration tests use this module."""

import asyncio
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from random import Random
from types import MappingProxyType
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
    settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    **account: Any,
) -> Scenario:
    """Return a scenario with these accounts, with these settings of each account. The default latency is 0. `settings`
    has other settings of single accounts, by name."""
    document = {
        "latency": account.pop("latency", "0s"),
        "accounts": [
            {
                "name": name,
                "access_key_id": f"key-{name}",
                "access_key_secret": f"secret-{name}",
                "spaces": spaces,
                **account,
                **settings.get(name, {}),
            }
            for name in accounts
        ],
        "events": [{"account": "acme", **event} for event in events],
    }
    return Scenario.model_validate(document)


def run_without_waiting(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine that completes without waiting.

    Calls in threads complete immediately on a virtual loop.

    Raises:
        RuntimeError: the coroutine waits.
    """
    try:
        work.send(None)
    except StopIteration as ended:
        result: Result = ended.value
        return result
    raise RuntimeError("the coroutine waits")


class Exporter:
    """One exporter process: its service and its view. The settings are committed, but polling is not started."""

    def __init__(self, settings: Settings, context: SourceContext, shard: Shard = UNSHARDED) -> None:
        self.service = Service(context, random=Random(1), shard=shard)
        self.reloads = ReloadState(context.clock.now())
        self.view = View(self.service, self.reloads, context.clock)
        self._clock = context.clock
        self._committed: list[ConfigChange] | None = []
        """Changes that `start` retires; None after the start."""
        self._commit(settings)

    async def start(self, *, hold_off: bool = False) -> None:
        committed, self._committed = self._committed or [], None
        for change in committed:
            await self.service.retire(change, hold_off=hold_off)

    async def reconfigure(self, settings: Settings) -> None:
        if self._committed is None:
            await self.service.apply(settings)
        else:
            self._commit(settings)

    def _commit(self, settings: Settings) -> None:
        change = run_without_waiting(self.service.prepare(settings))
        self.service.commit(change)
        self.service.recorder.sync_state_file(change.unsaved_spaces)
        self._committed = [*(self._committed or []), change]

    def reloader(self, loader: Loader) -> Reloader:
        return Reloader(loader, self.service, self.reloads, self._clock)

    async def sweep(self, on_progress: Callable[[Progress], None] = lambda _: None) -> SweepResult:
        return await sweep(self.service, on_progress)

    async def stop(self) -> None:
        await self.service.stop()

    def exposition(self, *, openmetrics: bool = False, names: Collection[str] = ()) -> list[bytes]:
        for _ in self.view.expire():
            pass
        return list(self.view.exposition(openmetrics=openmetrics, names=names))


class World:
    """An exporter and the simulated API that it polls. Requires a running virtual loop."""

    def __init__(
        self, scenario: Scenario, *, settings: Settings | None = None, clock: Clock | None = None, **changes: Any
    ) -> None:
        self.clock = clock or VirtualClock()
        self.api = _ObservedApi(scenario, self.clock)
        self.settings = (settings or demo_settings(scenario, "http://127.0.0.1:1")).model_copy(update=changes)
        self._competing_requests = 0
        self.polls: list[tuple[float, str]] = []
        """Time and space of each query of phone numbers."""
        self.list_requests: list[tuple[float, int]] = []
        """Time and page number of each `ListInstance` request."""
        self.endpoints: list[str] = []
        """The endpoint of each HTTP client, in the order of creation."""
        self._simulator = create_simulator(self.api)
        self.exporter = self.fresh_exporter()

    def fresh_exporter(
        self,
        spaces: int | None = None,
        shard: Shard = UNSHARDED,
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
        connects: Callable[[str], bool] = lambda _: True,
    ) -> Exporter:
        """Return a new exporter process. It polls the first `spaces` spaces of the first account (default: all). Its
        queries about a space fail unless it `connects`."""
        settings = settings or self.settings
        if spaces:
            first, *others = settings.accounts
            accounts = [first.model_copy(update={"spaces": (first.spaces or [])[:spaces]}), *others]
            settings = settings.model_copy(update={"accounts": accounts})
        return Exporter(settings, SourceContext({}, clock or self.clock, partial(self._client, connects)), shard)

    def space_id(self, number: int) -> str:
        """Return the id of a space of the first account. The first space has number 1."""
        return self.settings.accounts[0].polled_spaces[number - 1].id

    def polls_of(self, space_id: str) -> list[float]:
        return [at for at, space in self.polls if space == space_id]

    def samples(self, prefix: str = "") -> list[str]:
        """Return the sample lines with this prefix, without the labels `account="acme"` and `space`."""
        lines = b"".join(self.exporter.exposition(openmetrics=False)).decode().splitlines()
        selected = [line for line in lines if line.startswith(prefix) and not line.startswith("#")]
        return [re.sub(r'(account="acme"|space="[^"]*"),?', "", line).replace(",}", "}") for line in selected]

    def send_competing_request(self) -> None:
        """Send a query of another client with the account's access key. The query counts toward the same rate limit."""
        self._competing_requests += 1
        credentials = Credentials("key-acme", "secret-acme")
        nonce = f"competitor-{self._competing_requests}"
        signed = encode_request("simulator", QUERY_PHONE_NUMBERS, {}, credentials, now=self.clock.now(), nonce=nonce)
        self.api.respond("POST", signed.query, httpx.Headers(dict(signed.headers)), b"")

    def _client(self, connects: Callable[[str], bool], endpoint: str) -> httpx.AsyncClient:
        self.endpoints.append(endpoint)
        return httpx.AsyncClient(transport=_RecordingTransport(self, connects, httpx.ASGITransport(self._simulator)))


class _ObservedApi(SimulatedApi):
    """The simulated API. It records the arrival times of requests and can send fixed responses."""

    def __init__(self, scenario: Scenario, clock: Clock) -> None:
        super().__init__(scenario, clock)
        self.arrivals: list[float] = []
        self.hangs = False
        """Whether requests get no response for an hour."""
        self.fixed_response: Response | None = None
        """The response to each request, for example of a proxy."""
        self.fixed_list_response: Response | None = None
        """The response to each `ListInstance` request."""
        self.next_responses: dict[str, list[Response]] = {}
        """By space, the responses to its next queries."""

    def respond(self, method: str, query: str, headers: Mapping[str, str], body: bytes) -> Response:
        self.arrivals.append(self._clock.monotonic())
        list_response = self.fixed_list_response if headers["x-acs-action"] == LIST_INSTANCES else None
        if next_responses := self.next_responses.get(dict(parse_qsl(query)).get("CustSpaceId", "")):
            return next_responses.pop(0)
        return self.fixed_response or list_response or super().respond(method, query, headers, body)


class _RecordingTransport(httpx.AsyncBaseTransport):
    def __init__(self, world: World, connects: Callable[[str], bool], inner: httpx.AsyncBaseTransport) -> None:
        self._world = world
        self._connects = connects
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        query, now = dict(parse_qsl(request.url.query.decode())), self._world.clock.monotonic()
        if not self._connects(query.get("CustSpaceId", "")):
            raise httpx.ConnectError("network is unreachable")
        if request.headers["x-acs-action"] == LIST_INSTANCES:
            self._world.list_requests.append((now, int(query["PageIndex"])))
        else:
            self._world.polls.append((now, query.get("CustSpaceId", "")))
        if self._world.api.hangs:
            await asyncio.sleep(3600)
        return await self._inner.handle_async_request(request)


def max_per_second(arrivals: Sequence[float]) -> int:
    """Return the maximum number of arrivals within 1 second. `arrivals` is sorted."""
    return max(bisect_left(arrivals, at + 1 - 1e-6) - index for index, at in enumerate(arrivals))


class StaticCredentials:
    """Credentials that never change."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def current(self) -> Credentials:
        return self._credentials

    def changed(self) -> bool:
        return False
