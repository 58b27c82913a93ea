"""The exporter, put together: polling, state and pages of one configuration, and the step to another one."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from ssl import SSLContext

import httpx
import structlog
import yaml
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from exporter.clock import Clock, SystemClock
from exporter.config.credentials import CredentialSource, credential_source
from exporter.config.settings import Account, Settings, Space, is_loopback
from exporter.config.shard import WHOLE, Shard
from exporter.metrics.catalogue import AccountView, SpaceView
from exporter.metrics.instruments import Instruments
from exporter.metrics.page import CatalogueCollector, Page
from exporter.planning import AccountPlan, warnings
from exporter.polling.account import AccountPolling
from exporter.polling.budget import Budget
from exporter.polling.discovery import Discovery
from exporter.polling.plan import Progress
from exporter.polling.poller import Outcome, Poller
from exporter.polling.schedule import Schedule
from exporter.source import QueryError
from exporter.sources.cams.client import Client
from exporter.state.state_file import StateFile, open_state_file
from exporter.state.store import Key, SpaceState, Store
from exporter.web.overview import Snapshot

HttpFactory = Callable[[str], httpx.AsyncClient]
"""Gives the HTTP client for an endpoint."""

_log = structlog.get_logger()


def http_client(endpoint: str) -> httpx.AsyncClient:
    """The client for the real network; what is on this machine is not asked for through a proxy.

    It has no time-outs of its own: `Client` bounds the whole request. SSL_CERT_FILE counts for every endpoint.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(limits=limits, timeout=None, trust_env=not is_loopback(endpoint), verify=_tls())  # noqa: S113


@cache
def _tls() -> SSLContext:
    """One for all accounts: each would read all certificates of the world anew."""
    return httpx.create_ssl_context()


Swept = tuple[list[tuple[SpaceView, QueryError | None]], dict[str, QueryError]]
"""Every space after one poll, in order, with its error; and the errors of accounts whose spaces were not listed."""


