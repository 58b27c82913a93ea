"""What is known of every space: the values of its last success, and the results of its polls."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from exporter.clock import Now
from exporter.model import RANKS, WATCHED_FIELDS, PhoneNumber, State
from exporter.source import Outcome, QueryError, Reason

Key = tuple[str, str]
"""Account and space."""


class Change(NamedTuple):
    """A field of a number was seen to change `at` this time (Unix seconds); its value `before` that."""

    at: float
    before: str = ""


Changes = Mapping[tuple[str, str], Change]
"""By phone number and field."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failed poll of a space, `at` this time: the last of `in_a_row` failures, the first of which was at
    `since` (Unix seconds)."""

    at: float
    since: float
    in_a_row: int
    reason: Reason
    code: str
    detail: str
    request_id: str

    @classmethod
    def of(cls, error: QueryError, at: float, before: "Failure | None") -> "Failure":
        """`before` is the failure of the poll before it, if that failed too."""
        since, in_a_row = (before.since, before.in_a_row + 1) if before else (at, 1)
        # not the error itself: with its traceback it holds every local variable
        return cls(at, since, in_a_row, error.reason, error.code, error.detail, error.request_id)


@dataclass(frozen=True, slots=True)
class SpaceRecord:
    """What is known of a space. `phone_numbers` are those of the last success, of any age; `next_slot` is its next
    regular time in the schedule (Unix seconds).

    `changes` are the last change of each field, from one reported value to another. `missing` are the fields that the
    API reported before and does not report now: when that was seen first, and the value before.

    `added` is when the space was added (Unix seconds). `seen` is the monotonic time of the last success or, before the
    first one, of the time when the space was added; None if that was in another process. `discovered_as` is its name in
    a list, None if it is configured; set only in a state file.
    """

    up: bool = False
    last_success: float | None = None
    phone_numbers: tuple[PhoneNumber, ...] = ()
    changes: Changes = field(default_factory=dict)
    missing: Changes = field(default_factory=dict)
    polls: int = 0
    failures: Mapping[Reason, int] = field(default_factory=dict)
    last_failure: Failure | None = None
    next_slot: float | None = None
    discovered_as: str | None = None
    added: float | None = None
    seen: float | None = field(default=None, compare=False)

    def after(self, outcome: Outcome) -> "SpaceRecord":
        """The state after this poll. A failure changes no number."""
        if outcome.error:
            reason = outcome.error.reason
            return replace(
                self,
                up=False,
                polls=self.polls + 1,
                failures={**self.failures, reason: self.failures.get(reason, 0) + 1},
                last_failure=Failure.of(outcome.error, outcome.at, None if self.up else self.last_failure),
                next_slot=outcome.next_slot,
            )
        numbers = outcome.answer.phone_numbers if outcome.answer else ()
        if numbers == self.phone_numbers:  # mostly; the new ones are freed at once
            numbers = self.phone_numbers
        changes, missing = _compared(self, numbers, outcome.at)
        return replace(
            self,
            up=True,
            last_success=outcome.at,
            phone_numbers=numbers,
            changes=changes,
            missing=missing,
            polls=self.polls + 1,
            next_slot=outcome.next_slot,
            seen=outcome.monotonic,
        )

    def with_history(self, old: "SpaceRecord") -> "SpaceRecord":
        """The same with what a state file knew: all of it before the first poll, the values before the first
        success, and the times of changes."""
        if not self.polls:
            return old
        if self.last_success is None:
            return replace(
                old,
                up=False,
                polls=self.polls,
                failures=self.failures,
                last_failure=self.last_failure,
                next_slot=self.next_slot,
            )
        # the exact time is not known
        changes, missing = _compared(old, self.phone_numbers, old.last_success or 0.0)
        return replace(self, changes={**changes, **self.changes}, missing={**missing, **self.missing})

    def seconds_since_success(self, now: Now) -> float:
        """Seconds since the last success or, before the first one, since the space was added. If that was in another
        process, they count by the system's clock. A time in the future means that a clock was wrong: its distance
        counts as the age."""
        if self.seen is not None:
            return now.monotonic - self.seen
        since = self.added if self.last_success is None else self.last_success
        return 0.0 if since is None else abs(now.unix - since)

    def is_fresh(self, now: Now, max_age: float) -> bool:
        """Whether its values may be shown."""
        return self.last_success is not None and self.seconds_since_success(now) < max_age

    def last_reported(self, number: PhoneNumber) -> PhoneNumber:
        """The number with the value before in place of each field that is missing."""
        values = {name: lost.before for (of, name), lost in self.missing.items() if of == number.phone_number}
        return replace(number, **values) if values else number  # type: ignore[arg-type]  # all of them texts

    def state_of(self, number: PhoneNumber) -> State:
        """The number's state. A missing field does not improve it: what was bad counts until a value is reported."""
        return min(number.state, self.last_reported(number).state, key=RANKS.__getitem__)


def _compared(before: SpaceRecord, numbers: Iterable[PhoneNumber], at: float) -> tuple[Changes, Changes]:
    """The changes of the numbers that are listed now, and their missing fields. A number that was not known before has
    not changed."""
    known = {number.phone_number: number for number in before.phone_numbers}
    changes: dict[tuple[str, str], Change] = {}
    missing: dict[tuple[str, str], Change] = {}
    for number in numbers:
        old = known.get(number.phone_number, number)
        for name in WATCHED_FIELDS:
            key, value = (number.phone_number, name), getattr(number, name)
            lost = before.missing.get(key)
            reported = lost.before if lost else getattr(old, name)
            if reported and not value:
                missing[key] = lost or Change(at, reported)
            if reported and value and reported != value:
                changes[key] = Change(at, reported)
            elif key in before.changes:
                changes[key] = before.changes[key]
    return changes, missing


class Store:
    """Every polled space's state. `on_change` is called with each new state, except those that `record` returns.

    `unpolled` are the spaces that were not polled since the start, and have no values that are fresh enough to show.
    """

    def __init__(self, on_change: Callable[[Key, SpaceRecord], None]) -> None:
        self.unpolled: set[Key] = set()
        self._states: dict[Key, SpaceRecord] = {}
        self._on_change = on_change

    def __getitem__(self, key: Key) -> SpaceRecord:
        return self._states[key]

    def retain(self, keys: Collection[Key], *, now: Now) -> None:
        """Have these spaces: remove all others, and add those that are new."""
        for key in self._states.keys() - set(keys):
            del self._states[key]
            self.unpolled.discard(key)
        for key in keys:
            if key not in self._states:
                self.unpolled.add(key)
                self._set(key, SpaceRecord(added=now.unix, seen=now.monotonic))

    def restore(self, known: Mapping[Key, SpaceRecord], *, now: Now, max_age: float) -> None:
        """Add what a state file knew, of spaces that are known here or new."""
        for key, old in known.items():
            if key not in self._states:
                self.unpolled.add(key)
            state = self._set(key, self._states.get(key, SpaceRecord()).with_history(old))
            if state.is_fresh(now, max_age):
                self.unpolled.discard(key)

    def record(self, outcome: Outcome) -> SpaceRecord:
        """Add the result of a poll. Returns the space's state after it."""
        key = (outcome.account, outcome.space)
        self.unpolled.discard(key)
        self._states[key] = state = self._states[key].after(outcome)
        return state

    def _set(self, key: Key, state: SpaceRecord) -> SpaceRecord:
        self._states[key] = state
        self._on_change(key, state)
        return state
