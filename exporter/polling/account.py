"""Polls one account. Due spaces wait in a queue, each at most once, and are polled as fast as the budget allows.

After a temporary failure, a space is due again with exponential backoff; after a permanent failure, at increasing
intervals. A denied account is probed with one space per interval until access is restored. An account failure is logged
once, without a line for each space that fails for the same reason.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from random import Random

import structlog

from exporter.clock import Clock
from exporter.config.settings import Account
from exporter.model import AccountHealth, AccountState, Space
from exporter.polling.access import AccountAccess, is_account_failure
from exporter.polling.budget import Budget
from exporter.polling.plan import Plan
from exporter.polling.poller import Poller
from exporter.polling.schedule import Schedule
from exporter.polling.timing import next_due, pause_after_failure, pause_after_rejection, start_times
from exporter.source import DeniedError, Outcome, PermanentError, TemporaryError, ThrottledError

_STOP_TIMEOUT_SECONDS = 6.0
"""How long `stop` waits for polls in flight."""

_PROBE_INTERVAL_SHARE = 0.99
"""Minimum time between a probe and the previous poll, as a share of the interval. Less than 1, because rounding can
put a due time before its slot."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Entry:
    """The schedule entry of a space. Times are in monotonic seconds.

    `slot`: a regular time of the space, repeated every interval. `due`: the time of the next poll, or of the current
    poll while `pending`. `unpolled`: the entry was added without a stored slot, and has not been polled. `pending`: the
    space is due, and its poll has not ended. `failures`: consecutive failed polls. `queue_position`: lowest first; kept
    until a poll is not throttled. `failure_logged`: the log has a line about the failure.
    """

    space: Space
    slot: float
    due: float
    unpolled: bool
    pending: bool = False
    failures: int = 0
    queue_position: int | None = None
    failure_logged: bool = False