class Exporter:
    """Everything between the configuration and the pages. Start and stop it inside a running event loop."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        clock: Clock,
        http: HttpFactory = http_client,
        random: Random | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        self._shard = shard
        self._configured = settings
        self._environ = environ
        self._clock = clock
        self._http = http
        self._random = random or Random()
        self._stopped = False
        self._warned: set[str] = set()
        self._instruments = Instruments([], shard)
        self._instruments.config_loaded(clock.now())
        self._state_file, known = self._open_state_file()
        found = _discovered_before(settings, known)
        self._settings = settings = self._part(found)
        self._instruments.reconfigure([account.name for account in settings.accounts])
        self._spaces = settings.spaces
        self._discovered = self._spaces.keys() - self._configured.spaces.keys()
        self._retain_in_state_file()
        self._page = Page(self._view, self.accounts, settings.max_age)
        states = {key: known.get(key, SpaceState()) for key in self._spaces}
        unpolled = [key for key, state in states.items() if not state.is_fresh(clock.now(), settings.max_age)]
        self._store = Store(states, unpolled, self._page.update)
        self._schedule = Schedule(clock)
        self._accounts = {
            account.name: self._account(account, found.get(_owner(account), ())) for account in settings.accounts
        }

    async def start(self, *, may_follow_another: bool = False) -> None:
        """Begin polling; a second later where another process may have polled the same accounts just now."""
        self._schedule.start()
        for running in self._accounts.values():
            account = running.polling.account
            running.start(self._known_slots(account), self._in_trouble(account), rest=may_follow_another)
        self._tell_plan(self._accounts)

    async def reconfigure(self, settings: Settings) -> None:
        """Take over other settings, known to be right. What they do not change goes on as it is."""
        if self._stopped:
            return
        self._configured = settings
        self._take_over_spaces()
        renewed = {account.name: account for account in self._settings.accounts}
        left = [name for name, running in self._accounts.items() if not running.serves(renewed.get(name))]
        left += [name for name in self._accounts if name not in left and not self._renew(renewed[name])]
        leaving = [self._accounts.pop(name) for name in left]
        for running in leaving:
            running.polling.leave()
        await asyncio.gather(*(running.stop() for running in leaving))
        if self._stopped:
            return
        new = [account for account in self._settings.accounts if account.name not in self._accounts]
        for account in new:
            begun = self._account(account)
            # no space keeps its place, for another endpoint may say otherwise; and nothing is sent yet where the
            # account had another name until now, or was away for a moment only
            begun.start({}, (), rest=True)
            self._accounts[account.name] = begun
        self._tell_plan([account.name for account in new])

    def tell_of_configuration(self, *, good: bool) -> None:
        """Say whether the configuration as it stands in its files is the one that counts."""
        if good:
            self._instruments.config_loaded(self._clock.now())
        else:
            self._instruments.config_refused()

    def tell_of_space_files(self, up: Mapping[str, bool]) -> None:
        """Say of each space file whether what stands there is what counts."""
        self._instruments.space_files(up)

    def follow_state_file(self) -> None:
        """Begin to keep what is known where that was not possible, or where someone took the file away."""
        if self._settings.state_file and not (self._state_file and self._state_file.is_there()):
            if self._state_file:
                _log.error("state file gone, a new one is begun as soon as that is possible")
            self._begin_state_file(again=True)

    def follow_credentials(self) -> None:
        """Let a refused account ask at once whose key was changed in its file."""
        for running in self._accounts.values():
            if running.credentials.changed():
                running.polling.probe_now()

    async def sweep(self, watch: Callable[[Progress], None] = lambda _: None) -> Swept:
        """Poll every space once, within the budgets, and nothing more; `watch` is told how far that is."""
        discovering = {name: running for name, running in self._accounts.items() if running.polling.account.discover}
        listed = await asyncio.gather(*(running.discovery.list_once() for running in discovering.values()))
        unlisted = {name: error for name, error in zip(discovering, listed, strict=True) if error}
        progress = Progress.of({name: running.polling.plan for name, running in self._accounts.items()})
        errors: dict[Key, QueryError | None] = {}
        watch(progress)

        def on_polled(outcome: Outcome) -> None:
            nonlocal progress
            errors[outcome.account, outcome.space] = outcome.error
            progress = progress.after(outcome.account, failed=outcome.error is not None)
            watch(progress)

        await asyncio.gather(*(running.polling.sweep(on_polled) for running in self._accounts.values()))
        return [(view, errors[view.account, view.space.id]) for view in self._page.views(self._clock.now())], unlisted

    async def stop(self) -> None:
        """Let polls under way end, within a few seconds, and close what is open."""
        self._stopped = True
        self._schedule.pause()
        await asyncio.gather(*(running.stop() for running in self._accounts.values()))
        await self._schedule.stop()
        if self._state_file:
            self._state_file.close()

    def expire(self) -> Iterator[None]:
        """Take off the page what is too old to show, step by step; what is left of it `exposition` does at once."""
        return self._page.expire(self._clock.now())

    def exposition(self, *, openmetrics: bool, names: Collection[str] = ()) -> list[bytes]:
        """All families, or those of these names, in text 0.0.4 or OpenMetrics 1.0, in parts as they are kept."""
        registry = self._instruments.registry
        own = registry.restricted_registry(names) if names else registry
        encode: Callable[[Collector], bytes] = generate_openmetrics if openmetrics else generate_latest
        page = self._page.render(self._clock.now(), openmetrics=openmetrics, names=names)
        return [*page, encode(own)]

    def collector(self) -> CatalogueCollector:
        """The families of spaces and accounts as a prometheus_client collector."""
        return CatalogueCollector(lambda: self._page.views(self._clock.now()), self.accounts)

    def accounts(self) -> list[AccountView]:
        """The accounts as they are now."""
        configured = {account.name for account in self._configured.accounts if account.spaces}
        return [
            running.view(self._plan(running.polling.account), configured=name in configured)
            for name, running in self._accounts.items()
        ]

    def snapshot(self) -> Snapshot:
        """The fleet as it is now, for people."""
        now = self._clock.now()
        return Snapshot(now, tuple(self._page.views(now)), self.accounts(), self._shard)

    def unpolled(self) -> int:
        """How many spaces have been neither polled nor known since the start."""
        return len(self._store.unpolled)

    def redacted_config(self) -> str:
        """The configuration in YAML, its secrets left out."""
        document = self._configured.model_dump(mode="json", exclude_defaults=True)
        for account in document["accounts"]:
            account.update({key: "<secret>" for key in ("access_key_id", "access_key_secret") if key in account})
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def _plan(self, account: Account) -> AccountPlan:
        return AccountPlan.of(account, self._page.size(account.name))

    def _tell_plan(self, begun: Collection[str]) -> None:
        """In the log: the plan of the accounts that begin, and what is not as it should be and was so until now."""
        planned = [self._plan(account) for account in self._settings.accounts]
        for one in planned:
            if one.account.name in begun:
                _log.info("polling", **one.facts)
        before, self._warned = self._warned, set(warnings(planned, self._settings.max_age, self._shard))
        for warning in sorted(self._warned - before):
            _log.warning("plan does not fit", warning=warning)

    def _account(self, account: Account, found: tuple[Space, ...] = ()) -> "_RunningAccount":
        credentials, http = credential_source(account, self._environ), self._http(account.endpoint)
        budget = Budget(account.qps, self._clock)
        client = Client(http, account.endpoint, credentials.current, self._clock)
        poller = Poller(account, client, budget, self._clock, self._instruments)
        polling = AccountPolling(account, poller, budget, self._schedule, self._clock, self._record, self._random)
        discovery = Discovery(poller, lambda: polling.up, self._clock, self._take_over_discovered, self._random, found)
        return _RunningAccount(polling, discovery, client, http, credentials)

    def _renew(self, account: Account) -> bool:
        """Let a running account go on with these settings; False where a bug prevents it, and it must begin anew."""
        try:
            self._accounts[account.name].reconfigure(account, self._environ)
        except Exception:
            _log.exception("account not reconfigured by a bug, please report it", account=account.name)
            return False
        return True

    def _known_slots(self, account: Account) -> dict[str, float]:
        """The next slots, in monotonic seconds, of the account's spaces whose values are known."""
        ahead = self._clock.monotonic() - self._clock.now()
        keys = [(account.name, space.id) for space in account.polled_spaces]
        # what was failing is asked first, so that a refused account is soon known to be one
        states = {key[1]: self._store[key] for key in keys if key not in self._store.unpolled}
        slots = {space: _next_slot(state, account) for space, state in states.items() if state.up}
        return {space: slot + ahead for space, slot in slots.items() if slot is not None}

    def _part(self, found: Mapping[tuple[str, str], Iterable[Space]]) -> Settings:
        """This shard's part of the configuration, and of the spaces that the accounts have discovered."""
        return self._shard.of(_with_discovered(self._configured, found))

    def _kept(self, key: Key) -> SpaceState:
        """What the state file is to know of a space."""
        return replace(self._store[key], discovered_as=self._spaces[key].name if key in self._discovered else None)

    def _in_trouble(self, account: Account) -> set[str]:
        return {one.id for one in account.polled_spaces if not self._store[account.name, one.id].is_healthy}

    def _take_over_discovered(self) -> None:
        self._take_over_spaces()
        for account in self._settings.accounts:
            # one that a reload ends or begins at this moment is not there
            if (running := self._accounts.get(account.name)) and running.polling.account != account:
                running.polling.reconfigure(account)
        self._tell_plan([])

    def _take_over_spaces(self) -> None:
        found = {_owner(one.polling.account): one.discovery.found.spaces for one in self._accounts.values()}
        before, self._settings = self._settings, self._part(found)
        settings, old = self._settings, self._spaces
        self._spaces = spaces = settings.spaces
        were, self._discovered = self._discovered, spaces.keys() - self._configured.spaces.keys()
        self._instruments.reconfigure([account.name for account in settings.accounts])
        endpoints, others = settings.endpoints, before.endpoints
        self._store.retain([key for key in spaces if endpoints[key[0]] == others.get(key[0])])
        self._store.retain(spaces)
        self._page.retain(spaces)
        self._page.max_age = settings.max_age
        shown_anew = (settings.limits, settings.max_age) != (before.limits, before.max_age)
        for key, space in spaces.items():
            if shown_anew or old.get(key) != space:
                self._page.update(key, self._store[key])
        self._take_over_state_file(before)
        named_anew = {key for key in self._discovered if old.get(key) != spaces[key]}
        self._save((were ^ self._discovered | named_anew) & spaces.keys())

    def _take_over_state_file(self, before: Settings) -> None:
        if self._state_file and self._settings.state_file == before.state_file:
            self._retain_in_state_file()
            return
        if self._settings.state_file != before.state_file:
            self._instruments.state_file_left()
        self._begin_state_file()

    def _begin_state_file(self, *, again: bool = False) -> None:
        if self._state_file:
            self._state_file.close()
        self._state_file, known = self._open_state_file(again=again)
        self._store.recall({key: state for key, state in known.items() if key in self._spaces})
        self._retain_in_state_file()
        self._save(self._spaces)

    def _open_state_file(self, *, again: bool = False) -> tuple[StateFile | None, dict[Key, SpaceState]]:
        file, endpoints = self._part({}).state_file, self._configured.endpoints
        if file is None:
            return None, {}
        return open_state_file(Path(file), endpoints, self._clock.now(), self._instruments, again=again)

    def _retain_in_state_file(self) -> None:
        if self._state_file:
            self._state_file.retain(self._spaces, self._settings.endpoints)

    def _record(self, outcome: Outcome) -> None:
        key = (outcome.account, outcome.space)
        self._store.record(outcome)
        if outcome.answer:
            self._instruments.answered(outcome.answer, self._settings.limits)
        self._save([key])

    def _save(self, keys: Iterable[Key]) -> None:
        states = {key: self._kept(key) for key in keys if key not in self._store.unpolled}
        if self._state_file and states:
            self._state_file.save(states)

    def _view(self, key: Key, state: SpaceState, fresh: bool) -> SpaceView:
        return SpaceView(key[0], self._spaces[key], state, fresh, self._settings.limits)


