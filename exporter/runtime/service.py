"""The exporter of one configuration, and the three steps to another one: prepare, commit, retire."""

import asyncio
from collections.abc import Mapping, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from weakref import WeakValueDictionary

import structlog

from exporter.config.effective import UNSHARDED, Shard, effective_settings
from exporter.config.problems import ConfigError, Problem, read_timeout_error
from exporter.config.settings import API_LIMIT_QPS, Account, Settings
from exporter.polling.budget import Budget
from exporter.polling.plan import Plan, plans_by_account, warnings
from exporter.polling.schedule import Schedule
from exporter.runtime.account import AccountRuntime, Opened
from exporter.runtime.recorder import Known, Recorder
from exporter.source import SourceContext, SourceError
from exporter.state.state_file import StateFile
from exporter.state.store import Key
from exporter.state.writer import StateWriter
from exporter.threads import LOAD_SECONDS, BlockingCalls

_log = structlog.get_logger()


@dataclass(slots=True)
class Change:
    """Another configuration, prepared. `opened` closes what was opened for it, if it is not committed."""

    configured: Settings
    own: Settings
    """The part of this process, without discovered spaces."""
    added: dict[str, AccountRuntime] = field(default_factory=dict)
    sources: dict[str, Opened] = field(default_factory=dict)
    """New sources of accounts that stay."""
    state_file: StateWriter | None = None
    known: Known = field(default_factory=dict)
    new_state_file: bool = False
    opened: AsyncExitStack = field(default_factory=AsyncExitStack)
    removed: list[AccountRuntime] = field(default_factory=list)
    """This and the next two are set by `commit`, for `retire`."""
    replaced_state_file: StateWriter | None = None
    unsaved: Set[Key] = frozenset()


