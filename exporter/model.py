"""Spaces, phone numbers and their states, with the documented values of the API. Unknown values are accepted.

Sources: the API page of QueryChatappPhoneNumbers (2020-06-06), Alibaba's page "Phone number management", and Meta's
phone number reference for NA and TIER_2K. The API can return new values without notice.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from unicodedata import category, decimal, normalize

QUALITY_RATINGS = ("GREEN", "YELLOW", "RED", "UNKNOWN")

STATUSES = frozenset(
    "PENDING DELETED MIGRATED BANNED RESTRICTED RATE_LIMITED FLAGGED CONNECTED DISCONNECTED UNKNOWN UNVERIFIED"
    " OFFLINE PAUSED".split()
)

DOWN_STATUSES = frozenset("BANNED DELETED DISCONNECTED MIGRATED OFFLINE".split())
"""The number cannot send or receive messages. Alert: ChatAppPhoneNumberDown."""
RESTRICTED_STATUSES = frozenset("FLAGGED PAUSED RATE_LIMITED RESTRICTED".split())
"""Some messages may fail, or the number cannot start new conversations. Alert: ChatAppPhoneNumberRestricted."""

MESSAGING_LIMITS: Mapping[str, float] = {
    "TIER_50": 50,
    "TIER_250": 250,
    "TIER_1K": 1_000,
    "TIER_2K": 2_000,
    "TIER_10K": 10_000,
    "TIER_100K": 100_000,
    "TIER_UNLIMITED": math.inf,
    "UNLIMITED": math.inf,
}
"""Unique users that a number may message in a rolling 24 hours, by tier. TIER_10 and TIER_1000 are not included: two
pages of the API documentation contradict each other about them. The configuration can define them."""

_TIERS_WITHOUT_A_LIMIT = frozenset({"", "TIER_NOT_SET"})


class Callback(StrEnum):
    """How the API delivers the events of a number. The URL is never stored, because it can contain a token."""

    NONE = "none"
    URL = "url"
    QUEUE = "queue"
    BOTH = "both"


class State(StrEnum):
    """The state of a phone number or space, in order of severity.

    The states of a phone number are down, red, restricted, yellow, unknown and green (`PhoneNumber.state`). In a blind
    space, pages show blind instead of a less severe state. A space can have any state.
    """

    DOWN = "down"
    RED = "red"
    BLIND = "blind"
    RESTRICTED = "restricted"
    YELLOW = "yellow"
    UNKNOWN = "unknown"
    EMPTY = "empty"
    WAITING = "waiting"
    GREEN = "green"


RANKS: Mapping[State, int] = {state: rank for rank, state in enumerate(State)}
"""0 for the most severe state."""
PHONE_NUMBER_STATES = tuple(state for state in State if state not in (State.BLIND, State.EMPTY, State.WAITING))


class AccountState(StrEnum):
    """The state of an account."""

    OK = "ok"
    DENIED = "denied"
    """The API does not accept the key, permission, subscription or system time."""
    UNREACHABLE = "unreachable"
    """Network errors, timeouts, server errors, or responses that are not from the API."""
    THROTTLED = "throttled"
    """The API throttled requests, and the current budget is still lower than the configured budget."""


@dataclass(frozen=True, slots=True)
class AccountHealth:
    """The state of an account since the time `since` (Unix seconds). `code`, `detail` and `request_id` are those of the
    last failure that has the same cause as the state; "" without such a failure."""

    state: AccountState
    since: float
    code: str = ""
    detail: str = ""
    request_id: str = ""

    @property
    def up(self) -> bool:
        """Whether the API responds and accepts the account."""
        return self.state not in (AccountState.DENIED, AccountState.UNREACHABLE)


@dataclass(frozen=True, slots=True)
class Space:
    """A customer space from the configuration or from discovery. A source can add fields in a subclass."""

    id: str
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


OWN_NUMBERS = Space("own")
"""Placeholder for the account's own numbers, if no customer space is polled."""


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """A phone number of a space. Enum values of the API are trimmed and in upper case. "" means that a field was not
    reported."""

    phone_number: str
    verified_name: str = ""
    quality_rating: str = ""
    messaging_limit_tier: str = ""
    status: str = ""
    name_status: str = ""
    new_name_status: str = ""
    code_verification_status: str = ""
    is_official: str = ""
    inbound_callback: Callback = Callback.NONE
    status_callback: Callback = Callback.NONE

    @property
    def state(self) -> State:
        """The most severe state that applies. Without a known rating and status, it is unknown, never green."""
        if self.status in DOWN_STATUSES:
            return State.DOWN
        if self.quality_rating == "RED":
            return State.RED
        if self.status in RESTRICTED_STATUSES:
            return State.RESTRICTED
        if self.quality_rating == "YELLOW":
            return State.YELLOW
        green = (self.quality_rating, self.status) == ("GREEN", "CONNECTED")
        return State.GREEN if green else State.UNKNOWN


_GREEN = PhoneNumber("", quality_rating="GREEN", status="CONNECTED")


def merge_duplicates(first: PhoneNumber, second: PhoneNumber) -> PhoneNumber:
    """Merge two entries for one number. The result is the entry in the more severe state, with the worse rating, tier
    and status of both. A missing field in one entry must not hide a bad value in the other entry."""
    entries = (first, second)
    return replace(
        min(entries, key=lambda entry: RANKS[entry.state]),
        quality_rating=min(
            (entry.quality_rating for entry in entries),
            key=lambda rating: (RANKS[replace(_GREEN, quality_rating=rating).state], not rating),
        ),
        status=min(
            (entry.status for entry in entries),
            key=lambda status: (RANKS[replace(_GREEN, status=status).state], not status),
        ),
        messaging_limit_tier=min(
            (entry.messaging_limit_tier for entry in entries),
            key=lambda tier: (MESSAGING_LIMITS.get(tier, math.inf), not tier),
        ),
    )


_SEPARATOR_CATEGORIES = frozenset({"Cc", "Cf", "Pd", "Pe", "Ps", "Zl", "Zp", "Zs"})
"""The Unicode categories of invisible characters, dashes, brackets and spaces."""


def phone_digits(text: str) -> str:
    """Return the digits of a phone number, without `+`, spaces, invisible characters, dashes, dots and brackets. Return
    "" if there is any other character, or no digit. `*` is kept: the API documentation uses it for masked digits."""
    if text.isascii() and text.isdecimal():  # fast path for nearly all phone numbers
        return text
    chars = [c for c in normalize("NFKC", text) if c not in "+.·\u2212" and category(c) not in _SEPARATOR_CATEGORIES]
    if not any(map(str.isdecimal, chars)) or not all(c.isdecimal() or c == "*" for c in chars):
        return ""
    return "".join(c if c == "*" else str(decimal(c)) for c in chars)


WATCHED_FIELDS = ("quality_rating", "messaging_limit_tier", "status")
"""The fields whose changes are recorded with a time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response. `entries_without_number`: the number of entries without a phone number."""

    phone_numbers: tuple[PhoneNumber, ...]
    entries_without_number: int = 0


def unknown_values(number: PhoneNumber, limits: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the (field, value) pairs with unknown values. `limits` maps the known tiers to messaging limits."""
    if number.quality_rating and number.quality_rating not in QUALITY_RATINGS:
        yield "quality_rating", number.quality_rating
    if number.status and number.status not in STATUSES:
        yield "status", number.status
    if number.messaging_limit_tier not in limits and number.messaging_limit_tier not in _TIERS_WITHOUT_A_LIMIT:
        yield "messaging_limit_tier", number.messaging_limit_tier
