"""A sweep: one poll of every space, without a schedule."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from exporter.config.effective import effective_settings
from exporter.metrics.catalogue import AccountView, SpaceView
from exporter.model import PhoneNumber
from exporter.polling.plan import Progress
from exporter.runtime.service import ConfigChange, Service
from exporter.runtime.view import account_views
from exporter.source import DeniedError, Outcome, QueryError
from exporter.state.store import Key, Records


class NotPolledError(DeniedError):
    """The space was not polled, because the account was denied before."""

    def __init__(self) -> None:
        super().__init__("not_polled", "the account was denied before this space was polled")


@dataclass(frozen=True, slots=True)
class SpaceResult:
    """The result of one space. `error` is set if the poll failed or the space was not polled."""

    view: SpaceView
    error: QueryError | None

    @property
    def phone_numbers(self) -> Sequence[PhoneNumber]:
        """The phone numbers of this poll. Empty if the poll failed, even if the record has older phone numbers."""
        return () if self.error else self.view.record.phone_numbers


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The results of all spaces, the errors of failed discoveries by account, and the accounts by name."""

    spaces: Sequence[SpaceResult]
    discovery_errors: Mapping[str, QueryError]
    accounts: Mapping[str, AccountView]


async def sweep(
    service: Service, on_progress: Callable[[Progress], None] = lambda _: None, stored_records: Records | None = None
) -> SweepResult:
    """Poll every space once, within the budgets. The service must not be started. `on_progress` is called after each
    poll. `stored_records` are the records of the state file."""
    discovering = {name: runtime for name, runtime in service.accounts.items() if runtime.account.discover}
    results = await asyncio.gather(*(runtime.discovery.list_once() for runtime in discovering.values()))
    discovery_errors = {name: error for name, error in zip(discovering, results, strict=True) if error}
    if stored_records:  # after discovery, because records of unknown spaces are not used
        shard_settings = effective_settings(service.configured, {}, service.shard)
        service.commit(ConfigChange(service.configured, shard_settings, stored_records=stored_records))
    progress = Progress.of({name: runtime.polling.plan for name, runtime in service.accounts.items()})
    errors: dict[Key, QueryError | None] = {}
    on_progress(progress)

    def on_polled(outcome: Outcome) -> None:
        nonlocal progress
        errors[outcome.account, outcome.space] = outcome.error
        progress = progress.after(outcome.account, failed=outcome.error is not None)
        on_progress(progress)

    async def sweep_account(name: str) -> None:
        nonlocal progress
        await service.accounts[name].polling.sweep(on_polled)
        if progress.left[name]:
            progress = progress.after_account_end(name)
            on_progress(progress)

    await asyncio.gather(*map(sweep_account, service.accounts))
    views = list(service.recorder.views())
    spaces = [SpaceResult(view, errors.get((view.account, view.space.id), NotPolledError())) for view in views]
    return SweepResult(spaces, discovery_errors, {account.account: account for account in account_views(service)})
