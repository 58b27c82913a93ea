"""The families of phone numbers, spaces, accounts and the exporter: a row each, with a pure function for its samples.

The single source: the rendered page and the prometheus_client collector are made from these rows; rules, runbooks
and dashboards are checked against them. Counters and histograms of requests are in `instruments`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from exporter import __version__
from exporter.model import QUALITY_RATINGS, WATCHED_FIELDS, AccountHealth, AccountState, PhoneNumber, Space
from exporter.state.state_file import StateFile
from exporter.state.store import SpaceRecord

Labels = tuple[tuple[str, str], ...]
"""Names and values. Tuples, for thousands of samples have the same, whose spelling is worth keeping."""
Sample = tuple[Labels, float]


class Named(Protocol):
    """What samples can be of."""

    @property
    def labels(self) -> Labels:
        """The labels that name it, which all its samples have."""


Subject = TypeVar("Subject", bound=Named)
BLIND_INTERVALS = 3
"""A space is blind after as many effective intervals without a successful poll."""


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
    """One space as a scrape shows it.

    `fresh` is false before the first success and when the values are older than `max_age`. `limits` maps a tier to
    unique users per rolling 24 hours. `seconds_since_success` counts from the last success or, before the first one,
    from the time when the space was added; only views for pages have it."""

    account: str
    space: Space
    record: SpaceRecord
    fresh: bool
    limits: Mapping[str, float]
    seconds_since_success: float = 0.0

    @property
    def phone_numbers(self) -> tuple[PhoneNumber, ...]:
        return self.record.phone_numbers if self.fresh else ()

    @property
    def numbers(self) -> Iterator["NumberView"]:
        return (NumberView(self, number) for number in self.phone_numbers)

    @property
    def labels(self) -> Labels:
        return ("account", self.account), ("space", self.space.id)


@dataclass(frozen=True, slots=True)
class NumberView:
    """One phone number as a scrape sees it."""

    space_view: SpaceView
    number: PhoneNumber

    @property
    def labels(self) -> Labels:
        return (*self.space_view.labels, ("phone_number", self.number.phone_number))


@dataclass(frozen=True, slots=True)
class DiscoveryView:
    """The list of an account's spaces. `up`: the last attempt succeeded. `last_success` is in Unix seconds, `spaces`
    their number then."""

    up: bool
    last_success: float | None
    spaces: int


@dataclass(frozen=True, slots=True)
class AccountView:
    """One account as a scrape shows it; rates in queries per second, times in seconds.

    `health` is None before the first answers. `discovery` is None if the account does not discover spaces.
    `spaces_unknown` is true until its spaces have been listed for the first time."""

    account: str
    health: AccountHealth | None
    spaces: int
    interval: float
    effective_interval: float
    needed_qps: float
    limit_qps: float
    current_qps: float
    discovery: DiscoveryView | None = None
    spaces_unknown: bool = False

    @property
    def labels(self) -> Labels:
        return (("account", self.account),)

    @property
    def down(self) -> bool:
        """Whether the account can't be queried: it is denied or unreachable."""
        return self.health is not None and not self.health.up

    def is_blind(self, space: SpaceView) -> bool:
        """Whether a space of the account is blind, as the recorded series `space:chatapp_space_blind:group` defines it.
        The alert ChatAppSpaceBlind leaves out accounts that are down."""
        return self.down or space.seconds_since_success > BLIND_INTERVALS * self.effective_interval


@dataclass(frozen=True, slots=True)
class ExporterView:
    """The exporter itself as a scrape sees it: whether the last reload succeeded, when one did last (Unix seconds), and
    its files, each space file with whether it is good."""

    reload_successful: bool
    last_reload: float
    space_files: Mapping[str, bool]
    state_file: StateFile | None

    @property
    def labels(self) -> Labels:
        return ()


def _quality_rating(view: NumberView) -> Iterator[Sample]:
    if not (current := view.number.quality_rating):
        return  # not reported: a missing field must not read as a rating
    for rating in (*QUALITY_RATINGS, *(() if current in QUALITY_RATINGS else (current,))):
        yield (("quality_rating", rating),), int(rating == current)


def _messaging_limit(view: NumberView) -> Iterator[Sample]:
    if (limit := view.space_view.limits.get(view.number.messaging_limit_tier)) is not None:
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
        if (changed := view.space_view.record.changes.get((view.number.phone_number, field))) is not None:
            yield (("field", field),), changed.at


def _last_success(view: SpaceView) -> Iterator[Sample]:
    if view.record.last_success is not None:
        yield (), view.record.last_success


def _listed(view: SpaceView) -> Iterator[Sample]:
    if view.record.last_success is not None:
        yield (), len(view.record.phone_numbers)


def _failures(view: SpaceView) -> Iterator[Sample]:
    for reason, count in sorted(view.record.failures.items()):
        yield (("reason", reason.value),), count


def _account_up(view: AccountView) -> Iterator[Sample]:
    if view.health:
        yield (), int(view.health.up)


def _account_state(view: AccountView) -> Iterator[Sample]:
    if view.health:
        for state in AccountState:
            yield (("state", state.value),), int(state is view.health.state)