@dataclass(slots=True)
class _RunningAccount:
    """One account's polling, with what it holds open."""

    polling: AccountPolling
    discovery: Discovery
    client: Client
    http: httpx.AsyncClient
    credentials: CredentialSource

    def start(self, known: Mapping[str, float], in_trouble: Collection[str], *, rest: bool) -> None:
        """Begin polling; `rest` until nothing that others sent can count any more."""
        plan = self.polling.plan
        if rest:
            self.polling.budget.rest(max(1.0, 1 / plan.qps))
        self.polling.start(known, in_trouble)
        self.discovery.switch(on=self.polling.account.discover)

    def serves(self, account: Account | None) -> bool:
        """Whether these settings are of this account: at another endpoint, one of the same name is another one."""
        return account is not None and account.endpoint == self.polling.account.endpoint

    def reconfigure(self, account: Account, environ: Mapping[str, str]) -> None:
        if account == self.polling.account:
            return
        self.credentials = credential_source(account, environ)
        self.client.credentials = self.credentials.current
        self.polling.reconfigure(account)
        self.polling.probe_now()
        self.discovery.switch(on=account.discover)

    def view(self, planned: AccountPlan, *, configured: bool) -> AccountView:
        """As a scrape sees it; whether spaces of it are `configured`, here or on another shard."""
        account, polling, found = self.polling.account, self.polling, self.discovery.found
        # with no space to poll, only a listing can tell
        shut_out = found.denied and not configured and not polling.plan.spaces
        return AccountView(
            account.name,
            polling.up and not shut_out,
            polling.plan,
            polling.budget.current_qps(),
            polling.budget.used_qps(),
            planned.series,
            planned.bytes,
            found if account.discover else None,
            unlisted=account.discover and found.is_nothing and not (configured and found.failed),
        )

    async def stop(self) -> None:
        self.discovery.stop()
        await self.polling.stop()
        await self.http.aclose()


