"""When a space is due and an account refused, as arithmetic. Knows no scheduler and no clock."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Self

from exporter.config.settings import Account
from exporter.sources.cams.client import REQUEST_TIMEOUT_SECONDS

_FIRST_PAUSE_SECONDS = 10.0
_REFUSED_INTERVALS = 6
_DENIED_IN_A_ROW = 3
_LONGEST_REFUSED_SECONDS = 3600.0
_SAME_SLOT = 1e-3
"""A due time this share of an interval before a slot is that slot, rounded on its way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an account's spaces fit its budget."""

    spaces: int
    interval: float
    qps: float

    @classmethod
    def of(cls, account: Account) -> Self:
        """What the account's settings ask for."""
        return cls(len(account.polled_spaces), account.poll_interval, account.qps)

    @property
    def needed_qps(self) -> float:
        """Queries a second that the configured interval asks for."""
        return self.spaces / self.interval

    @property
    def effective_interval(self) -> float:
        """Seconds between two polls of one space: the configured interval, or what the budget makes of it."""
        return max(self.interval, self.spaces / self.qps)

    @property
    def oldest_age(self) -> float:
        """Seconds that a value can reach while polls succeed: the interval, and a poll that takes as long as it may."""
        return self.effective_interval + REQUEST_TIMEOUT_SECONDS

    def slot(self, index: int) -> float:
        """A space's first regular time, in seconds after the start: the interval that follows the first sweep has the
        spaces spread evenly over it. Counting from the start would poll some twice before others have a value."""
        return self.spaces / self.qps + self.interval * (index + 1) / self.spaces


@dataclass(frozen=True, slots=True)
class Start:
    """Where a space begins in the schedule: `slot` is its first regular time, `due` when it is polled first."""

    slot: float
    due: float


def starts(spaces: Sequence[str], known: Mapping[str, float], plan: Plan, now: float) -> dict[str, Start]:
    """Where spaces begin, by space; `known` are the slots that those have whose values are known already.

    Spaces without a value go first. A known one goes on where it stood; where that has passed, it is late and polled as
    soon as the budget allows, the one that waits longest first.
    """
    slots = {space: now + plan.slot(index) for index, space in enumerate(spaces)}
    farthest = max(slots.values(), default=now)
    # a slot farther ahead than any can be is that of a longer interval, or of a clock that was wrong
    slots |= {space: known[space] for space in spaces if known.get(space, math.inf) <= farthest}
    ordered = sorted(spaces, key=lambda space: (space in known, slots[space]))
    earliest = {space: now + rank / plan.qps for rank, space in enumerate(ordered)}
    return {
        space: Start(slots[space], max(slots[space], earliest[space]) if space in known else earliest[space])
        for space in ordered
    }


def next_due(*, due: float, slot: float, interval: float, now: float) -> float:
    """When a space is due again that was due at `due` and has been polled: its first slot after that, or at once
    where that has passed already, so that a late space is late but never skipped."""
    slots = max(0, math.floor((due - slot) / interval + _SAME_SLOT) + 1)
    return max(now, slot + slots * interval)


def pause_after_failure(failures: int, interval: float, random: Random) -> float:
    """Seconds until a space is due again after `failures` passing failures in a row: growing up to the interval, and
    jittered, so that spaces that failed together don't come back together."""
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16), interval)
    return longest * random.uniform(0.5, 1.0)


def pause_after_refusal(failures: int, interval: float, random: Random) -> float:
    """Seconds until a space is due again that was refused `failures` times in a row: an interval, then growing to six,
    for a refusal may be a slip of somebody's hand. Never "never": subscriptions get repaired."""
    intervals = min(2.0 ** min(failures - 1, 16), _REFUSED_INTERVALS)
    longest = max(interval, min(interval * intervals, _LONGEST_REFUSED_SECONDS))
    return longest * random.uniform(0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep is: the spaces still to be polled and the queries a second, both by account."""

    left: Mapping[str, int]
    qps: Mapping[str, float]
    done: int = 0
    failed: int = 0

    @classmethod
    def of(cls, plans: Mapping[str, Plan]) -> Self:
        """Where it begins."""
        return cls(
            {name: plan.spaces for name, plan in plans.items()}, {name: plan.qps for name, plan in plans.items()}
        )

    def after(self, account: str, *, failed: bool) -> "Progress":
        """A space of the account was polled."""
        left = {**self.left, account: self.left[account] - 1}
        return replace(self, left=left, done=self.done + 1, failed=self.failed + failed)

    @property
    def total(self) -> int:
        return self.done + sum(self.left.values())

    @property
    def seconds_left(self) -> float:
        """What the account that takes longest needs at its budget."""
        return max((left / self.qps[account] for account, left in self.left.items()), default=0.0)


@dataclass(frozen=True, slots=True)
class AccountAccess:
    """Whether the account as a whole is refused, judged from its spaces' answers.

    A refusal that concerns the account counts for it once three spaces in a row (or all, where there are fewer) got one
    without an answer between that was let in; until then it is that space's `own`. A space with a refusal of its own
    tells nothing of the account until it is let in again: three such neighbours must not close the account for all.
    """

    spaces: int
    denied: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    refused: bool = False
    """No space but a probe is polled while this holds, and only an answer that was let in ends it."""

    def among(self, spaces: Collection[str]) -> "AccountAccess":
        """What is known of it once these are the account's spaces. Some must be left that can tell: with none, no probe
        could ever end a refusal."""
        kept = frozenset(spaces)
        own = frozenset[str]() if kept <= self.own else self.own & kept
        return AccountAccess(len(kept), self.denied & kept, own, self.refused and bool(kept))

    def after_denial(self, space: str) -> "AccountAccess":
        """A space was denied."""
        if self.refused or space in self.own:
            return self
        denied = self.denied | {space}
        enough = max(1, min(_DENIED_IN_A_ROW, self.spaces - len(self.own)))
        return replace(self, denied=denied, refused=len(denied) >= enough)

    def after_admission(self, space: str) -> "AccountAccess":
        """A space was answered, or rejected for its own sake: the account is let in."""
        return AccountAccess(self.spaces, own=(self.own | self.denied) - {space})
