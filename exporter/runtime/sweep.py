"""One poll of every space, without a schedule."""

import asyncio
from collections.abc import Callable

from exporter.metrics.catalogue import SpaceView
from exporter.polling.plan import Progress
from exporter.runtime.service import Service
from exporter.source import Outcome, QueryError
from exporter.state.store import Key

Swept = tuple[list[tuple[SpaceView, QueryError | None]], dict[str, QueryError]]
"""Every space after one poll, in order, with its error; and the errors of accounts whose spaces were not listed."""


async def sweep(service: Service, watch: Callable[[Progress], None] = lambda _: None) -> Swept:
    """Poll every space of a service that is not started, within the budgets; `watch` gets the progress."""
    discovering = {name: running for name, running in service.accounts.items() if running.account.discover}
    listed = await asyncio.gather(*(running.discovery.list_once() for running in discovering.values()))
    unlisted = {name: error for name, error in zip(discovering, listed, strict=True) if error}
    progress = Progress.of({name: running.polling.plan for name, running in service.accounts.items()})
    errors: dict[Key, QueryError | None] = {}
    watch(progress)

    def on_polled(outcome: Outcome) -> None:
        nonlocal progress
        errors[outcome.account, outcome.space] = outcome.error
        progress = progress.after(outcome.account, failed=outcome.error is not None)
        watch(progress)

    await asyncio.gather(*(running.polling.sweep(on_polled) for running in service.accounts.values()))
    return [(view, errors[view.account, view.space.id]) for view in service.recorder.views()], unlisted
