"""The catalogue of metric families for phone numbers, spaces, accounts and the exporter.

Each family has a pure function that returns its samples. The rendered exposition, the prometheus_client collector and
`docs/metrics.md` are generated from the catalogue. Tests check rules, runbooks and dashboards against it. Counters and
histograms of API requests are in `instruments`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from exporter import __version__
from exporter.model import QUALITY_RATINGS, WATCHED_FIELDS, AccountHealth, AccountState, PhoneNumber, Space
from exporter.state.state_file import StateFile
from exporter.state.store import SpaceRecord

Labels = tuple[tuple[str, str], ...]
"""Pairs of name and value. Tuples are hashable: formatted labels are cached."""
Sample = tuple[Labels, float]


class Labeled(Protocol):
    """A subject of samples, for example a phone number."""

    @property
    def labels(self) -> Labels:
        """The labels that identify the subject. All its samples have these labels."""


Subject = TypeVar("Subject", bound=Labeled)
BLIND_INTERVALS = 3
"""Effective intervals without a successful poll after which a space is blind."""


@dataclass(frozen=True, slots=True)
class Family(Generic[Subject]):
    """A metric family. `samples` returns the values of one subject, each with the labels that the subject itself does
    not have."""

    name: str
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Subject], Iterable[Sample]]
    type: Literal["gauge", "counter"] = "gauge"


@dataclass(frozen=True, slots=True)
class SpaceView:
    """One space at the time of a scrape.

    `fresh` is False before the first success and if the values are older than `max_age`. `limits` maps each messaging
    limit tier to unique users per rolling 24 hours. `seconds_since_success` is the time since the last successful poll
    or, before the first success, since the space was added. It is 0 in rendered blocks; `RenderedMetrics.views` sets
    it."""

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
    """One phone number at the time of a scrape."""

    space_view: SpaceView
    number: PhoneNumber

    @property
    def labels(self) -> Labels:
        return (*self.space_view.labels, ("phone_number", self.number.phone_number))


@dataclass(frozen=True, slots=True)
class DiscoveryView:
    """The discovery of an account's spaces. `up`: the last attempt succeeded. `last_success` is in Unix seconds.
    `spaces` is the number of spaces in the last complete list."""

    up: bool
    last_success: float | None
    spaces: int


@dataclass(frozen=True, slots=True)
class AccountView:
    """One account at the time of a scrape. Rates are in queries per second, intervals in seconds.

    `health` is None while polls have not determined the state, for example before the first poll, or after an
    unreachable account denied a request. `due_spaces` is the number of spaces that wait for the budget or are being
    polled. `discovery` is None if the account does not discover spaces. `spaces_unknown` is True if discovery is set
    and no list of spaces is available, neither from the API nor from the state file. It is False after a failed attempt
    if spaces are configured."""

    account: str
    health: AccountHealth | None
    spaces: int
    interval: float
    effective_interval: float
    needed_qps: float
    limit_qps: float
    current_qps: float
    due_spaces: int = 0
    discovery: DiscoveryView | None = None
    spaces_unknown: bool = False

    @property
    def labels(self) -> Labels:
        return (("account", self.account),)

    @property
    def down(self) -> bool:
        """Whether the account is denied or unreachable."""
        return self.health is not None and not self.health.up

    def is_blind(self, space: SpaceView) -> bool:
        """Whether a space of the account is blind. The recorded series `space:chatapp_space_blind:group` has the same
        definition. The alert ChatAppSpaceBlind excludes accounts that are down."""
        return self.down or space.seconds_since_success > BLIND_INTERVALS * self.effective_interval


@dataclass(frozen=True, slots=True)
class ExporterView:
    """The exporter itself at the time of a scrape. `now` and `last_reload_success` are in Unix seconds. `space_files`
    maps each space file to True if it has no errors. `accounts` are all accounts of the configuration."""

    reload_successful: bool
    last_reload_success: float
    space_files: Mapping[str, bool]
    state_file: StateFile | None
    now: float
    accounts: Sequence[str]

    @property
    def labels(self) -> Labels:
        return ()


def _quality_rating(view: NumberView) -> Iterator[Sample]:
    if not (current := view.number.quality_rating):
        return  # a field that the API does not report must not look like a rating
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


def _phone_number_count(view: SpaceView) -> Iterator[Sample]:
    if view.record.last_success is not None:
        yield (), len(view.record.phone_numbers)


def _poll_failures(view: SpaceView) -> Iterator[Sample]:
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


def _discovery_last_success(view: AccountView) -> Iterator[Sample]:
    if view.discovery and view.discovery.last_success is not None:
        yield (), view.discovery.last_success


def _discovered_spaces(view: AccountView) -> Iterator[Sample]:
    if view.discovery and view.discovery.last_success is not None:
        yield (), view.discovery.spaces


def _space_file_up(view: ExporterView) -> Iterator[Sample]:
    for file, good in view.space_files.items():
        yield (("file", file),), float(good)


def _state_file_up(view: ExporterView) -> Iterator[Sample]:
    if view.state_file:
        yield (("file", str(view.state_file.path)),), float(view.state_file.up)


def _state_file_failures(view: ExporterView) -> Iterator[Sample]:
    if view.state_file:
        for reason, count in sorted(view.state_file.failures.items()):
            yield (("file", str(view.state_file.path)), ("reason", reason)), float(count)


def _account_info(view: ExporterView) -> Iterator[Sample]:
    for account in view.accounts:
        yield (("account", account),), 1


NUMBER_LABELS = ("account", "space", "phone_number")
SPACE_LABELS = ("account", "space")


def _value_family(field: str, title: str) -> Family[NumberView]:
    """Return a family with one sample for each phone number: its label has the current value of the field."""

    def samples(view: NumberView) -> Iterator[Sample]:
        if value := getattr(view.number, field):  # no sample if the API does not report the field
            yield ((field, value),), 1

    return Family(
        f"chatapp_phone_number_{field}",
        f"{title} of the phone number at the last successful poll, as reported by the API (always 1).",
        (*NUMBER_LABELS, field),
        samples,
    )


NUMBER_FAMILIES: tuple[Family[NumberView], ...] = (
    Family(
        "chatapp_phone_number_quality_rating",
        "Quality rating of the phone number at the last successful poll: 1 for the current rating, 0 for the others of"
        " GREEN, YELLOW, RED and UNKNOWN. No series if the API does not report a rating.",
        (*NUMBER_LABELS, "quality_rating"),
        _quality_rating,
    ),
    Family(
        "chatapp_phone_number_messaging_limit",
        "Number of unique users that the phone number may message in a rolling 24 hours, at the last successful poll."
        " No series for a tier without a known limit.",
        NUMBER_LABELS,
        _messaging_limit,
    ),
    _value_family("messaging_limit_tier", "Messaging limit tier"),
    _value_family("status", "Status"),
    _value_family("name_status", "Status of the display name"),
    _value_family("new_name_status", "Status of the requested new display name"),
    _value_family("code_verification_status", "Status of the code verification"),
    Family(
        "chatapp_phone_number_info",
        "Information about the phone number at the last successful poll (always 1). The labels inbound_callback and"
        " status_callback show where the API delivers events of the number: none, url, queue or both.",
        (*NUMBER_LABELS, "verified_name", "is_official", "inbound_callback", "status_callback"),
        _info,
    ),
    Family(
        "chatapp_phone_number_last_change_timestamp_seconds",
        "Unix timestamp of the last poll that found a change of the field (quality_rating, messaging_limit_tier or"
        " status). No series before the first change.",
        (*NUMBER_LABELS, "field"),
        _last_change,
    ),
)

SPACE_FAMILIES: tuple[Family[SpaceView], ...] = (
    Family(
        "chatapp_space_up",
        "Whether the last poll of the space succeeded (1 = yes, 0 = no)."
        " Also 0 before the first poll and if the values are older than max_age.",
        SPACE_LABELS,
        lambda view: [((), int(view.record.up and view.fresh))],
    ),
    Family(
        "chatapp_space_last_success_timestamp_seconds",
        "Unix timestamp of the last successful poll of the space. No series before the first success. Not removed after"
        " max_age.",
        SPACE_LABELS,
        _last_success,
    ),
    Family(
        "chatapp_space_phone_numbers",
        "Number of phone numbers of the space at the last successful poll. No series before the first success. Not"
        " removed after max_age.",
        SPACE_LABELS,
        _phone_number_count,
    ),
    Family(
        "chatapp_space_info",
        "Name and configured labels of the space (always 1).",
        (*SPACE_LABELS, "name"),
        lambda view: [((("name", view.space.name), *view.space.labels.items()), 1)],
    ),
    Family(
        "chatapp_space_polls",
        "Total number of completed polls of the space, successful or failed.",
        SPACE_LABELS,
        lambda view: [((), view.record.polls)],
        type="counter",
    ),
    Family(
        "chatapp_space_poll_failures",
        "Total number of failed polls of the space, by reason.",
        (*SPACE_LABELS, "reason"),
        _poll_failures,
        type="counter",
    ),
)

ACCOUNT_FAMILIES: tuple[Family[AccountView], ...] = (
    Family(
        "chatapp_account_up",
        "Whether the API responds and authorizes the account (1 = yes, 0 = denied or unreachable)."
        " No series before polls have shown the state of the account.",
        ("account",),
        _account_up,
    ),
    Family(
        "chatapp_account_state",
        "State of the account: ok, denied, unreachable or throttled (1 for the current state, 0 for the others)."
        " No series before polls have shown the state of the account.",
        ("account", "state"),
        _account_state,
    ),
    Family(
        "chatapp_account_spaces",
        "Number of polled spaces of the account, both configured and discovered.",
        ("account",),
        lambda view: [((), view.spaces)],
    ),
    Family(
        "chatapp_account_poll_interval_seconds",
        "Configured time between two polls of a space, in seconds.",
        ("account",),
        lambda view: [((), view.interval)],
    ),
    Family(
        "chatapp_account_effective_poll_interval_seconds",
        "Effective time between two polls of a space, in seconds: the configured interval, or longer if budget, latency"
        " or throttling require it.",
        ("account",),
        lambda view: [((), view.effective_interval)],
    ),
    Family(
        "chatapp_account_qps_limit",
        "Configured budget of the account, in queries per second.",
        ("account",),
        lambda view: [((), view.limit_qps)],
    ),
    Family(
        "chatapp_account_qps_current",
        "Current budget of the account in queries per second: the configured budget, or less after throttling.",
        ("account",),
        lambda view: [((), view.current_qps)],
    ),
    Family(
        "chatapp_account_qps_needed",
        "Number of spaces divided by the configured interval, in queries per second. The budget must be higher by a"
        " factor of about 1 + mean latency in seconds.",
        ("account",),
        lambda view: [((), view.needed_qps)],
    ),
    Family(
        "chatapp_account_due_spaces",
        "Number of spaces that are due: they wait for the budget, or their poll is in progress.",
        ("account",),
        lambda view: [((), view.due_spaces)],
    ),
    Family(
        "chatapp_account_discovery_up",
        "Whether the last discovery of the account's spaces succeeded completely (1 = yes, 0 = no)."
        " No series for accounts without discovery.",
        ("account",),
        _discovery_up,
    ),
    Family(
        "chatapp_account_discovery_last_success_timestamp_seconds",
        "Unix timestamp of the last complete discovery of the account's spaces. No series before the first discovery.",
        ("account",),
        _discovery_last_success,
    ),
    Family(
        "chatapp_account_discovered_spaces",
        "Number of spaces in the last complete discovery. A configured space counts if discovery found it. No series"
        " before the first discovery.",
        ("account",),
        _discovered_spaces,
    ),
)

EXPORTER_FAMILIES: tuple[Family[ExporterView], ...] = (
    Family(
        "chatapp_exporter_build_info",
        "Version of the exporter (always 1).",
        ("version",),
        lambda view: [((("version", __version__),), 1.0)],
    ),
    Family(
        "chatapp_exporter_time_seconds",
        "System time of the exporter at the scrape, as Unix timestamp.",
        (),
        lambda view: [((), view.now)],
    ),
    Family(
        "chatapp_exporter_account_info",
        "Accounts of the configuration, including accounts that other shards poll (always 1).",
        ("account",),
        _account_info,
    ),
    Family(
        "chatapp_exporter_config_last_reload_successful",
        "Whether the last configuration reload succeeded and the web configuration has no errors (1 = yes, 0 = no).",
        (),
        lambda view: [((), float(view.reload_successful))],
    ),
    Family(
        "chatapp_exporter_config_last_reload_success_timestamp_seconds",
        "Unix timestamp of the last successful configuration load or reload.",
        (),
        lambda view: [((), view.last_reload_success)],
    ),
    Family(
        "chatapp_exporter_space_file_up",
        "Whether the space file had no errors when it was last read (1 = no errors, 0 = errors).",
        ("file",),
        _space_file_up,
    ),
    Family(
        "chatapp_exporter_state_file_up",
        "Whether the exporter can save values to the state file (1 = yes, 0 = no).",
        ("file",),
        _state_file_up,
    ),
    Family(
        "chatapp_exporter_state_file_failures",
        "Total number of failures to open, read or write the state file, by reason: damaged, foreign, newer or"
        " unwritable.",
        ("file", "reason"),
        _state_file_failures,
        type="counter",
    ),
)

FAMILIES: tuple[Family[Any], ...] = (*NUMBER_FAMILIES, *SPACE_FAMILIES, *ACCOUNT_FAMILIES, *EXPORTER_FAMILIES)
"""All families, in the order of the exposition."""
