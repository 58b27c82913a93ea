"""The polling of one account: a due space waits in its queue, once, and is polled as fast as the budget allows.

After a temporary failure a space is due again with exponential backoff, after a permanent one at a longer interval. A
denied account is probed by one space per interval until access is restored. While the account is not ok, the log has
one line for it, and none for the spaces that fail for the same reason.
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
from exporter.polling.access import AccountAccess, explains
from exporter.polling.budget import Budget
from exporter.polling.plan import Plan
from exporter.polling.poller import Poller
from exporter.polling.schedule import Schedule
from exporter.polling.timing import next_due, pause_after_failure, pause_after_rejection, starts
from exporter.source import DeniedError, Outcome, PermanentError, TemporaryError, ThrottledError

_STOP_SECONDS = 6.0
"""How long polls in flight may take to end at a stop."""

_PROBE_SHARE = 0.99
"""Between two probes of a denied account: a little less than one interval, for rounding can make a slot early."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Entry:
    """A space's place in the schedule. `waiting`: it is due, and its poll has not ended. `first`: it has no value,
    and was not polled yet. `turn` is its place in the queue, which a throttled poll keeps. `reported`: the log has a
    line that it fails."""

    space: Space
    slot: float
    due: float
    first: bool
    waiting: bool = False
    failures: int = 0
    turn: int | None = None
    reported: bool = False


