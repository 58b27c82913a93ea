"""Every family that tells of spaces and accounts: a row each, with a pure function that gives its samples.

The single source: the rendered page and the prometheus_client collector are made from these rows; rules, runbooks
and dashboards are checked against them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from exporter.chatapp.model import QUALITY_RATINGS, WATCHED_FIELDS, PhoneNumber
from exporter.config.settings import Space
from exporter.polling.plan import Plan
from exporter.state.store import SpaceState

Subject = TypeVar("Subject")
Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True, slots=True)
class Family(Generic[Subject]):
    """A metric family: `samples` gives the labels and values of one subject."""

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
    def labels(self) -> dict[str, str]:
        return {"account": self.account, "space": self.space.id}


@dataclass(frozen=True, slots=True)
class AccountView:
    """One account as a scrape sees it; rates in queries a second."""

    account: str
    up: bool
    plan: Plan
    current_qps: float


def _per_number(
    samples: Callable[[SpaceView, PhoneNumber], Iterable[Sample]],
) -> Callable[[SpaceView], Iterator[Sample]]:
    """The samples of all numbers of a space, each with the labels that name the number."""

    def of_space(view: SpaceView) -> Iterator[Sample]:
        for number in view.phone_numbers:
            identity = {**view.labels, "phone_number": number.phone_number}
            for labels, value in samples(view, number):
                yield {**identity, **labels}, value

    return of_space


def _current(field: str) -> Callable[[SpaceView], Iterator[Sample]]:
    """1 for the current value of a field, nothing where the API did not report it."""

    def of_number(_: SpaceView, number: PhoneNumber) -> Iterator[Sample]:
        if value := getattr(number, field):
            yield {field: value}, 1

    return _per_number(of_number)


def _quality_rating(_: SpaceView, number: PhoneNumber) -> Iterator[Sample]:
    current = number.quality_rating
    for rating in (*QUALITY_RATINGS, *(() if current in QUALITY_RATINGS else (current,))):
        yield {"quality_rating": rating}, int(rating == current)


def _messaging_limit(view: SpaceView, number: PhoneNumber) -> Iterator[Sample]:
    if (limit := view.limits.get(number.messaging_limit_tier)) is not None:
        yield {}, limit


def _info(_: SpaceView, number: PhoneNumber) -> Iterator[Sample]:
    labels = {
        "verified_name": number.verified_name,
        "is_official": number.is_official,
        "inbound_callback": number.inbound_callback.value,
        "status_callback": number.status_callback.value,
    }
    yield labels, 1


def _last_change(view: SpaceView, number: PhoneNumber) -> Iterator[Sample]:
    for field in WATCHED_FIELDS:
        if (changed := view.state.changes.get((number.phone_number, field))) is not None:
            yield {"field": field}, changed


def _last_success(view: SpaceView) -> Iterator[Sample]:
    if view.state.last_success is not None:
        yield view.labels, view.state.last_success


def _listed(view: SpaceView) -> Iterator[Sample]:
    if view.state.last_success is not None:
        yield view.labels, len(view.state.phone_numbers)


def _failures(view: SpaceView) -> Iterator[Sample]:
    for reason, count in sorted(view.state.failures.items()):
        yield {**view.labels, "reason": reason.value}, count


def _intervals(view: AccountView) -> Iterator[Sample]:
    yield {"account": view.account, "kind": "configured"}, view.plan.interval
    yield {"account": view.account, "kind": "effective"}, view.plan.effective_interval


def _qps(view: AccountView) -> Iterator[Sample]:
    yield {"account": view.account, "kind": "limit"}, view.plan.qps
    yield {"account": view.account, "kind": "current"}, view.current_qps


_LAST = "as of the last successful poll of its space."
_NUMBER = ("account", "space", "phone_number")
_SPACE = ("account", "space")


def _value_family(field: str, subject: str) -> Family[SpaceView]:
    return Family(
        f"chatapp_phone_number_{field}",
        f"1 for the current {subject} of a phone number, as the API spells it, {_LAST}",
        (*_NUMBER, field),
        _current(field),
    )


SPACE_FAMILIES: tuple[Family[SpaceView], ...] = (
    Family(
        "chatapp_phone_number_quality_rating",
        f"1 for the current quality rating of a phone number, 0 for the others, {_LAST}",
        (*_NUMBER, "quality_rating"),
        _per_number(_quality_rating),
    ),
    Family(
        "chatapp_phone_number_messaging_limit",
        f"How many people a phone number may write to in 24 hours, {_LAST}"
        " No sample for a tier that stands for no known number.",
        _NUMBER,
        _per_number(_messaging_limit),
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
        _per_number(_info),
    ),
    Family(
        "chatapp_phone_number_last_change_timestamp_seconds",
        "When a field of a phone number was seen to change last; absent until a change was seen.",
        (*_NUMBER, "field"),
        _per_number(_last_change),
    ),
    Family(
        "chatapp_space_up",
        "1 if the last poll of the space succeeded, else 0.",
        _SPACE,
        lambda view: [(view.labels, int(view.state.up and view.fresh))],
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
        lambda view: [({**view.labels, "name": view.space.name, **view.space.labels}, 1)],
    ),
    Family(
        "chatapp_space_polls",
        "Polls of the space that have ended.",
        _SPACE,
        lambda view: [(view.labels, view.state.polls)],
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
        lambda view: [({"account": view.account}, int(view.up))],
    ),
    Family(
        "chatapp_account_spaces",
        "Spaces configured for the account.",
        ("account",),
        lambda view: [({"account": view.account}, view.plan.spaces)],
    ),
    Family(
        "chatapp_account_poll_interval_seconds",
        "Time between two polls of a space, as configured and as the budget allows.",
        ("account", "kind"),
        _intervals,
    ),
    Family(
        "chatapp_account_qps",
        "Queries per second that the exporter allows itself: as configured, and now, after throttling.",
        ("account", "kind"),
        _qps,
    ),
)
