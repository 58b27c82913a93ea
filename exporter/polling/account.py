"""The polling of one account: what is due waits in its queue, once, and leaves it as fast as the budget allows.

A space that fails for a passing reason is due again after a growing pause, one that is refused for good at a longer
interval. An account refused as a whole is probed, by one space an interval, until it is let in again.
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
from exporter.config.settings import Account, Space
from exporter.polling.budget import Budget
from exporter.polling.plan import AccountAccess, Plan, next_due, pause_after_failure, pause_after_refusal, starts
from exporter.polling.poller import Outcome, Poller
from exporter.polling.schedule import Schedule
from exporter.source import DeniedError, PassingError, RefusedError, RejectedError

_STOP_SECONDS = 6.0
"""How long polls under way may take to end at a stop."""

_PROBE_SHARE = 0.99
"""The share of an interval between two probes of a refused account: a slot rounded down is still that slot."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Turn:
    """A space's place in the schedule. `waiting` from when it is due until its poll has ended; `first` until then, if
    it has no value; `healthy` unless its last answer listed a number that is not."""

    space: Space
    slot: float
    due: float
    first: bool
    waiting: bool = False
    failures: int = 0
    healthy: bool = True


class AccountPolling:
    """Polls every space of an account, for ever. `on_outcome` is told of each poll."""

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
        self.budget = budget
        self.plan = Plan.of(account)
        self._access = AccountAccess(self.plan.spaces)
        self._last_probe = -math.inf
        self._prober: _Turn | None = None
        self._poller = poller
        self._schedule = schedule
        self._clock = clock
        self._on_outcome = on_outcome
        self._random = random
        self._queue: asyncio.PriorityQueue[tuple[bool, int, _Turn]] = asyncio.PriorityQueue()
        self._arrivals = count()
        self._turns: dict[str, _Turn] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def up(self) -> bool:
        """Whether the account as a whole is let in, for all that is known."""
        return not self._access.refused

    def start(self, known: Mapping[str, float], in_trouble: Collection[str] = ()) -> None:
        """Put every space into the schedule. `known` are the next slots (monotonic seconds) of the spaces whose values
        are known already; the others are due at once. Of those `in_trouble` a number is known not to be healthy."""
        self._add(self.account.polled_spaces, known, in_trouble)
        self._hire()

    def reconfigure(self, account: Account) -> None:
        """Take over other settings of the account. Spaces that stay keep their place, new ones go first."""
        before, interval = self.account, self.plan.interval
        self.account = self._poller.account = account
        self.plan = Plan.of(account)
        self.budget.set_limit(account.qps)
        spaces = {space.id: space for space in account.polled_spaces}
        not_yet = {name for name, turn in self._turns.items() if turn.first and not turn.waiting}
        self._drop((self._turns.keys() - spaces.keys()) | not_yet)
        asked_otherwise = self._take_over(spaces, before)
        self._access = self._access.among(spaces)
        if self.plan.interval != interval:
            self._spread_anew()
        if self.plan.interval != interval or account.poll_interval_unhealthy != before.poll_interval_unhealthy:
            self._pace_unhealthy()
        for turn in asked_otherwise:
            if turn.failures and not turn.waiting:  # it may have been refused for this, and be due in an hour only
                self._plan_next(turn, self._clock.monotonic())
        self._add([space for name, space in spaces.items() if name not in self._turns], {})
        self._hire()

    def probe_now(self) -> None:
        """The credentials have changed: where the account is refused, a space asks now, and not after an interval."""
        if not self.up:
            self._last_probe, self._prober = -math.inf, None
            able = [turn for name, turn in self._turns.items() if name not in self._access.own and not turn.waiting]
            for turn in able[:1]:
                self._plan_next(turn, self._clock.monotonic())

    async def sweep(self, on_polled: Callable[[Outcome], None]) -> None:
        """Poll every space once, outside the schedule; `on_polled` is told of each poll as it ends."""
        now = self._clock.monotonic()

        async def poll(space: Space) -> None:
            outcome = await self._poller.poll(space, due=now, retry=True)
            self._on_outcome(outcome)
            on_polled(outcome)

        await asyncio.gather(*map(poll, self.account.polled_spaces))

    def leave(self) -> None:
        """The account left the configuration: nothing of it is due any more, and what is under way tells nobody."""
        self._drop(set(self._turns))

    async def stop(self) -> None:
        """Let polls under way end, for a few seconds, then stop."""
        self._stopping = True
        for worker in self._workers:
            if worker not in self._poller.under_way:
                worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers, timeout=_STOP_SECONDS)
        for worker in self._workers:
            worker.cancel()

    def _take_over(self, spaces: Mapping[str, Space], before: Account) -> list[_Turn]:
        """The turns have these spaces from now on; those of them that are asked with another IsvCode."""
        changed = []
        for turn in self._turns.values():
            old, turn.space = turn.space, spaces[turn.space.id]
            if (old.isv_code or before.isv_code) != (turn.space.isv_code or self.account.isv_code):
                changed.append(turn)
        return changed

    def _drop(self, names: Collection[str]) -> None:
        for name in names:
            self._schedule.remove(self._key(self._turns.pop(name)))

    def _add(self, spaces: Sequence[Space], known: Mapping[str, float], in_trouble: Collection[str] = ()) -> None:
        plan = replace(self.plan, spaces=len(spaces))
        by_id = {space.id: space for space in spaces}
        for name, start in starts(list(by_id), known, plan, self._clock.monotonic()).items():
            turn = _Turn(by_id[name], start.slot, start.due, name not in known, healthy=name not in in_trouble)
            self._put_into_schedule(turn, turn.due)
            self._turns[name] = turn

    def _spread_anew(self) -> None:
        """Slots over another interval. What failed, and is due sooner than its new slot, stays due then."""
        now = self._clock.monotonic()
        for index, turn in enumerate(self._turns.values()):
            turn.slot = now + self.plan.interval * (index + 1) / len(self._turns)
            due = turn.slot if not turn.failures else min(turn.due, turn.slot)
            turn.due = turn.due if turn.waiting else due
            self._put_into_schedule(turn, due)

    def _pace_unhealthy(self) -> None:
        """Slots of another interval for spaces in trouble; those that fail stay due when they are."""
        for turn in self._turns.values():
            if not (turn.healthy or turn.failures or turn.waiting):
                turn.due = self._clock.monotonic()
                self._plan_next(turn, self._next_slot(turn))

    def _put_into_schedule(self, turn: _Turn, due: float) -> None:
        on_due = partial(self._enqueue, turn)
        self._schedule.add(self._key(turn), due=due, interval=self.plan.interval, on_due=on_due)

    def _hire(self) -> None:
        """As many workers as requests can be under way."""
        for _ in range(self.budget.concurrency - len(self._workers)):
            self._workers.append(asyncio.create_task(self._work()))

    def _key(self, turn: _Turn) -> str:
        return repr((self.account.name, turn.space.id))

    def _enqueue(self, turn: _Turn) -> None:
        if not turn.waiting:
            turn.waiting = True
            # those without a value before the others, whatever waits already
            self._queue.put_nowait((not turn.first, next(self._arrivals), turn))

    async def _work(self) -> None:
        while not self._stopping:
            _, _, turn = await self._queue.get()
            try:
                await self._take(turn)
            except Exception:
                # the schedule calls again after an interval; a worker that died would leave the account blind
                _log.exception("poll lost by a bug, please report it", account=self.account.name, space=turn.space.id)
            finally:
                turn.waiting = turn.first = False

    async def _take(self, turn: _Turn) -> None:
        now = self._clock.monotonic()
        if self._is_gone(turn):
            return
        if self.up or self._may_probe(turn, now):
            self._last_probe, self._prober, probe = now, turn, not self.up
            outcome = await self._poller.poll(turn.space, due=turn.due, retry=not probe)
            if self._is_gone(turn):
                return
            self._log_change(turn, outcome)
            turn.failures = turn.failures + 1 if outcome.error else 0
            if outcome.answer:
                turn.healthy = outcome.answer.is_healthy
            if self.up or probe:  # what was sent before the account was refused tells nothing of it now
                self._judge(outcome)
            outcome = replace(outcome, next_slot=self._in_unix_seconds(self._next_slot(turn)))
            self._plan_next(turn, self._due_after(turn, outcome))
            self._on_outcome(outcome)
        else:
            self._plan_next(turn, self._next_slot(turn))

    def _is_gone(self, turn: _Turn) -> bool:
        """Whether the space left the configuration since it was due."""
        return self._turns.get(turn.space.id) is not turn

    def _may_probe(self, turn: _Turn, now: float) -> bool:
        """One space an interval asks for a refused account, and another each time: a space that has a refusal of its
        own by now would keep the account closed."""
        able = self.plan.spaces - len(self._access.own)
        return (
            now - self._last_probe >= _PROBE_SHARE * self.plan.interval
            and turn.space.id not in self._access.own
            and (turn is not self._prober or able == 1)
        )

    def _judge(self, outcome: Outcome) -> None:
        """What an outcome tells of the account as a whole; a page of something on the way to the API tells nothing."""
        error = outcome.error
        if isinstance(error, DeniedError):
            self._set_access(self._access.after_denial(outcome.space), error.code)
        elif error is None or (isinstance(error, RejectedError) and error.is_by_the_api):
            self._set_access(self._access.after_admission(outcome.space))
        elif isinstance(error, PassingError) and not self.up:
            self._last_probe = -math.inf  # this space cannot tell, so the next one that is due probes

    def _set_access(self, access: AccountAccess, code: str = "") -> None:
        before, self._access = self._access, access
        if self.up and before.refused:
            _log.info("account let in again", account=self.account.name)
            for turn in self._turns.values():
                if not turn.waiting and turn.space.id not in before.own:
                    self._plan_next(turn, self._clock.monotonic())
        elif not self.up and not before.refused:
            _log.error("account refused, probing it once an interval", account=self.account.name, code=code)
            now = self._clock.monotonic()
            for turn in self._turns.values():  # those that showed it were put off as if it were their own trouble
                if not turn.waiting and turn.space.id in access.denied:
                    self._plan_next(turn, next_due(due=now, slot=turn.slot, interval=self.plan.interval, now=now))

    def _due_after(self, turn: _Turn, outcome: Outcome) -> float:
        now, interval = self._clock.monotonic(), self.plan.interval
        if outcome.error is None or (isinstance(outcome.error, DeniedError) and not self.up):
            return self._next_slot(turn)
        if isinstance(outcome.error, RefusedError):
            return now + pause_after_refusal(turn.failures, interval, self._random)
        return now + pause_after_failure(turn.failures, interval, self._random)

    def _next_slot(self, turn: _Turn) -> float:
        now, sooner = self._clock.monotonic(), self.account.poll_interval_unhealthy
        if sooner and not turn.healthy:
            # as spread as the regular slots, and not only from the first of them on
            return next_due(due=turn.due, slot=turn.slot % sooner, interval=sooner, now=now)
        return next_due(due=turn.due, slot=turn.slot, interval=self.plan.interval, now=now)

    def _in_unix_seconds(self, monotonic: float) -> float:
        return self._clock.now() + monotonic - self._clock.monotonic()

    def _plan_next(self, turn: _Turn, due: float) -> None:
        turn.due = due
        self._schedule.postpone(self._key(turn), due)

    def _log_change(self, turn: _Turn, outcome: Outcome) -> None:
        where = {"account": self.account.name, "space": turn.space.id}
        if outcome.error and not turn.failures:
            error = outcome.error
            ids = {"request_id": error.request_id} if error.request_id else {}
            _log.warning(
                "space failing", **where, reason=error.reason.value, code=error.code, detail=error.detail, **ids
            )
        elif turn.failures and not outcome.error:
            _log.info("space recovered", **where, failed_polls=turn.failures)