class AccountPolling:
    """Polls the spaces of an account until `stop`. `on_outcome` is called with the result of each poll."""

    def __init__(
        self,
        account: Account,
        poller: Poller,
        budget: Budget,
        schedule: Schedule,
        clock: Clock,
        on_outcome: Callable[[Outcome], None],
        random: Random,
    ) -> None:
        self.account = account
        self.plan = Plan.of(account)
        self.started = False
        self._budget = budget
        self._access = AccountAccess(self.plan.spaces)
        self._health: AccountHealth | None = None
        self._logged_state: AccountState | None = None
        self._last_poll_at = -math.inf
        self._last_polled_entry: _Entry | None = None
        self._poller = poller
        self._schedule = schedule
        self._clock = clock
        self._on_outcome = on_outcome
        self._random = random
        self._queue: asyncio.PriorityQueue[tuple[bool, int, _Entry]] = asyncio.PriorityQueue()
        self._queue_positions = count()
        self._entries: dict[str, _Entry] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def denied(self) -> bool:
        """Whether the state of the account is DENIED."""
        return self._access.state is AccountState.DENIED

    @property
    def due_spaces(self) -> int:
        """The number of spaces that wait for the budget or are being polled."""
        return sum(entry.pending for entry in self._entries.values())

    @property
    def health(self) -> AccountHealth | None:
        """The state of the account; None while the polls do not determine it. If the rate has recovered since the last
        poll, the state is OK, and `since` is still the start of THROTTLED."""
        health = self._health
        if health and health.state is AccountState.THROTTLED and not self._budget.is_throttled:
            return AccountHealth(AccountState.OK, health.since)
        return health

    @property
    def current_plan(self) -> Plan:
        """The plan with the mean latency and the sustained rate, which is lower after throttling."""
        return replace(self.plan, qps=self._budget.sustained_qps(), latency=self._budget.latency.mean)

    def start(self, next_slots: Mapping[str, float]) -> None:
        """Schedule every space. `next_slots` maps spaces to their stored next slots (monotonic seconds). All other
        spaces are due first, one every 1/qps seconds from now."""
        self.started = True
        self._add(self.account.polled_spaces, next_slots)
        self._start_workers()

    def apply(self, account: Account, *, new_source: bool) -> None:
        """Apply new settings of the account. New and `unpolled` spaces are polled first. Other spaces keep their slots
        if the interval is unchanged. A failing space is due now if its settings or the source changed."""
        interval = self.plan.interval
        self.account, self.plan = account, Plan.of(account)
        self._budget.set_limit(account.qps)
        spaces = {space.id: space for space in account.polled_spaces}
        self._access = self._access.with_spaces(spaces)
        if self._access.state is None:
            self._health = None
        if not self.started:
            return
        unpolled = {name for name, entry in self._entries.items() if entry.unpolled and not entry.pending}
        self._remove((self._entries.keys() - spaces.keys()) | unpolled)
        changed = [entry for entry in self._entries.values() if new_source or entry.space != spaces[entry.space.id]]
        for entry in self._entries.values():
            entry.space = spaces[entry.space.id]
        if self.plan.interval != interval:
            self._redistribute_slots()
        for entry in changed:
            if entry.failures and not entry.pending:
                self._reschedule(entry, self._clock.monotonic())
        self._add([space for name, space in spaces.items() if name not in self._entries], {})
        self._start_workers()

    def probe_now(self) -> None:
        """Probe a denied account now instead of after an interval, because its credentials have changed."""
        if self.denied:
            self._last_poll_at, self._last_polled_entry = -math.inf, None
            excluded = self._access.excluded
            candidates = [entry for name, entry in self._entries.items() if name not in excluded and not entry.pending]
            for entry in candidates[:1]:
                self._reschedule(entry, self._clock.monotonic())

    async def sweep(self, on_polled: Callable[[Outcome], None]) -> None:
        """Poll every space once, without the schedule; `on_polled` is called with each result. If the account becomes
        denied, no more requests are sent, and the remaining spaces have no result."""
        now, spaces = self._clock.monotonic(), iter(self.account.polled_spaces)

        async def work() -> None:
            for space in spaces:
                outcome = await self._poller.poll(space, due=now, retry=True)
                if not self.denied:  # the result of a request from before the denial is outdated
                    self._access = self._access.after(outcome)
                    self._health = self._health_after(outcome)
                self._on_outcome(outcome)
                on_polled(outcome)
                if self.denied:
                    cancel_waiting()
                    return

        def cancel_waiting() -> None:
            for worker in workers:
                if worker not in self._poller.tasks_in_flight and worker is not asyncio.current_task():
                    worker.cancel()

        workers = [asyncio.create_task(work()) for _ in range(self._budget.concurrency)]
        await asyncio.wait(workers)
        for worker in workers:
            if not worker.cancelled():
                worker.result()

    def remove_spaces(self) -> None:
        """Remove all spaces from the schedule. Results of polls in flight are discarded."""
        self._remove(set(self._entries))

    async def stop(self) -> None:
        """Stop polling. Polls in flight that have not ended after 6 seconds are cancelled."""
        self._stopping = True
        for worker in self._workers:
            if worker not in self._poller.tasks_in_flight:
                worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers, timeout=_STOP_TIMEOUT_SECONDS)
        for worker in self._workers:
            worker.cancel()

    def _remove(self, names: Collection[str]) -> None:
        for name in names:
            self._schedule.remove(self._key(self._entries.pop(name)))

    def _add(self, spaces: Sequence[Space], next_slots: Mapping[str, float]) -> None:
        plan = replace(self.plan, spaces=len(spaces))  # spread only the added spaces over the interval
        by_id = {space.id: space for space in spaces}
        for name, start in start_times(list(by_id), next_slots, plan, self._clock.monotonic()).items():
            entry = _Entry(by_id[name], start.slot, start.due, unpolled=name not in next_slots)
            self._schedule_entry(entry, entry.due)
            self._entries[name] = entry

    def _redistribute_slots(self) -> None:
        """Spread the slots over the new interval. A failing space keeps its due time if it is before the new slot."""
        now = self._clock.monotonic()
        for index, entry in enumerate(self._entries.values()):
            entry.slot = now + self.plan.interval * (index + 1) / len(self._entries)
            due = entry.slot if not entry.failures else min(entry.due, entry.slot)
            entry.due = entry.due if entry.pending else due
            self._schedule_entry(entry, due)

    def _schedule_entry(self, entry: _Entry, due: float) -> None:
        on_due = partial(self._enqueue, entry)
        self._schedule.add(self._key(entry), due=due, interval=self.plan.interval, on_due=on_due)

    def _start_workers(self) -> None:
        """Start one worker for each request that may be in flight at once."""
        for _ in range(self._budget.concurrency - len(self._workers)):
            self._workers.append(asyncio.create_task(self._work()))

    def _key(self, entry: _Entry) -> str:
        return repr((self.account.name, entry.space.id))

    def _enqueue(self, entry: _Entry) -> None:
        if not entry.pending:
            entry.pending = True
            entry.queue_position = next(self._queue_positions) if entry.queue_position is None else entry.queue_position
            # unpolled spaces first
            self._queue.put_nowait((not entry.unpolled, entry.queue_position, entry))

    async def _work(self) -> None:
        while not self._stopping:
            _, _, entry = await self._queue.get()
            try:
                await self._poll(entry)
            except Exception:
                # the worker must continue; the space is due again after an interval
                event = "poll result lost because of a bug, please report it"
                _log.exception(event, account=self.account.name, space=entry.space.id)
            finally:
                entry.pending = entry.unpolled = False

    async def _poll(self, entry: _Entry) -> None:
        now = self._clock.monotonic()
        if self._is_removed(entry):
            return
        probe = self.denied
        if probe and not self._can_probe(entry, now):
            self._reschedule(entry, self._next_slot(entry))
            return
        self._last_poll_at, self._last_polled_entry = now, entry
        outcome = await self._poller.poll(entry.space, due=entry.due, retry=not probe)
        if self._is_removed(entry):
            return
        if probe or not self.denied:  # the result of a request from before the denial is outdated
            self._update_access(outcome)
        self._log_space_change(entry, outcome)
        entry.failures = entry.failures + 1 if outcome.error else 0
        if not isinstance(outcome.error, ThrottledError):  # a throttled space would wait for a complete sweep otherwise
            entry.queue_position = None
        outcome = replace(outcome, next_slot=self._to_unix_seconds(self._next_slot(entry)))
        self._reschedule(entry, self._due_after_poll(entry, outcome))
        self._on_outcome(outcome)

    def _is_removed(self, entry: _Entry) -> bool:
        """Return whether the space was removed from the configuration after it became due."""
        return self._entries.get(entry.space.id) is not entry

    def _can_probe(self, entry: _Entry, now: float) -> bool:
        """Return whether this space may probe a denied account: one interval after the last poll, with a different
        space if possible, because a single denied space must not keep the account denied."""
        candidate_count = self.plan.spaces - len(self._access.excluded)
        return (
            now - self._last_poll_at >= _PROBE_INTERVAL_SHARE * self.plan.interval
            and entry.space.id not in self._access.excluded
            and (entry is not self._last_polled_entry or candidate_count == 1)
        )

    def _update_access(self, outcome: Outcome) -> None:
        """Update the state of the account after a poll. Log a change and reschedule the affected spaces. After an
        inconclusive probe, allow the next probe at once."""
        before, self._access = self._access, self._access.after(outcome)
        self._health = self._health_after(outcome)
        self._log_account_change()
        now = self._clock.monotonic()
        if before.state is self._access.state:
            if self.denied and isinstance(outcome.error, TemporaryError):
                self._last_poll_at = -math.inf
        elif self.denied:
            for entry in self._entries.values():  # the account was denied, not these spaces: no backoff
                if not entry.pending and entry.space.id in self._access.denied:
                    self._reschedule(entry, next_due(due=now, slot=entry.slot, interval=self.plan.interval, now=now))
        elif before.state in (AccountState.DENIED, AccountState.UNREACHABLE):
            # after DENIED all spaces, because only probes were sent; after UNREACHABLE the failed spaces
            was_denied = before.state is AccountState.DENIED
            for entry in self._entries.values():
                if (was_denied or entry.failures) and not entry.pending and entry.space.id not in before.excluded:
                    self._reschedule(entry, now)

    def _health_after(self, outcome: Outcome) -> AccountHealth | None:
        state, error, before = self._access.state, outcome.error, self._health
        if state is AccountState.OK and self._budget.is_throttled:
            state = AccountState.THROTTLED
        if state is None:
            return None
        since = before.since if before and before.state is state else outcome.at
        if error and is_account_failure(error, state):
            return AccountHealth(state, since, error.code, error.detail, error.request_id)
        return replace(before, since=since) if before and before.state is state else AccountHealth(state, since)

    def _log_account_change(self) -> None:
        """Log a change of the account state."""
        health = self._health
        if health is None or health.state is self._logged_state:
            return
        before, self._logged_state = self._logged_state, health.state
        match before:
            case AccountState.DENIED:
                _log.info("account access restored", account=self.account.name)
            case AccountState.UNREACHABLE:
                _log.info("account reachable again", account=self.account.name)
            case AccountState.THROTTLED:
                _log.info("account no longer throttled", account=self.account.name)
        fields = {"account": self.account.name, "code": health.code, "detail": health.detail}
        fields |= {"request_id": health.request_id} if health.request_id else {}
        match health.state:
            case AccountState.DENIED:
                _log.error("account authorization failed, probing once per interval", **fields)
            case AccountState.UNREACHABLE:
                _log.error("account unreachable", **fields)
            case AccountState.THROTTLED:
                _log.warning("account throttled, polling at a lower rate", **fields)

    def _due_after_poll(self, entry: _Entry, outcome: Outcome) -> float:
        now, interval = self._clock.monotonic(), self.plan.interval
        if outcome.error is None or (isinstance(outcome.error, DeniedError) and self.denied):
            return self._next_slot(entry)
        if isinstance(outcome.error, PermanentError):
            return now + pause_after_rejection(entry.failures, interval, self._random)
        return now + pause_after_failure(entry.failures, interval, self._random)

    def _next_slot(self, entry: _Entry) -> float:
        now = self._clock.monotonic()
        return next_due(due=entry.due, slot=entry.slot, interval=self.plan.interval, now=now)

    def _to_unix_seconds(self, monotonic: float) -> float:
        return self._clock.now() + monotonic - self._clock.monotonic()

    def _reschedule(self, entry: _Entry, due: float) -> None:
        entry.due = due
        self._schedule.reschedule(self._key(entry), due)

    def _log_space_change(self, entry: _Entry, outcome: Outcome) -> None:
        fields, error = {"account": self.account.name, "space": entry.space.id}, outcome.error
        account_failed = self._health is not None and is_account_failure(error, self._health.state)
        if error and not entry.failure_logged and not account_failed:
            entry.failure_logged = True
            ids = {"request_id": error.request_id} if error.request_id else {}
            _log.warning(
                "space polls failing", **fields, reason=error.reason.value, code=error.code, detail=error.detail, **ids
            )
        elif entry.failure_logged and not error:
            entry.failure_logged = False
            _log.info("space recovered", **fields, failed_polls=entry.failures)
