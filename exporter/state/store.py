"""The record of each space: the values of its last successful poll, and the results of its polls."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from exporter.clock import Now
from exporter.model import RANKS, WATCHED_FIELDS, PhoneNumber, State
from exporter.source import Outcome, QueryError, Reason

Key = tuple[str, str]
"""Account name and space id."""


class Change(NamedTuple):
    """A change of a field. `at` is when the change was detected (Unix seconds), `before` is the value before it."""

    at: float
    before: str = ""


Changes = Mapping[tuple[str, str], Change]
"""Maps (phone number, field) to the last change of the field."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failed poll of a space. `consecutive` is the number of consecutive failures, `since` the time of the
    first failure, and `at` the time of the last failure (Unix seconds)."""

    at: float
    since: float
    consecutive: int
    reason: Reason
    code: str
    detail: str
    request_id: str

    @classmethod
    def of(cls, error: QueryError, at: float, previous: "Failure | None") -> "Failure":
        """Create a Failure. `previous` is the failure of the previous poll, if that poll failed too."""
        since, consecutive = (previous.since, previous.consecutive + 1) if previous else (at, 1)
        # not the error itself: its traceback would keep all local variables in memory
        return cls(at, since, consecutive, error.reason, error.code, error.detail, error.request_id)


@dataclass(frozen=True, slots=True)
class SpaceRecord:
    """The stored record of a space. `phone_numbers` are those of the last successful poll, of any age. `next_slot` is
    the next regular time in the schedule (Unix seconds).

    `changes` has the last change of each field from one reported value to another. `missing` has the fields that the
    API reported before and does not report now: when this was first detected, and the last reported value.

    `added` is when the space was added (Unix seconds). `seen` is the monotonic time of the last success; before the
    first success, when the space was added; None if another process recorded the time. `discovered_as` is the name of a
    discovered space. Only records that are written to or were read from a state file have it.
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
        """Return the record after this poll. A failure changes no phone number."""
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
        if numbers == self.phone_numbers:  # the usual case: keep the old tuple and free the new one
            numbers = self.phone_numbers
        changes, missing = _compare_fields(self, numbers, outcome.at)
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

    def with_history(self, stored: "SpaceRecord") -> "SpaceRecord":
        """Merge the record from a state file into this record. Before the first poll, return the stored record. Before
        the first success, use its values. Later, use only its changes and missing fields."""
        if not self.polls:
            return stored
        if self.last_success is None:
            return replace(
                stored,
                up=False,
                polls=self.polls,
                failures=self.failures,
                last_failure=self.last_failure,
                next_slot=self.next_slot,
            )
        # the exact time of a change between the two processes is not known
        changes, missing = _compare_fields(stored, self.phone_numbers, stored.last_success or 0.0)
        return replace(self, changes={**changes, **self.changes}, missing={**missing, **self.missing})

    def seconds_since_success(self, now: Now) -> float:
        """Return the seconds since the last success or, before the first success, since the space was added.

        If another process recorded the time, the system clock is used. A time in the future means that a clock was
        wrong. The result is then the time until this time.
        """
        if self.seen is not None:
            return now.monotonic - self.seen
        since = self.added if self.last_success is None else self.last_success
        return 0.0 if since is None else abs(now.unix - since)

    def is_fresh(self, now: Now, max_age: float) -> bool:
        """Whether the values are younger than `max_age` seconds and may be shown."""
        return self.last_success is not None and self.seconds_since_success(now) < max_age

    def last_reported(self, number: PhoneNumber) -> PhoneNumber:
        """Return the number with each missing field set to its last reported value."""
        values = {
            name: lost.before
            for (phone_number, name), lost in self.missing.items()
            if phone_number == number.phone_number
        }
        return replace(number, **values) if values else number  # type: ignore[arg-type]  # all values are strings

    def state_of(self, number: PhoneNumber) -> State:
        """Return the state of the number. A missing field does not improve it: the last reported value still counts."""
        return min(number.state, self.last_reported(number).state, key=RANKS.__getitem__)


Records = Mapping[Key, SpaceRecord]


def _compare_fields(before: SpaceRecord, numbers: Iterable[PhoneNumber], at: float) -> tuple[Changes, Changes]:
    """Return the changes and the missing fields of the listed numbers. A number that is new in the list counts as
    unchanged."""
    old_numbers = {number.phone_number: number for number in before.phone_numbers}
    changes: dict[tuple[str, str], Change] = {}
    missing: dict[tuple[str, str], Change] = {}
    for number in numbers:
        old = old_numbers.get(number.phone_number, number)
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
    """The records of all polled spaces. `on_change` is called with each new record from `set_spaces` and `restore`.

    `unpolled` has the spaces that were not polled since the start and have no fresh values.
    """

    def __init__(self, on_change: Callable[[Key, SpaceRecord], None]) -> None:
        self.unpolled: set[Key] = set()
        self._records: dict[Key, SpaceRecord] = {}
        self._on_change = on_change

    def __getitem__(self, key: Key) -> SpaceRecord:
        return self._records[key]

    def set_spaces(self, keys: Collection[Key], *, now: Now) -> None:
        """Add a record for each new space, and remove the records of all spaces that are not in `keys`."""
        for key in self._records.keys() - set(keys):
            del self._records[key]
            self.unpolled.discard(key)
        for key in keys:
            if key not in self._records:
                self.unpolled.add(key)
                self._set(key, SpaceRecord(added=now.unix, seen=now.monotonic))

    def restore(self, stored_records: Records, *, now: Now, max_age: float) -> None:
        """Merge these records from a state file into the existing records. Add the record of each new space."""
        for key, stored in stored_records.items():
            if key not in self._records:
                self.unpolled.add(key)
            record = self._set(key, self._records.get(key, SpaceRecord()).with_history(stored))
            if record.is_fresh(now, max_age):
                self.unpolled.discard(key)

    def add_outcome(self, outcome: Outcome) -> SpaceRecord:
        """Add the result of a poll to the record of its space. Return the new record, without a call of `on_change`."""
        key = (outcome.account, outcome.space)
        self.unpolled.discard(key)
        self._records[key] = record = self._records[key].after(outcome)
        return record

    def _set(self, key: Key, record: SpaceRecord) -> SpaceRecord:
        self._records[key] = record
        self._on_change(key, record)
        return record
