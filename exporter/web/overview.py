"""The list of phone numbers for the status pages and the JSON API, sorted by severity.

Each entry is a phone number, or a space without current phone numbers. Pure functions, without HTTP.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from math import ceil

from pydantic import BaseModel, ConfigDict, Field

from exporter.metrics.catalogue import BLIND_INTERVALS, AccountView, SpaceView
from exporter.model import RANKS, PhoneNumber, State, phone_digits
from exporter.runtime.view import Snapshot

_LAST_SECOND = 253_402_300_799.0  # of the year 9999

MEANINGS: Mapping[State, str] = {
    State.DOWN: "banned, deleted, disconnected, migrated or offline",
    State.RED: "the quality rating is RED",
    State.BLIND: f"no successful poll for {BLIND_INTERVALS} effective intervals,"
    " or the account is denied or unreachable",
    State.RESTRICTED: "flagged, paused, rate limited or restricted",
    State.YELLOW: "the quality rating is YELLOW",
    State.UNKNOWN: "no known problem, but the quality rating is not GREEN or the status is not CONNECTED",
    State.EMPTY: "the API lists no phone number for the space",
    State.WAITING: f"no current values; blind after {BLIND_INTERVALS} effective intervals without a successful poll",
    State.GREEN: "the quality rating is GREEN and the status is CONNECTED",
}
"""The meaning of each state. docs/usage.md lists the same texts."""
_DECIDING_FIELDS: Mapping[State, tuple[str, ...]] = {
    State.DOWN: ("status",),
    State.RED: ("quality_rating",),
    State.RESTRICTED: ("status",),
    State.YELLOW: ("quality_rating",),
}
"""The field that decides a state of a phone number. For other states, see `deciding_fields`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A phone number, or a space without current phone numbers (`number` is None).

    `since` (Unix seconds) is the last change of the fields that decide the state or, if the state is BLIND, the last
    successful poll. None if there was neither. The values of a `blind` space may be out of date.
    """

    space: SpaceView
    number: PhoneNumber | None
    state: State
    blind: bool
    since: float | None

    @property
    def text(self) -> str:
        """The searchable text."""
        space = self.space.space
        words = [self.space.account, space.id, space.name, *space.labels.values()]
        for number in self.searchable_numbers:
            words += [number.phone_number, number.verified_name]
        return "\n".join(words).casefold()

    @property
    def searchable_numbers(self) -> Sequence[PhoneNumber]:
        """The phone number of this entry. If `number` is None, the stored phone numbers of the space, so that a search
        for a stored phone number finds the space."""
        return (self.number,) if self.number else self.space.record.phone_numbers


@dataclass(frozen=True, slots=True)
class _SearchTerm:
    """Words of a search that must all match, or their digits if the words can be a phone number."""

    words: tuple[str, ...]
    digits: str

    def is_in(self, text: str, numbers: Iterable[PhoneNumber]) -> bool:
        if all(word in text for word in self.words):
            return True
        return self.digits != "" and any(self.digits in phone_digits(number.phone_number) for number in numbers)


@lru_cache(maxsize=16)
def _search_terms(search: str) -> Sequence[_SearchTerm]:
    """Split a search into terms. An entry matches if it contains all of them."""
    terms = [tuple(words) for _, words in groupby(search.casefold().split(), key=_is_phone_like)]
    return [_SearchTerm(words, phone_digits("".join(words))) for words in terms]


def _is_phone_like(word: str) -> bool:
    """Whether the word can be a part of a phone number: only digits, `*`, `+`, dashes, dots and brackets."""
    return phone_digits(f"0{word}") != ""


class Filter(BaseModel):
    """The filters in a query string. An unknown parameter is an error, because ignoring it would show all entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    q: str = Field("", max_length=200)
    account: str = ""
    state: tuple[State, ...] = ()
    page: int = Field(1, ge=1, le=1_000_000)
    per_page: int = Field(100, ge=1, le=1000)

    def matches_account_and_search(self, entry: Entry) -> bool:
        """Whether the account and the search text match."""
        if self.account and entry.space.account != self.account:
            return False
        text = entry.text if self.q else ""
        return all(term.is_in(text, entry.searchable_numbers) for term in _search_terms(self.q))

    def matches_state(self, entry: Entry) -> bool:
        return not self.state or entry.state in self.state or (entry.blind and State.BLIND in self.state)


@dataclass(frozen=True, slots=True)
class Selection:
    """A page of matching entries. `total` and `pages` count all matching entries.

    `counts` are the entries of each state that match the account and the search text: spaces for BLIND, EMPTY and
    WAITING, phone numbers for the other states.
    """

    entries: Sequence[Entry]
    total: int
    pages: int
    counts: Mapping[State, int]


def select(entries: Iterable[Entry], filters: Filter) -> Selection:
    """Return a page of the matching entries. A page after the last one is empty."""
    matching = [entry for entry in entries if filters.matches_account_and_search(entry)]
    selected = [entry for entry in matching if filters.matches_state(entry)]
    first = (filters.page - 1) * filters.per_page
    pages = max(1, ceil(len(selected) / filters.per_page))
    return Selection(selected[first : first + filters.per_page], len(selected), pages, _counts(matching))


def _counts(entries: Sequence[Entry]) -> Counter[State]:
    counts = Counter(dict.fromkeys(State, 0))
    counts.update(entry.state for entry in entries)
    counts[State.BLIND] = len({id(entry.space) for entry in entries if entry.blind})
    return counts


def entries_of(snapshot: Snapshot) -> list[Entry]:
    """Return all entries, sorted by severity, then with the latest change first."""
    accounts = {account.account: account for account in snapshot.accounts}
    entries = [
        entry
        for space in snapshot.spaces
        if space.account in accounts  # false if a reload is removing the account
        for entry in _entries_of_space(space, accounts[space.account])
    ]
    return sorted(entries, key=lambda entry: (RANKS[entry.state], -(entry.since or 0), entry.space.account))


def worst_per_space(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the first entry of each space: the most severe one, if the entries are sorted."""
    seen = set()
    for entry in entries:
        if id(entry.space) not in seen:
            seen.add(id(entry.space))
            yield entry


def _entries_of_space(space: SpaceView, account: AccountView) -> Iterator[Entry]:
    blind, seen = account.is_blind(space), space.record.last_success
    for number in space.phone_numbers:
        state = space.record.state_of(number)
        if blind and RANKS[state] > RANKS[State.BLIND]:
            yield Entry(space, number, State.BLIND, blind, seen)
        else:
            yield Entry(space, number, state, blind, _since(space, number, state))
    if not space.phone_numbers:
        state = State.BLIND if blind else State.EMPTY if space.fresh else State.WAITING
        yield Entry(space, None, state, blind, seen if blind else None)


def _since(space: SpaceView, number: PhoneNumber, state: State) -> float | None:
    record, fields = space.record, deciding_fields(state)
    # a missing field can make a number unknown, but never down, red, restricted or yellow
    sources = [record.changes] if state in _DECIDING_FIELDS else [record.changes, record.missing]
    dates = [
        change.at for changes in sources for field in fields if (change := changes.get((number.phone_number, field)))
    ]
    return max(dates, default=None)


def deciding_fields(state: State) -> tuple[str, ...]:
    """Return the fields that decide a state of a phone number."""
    return _DECIDING_FIELDS.get(state, ("quality_rating", "status"))


def utc(at: float) -> datetime:
    """Convert Unix seconds to UTC, limited to the years 1970 to 9999."""
    return datetime.fromtimestamp(min(max(at, 0.0), _LAST_SECOND), UTC).replace(microsecond=0)
