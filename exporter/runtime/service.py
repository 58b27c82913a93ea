"""The exporter with one configuration. A new configuration is applied in three steps: prepare, commit, retire."""

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
from exporter.polling.plan import Plan, PlanWarning, plans_by_account, warnings
from exporter.polling.schedule import Schedule
from exporter.runtime.account import AccountRuntime, SourceAndLimit
from exporter.runtime.recorder import Recorder
from exporter.source import SourceContext, SourceError
from exporter.state.state_file import StateFile
from exporter.state.store import Key, Records
from exporter.state.writer import StateWriter
from exporter.threads import LOAD_SECONDS, BlockingCalls

_log = structlog.get_logger()


@dataclass(slots=True)
class ConfigChange:
    """A prepared configuration, not yet applied. If it is not committed, call `resources.aclose()` to close the opened
    sources and state file."""

    configured: Settings
    shard_settings: Settings
    """The settings of the accounts that this process polls, without discovered spaces."""
    added: dict[str, AccountRuntime] = field(default_factory=dict)
    new_sources: dict[str, SourceAndLimit] = field(default_factory=dict)
    """New sources of accounts that are already running."""
    state_file: StateWriter | None = None
    stored_records: Records = field(default_factory=dict)
    changes_state_file: bool = False
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)
    removed: list[AccountRuntime] = field(default_factory=list)
    """This field and the next two are set by `commit` and used by `retire`."""
    replaced_state_file: StateWriter | None = None
    unsaved_spaces: Set[Key] = frozenset()


