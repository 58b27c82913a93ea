"""What one account holds open: its source, its budget, its polls and its list of spaces."""

from collections.abc import Callable, Mapping
from random import Random

from exporter.config.settings import Account
from exporter.metrics.catalogue import AccountView, DiscoveryView
from exporter.polling.account import AccountPolling
from exporter.polling.budget import Budget
from exporter.polling.discovery import Discovery
from exporter.polling.poller import Poller
from exporter.polling.schedule import Schedule
from exporter.runtime.recorder import Recorder
from exporter.source import Source, SourceContext

Opened = tuple[Source, Budget]
"""A source, and the API's limit that its requests count against."""


class AccountRuntime:
    """One account. `apply` changes its settings while it runs."""

    def __init__(
        self,
        account: Account,
        opened: Opened,
        context: SourceContext,
        schedule: Schedule,
        recorder: Recorder,
        random: Random,
        on_listed: Callable[[], None],
        discovered: Mapping[str, str],
    ) -> None:
        self._budget = Budget(account.qps, context.clock)
        source, limit = opened
        self._poller = Poller(
            account.name,
            source,
            self._budget,
            limit,
            context.clock,
            recorder.instruments,
            lambda space: recorder.has_numbers((account.name, space)),
        )
        self.polling = AccountPolling(
            account, self._poller, self._budget, schedule, context.clock, recorder.record, random
        )
        self.discovery = Discovery(
            self._poller, lambda: not self.polling.denied, context.clock, on_listed, random, discovered
        )

    @property
    def account(self) -> Account:
        """Its settings, with the spaces that it discovered."""
        return self.polling.account

    def start(self, known: Mapping[str, float], *, hold_off: bool) -> None:
        """Start to poll; `known` has the next slots of spaces whose values are known. With `hold_off`, first wait a
        second (or 1/qps), so that requests of an earlier process or account no longer count for the API's limit."""
        if hold_off:
            self._budget.hold_off()
        self.polling.start(known)
        self._switch_discovery()

    def apply(self, account: Account, opened: Opened | None = None) -> None:
        """Apply these settings, with another source if there is one."""
        if opened:
            self._poller.replace(*opened)
        if opened or account != self.account:
            self.polling.apply(account, new_source=opened is not None)
        if opened:
            self.polling.probe_now()
        self._switch_discovery()

    async def close_replaced_sources(self) -> None:
        """Close the sources that `apply` replaced, once they have no request in flight."""
        await self._poller.close_replaced()

    async def probe_with_new_credentials(self) -> None:
        """If the account is denied and its credentials have changed, probe it now."""
        if self.polling.denied and await self._poller.credentials_changed():
            self.polling.probe_now()

    async def stop(self) -> None:
        """Let polls in flight end, within a few seconds, and close the source."""
        self.discovery.stop()
        await self.polling.stop()
        await self._poller.close()

    def view(self, *, configured: bool) -> AccountView:
        """The account as a scrape sees it; `configured` says whether the configuration lists spaces of it."""
        account, plan, found = self.account, self.polling.current_plan, self.discovery.result
        # without a space to poll, only the list says something about the account
        health = found.health if not configured and not plan.spaces else self.polling.health
        discovery = DiscoveryView(found.up, found.last_success, len(found.spaces)) if account.discover else None
        return AccountView(
            account=account.name,
            health=health,
            spaces=plan.spaces,
            interval=plan.interval,
            effective_interval=plan.effective_interval,
            needed_qps=plan.needed_qps,
            limit_qps=account.qps,
            current_qps=self._budget.current_qps(),
            discovery=discovery,
            spaces_unknown=account.discover and found.is_unknown and not (configured and found.failed),
        )

    def _switch_discovery(self) -> None:
        if self.polling.started:
            self.discovery.set_enabled(enabled=self.account.discover, max_pause=self.account.poll_interval)
