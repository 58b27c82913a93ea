"""The runtime of one account: its source, budget, polls and discovered spaces."""

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

SourceAndLimit = tuple[Source, Budget]
"""A source, and the API's rate limit for its access key."""


class AccountRuntime:
    """A running account. `apply` changes its settings."""

    def __init__(
        self,
        account: Account,
        source_and_limit: SourceAndLimit,
        context: SourceContext,
        schedule: Schedule,
        recorder: Recorder,
        random: Random,
        on_listed: Callable[[], None],
        discovered: Mapping[str, str],
    ) -> None:
        self._budget = Budget(account.qps, context.clock)
        source, limit = source_and_limit
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
        """The settings of the account, with its discovered spaces."""
        return self.polling.account

    def start(self, slots: Mapping[str, float], *, hold_off: bool) -> None:
        """Start polling. `slots` has the next slots of spaces with stored values. With `hold_off`, first wait
        ceil(qps)/qps seconds (at least 1 s), until requests of an earlier process or account no longer count toward the
        API's rate limit."""
        if hold_off:
            self._budget.hold_off()
        self.polling.start(slots)
        self._update_discovery()

    def apply(self, account: Account, new_source: SourceAndLimit | None = None) -> None:
        """Apply these settings, and replace the source if there is a new one."""
        if new_source:
            self._poller.replace_source(*new_source)
        if new_source or account != self.account:
            self.polling.apply(account, new_source=new_source is not None)
        if new_source:
            self.polling.probe_now()
        self._update_discovery()

    async def close_replaced_sources(self) -> None:
        """Close the sources that `apply` replaced and that have no request in flight. The others are closed
        automatically after their last request."""
        await self._poller.close_replaced()

    async def probe_with_new_credentials(self) -> None:
        """Probe the account immediately if it is denied and its credentials have changed."""
        if self.polling.denied and await self._poller.credentials_changed():
            self.polling.probe_now()

    async def stop(self) -> None:
        """Wait for polls in flight, with a time limit, then close the source."""
        self.discovery.stop()
        await self.polling.stop()
        await self._poller.close()

    def view(self, *, configured: bool) -> AccountView:
        """Return the account for `/metrics` and pages. `configured`: the configuration lists spaces of the account."""
        account, plan, result = self.account, self.polling.current_plan, self.discovery.result
        # without spaces to poll, only discovery shows the health of the account
        health = result.health if not configured and not plan.spaces else self.polling.health
        discovery = DiscoveryView(result.up, result.last_success, len(result.spaces)) if account.discover else None
        return AccountView(
            account=account.name,
            health=health,
            spaces=plan.spaces,
            interval=plan.interval,
            effective_interval=plan.effective_interval,
            needed_qps=plan.needed_qps,
            limit_qps=account.qps,
            current_qps=self._budget.current_qps(),
            due_spaces=self.polling.due_spaces,
            discovery=discovery,
            # after a failed attempt, the configured spaces are polled: readiness does not wait for discovery
            spaces_unknown=account.discover and result.is_unknown and not (configured and result.failed),
        )

    def _update_discovery(self) -> None:
        if self.polling.started:
            self.discovery.set_enabled(enabled=self.account.discover, max_pause=self.account.poll_interval)