class Service:
    """The running accounts. Requires a running event loop. The first configuration is applied like a later one."""

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
        """The API's rate limit of each access key."""
        self._reads = BlockingCalls()
        self._stopped = False
        self._logged_warnings: set[PlanWarning] = set()

    async def apply(self, configured: Settings, *, hold_off: bool = True) -> None:
        """Apply these settings, or change nothing.

        With `hold_off`, new accounts first wait until requests of earlier accounts, in this or another process, no
        longer count toward the API's rate limit.

        Raises:
            ConfigError: a source cannot be opened.
        """
        change = await self.prepare(configured)
        if self._stopped:
            await change.resources.aclose()
            return
        self.commit(change)
        await self.retire(change, hold_off=hold_off)

    async def prepare(self, configured: Settings) -> ConfigChange:
        """Open the sources and the state file that these settings need. Polling and shown values do not change.

        Raises:
            ConfigError: a source cannot be opened.
        """
        change = ConfigChange(configured, effective_settings(configured, {}, self.shard))
        async with AsyncExitStack() as resources:
            polled, identities = self._settings.identities, change.shard_settings.identities
            accounts = change.shard_settings.accounts
            added = [account for account in accounts if polled.get(account.name) != identities[account.name]]
            for account in accounts:
                if account in added or not self.accounts[account.name].account.has_same_source_as(account):
                    change.new_sources[account.name] = source, _ = await self._open_source(account)
                    resources.push_async_callback(source.aclose)
            await self._open_state_file(change, resources)  # last, because it can rename a damaged file
            for account in added:
                change.added[account.name] = self._create_runtime(
                    account, change.new_sources.pop(account.name), change.stored_records
                )
            change.resources = resources.pop_all()
        return change

    def commit(self, change: ConfigChange) -> None:
        """Switch polling and shown values to the new configuration, without `await`, file access or network access."""
        old_accounts = self.accounts
        runtimes = {**old_accounts, **change.added}
        self.accounts = {account.name: runtimes[account.name] for account in change.shard_settings.accounts}
        change.removed = [old for name, old in old_accounts.items() if self.accounts.get(name) is not old]
        for removed in change.removed:
            removed.polling.remove_spaces()
        self.configured, self._settings = change.configured, self._effective_settings(change.configured)
        if change.changes_state_file:
            change.replaced_state_file = self.recorder.use_state_file(change.state_file)
        discovered = self._settings.spaces.keys() - self.configured.spaces.keys()
        unsaved_spaces = self.recorder.apply(self._settings, discovered, change.stored_records)
        change.unsaved_spaces = self._settings.spaces.keys() if change.changes_state_file else unsaved_spaces
        for account in self._settings.accounts:
            self.accounts[account.name].apply(account, change.new_sources.get(account.name))

    async def retire(self, change: ConfigChange, *, hold_off: bool = True) -> None:
        """Complete a committed change: wait for the polls of removed accounts, close resources that are no longer used,
        save the records, then start the added accounts."""
        try:
            await asyncio.gather(*(removed.stop() for removed in change.removed))
            for runtime in list(self.accounts.values()):
                await runtime.close_replaced_sources()
            if change.replaced_state_file:
                await change.replaced_state_file.close()
        finally:
            if not self._stopped:
                if not change.changes_state_file:
                    await self.recorder.reopen_state_file()
                self.recorder.sync_state_file(change.unsaved_spaces)
                self._start_added(hold_off=hold_off)

    def _start_added(self, *, hold_off: bool) -> None:
        self.schedule.start()
        added = {name: runtime for name, runtime in self.accounts.items() if not runtime.polling.started}
        for name, runtime in added.items():
            runtime.start(self.recorder.slots(name, runtime.account.polled_spaces), hold_off=hold_off)
        self._log_plans({name: runtime.polling.plan for name, runtime in added.items()})

    async def check_credentials(self) -> None:
        """Probe denied accounts immediately if their credentials have changed."""
        for runtime in list(self.accounts.values()):
            await runtime.probe_with_new_credentials()

    async def stop(self) -> None:
        """Wait for polls in flight, with a time limit, then close all resources."""
        self._stopped = True
        self.schedule.pause()
        await asyncio.gather(*(runtime.stop() for runtime in self.accounts.values()))
        await self.schedule.stop()
        if self.recorder.state_file:
            await self.recorder.state_file.close()

    async def _open_source(self, account: Account) -> SourceAndLimit:
        try:
            environ = self._context.environ
            source = await self._reads.run(partial(account.open, self._context), seconds=LOAD_SECONDS)
            key = await self._reads.run(partial(account.rate_limit_id, environ), seconds=LOAD_SECONDS)
            limit = self._limits.get(key) if key else None
            limit = limit or Budget(API_LIMIT_QPS, self._context.clock)
            if key:
                self._limits[key] = limit
            return source, limit
        except SourceError as error:
            raise ConfigError([Problem(f"account {account.name}", (error.key,), str(error))]) from error
        except TimeoutError as error:
            raise read_timeout_error(LOAD_SECONDS) from error

    async def _open_state_file(self, change: ConfigChange, resources: AsyncExitStack) -> None:
        current, path = self.recorder.state_file, change.shard_settings.state_file
        change.changes_state_file = path != (str(current.file.path) if current else None)
        if change.changes_state_file and path is not None:
            change.state_file = StateWriter(StateFile(Path(path), self._context.clock), self.recorder.show_records)
            resources.push_async_callback(change.state_file.close)
            change.stored_records = await change.state_file.open(change.shard_settings.identities)

    def _create_runtime(self, account: Account, source: SourceAndLimit, stored_records: Records) -> AccountRuntime:
        """Create a new account, with the discovered spaces from the state file."""
        discovered = {
            space: record.discovered_as
            for (name, space), record in stored_records.items()
            if name == account.name and record.discovered_as is not None
        }
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

    def _effective_settings(self, configured: Settings) -> Settings:
        discovered = {name: runtime.discovery.result.spaces for name, runtime in self.accounts.items()}
        return effective_settings(configured, discovered, self.shard)

    def _apply_discovered(self) -> None:
        """Apply the spaces of an account after discovery."""
        change = ConfigChange(self.configured, effective_settings(self.configured, {}, self.shard))
        self.commit(change)
        self.recorder.sync_state_file(change.unsaved_spaces)
        self._log_plans({})

    def _log_plans(self, started: Mapping[str, Plan]) -> None:
        """Log the plans of started accounts, and each new warning."""
        for name, plan in started.items():
            _log.info("account polling started", account=name, **plan.log_fields)
        current = set(warnings(plans_by_account(self._settings), self._settings.max_age))
        shared = self.configured.shared_space_warnings
        current |= {PlanWarning("spaces polled by several accounts", text) for text in shared}
        for event, text in sorted(current - self._logged_warnings):
            _log.warning(event, warning=text)
        self._logged_warnings = current