def _next_slot(state: SpaceState, account: Account) -> float | None:
    """When a space is due that was seen before, in Unix seconds; sooner where it was in trouble."""
    sooner = account.poll_interval_unhealthy
    if sooner is None or state.is_healthy or state.next_slot is None or state.last_success is None:
        return state.next_slot
    return min(state.next_slot, state.last_success + sooner)


def _owner(account: Account) -> tuple[str, str]:
    """What makes an account the same one: at another endpoint, one of the same name is another."""
    return account.name, account.endpoint


def _discovered_before(settings: Settings, known: Mapping[Key, SpaceState]) -> dict[tuple[str, str], tuple[Space, ...]]:
    """The spaces that were discovered before a restart: they count as such until the first whole listing."""
    return {
        _owner(account): tuple(
            Space(id=space, name=state.discovered_as)
            for (name, space), state in known.items()
            if name == account.name and state.discovered_as is not None
        )
        for account in settings.accounts
    }


def with_known_spaces(settings: Settings, known: Mapping[Key, SpaceState]) -> Settings:
    """The settings as a start takes them that finds this in its state file."""
    return _with_discovered(settings, _discovered_before(settings, known))


def _with_discovered(settings: Settings, found: Mapping[tuple[str, str], Iterable[Space]]) -> Settings:
    accounts = [account.with_discovered(found.get(_owner(account), ())) for account in settings.accounts]
    return settings.model_copy(update={"accounts": accounts})


async def sweep(settings: Settings, environ: Mapping[str, str], watch: Callable[[Progress], None]) -> Swept:
    """Every space polled once, without a schedule, a state file or a server."""
    exporter = Exporter(settings.model_copy(update={"state_file": None}), environ, SystemClock())
    swept = await exporter.sweep(watch)
    await exporter.stop()
    return swept
