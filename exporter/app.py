"""The whole program, put together: the one place that chooses clock, network and files for everything else."""

import asyncio
import signal
import sqlite3
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from random import Random
from socket import socket

import httpx
import structlog
import yaml
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from exporter import __version__
from exporter.chatapp.client import Client
from exporter.chatapp.errors import QueryError
from exporter.clock import Clock, SystemClock
from exporter.config.credentials import CredentialReader
from exporter.config.settings import Account, Settings, Space, is_loopback
from exporter.metrics.catalogue import AccountView, SpaceView
from exporter.metrics.instruments import Instruments
from exporter.metrics.page import CatalogueCollector, Page
from exporter.polling.account import AccountPolling
from exporter.polling.budget import Budget
from exporter.polling.poller import Outcome, Poller
from exporter.polling.schedule import Schedule
from exporter.state.history import History
from exporter.state.store import Key, SpaceState, Store
from exporter.web.app import create_app
from exporter.web.server import serving, url_of

Encoder = Callable[[Collector], bytes]
HttpFactory = Callable[[str], httpx.AsyncClient]
"""Gives the HTTP client for an endpoint."""

_log = structlog.get_logger()


def http_client(endpoint: str) -> httpx.AsyncClient:
    """The client for the real network; what is on this machine is not asked for through a proxy.

    It has no time-outs of its own: `Client` bounds the whole request.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(limits=limits, timeout=None, trust_env=not is_loopback(endpoint))  # noqa: S113


class Exporter:
    """Everything between the configuration and the pages. Start and stop it inside a running event loop."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        clock: Clock,
        http: HttpFactory = http_client,
        random: Random | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random or Random()
        self._spaces: dict[Key, Space] = {
            (account.name, space.id): space for account in settings.accounts for space in account.polled_spaces
        }
        self._instruments = Instruments([account.name for account in settings.accounts], settings.limits)
        self._instruments.config_loaded(clock.now())
        self._history, known = _open_history(settings.state_file, self._spaces)
        self._page = Page(self._view, self.accounts, settings.max_age)
        states = {key: known.get(key, SpaceState()) for key in self._spaces}
        unpolled = [key for key, state in states.items() if state.fresh_until(settings.max_age) <= clock.now()]
        self._store = Store(states, unpolled, self._page.update)
        self._http = {account.name: http(account.endpoint) for account in settings.accounts}
        self._schedule = Schedule(clock)
        self._polling = [self._account_polling(account, environ) for account in settings.accounts]

    async def start(self) -> None:
        """Begin polling."""
        self._schedule.start()
        for polling in self._polling:
            polling.start()
            plan = polling.plan
            _log.info(
                "polling",
                account=polling.account.name,
                spaces=plan.spaces,
                qps=plan.qps,
                needed_qps=round(plan.needed_qps, 3),
                interval=plan.interval,
                effective_interval=round(plan.effective_interval, 1),
            )

    async def sweep(self) -> list[tuple[SpaceView, QueryError | None]]:
        """Poll every space once, within the budgets, and nothing more; the spaces, with their errors, in order."""
        swept = await asyncio.gather(*(polling.sweep() for polling in self._polling))
        errors = {(outcome.account, outcome.space): outcome.error for outcomes in swept for outcome in outcomes}
        return [(view, errors[view.account, view.space.id]) for view in self._page.views(self._clock.now())]

    async def stop(self) -> None:
        """Let polls under way end, within a few seconds, and close what is open."""
        self._schedule.pause()
        await asyncio.gather(*(polling.stop() for polling in self._polling))
        await self._schedule.stop()
        await asyncio.gather(*(client.aclose() for client in self._http.values()))
        if self._history:
            self._history.close()

    def exposition(self, *, openmetrics: bool, names: Collection[str] = ()) -> bytes:
        """All families, or those of these names, in text 0.0.4 or OpenMetrics 1.0."""
        registry = self._instruments.registry
        own = registry.restricted_registry(names) if names else registry
        pieces = [*self._page.render(self._clock.now(), openmetrics=openmetrics, names=names)]
        encode: Encoder = generate_openmetrics if openmetrics else generate_latest
        pieces.append(encode(own))
        return b"".join(pieces)

    def collector(self) -> CatalogueCollector:
        """The families of spaces and accounts as a prometheus_client collector."""
        return CatalogueCollector(lambda: self._page.views(self._clock.now()), self.accounts)

    def accounts(self) -> list[AccountView]:
        """The accounts as they are now."""
        return [
            AccountView(polling.account.name, polling.up, polling.plan, polling.budget.current_qps())
            for polling in self._polling
        ]

    def unpolled(self) -> int:
        """How many spaces have been neither polled nor known since the start."""
        return len(self._store.unpolled)

    def redacted_config(self) -> str:
        """The configuration in YAML, its secrets left out."""
        document = self._settings.model_dump(mode="json", exclude_defaults=True)
        for account in document["accounts"]:
            account.update({key: "<secret>" for key in ("access_key_id", "access_key_secret") if key in account})
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def _account_polling(self, account: Account, environ: Mapping[str, str]) -> AccountPolling:
        budget = Budget(account.qps, self._clock)
        client = Client(self._http[account.name], account.endpoint, CredentialReader(account, environ), self._clock)
        poller = Poller(account, client, budget, self._clock, self._instruments)
        known = [space for name, space in self._spaces.keys() - self._store.unpolled if name == account.name]
        return AccountPolling(account, poller, budget, self._schedule, self._clock, self._record, self._random, known)

    def _record(self, outcome: Outcome) -> None:
        state = self._store.record(outcome)
        if outcome.answer:
            self._instruments.answered(outcome.answer)
        if self._history:
            self._history.save((outcome.account, outcome.space), state)

    def _view(self, key: Key, state: SpaceState, fresh: bool) -> SpaceView:
        return SpaceView(key[0], self._spaces[key], state, fresh, self._settings.limits)


def _open_history(path: str | None, keys: Collection[Key]) -> tuple[History | None, dict[Key, SpaceState]]:
    """The state file and what it knows; neither where there is none that can be used."""
    if path is None:
        return None, {}
    try:
        history = History(Path(path))
        return history, history.load(keys)
    except sqlite3.Error as error:
        _log.error("state file unusable, nothing will be kept over a restart", file=path, problem=str(error))
        return None, {}


async def serve(settings: Settings, environ: Mapping[str, str], listener: socket) -> None:
    """Poll, and serve on the listening socket, until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    exporter = Exporter(settings, environ, SystemClock())
    async with serving(create_app(exporter), listener):
        await exporter.start()
        _log.info("listening", url=url_of(listener), version=__version__)
        await stop.wait()
        _log.info("stopping")
        await exporter.stop()
    _log.info("stopped")


async def sweep(settings: Settings, environ: Mapping[str, str]) -> list[tuple[SpaceView, QueryError | None]]:
    """Every space polled once, without a schedule, a state file or a server."""
    exporter = Exporter(settings.model_copy(update={"state_file": None}), environ, SystemClock())
    swept = await exporter.sweep()
    await exporter.stop()
    return swept