class AccountPolling:
    """Polls every space of an account until it is stopped. `on_outcome` gets the result of each poll."""

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
        self._logged: AccountState | None = None
        self._last_probe = -math.inf
        self._prober: _Entry | None = None
        self._poller = poller
        self._schedule = schedule
        self._clock = clock
        self._on_outcome = on_outcome
        self._random = random
        self._queue: asyncio.PriorityQueue[tuple[bool, int, _Entry]] = asyncio.PriorityQueue()
        self._turns = count()
        self._entries: dict[str, _Entry] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def denied(self) -> bool:
        """Whether the API does not admit the account."""
        return self._access.state is AccountState.DENIED

    @property
    def health(self) -> AccountHealth | None:
        """The state of the account; None before the first answers."""
        health = self._health
        if health and health.state is AccountState.THROTTLED and not self._budget.is_throttled:
            return AccountHealth(AccountState.OK, health.since)  # it recovered, and no poll has ended since
        return health

    @property
    def current_plan(self) -> Plan:
        """The plan at the rate that throttling leaves and the measured latency."""
        return replace(self.plan, qps=self._budget.sustained_qps(), latency=self._budget.latency.mean)

    def start(self, known: Mapping[str, float]) -> None:
        """Put every space into the schedule. `known` has the next slots (monotonic seconds) of the spaces whose values
        are known; the others are due now."""
        self.started = True
        self._add(self.account.polled_spaces, known)
        self._start_workers()

    def apply(self, account: Account, *, new_source: bool) -> None:
        """Apply other settings of the account. Spaces that stay keep their slot, new ones are polled first. A space
        that fails is due now if its settings, or the source, are new."""
        interval = self.plan.interval
        self.account, self.plan = account, Plan.of(account)
        self._budget.set_limit(account.qps)
        spaces = {space.id: space for space in account.polled_spaces}
        self._access = self._access.among(spaces)
        if self._access.state is None:
            self._health = None
        if not self.started:
            return
        unpolled = {name for name, entry in self._entries.items() if entry.first and not entry.waiting}
        self._remove((self._entries.keys() - spaces.keys()) | unpolled)
        changed = [entry for entry in self._entries.values() if new_source or entry.space != spaces[entry.space.id]]
        for entry in self._entries.values():
            entry.space = spaces[entry.space.id]
        if self.plan.interval != interval:
            self._spread_again()
        for entry in changed:
            if entry.failures and not entry.waiting:
                self._plan_next(entry, self._clock.monotonic())
        self._add([space for name, space in spaces.items() if name not in self._entries], {})
        self._start_workers()

    def probe_now(self) -> None:
        """The credentials have changed: a denied account is probed now, not after an interval."""
        if self.denied:
            self._last_probe, self._prober = -math.inf, None
            able = [e for name, e in self._entries.items() if name not in self._access.own and not e.waiting]
            for entry in able[:1]:
                self._plan_next(entry, self._clock.monotonic())

    async def sweep(self, on_polled: Callable[[Outcome], None]) -> None:
        """Poll every space once, outside the schedule; `on_polled` gets each result. Once the account is denied, no
        more requests are sent, and the spaces that are left have no result."""
        now, spaces = self._clock.monotonic(), iter(self.account.polled_spaces)

        async def work() -> None:
            for space in spaces:
                outcome = await self._poller.poll(space, due=now, retry=True)
                if not self.denied:  # a request from before the denial says nothing about the account now
                    self._access = self._access.after(outcome)
                    self._health = self._health_after(outcome)
                self._on_outcome(outcome)
                on_polled(outcome)
                if self.denied:
                    cancel_waiting()
                    return

        def cancel_waiting() -> None:
            for worker in workers:
                if worker not in self._poller.in_flight and worker is not asyncio.current_task():
                    worker.cancel()

        workers = [asyncio.create_task(work()) for _ in range(self._budget.concurrency)]
        await asyncio.wait(workers)
        for worker in workers:
            if not worker.cancelled():
                worker.result()

    def remove_spaces(self) -> None:
        """The account is no longer configured: nothing is due any more, and polls in flight are not recorded."""
        self._remove(set(self._entries))

    async def stop(self) -> None:
        """Let polls in flight end, for a few seconds, then stop."""
        self._stopping = True
        for worker in self._workers:
            if worker not in self._poller.in_flight:
                worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers, timeout=_STOP_SECONDS)
        for worker in self._workers:
            worker.cancel()

    def _remove(self, names: Collection[str]) -> None:
        for name in names:
            self._schedule.remove(self._key(self._entries.pop(name)))

    def _add(self, spaces: Sequence[Space], known: Mapping[str, float]) -> None:
        plan = replace(self.plan, spaces=len(spaces))
        by_id = {space.id: space for space in spaces}
        for name, start in starts(list(by_id), known, plan, self._clock.monotonic()).items():
            entry = _Entry(by_id[name], start.slot, start.due, first=name not in known)
            self._put_into_schedule(entry, entry.due)
            self._entries[name] = entry

    def _spread_again(self) -> None:
        """Slots over another interval. A failing space that is due before its new slot stays due then."""
        now = self._clock.monotonic()
        for index, entry in enumerate(self._entries.values()):
            entry.slot = now + self.plan.interval * (index + 1) / len(self._entries)
            due = entry.slot if not entry.failures else min(entry.due, entry.slot)
            entry.due = entry.due if entry.waiting else due
            self._put_into_schedule(entry, due)

    def _put_into_schedule(self, entry: _Entry, due: float) -> None:
        on_due = partial(self._enqueue, entry)
        self._schedule.add(self._key(entry), due=due, interval=self.plan.interval, on_due=on_due)

    def _start_workers(self) -> None:
        """As many workers as requests can be in flight."""
        for _ in range(self._budget.concurrency - len(self._workers)):
            self._workers.append(asyncio.create_task(self._work()))

    def _key(self, entry: _Entry) -> str:
        return repr((self.account.name, entry.space.id))

    def _enqueue(self, entry: _Entry) -> None:
        if not entry.waiting:
            entry.waiting = True
            entry.turn = next(self._turns) if entry.turn is None else entry.turn
            # spaces without a value before all others that wait
            self._queue.put_nowait((not entry.first, entry.turn, entry))

    async def _work(self) -> None:
        while not self._stopping:
            _, _, entry = await self._queue.get()
            try:
                await self._poll(entry)
            except Exception:
                # the schedule calls again after an interval; a worker that ended would leave the account blind
                _log.exception("poll lost by a bug, please report it", account=self.account.name, space=entry.space.id)
            finally:
                entry.waiting = entry.first = False

    async def _poll(self, entry: _Entry) -> None:
        now = self._clock.monotonic()
        if self._is_removed(entry):
            return
        probe = self.denied
        if probe and not self._may_probe(entry, now):
            self._plan_next(entry, self._next_slot(entry))
            return
        self._last_probe, self._prober = now, entry
        outcome = await self._poller.poll(entry.space, due=entry.due, retry=not probe)
        if self._is_removed(entry):
            return
        if probe or not self.denied:  # a request from before the denial says nothing about the account now
            self._judge(outcome)
        self._log_change(entry, outcome)
        entry.failures = entry.failures + 1 if outcome.error else 0
        if not isinstance(outcome.error, ThrottledError):  # otherwise it would wait for a complete sweep again
            entry.turn = None
        outcome = replace(outcome, next_slot=self._in_unix_seconds(self._next_slot(entry)))
        self._plan_next(entry, self._due_after(entry, outcome))
        self._on_outcome(outcome)

    def _is_removed(self, entry: _Entry) -> bool:
        """Whether the space was removed from the configuration since it was due."""
        return self._entries.get(entry.space.id) is not entry

    def _may_probe(self, entry: _Entry, now: float) -> bool:
        """A denied account is probed by one space per interval, a different one each time: a space with a denial of its
        own would keep the account denied."""
        able = self.plan.spaces - len(self._access.own)
        return (
            now - self._last_probe >= _PROBE_SHARE * self.plan.interval
            and entry.space.id not in self._access.own
            and (entry is not self._prober or able == 1)
        )

    def _judge(self, outcome: Outcome) -> None:
        """What an outcome says about the account."""
        before, self._access = self._access, self._access.after(outcome)
        self._health = self._health_after(outcome)
        self._log_health()
        now = self._clock.monotonic()
        if before.state is self._access.state:
            if self.denied and isinstance(outcome.error, TemporaryError):
                self._last_probe = -math.inf  # this probe was inconclusive: the next space that is due probes
        elif self.denied:
            for entry in self._entries.values():  # the denials were not these spaces' own: no backoff
                if not entry.waiting and entry.space.id in self._access.denied:
                    self._plan_next(entry, next_due(due=now, slot=entry.slot, interval=self.plan.interval, now=now))
        elif before.state in (AccountState.DENIED, AccountState.UNREACHABLE):  # poll what was not polled, or failed
            was_denied = before.state is AccountState.DENIED
            for entry in self._entries.values():
                if (was_denied or entry.failures) and not entry.waiting and entry.space.id not in before.own:
                    self._plan_next(entry, now)

    def _health_after(self, outcome: Outcome) -> AccountHealth | None:
        state, error, before = self._access.state, outcome.error, self._health
        if state is AccountState.OK and self._budget.is_throttled:
            state = AccountState.THROTTLED
        if state is None:
            return None
        since = before.since if before and before.state is state else outcome.at
        if error and explains(error, state):
            return AccountHealth(state, since, error.code, error.detail, error.request_id)
        return replace(before, since=since) if before and before.state is state else AccountHealth(state, since)

    def _log_health(self) -> None:
        """One line when the account is not ok any more, and one when it is again."""
        health = self._health
        if health is None or health.state is self._logged:
            return
        before, self._logged = self._logged, health.state
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
                _log.error("account denied, probing once per interval", **fields)
            case AccountState.UNREACHABLE:
                _log.error("account unreachable", **fields)
            case AccountState.THROTTLED:
                _log.warning("account throttled, polling at a lower rate", **fields)

    def _due_after(self, entry: _Entry, outcome: Outcome) -> float:
        now, interval = self._clock.monotonic(), self.plan.interval
        if outcome.error is None or (isinstance(outcome.error, DeniedError) and self.denied):
            return self._next_slot(entry)
        if isinstance(outcome.error, PermanentError):
            return now + pause_after_rejection(entry.failures, interval, self._random)
        return now + pause_after_failure(entry.failures, interval, self._random)

    def _next_slot(self, entry: _Entry) -> float:
        now = self._clock.monotonic()
        return next_due(due=entry.due, slot=entry.slot, interval=self.plan.interval, now=now)

    def _in_unix_seconds(self, monotonic: float) -> float:
        return self._clock.now() + monotonic - self._clock.monotonic()

    def _plan_next(self, entry: _Entry, due: float) -> None:
        entry.due = due
        self._schedule.reschedule(self._key(entry), due)

    def _log_change(self, entry: _Entry, outcome: Outcome) -> None:
        where, error = {"account": self.account.name, "space": entry.space.id}, outcome.error
        of_account = self._health is not None and explains(error, self._health.state)
        if error and not entry.reported and not of_account:
            entry.reported = True
            ids = {"request_id": error.request_id} if error.request_id else {}
            _log.warning(
                "space failing", **where, reason=error.reason.value, code=error.code, detail=error.detail, **ids
            )
        elif entry.reported and not error:
            entry.reported = False
            _log.info("space recovered", **where, failed_polls=entry.failures)
