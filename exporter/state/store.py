"""What is known of every space: the values of its last success, and how its polls went. One writer: `record`."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from exporter.model import WATCHED_FIELDS, PhoneNumber
from exporter.polling.poller import Outcome
from exporter.source import QueryError, Reason

Key = tuple[str, str]
"""Account and space."""


class Change(NamedTuple):
    """A field of a number was seen to be another `at` this time (Unix seconds), and was `before` until then."""

    at: float
    before: str = ""
    """"" where a version of the exporter that did not keep it saw the change."""


Changes = Mapping[tuple[str, str], Change]
"""The last change of (phone number, field)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last poll of a space that failed, `at` this time; by then `in_a_row` had, the first of them at `since`
    (Unix seconds)."""

    at: float
    since: float
    in_a_row: int
    reason: Reason
    code: str
    detail: str
    request_id: str

    @classmethod
    def of(cls, error: QueryError, at: float, before: "Failure | None") -> "Failure":
        """`before` is the poll before it, where that failed too."""
        since, in_a_row = (before.since, before.in_a_row + 1) if before else (at, 1)
        # not the error itself: with its traceback it holds all that was at hand when it was raised
        return cls(at, since, in_a_row, error.reason, error.code, error.detail, error.request_id)


@dataclass(frozen=True, slots=True)
class SpaceState:
    """A space as we know it. `phone_numbers` are those of the last success, however long ago that was; `next_slot` is
    its next regular time in the schedule (Unix seconds). Of one that came from a state file `discovered_as` is the name
    that it was discovered by, None where it was configured."""

    up: bool = False
    last_success: float | None = None
    phone_numbers: tuple[PhoneNumber, ...] = ()
    changes: Changes = field(default_factory=dict)
    polls: int = 0
    failures: Mapping[Reason, int] = field(default_factory=dict)
    last_failure: Failure | None = None
    next_slot: float | None = None
    discovered_as: str | None = None

    @property
    def is_healthy(self) -> bool:
        return all(number.is_healthy for number in self.phone_numbers)

    def after(self, outcome: Outcome) -> "SpaceState":
        """What is known once a poll has ended: a failure changes no number."""
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
        if numbers == self.phone_numbers:  # mostly; so the new ones die young, and nobody needs to look for garbage
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
        """The same, with what was known before: the dates of changes, and the values where there was no success yet."""
        if self.last_success is None:
            up = self.up if self.polls else old.up
            return replace(
                old,
                up=up,
                polls=self.polls,
                failures=self.failures,
                last_failure=self.last_failure,
                next_slot=self.next_slot,
            )
        unseen = _changes(old, self.phone_numbers, old.last_success or 0.0)  # changed since then, nobody knows when
        return replace(self, changes={**unseen, **self.changes})

    def is_fresh(self, now: float, max_age: float) -> bool:
        """Whether its values may be shown; `now` is in Unix seconds. How old they are nobody knows whose date is far
        ahead, for a clock was wrong."""
        return self.last_success is not None and abs(now - self.last_success) < max_age


def _changes(before: SpaceState, numbers: Iterable[PhoneNumber], at: float) -> Changes:
    """The dated changes of the numbers that are listed now; a number that was not known before has not changed."""
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
    """Every configured space's state. `on_change` is told of each new one.

    `unpolled` are the spaces that were neither polled since the start nor known, fresh enough to show, from before.
    """

    def __init__(
        self, states: Mapping[Key, SpaceState], unpolled: Iterable[Key], on_change: Callable[[Key, SpaceState], None]
    ) -> None:
        self._states = dict(states)
        self.unpolled = set(unpolled)
        self._on_change = on_change
        for key, state in self._states.items():
            on_change(key, state)

    def __getitem__(self, key: Key) -> SpaceState:
        return self._states[key]

    def retain(self, keys: Collection[Key]) -> None:
        """Forget all other spaces, and begin with those that are new."""
        for key in self._states.keys() - set(keys):
            del self._states[key]
            self.unpolled.discard(key)
        for key in keys:
            if key not in self._states:
                self.unpolled.add(key)
                self._set(key, SpaceState())

    def recall(self, known: Mapping[Key, SpaceState]) -> None:
        """Take in what was known before, and could not be read until now."""
        for key, old in known.items():
            self._set(key, self._states[key].with_history(old))

    def record(self, outcome: Outcome) -> SpaceState:
        """Take in what a poll gave; returns what is known now."""
        key = (outcome.account, outcome.space)
        self.unpolled.discard(key)
        return self._set(key, self._states[key].after(outcome))

    def _set(self, key: Key, state: SpaceState) -> SpaceState:
        self._states[key] = state
        self._on_change(key, state)
        return state