def _discovery_up(view: AccountView) -> Iterator[Sample]:
    if view.discovery:
        yield (), int(view.discovery.up)


def _last_listing(view: AccountView) -> Iterator[Sample]:
    if view.discovery and view.discovery.last_success is not None:
        yield (), view.discovery.last_success


def _discovered_spaces(view: AccountView) -> Iterator[Sample]:
    if view.discovery and view.discovery.last_success is not None:
        yield (), view.discovery.spaces


def _space_files(view: ExporterView) -> Iterator[Sample]:
    for file, good in view.space_files.items():
        yield (("file", file),), float(good)


def _state_file_up(view: ExporterView) -> Iterator[Sample]:
    if view.state_file:
        yield (("file", str(view.state_file.path)),), float(view.state_file.up)


def _state_file_failures(view: ExporterView) -> Iterator[Sample]:
    if view.state_file:
        for trouble, failures in sorted(view.state_file.failures.items()):
            yield (("file", str(view.state_file.path)), ("reason", trouble)), float(failures)


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
        f"1 for the current quality rating of a phone number, 0 for the others, {_LAST}"
        " No sample while the API reports no rating.",
        (*_NUMBER, "quality_rating"),
        _quality_rating,
    ),
    Family(
        "chatapp_phone_number_messaging_limit",
        f"Unique users that a phone number may message in a rolling 24 hours, {_LAST}"
        " No sample for a tier without a known number.",
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
        lambda view: [((), int(view.record.up and view.fresh))],
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
        lambda view: [((), view.record.polls)],
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
        "1 while the API answers and accepts the account's key, 0 while it is denied or unreachable; absent until the"
        " first polls have ended.",
        ("account",),
        _account_up,
    ),
    Family(
        "chatapp_account_state",
        "1 for the current state of the account, 0 for the others; absent until the first polls have ended. denied:"
        " key, permission, subscription or clock. unreachable: network error, timeout, server error, or an answer that"
        " is not from the API. throttled: the rate is lowered.",
        ("account", "state"),
        _account_state,
    ),
    Family(
        "chatapp_account_spaces",
        "Spaces of the account that are polled, configured or discovered.",
        ("account",),
        lambda view: [((), view.spaces)],
    ),
    Family(
        "chatapp_account_poll_interval_seconds",
        "Configured time between two polls of a space.",
        ("account",),
        lambda view: [((), view.interval)],
    ),
    Family(
        "chatapp_account_effective_poll_interval_seconds",
        "Actual time between two polls of a space: the configured interval, or longer if budget, latency or throttling"
        " require it.",
        ("account",),
        lambda view: [((), view.effective_interval)],
    ),
    Family(
        "chatapp_account_qps_limit",
        "Configured budget, in queries per second.",
        ("account",),
        lambda view: [((), view.limit_qps)],
    ),
    Family(
        "chatapp_account_qps_current",
        "Budget after throttling, in queries per second.",
        ("account",),
        lambda view: [((), view.current_qps)],
    ),
    Family(
        "chatapp_account_qps_needed",
        "Queries per second that the configured interval needs. Latency is not included, so the budget must be higher.",
        ("account",),
        lambda view: [((), view.needed_qps)],
    ),
    Family(
        "chatapp_account_discovery_up",
        "1 if the last attempt to list the spaces of the account succeeded completely, else 0; only where it discovers"
        " spaces.",
        ("account",),
        _discovery_up,
    ),
    Family(
        "chatapp_account_discovery_last_success_timestamp_seconds",
        "When the spaces of the account were listed completely for the last time; absent before the first time.",
        ("account",),
        _last_listing,
    ),
    Family(
        "chatapp_account_discovered_spaces",
        "Spaces in the last complete list, configured ones among them; absent before the first.",
        ("account",),
        _discovered_spaces,
    ),
)

EXPORTER_FAMILIES: tuple[Family[ExporterView], ...] = (
    Family(
        "chatapp_exporter_build_info",
        "1, with the exporter's version.",
        ("version",),
        lambda view: [((("version", __version__),), 1.0)],
    ),
    Family(
        "chatapp_exporter_config_last_reload_successful",
        "0 if the last reload of the configuration failed, or the web configuration has errors, else 1.",
        (),
        lambda view: [((), float(view.reload_successful))],
    ),
    Family(
        "chatapp_exporter_config_last_reload_success_timestamp_seconds",
        "Time of the last successful reload of the configuration.",
        (),
        lambda view: [((), view.last_reload)],
    ),
    Family(
        "chatapp_exporter_space_file_up",
        "1 if the space file had no errors when the configuration was last loaded, else 0.",
        ("file",),
        _space_files,
    ),
    Family(
        "chatapp_exporter_state_file_up",
        "1 while values are kept in the state file, else 0.",
        ("file",),
        _state_file_up,
    ),
    Family(
        "chatapp_exporter_state_file_failures",
        "Failures to open, read or write the state file, by reason.",
        ("file", "reason"),
        _state_file_failures,
        type="counter",
    ),
)

FAMILIES: tuple[Family[Any], ...] = (*NUMBER_FAMILIES, *SPACE_FAMILIES, *ACCOUNT_FAMILIES, *EXPORTER_FAMILIES)
"""All of them, in the order of the page."""
