"""One poll of every space, without a schedule."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from exporter.config.effective import effective_settings
from exporter.metrics.catalogue import AccountView, SpaceView
from exporter.model import PhoneNumber
from exporter.polling.plan import Progress
from exporter.runtime.recorder import Known
from exporter.runtime.service import Change, Service
from exporter.runtime.view import account_views
from exporter.source import DeniedError, Outcome, QueryError
from exporter.state.store import Key


class NotPolledError(DeniedError):
    """The account was denied before it was this space's turn: no request was sent for it."""

    def __init__(self) -> None:
        super().__init__("not_polled", "the account was denied before it was this space's turn")


@dataclass(frozen=True, slots=True)
class SpaceResult:
    """A space after one poll, with the error where it failed or was not polled."""

    view: SpaceView
    error: QueryError | None

    @property
    def phone_numbers(self) -> Sequence[PhoneNumber]:
        """The numbers that the poll listed, of any age; none if it failed, whatever was known before."""
        return () if self.error else self.view.record.phone_numbers


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Every space after one poll, in order; the errors of accounts whose spaces were not listed; and the accounts."""

    spaces: Sequence[SpaceResult]
    list_errors: Mapping[str, QueryError]
    accounts: Mapping[str, AccountView]


async def sweep(
    service: Service, watch: Callable[[Progress], None] = lambda _: None, known: Known | None = None
) -> SweepResult:
    """Poll every space of a service that is not started, within the budgets; `watch` gets the progress. `known` is what
    a state file knows: the values before the polls."""
    discovering = {name: running for name, running in service.accounts.items() if running.account.discover}
    listed = await asyncio.gather(*(running.discovery.list_once() for running in discovering.values()))
    list_errors = {name: error for name, error in zip(discovering, listed, strict=True) if error}
    if known:  # now that all spaces are known
        own = effective_settings(service.configured, {}, service.shard)
        service.commit(Change(service.configured, own, known=known))
    progress = Progress.of({name: running.polling.plan for name, running in service.accounts.items()})
    errors: dict[Key, QueryError | None] = {}
    watch(progress)

    def on_polled(outcome: Outcome) -> None:
        nonlocal progress
        errors[outcome.account, outcome.space] = outcome.error
        progress = progress.after(outcome.account, failed=outcome.error is not None)
        watch(progress)

    async def sweep_account(name: str) -> None:
        nonlocal progress
        await service.accounts[name].polling.sweep(on_polled)
        if progress.left[name]:
            progress = progress.ended(name)
            watch(progress)

    await asyncio.gather(*map(sweep_account, service.accounts))
    views = list(service.recorder.views())
    spaces = [SpaceResult(view, errors.get((view.account, view.space.id), NotPolledError())) for view in views]
    return SweepResult(spaces, list_errors, {account.account: account for account in account_views(service)})
