"""The exporter of one configuration, and the three steps to another one: prepare, commit, retire."""

import asyncio
from collections.abc import Mapping, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random

import structlog

from exporter.config.effective import UNSHARDED, Shard, effective_settings
from exporter.config.problems import ConfigError, Problem
from exporter.config.settings import Account, Settings
from exporter.polling.plan import Plan, plans_of, warnings
from exporter.polling.schedule import Schedule
from exporter.runtime.account import AccountRuntime
from exporter.runtime.recorder import Known, Recorder, open_state_file
from exporter.source import Source, SourceContext, SourceError
from exporter.state.state_file import StateFile
from exporter.state.store import Key

_log = structlog.get_logger()


@dataclass(slots=True)
class Change:
    """Another configuration, prepared: the runtimes of accounts that are `added`, the new `sources` of accounts that
    stay, and the state file, which may be a new one, with what it knows.

    `opened` closes them if they are not committed. `commit` fills in what it leaves to `retire`.
    """

    configured: Settings
    effective: Settings
    state_file: StateFile | None
    known: Known
    new_state_file: bool = False
    added: dict[str, AccountRuntime] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    opened: AsyncExitStack = field(default_factory=AsyncExitStack)
    removed: list[AccountRuntime] = field(default_factory=list)
    replaced_state_file: StateFile | None = None
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
        self._stopped = False
        self._warned: set[str] = set()

    async def apply(self, configured: Settings, *, rest: bool = True) -> None:
        """Bring the exporter to these settings, or change nothing. With `rest`, new accounts start when requests of
        earlier ones, here or in another process, no longer count.

        Raises:
            ConfigError: a source cannot be opened.
        """
        change = await self.prepare(configured)
        if self._stopped:
            await change.opened.aclose()
            return
        self.commit(change)
        await self.retire(change, rest=rest)

    async def prepare(self, configured: Settings) -> Change:
        """Open everything that these settings need and that is not open yet. Changes nothing.

        Raises:
            ConfigError: a source cannot be opened.
        """
        own = effective_settings(configured, {}, self.shard)
        async with AsyncExitStack() as opened:
            state_file = self.recorder.state_file
            known: Known = {}
            is_new = own.state_file != (str(state_file.path) if state_file else None)
            if is_new:
                state_file, known = open_state_file(own, self._context.clock)
                if state_file:
                    opened.callback(state_file.close)
            found = {account.name: self._discovered(account, known) for account in own.accounts}
            effective = effective_settings(configured, found, self.shard)
            change = Change(configured, effective, state_file, known, is_new)
            for account in change.effective.accounts:
                running = self.accounts.get(account.name)
                if running and running.account.has_source_of(account):
                    continue
                source = await self._open(account)
                opened.push_async_callback(source.aclose)
                if running and running.account.identity == account.identity:
                    change.sources[account.name] = source
                else:
                    change.added[account.name] = self._build(account, source, found[account.name])
            change.opened = opened.pop_all()
        return change

    def commit(self, change: Change) -> None:
        """The step that changes what is polled and shown: no await, no file, no network."""
        change.opened.pop_all()
        self.configured, self._settings = change.configured, change.effective
        if change.new_state_file:
            change.replaced_state_file, self.recorder.state_file = self.recorder.state_file, change.state_file
        unsaved = self.recorder.apply(change.effective, _discovered_spaces(change), change.known)
        change.unsaved = change.effective.spaces.keys() if change.new_state_file else unsaved
        names = [account.name for account in change.effective.accounts]
        change.removed = [r for name, r in self.accounts.items() if name in change.added or name not in names]
        for removed in change.removed:
            removed.polling.remove_spaces()
        running = {**self.accounts, **change.added}
        self.accounts = {name: running[name] for name in names}
        for account in change.effective.accounts:
            if account.name not in change.added:
                running[account.name].apply(account, change.sources.get(account.name))

    async def retire(self, change: Change, *, rest: bool = True) -> None:
        """Let polls of removed accounts end, close what is not used any more, then start the added accounts."""
        await asyncio.gather(*(removed.stop() for removed in change.removed))
        for running in list(self.accounts.values()):
            await running.close_replaced_sources()
        if change.replaced_state_file:
            change.replaced_state_file.close()
        if not change.new_state_file:
            self.recorder.follow_state_file()
        self.recorder.sync_state_file(change.unsaved)
        if self._stopped:
            return
        self.schedule.start()
        for name, added in change.added.items():
            added.start(self.recorder.slots(name, added.account.polled_spaces), rest=rest)
        self._log_plans({name: added.polling.plan for name, added in change.added.items()})

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
            self.recorder.state_file.close()

    async def _open(self, account: Account) -> Source:
        try:
            return await asyncio.to_thread(account.open, self._context)
        except SourceError as error:
            raise ConfigError([Problem(f"account {account.name}", (error.key,), str(error))]) from error

    def _build(self, account: Account, source: Source, discovered: Mapping[str, str]) -> AccountRuntime:
        return AccountRuntime(
            account,
            source,
            self._context,
            self.schedule,
            self.recorder,
            self._random,
            self._apply_discovered,
            discovered if account.discover else {},
        )

    def _discovered(self, account: Account, known: Known) -> Mapping[str, str]:
        """The spaces that the account has discovered; after a restart, those that the state file knows as such."""
        running = self.accounts.get(account.name)
        if running and running.account.identity == account.identity:
            return running.discovery.found.spaces
        return {
            space: state.discovered_as
            for (name, space), state in known.items()
            if name == account.name and state.discovered_as is not None
        }

    def _apply_discovered(self) -> None:
        """An account has listed its spaces."""
        found = {name: running.discovery.found.spaces for name, running in self.accounts.items()}
        self._settings = effective_settings(self.configured, found, self.shard)
        change = Change(self.configured, self._settings, self.recorder.state_file, {})
        self.commit(change)
        self.recorder.sync_state_file(change.unsaved)
        self._log_plans({})

    def _log_plans(self, started: Mapping[str, Plan]) -> None:
        """Log the plans of accounts that start, and each warning that is new."""
        for name, plan in started.items():
            _log.info("polling", account=name, **plan.facts)
        before, self._warned = self._warned, set(warnings(plans_of(self._settings), self._settings.max_age))
        for warning in sorted(self._warned - before):
            _log.warning("plan does not fit", warning=warning)


def _discovered_spaces(change: Change) -> Set[Key]:
    """The spaces that are polled because they were discovered."""
    return change.effective.spaces.keys() - change.configured.spaces.keys()
