"""What is known of every space: the values of its last success, and the results of its polls."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from exporter.model import WATCHED_FIELDS, PhoneNumber
from exporter.source import Outcome, QueryError, Reason

Key = tuple[str, str]
"""Account and space."""


class Change(NamedTuple):
    """A field of a number was seen to change `at` this time (Unix seconds); its value `before` that."""

    at: float
    before: str = ""


Changes = Mapping[tuple[str, str], Change]
"""The last change of (phone number, field)."""


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
class SpaceState:
    """What is known of a space. `phone_numbers` are those of the last success, of any age; `next_slot` is its next
    regular time in the schedule (Unix seconds). `discovered_as` is its name in a list, None if it is configured; set
    only in a state file."""

    up: bool = False
    last_success: float | None = None
    phone_numbers: tuple[PhoneNumber, ...] = ()
    changes: Changes = field(default_factory=dict)
    polls: int = 0
    failures: Mapping[Reason, int] = field(default_factory=dict)
    last_failure: Failure | None = None
    next_slot: float | None = None
    discovered_as: str | None = None

    def after(self, outcome: Outcome) -> "SpaceState":
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
        return replace(
            self,
            up=True,
            last_success=outcome.at,
            phone_numbers=numbers,
            changes=_changes(self, numbers, outcome.at),
            polls=self.polls + 1,
            next_slot=outcome.next_slot,
        )

    def with_history(self, old: "SpaceState") -> "SpaceState":
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
        missed = _changes(old, self.phone_numbers, old.last_success or 0.0)  # the exact time is not known
        return replace(self, changes={**missed, **self.changes})

    def is_fresh(self, now: float, max_age: float) -> bool:
        """Whether its values may be shown; `now` is in Unix seconds. Values from far in the future are not: a clock was
        wrong, and their age is not known."""
        return self.last_success is not None and abs(now - self.last_success) < max_age


def _changes(before: SpaceState, numbers: Iterable[PhoneNumber], at: float) -> Changes:
    """The changes of the numbers that are listed now; a number that was not known before has not changed."""
    known = {number.phone_number: number for number in before.phone_numbers}
    changes: dict[tuple[str, str], Change] = {}
    for number in numbers:
        old = known.get(number.phone_number, number)
        for name in WATCHED_FIELDS:
            key = (number.phone_number, name)
            if (before_it := getattr(old, name)) != getattr(number, name):
                changes[key] = Change(at, before_it)
            elif key in before.changes:
                changes[key] = before.changes[key]
    return changes


class Store:
    """Every polled space's state. `on_change` is called with each new one.

    `unpolled` are the spaces that were not polled since the start, and have no values that are fresh enough to show.
    """

    def __init__(self, on_change: Callable[[Key, SpaceState], None]) -> None:
        self.unpolled: set[Key] = set()
        self._states: dict[Key, SpaceState] = {}
        self._on_change = on_change

    def __getitem__(self, key: Key) -> SpaceState:
        return self._states[key]

    def retain(self, keys: Collection[Key]) -> None:
        """Have these spaces: remove all others, and add those that are new."""
        for key in self._states.keys() - set(keys):
            del self._states[key]
            self.unpolled.discard(key)
        for key in keys:
            if key not in self._states:
                self.unpolled.add(key)
                self._set(key, SpaceState())

    def restore(self, known: Mapping[Key, SpaceState], *, now: float, max_age: float) -> None:
        """Add what a state file knew, of spaces that are known here or new."""
        for key, old in known.items():
            if key not in self._states:
                self.unpolled.add(key)
            state = self._set(key, self._states.get(key, SpaceState()).with_history(old))
            if state.is_fresh(now, max_age):
                self.unpolled.discard(key)

    def record(self, outcome: Outcome) -> None:
        """Add the result of a poll."""
        key = (outcome.account, outcome.space)
        self.unpolled.discard(key)
        self._set(key, self._states[key].after(outcome))

    def _set(self, key: Key, state: SpaceState) -> SpaceState:
        self._states[key] = state
        self._on_change(key, state)
        return state
