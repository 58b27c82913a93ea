"""Spaces, phone numbers and their states. Knows the values that the API documents; accepts any other.

Sources: the operation's page (QueryChatappPhoneNumbers, 2020-06-06), Alibaba's "Phone number management" page, and
Meta's phone number reference for NA and TIER_2K. New values appear without notice.
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
"""The number sends nothing; the alert ChatAppPhoneNumberDown."""
RESTRICTED_STATUSES = frozenset("FLAGGED PAUSED RATE_LIMITED RESTRICTED".split())
"""It sends less, or soon will; the alert ChatAppPhoneNumberRestricted."""

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
"""Unique users that a number may message in a rolling 24 hours. TIER_10 and TIER_1000 are left out: two pages of the
API contradict each other about them, so the configuration may map them."""

_TIERS_WITHOUT_A_LIMIT = frozenset({"", "TIER_NOT_SET"})


class Callback(StrEnum):
    """Where the API delivers a number's events. The address itself can carry a token and is never kept."""

    NONE = "none"
    URL = "url"
    QUEUE = "queue"
    BOTH = "both"


class State(StrEnum):
    """The state of a phone number or space in one word, worst first.

    A number is down, red, restricted, yellow, unknown or green; the others are states of a space.
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
"""0 for the worst state."""
PHONE_NUMBER_STATES = tuple(state for state in State if state not in (State.BLIND, State.EMPTY, State.WAITING))


class AccountState(StrEnum):
    """The state of an account."""

    OK = "ok"
    DENIED = "denied"
    """The API does not admit it: key, permission, subscription or clock."""
    UNREACHABLE = "unreachable"
    """The API does not answer: transport, timeout or server errors."""
    THROTTLED = "throttled"
    """The API throttled requests; the rate is still lower than the configured one."""


@dataclass(frozen=True, slots=True)
class AccountHealth:
    """The state of an account `since` a time (Unix seconds), with the last failure that belongs to the state."""

    state: AccountState
    since: float
    code: str = ""
    detail: str = ""
    request_id: str = ""

    @property
    def up(self) -> bool:
        """Whether the API answers and admits the account."""
        return self.state not in (AccountState.DENIED, AccountState.UNREACHABLE)


@dataclass(frozen=True, slots=True)
class Space:
    """A customer space, as the configuration or a listing names it. A source may add fields of its own."""

    id: str
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


OWN_NUMBERS = Space("own")
"""Stands for an account's own numbers where no customer space is polled."""


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """One number of a space. Enumerations are trimmed and upper-cased; "" means that the field was not reported."""

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
        """The worst state that applies. Without a known rating and status it is unknown, never green."""
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


def worse_of(one: PhoneNumber, other: PhoneNumber) -> PhoneNumber:
    """Of two entries for one number the one in the worse state, with the worse rating, tier and status of both: a field
    that is missing in one of them must not hide a bad value in the other."""
    entries = (one, other)
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


_BETWEEN_DIGITS = frozenset({"Cc", "Cf", "Pd", "Pe", "Ps", "Zl", "Zp", "Zs"})
"""Unicode's categories of invisible characters, dashes, brackets and spaces."""


def phone_digits(text: str) -> str:
    """The digits of a phone number in one of its usual spellings: without `+`, spaces, invisible characters, dashes,
    dots and brackets. "" if there is any other character, or no digit. The API's page masks digits with `*`."""
    if text.isascii() and text.isdecimal():  # as nearly all of fifty thousand are
        return text
    kept = [one for one in normalize("NFKC", text) if one not in "+.·\u2212" and category(one) not in _BETWEEN_DIGITS]
    if not any(map(str.isdecimal, kept)) or not all(one.isdecimal() or one == "*" for one in kept):
        return ""
    return "".join(one if one == "*" else str(decimal(one)) for one in kept)


WATCHED_FIELDS = ("quality_rating", "messaging_limit_tier", "status")
"""The fields whose changes are dated."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: the numbers it listed, and how many of its entries named no number."""

    phone_numbers: tuple[PhoneNumber, ...]
    unnamed: int = 0


def unknown_values(number: PhoneNumber, limits: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The (field, value) pairs that this version does not know, given the tiers that have a number."""
    if number.quality_rating and number.quality_rating not in QUALITY_RATINGS:
        yield "quality_rating", number.quality_rating
    if number.status and number.status not in STATUSES:
        yield "status", number.status
    if number.messaging_limit_tier not in limits and number.messaging_limit_tier not in _TIERS_WITHOUT_A_LIMIT:
        yield "messaging_limit_tier", number.messaging_limit_tier