class Service:
    """Starts, changes and stops inside a running event loop. The first configuration is a change like every other."""

    def __init__(self, context: SourceContext, *, shard: Shard = UNSHARDED, random: Random | None = None) -> None:
        self.shard = shard
        self.accounts: dict[str, AccountRuntime] = {}
        self.configured = Settings.model_construct(accounts=[])
        self.recorder = Recorder(context.clock)
        self.schedule = Schedule(context.clock)
        self._context = context
        self._random = random or Random()
        self._settings = self.configured
        self._limits: WeakValueDictionary[str, Budget] = WeakValueDictionary()
        """By access key."""
        self._reads = BlockingCalls()
        self._stopped = False
        self._warned: set[str] = set()

    async def apply(self, configured: Settings, *, hold_off: bool = True) -> None:
        """Apply these settings, or change nothing.

        With `hold_off`, new accounts first wait until requests of earlier accounts, in this or another process, no
        longer count toward the API's limit.

        Raises:
            ConfigError: a source cannot be opened.
        """
        change = await self.prepare(configured)
        if self._stopped:
            await change.opened.aclose()
            return
        self.commit(change)
        await self.retire(change, hold_off=hold_off)

    async def prepare(self, configured: Settings) -> Change:
        """Open everything that these settings need and that is not open yet. Changes nothing that is polled or shown.

        Raises:
            ConfigError: a source cannot be opened.
        """
        change = Change(configured, effective_settings(configured, {}, self.shard))
        async with AsyncExitStack() as opened:
            polled, identities = self._settings.identities, change.own.identities
            added = [account for account in change.own.accounts if polled.get(account.name) != identities[account.name]]
            for account in change.own.accounts:
                if account in added or not self.accounts[account.name].account.has_source_of(account):
                    change.sources[account.name] = source, _ = await self._open(account)
                    opened.push_async_callback(source.aclose)
            await self._open_state_file(change, opened)  # last: it can rename a damaged file
            for account in added:
                change.added[account.name] = self._build(account, change.sources.pop(account.name), change.known)
            change.opened = opened.pop_all()
        return change

    def commit(self, change: Change) -> None:
        """The step that changes what is polled and shown: no await, no file, no network."""
        before = self.accounts
        running = {**before, **change.added}
        self.accounts = {account.name: running[account.name] for account in change.own.accounts}
        change.removed = [account for name, account in before.items() if self.accounts.get(name) is not account]
        for removed in change.removed:
            removed.polling.remove_spaces()
        self.configured, self._settings = change.configured, self._effective(change.configured)
        if change.new_state_file:
            change.replaced_state_file = self.recorder.use_state_file(change.state_file)
        discovered = self._settings.spaces.keys() - self.configured.spaces.keys()
        unsaved = self.recorder.apply(self._settings, discovered, change.known)
        change.unsaved = self._settings.spaces.keys() if change.new_state_file else unsaved
        for account in self._settings.accounts:
            self.accounts[account.name].apply(account, change.sources.get(account.name))

    async def retire(self, change: Change, *, hold_off: bool = True) -> None:
        """Let polls of removed accounts end, close what is not used any more, then start the accounts that are
        added."""
        try:
            await asyncio.gather(*(removed.stop() for removed in change.removed))
            for running in list(self.accounts.values()):
                await running.close_replaced_sources()
            if change.replaced_state_file:
                await change.replaced_state_file.close()
        finally:
            if not self._stopped:
                if not change.new_state_file:
                    await self.recorder.follow_state_file()
                self.recorder.sync_state_file(change.unsaved)
                self._start_added(hold_off=hold_off)

    def _start_added(self, *, hold_off: bool) -> None:
        self.schedule.start()
        added = {name: running for name, running in self.accounts.items() if not running.polling.started}
        for name, running in added.items():
            running.start(self.recorder.slots(name, running.account.polled_spaces), hold_off=hold_off)
        self._log_plans({name: running.polling.plan for name, running in added.items()})

    async def follow_credentials(self) -> None:
        """Probe denied accounts now if their credentials have changed."""
        for running in list(self.accounts.values()):
            await running.probe_with_new_credentials()

    async def stop(self) -> None:
        """Let polls in flight end, within a few seconds, and close everything."""
        self._stopped = True
        self.schedule.pause()
        await asyncio.gather(*(running.stop() for running in self.accounts.values()))
        await self.schedule.stop()
        if self.recorder.state_file:
            await self.recorder.state_file.close()

    async def _open(self, account: Account) -> Opened:
        try:
            environ = self._context.environ
            source = await self._reads.run(partial(account.open, self._context), seconds=LOAD_SECONDS)
            key = await self._reads.run(partial(account.shared_limit, environ), seconds=LOAD_SECONDS)
            limit = self._limits.get(key) if key else None
            limit = limit or Budget(API_LIMIT_QPS, self._context.clock)
            if key:
                self._limits[key] = limit
            return source, limit
        except SourceError as error:
            raise ConfigError([Problem(f"account {account.name}", (error.key,), str(error))]) from error
        except TimeoutError as error:
            raise read_timeout_error(LOAD_SECONDS) from error

    async def _open_state_file(self, change: Change, opened: AsyncExitStack) -> None:
        current, path = self.recorder.state_file, change.own.state_file
        change.new_state_file = path != (str(current.file.path) if current else None)
        if change.new_state_file and path is not None:
            change.state_file = StateWriter(StateFile(Path(path), self._context.clock), self.recorder.show_saved)
            opened.push_async_callback(change.state_file.close)
            change.known = await change.state_file.open(change.own.identities)

    def _build(self, account: Account, opened: Opened, known: Known) -> AccountRuntime:
        """A new account, with the spaces that the state file knows as discovered."""
        discovered = {
            space: state.discovered_as
            for (name, space), state in known.items()
            if name == account.name and state.discovered_as is not None
        }
        return AccountRuntime(
            account,
            opened,
            self._context,
            self.schedule,
            self.recorder,
            self._random,
            self._apply_discovered,
            discovered if account.discover else {},
        )

    def _effective(self, configured: Settings) -> Settings:
        found = {name: running.discovery.result.spaces for name, running in self.accounts.items()}
        return effective_settings(configured, found, self.shard)

    def _apply_discovered(self) -> None:
        """An account has listed its spaces."""
        change = Change(self.configured, effective_settings(self.configured, {}, self.shard))
        self.commit(change)
        self.recorder.sync_state_file(change.unsaved)
        self._log_plans({})

    def _log_plans(self, started: Mapping[str, Plan]) -> None:
        """Log the plans of accounts that start, and each warning that is new."""
        for name, plan in started.items():
            _log.info("polling", account=name, **plan.log_fields)
        before, twice = self._warned, set(self.configured.polled_twice)
        self._warned = twice | set(warnings(plans_by_account(self._settings), self._settings.max_age))
        for warning in sorted(self._warned - before - twice):
            _log.warning("plan does not fit", warning=warning)
        for warning in sorted(twice - before):
            _log.warning("spaces polled twice", warning=warning)
