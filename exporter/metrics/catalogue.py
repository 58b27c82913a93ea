"""Every family that tells of spaces and accounts: a row each, with a pure function that gives its samples.

The single source: the rendered page and the prometheus_client collector are made from these rows; rules, runbooks
and dashboards are checked against them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from exporter.config.settings import Space
from exporter.model import QUALITY_RATINGS, WATCHED_FIELDS, PhoneNumber
from exporter.polling.discovery import Discovered
from exporter.polling.plan import Plan
from exporter.state.store import SpaceState

Labels = tuple[tuple[str, str], ...]
"""Names and values. Tuples, for thousands of samples have the same, whose spelling is worth keeping."""
Sample = tuple[Labels, float]


class Named(Protocol):
    """What samples can be of."""

    @property
    def labels(self) -> Labels:
        """The labels that name it, which all its samples have."""


Subject = TypeVar("Subject", bound=Named)


@dataclass(frozen=True, slots=True)
class Family(Generic[Subject]):
    """A metric family: `samples` gives the values of one subject, each with its labels beyond those that name it."""

    name: str
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Subject], Iterable[Sample]]
    type: Literal["gauge", "counter"] = "gauge"


@dataclass(frozen=True, slots=True)
class SpaceView:
    """One space as a scrape sees it. `fresh` is false before its first success and once its values are too old to show;
    `limits` are people per 24 hours by tier."""

    account: str
    space: Space
    state: SpaceState
    fresh: bool
    limits: Mapping[str, float]

    @property
    def phone_numbers(self) -> tuple[PhoneNumber, ...]:
        return self.state.phone_numbers if self.fresh else ()

    @property
    def numbers(self) -> Iterator["NumberView"]:
        return (NumberView(self, number) for number in self.phone_numbers)

    @property
    def labels(self) -> Labels:
        return ("account", self.account), ("space", self.space.id)


@dataclass(frozen=True, slots=True)
class NumberView:
    """One phone number as a scrape sees it."""

    of: SpaceView
    number: PhoneNumber

    @property
    def labels(self) -> Labels:
        return (*self.of.labels, ("phone_number", self.number.phone_number))


@dataclass(frozen=True, slots=True)
class AccountView:
    """One account as a scrape sees it; rates in queries a second, used ones over the last minute. Once all is polled, a
    scrape has so many `series` of it in so many `bytes`. `discovered` is None where it discovers no spaces."""

    account: str
    up: bool
    plan: Plan
    current_qps: float
    used_qps: float
    series: int
    bytes: int
    discovered: Discovered | None = None
    unlisted: bool = False
    """Whether it is not known yet what spaces there are."""

    @property
    def labels(self) -> Labels:
        return (("account", self.account),)


def _quality_rating(view: NumberView) -> Iterator[Sample]:
    current = view.number.quality_rating
    for rating in (*QUALITY_RATINGS, *(() if current in QUALITY_RATINGS else (current,))):
        yield (("quality_rating", rating),), int(rating == current)


def _messaging_limit(view: NumberView) -> Iterator[Sample]:
    if (limit := view.of.limits.get(view.number.messaging_limit_tier)) is not None:
        yield (), limit


def _info(view: NumberView) -> Iterator[Sample]:
    number = view.number
    labels = (
        ("verified_name", number.verified_name),
        ("is_official", number.is_official),
        ("inbound_callback", number.inbound_callback.value),
        ("status_callback", number.status_callback.value),
    )
    yield labels, 1


def _last_change(view: NumberView) -> Iterator[Sample]:
    for field in WATCHED_FIELDS:
        if (changed := view.of.state.changes.get((view.number.phone_number, field))) is not None:
            yield (("field", field),), changed.at


def _last_success(view: SpaceView) -> Iterator[Sample]:
    if view.state.last_success is not None:
        yield (), view.state.last_success


def _listed(view: SpaceView) -> Iterator[Sample]:
    if view.state.last_success is not None:
        yield (), len(view.state.phone_numbers)


def _failures(view: SpaceView) -> Iterator[Sample]:
    for reason, count in sorted(view.state.failures.items()):
        yield (("reason", reason.value),), count


def _intervals(view: AccountView) -> Iterator[Sample]:
    yield (("kind", "configured"),), view.plan.interval
    yield (("kind", "effective"),), view.plan.effective_interval


def _qps(view: AccountView) -> Iterator[Sample]:
    yield (("kind", "needed"),), view.plan.needed_qps
    yield (("kind", "limit"),), view.plan.qps
    yield (("kind", "current"),), view.current_qps


def _discovery_up(view: AccountView) -> Iterator[Sample]:
    if view.discovered:
        yield (), int(view.discovered.up)


def _last_listing(view: AccountView) -> Iterator[Sample]:
    if view.discovered and view.discovered.last_success is not None:
        yield (), view.discovered.last_success


def _discovered_spaces(view: AccountView) -> Iterator[Sample]:
    if view.discovered and view.discovered.last_success is not None:
        yield (), len(view.discovered.spaces)


_LAST = "as of the last successful poll of its space."
_NUMBER = ("account", "space", "phone_number")
_SPACE = ("account", "space")


def _value_family(field: str, subject: str) -> Family[NumberView]:
    def current(view: NumberView) -> Iterator[Sample]:
        if value := getattr(view.number, field):  # nothing where the API did not report it
            yield ((field, value),), 1

    return Family(
        f"chatapp_phone_number_{field}",
        f"1 for the current {subject} of a phone number, as the API spells it, {_LAST}",
        (*_NUMBER, field),
        current,
    )


NUMBER_FAMILIES: tuple[Family[NumberView], ...] = (
    Family(
        "chatapp_phone_number_quality_rating",
        f"1 for the current quality rating of a phone number, 0 for the others, {_LAST}",
        (*_NUMBER, "quality_rating"),
        _quality_rating,
    ),
    Family(
        "chatapp_phone_number_messaging_limit",
        f"How many people a phone number may write to in 24 hours, {_LAST}"
        " No sample for a tier that stands for no known number.",
        _NUMBER,
        _messaging_limit,
    ),
    _value_family("messaging_limit_tier", "messaging limit tier"),
    _value_family("status", "status"),
    _value_family("name_status", "status of the display name"),
    _value_family("new_name_status", "status of the requested new display name"),
    _value_family("code_verification_status", "status of the code verification"),
    Family(
        "chatapp_phone_number_info",
        f"1, with what is known of a phone number, {_LAST} Callbacks are none, url, queue or both.",
        (*_NUMBER, "verified_name", "is_official", "inbound_callback", "status_callback"),
        _info,
    ),
    Family(
        "chatapp_phone_number_last_change_timestamp_seconds",
        "When a field of a phone number was seen to change last; absent until a change was seen.",
        (*_NUMBER, "field"),
        _last_change,
    ),
)

SPACE_FAMILIES: tuple[Family[SpaceView], ...] = (
    Family(
        "chatapp_space_up",
        "1 if the last poll of the space succeeded, else 0.",
        _SPACE,
        lambda view: [((), int(view.state.up and view.fresh))],
    ),
    Family(
        "chatapp_space_last_success_timestamp_seconds",
        "When a poll of the space succeeded last; absent before the first success.",
        _SPACE,
        _last_success,
    ),
    Family(
        "chatapp_space_phone_numbers",
        "How many phone numbers the last successful answer listed; absent before the first success.",
        _SPACE,
        _listed,
    ),
    Family(
        "chatapp_space_info",
        "1, with the name and the labels that the configuration gives the space.",
        (*_SPACE, "name"),
        lambda view: [((("name", view.space.name), *view.space.labels.items()), 1)],
    ),
    Family(
        "chatapp_space_polls",
        "Polls of the space that have ended.",
        _SPACE,
        lambda view: [((), view.state.polls)],
        type="counter",
    ),
    Family(
        "chatapp_space_poll_failures",
        "Polls of the space that failed, by reason.",
        (*_SPACE, "reason"),
        _failures,
        type="counter",
    ),
)

ACCOUNT_FAMILIES: tuple[Family[AccountView], ...] = (
    Family(
        "chatapp_account_up",
        "0 while the account as a whole is refused (key, permission, subscription, clock), else 1.",
        ("account",),
        lambda view: [((), int(view.up))],
    ),
    Family(
        "chatapp_account_spaces",
        "Spaces of the account that are polled, configured or discovered.",
        ("account",),
        lambda view: [((), view.plan.spaces)],
    ),
    Family(
        "chatapp_account_poll_interval_seconds",
        "Time between two polls of a space, as configured and as the budget allows.",
        ("account", "kind"),
        _intervals,
    ),
    Family(
        "chatapp_account_qps",
        "Queries per second: needed for the configured interval, and what the exporter allows itself, as the configured"
        " limit and as current, after throttling.",
        ("account", "kind"),
        _qps,
    ),
    Family(
        "chatapp_account_max_value_age_seconds",
        "How old a value can get while polls succeed, by the plan.",
        ("account",),
        lambda view: [((), view.plan.oldest_age)],
    ),
    Family(
        "chatapp_account_scrape_series",
        "Series that a scrape has of the account's spaces and numbers once all are polled: measured on those that are.",
        ("account",),
        lambda view: [((), view.series)],
    ),
    Family(
        "chatapp_account_scrape_bytes",
        "Bytes in text, not packed, that a scrape has of the account's spaces and numbers once all are polled.",
        ("account",),
        lambda view: [((), view.bytes)],
    ),
    Family(
        "chatapp_account_discovery_up",
        "1 if the spaces of the account were listed whole at the last attempt, else 0; only where it discovers spaces.",
        ("account",),
        _discovery_up,
    ),
    Family(
        "chatapp_account_discovery_last_success_timestamp_seconds",
        "When the spaces of the account were listed whole last; absent before the first time.",
        ("account",),
        _last_listing,
    ),
    Family(
        "chatapp_account_discovered_spaces",
        "Spaces that the last whole listing named, configured ones among them; absent before the first.",
        ("account",),
        _discovered_spaces,
    ),
)

FAMILIES: tuple[Family[Any], ...] = (*NUMBER_FAMILIES, *SPACE_FAMILIES, *ACCOUNT_FAMILIES)
"""All of them, as the page shows them."""
