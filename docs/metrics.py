"""Generates the metrics page from the catalogue and the instruments, with example samples."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from prometheus_client import generate_latest

from docs.tables import code, table
from exporter.clock import SystemClock
from exporter.metrics.catalogue import (
    ACCOUNT_FAMILIES,
    EXPORTER_FAMILIES,
    NUMBER_FAMILIES,
    NUMBER_LABELS,
    SPACE_FAMILIES,
    SPACE_LABELS,
    AccountView,
    DiscoveryView,
    ExporterView,
    Family,
    Labeled,
    SpaceView,
)
from exporter.metrics.instruments import Instruments
from exporter.metrics.lines import format_labels, sample_lines, sample_name
from exporter.model import MESSAGING_LIMITS, AccountHealth, AccountState, Answer, Callback, PhoneNumber, Space
from exporter.source import REQUEST_TIMEOUT_SECONDS, Reason, ThrottledError
from exporter.state.state_file import FailureReason, StateFile
from exporter.state.store import Change, SpaceRecord

_INTRODUCTION = """\
# Metrics

This page lists all metrics. It is for authors of queries, alerts and dashboards. `make generate` writes it from the
code.

- The values of phone numbers are those of the last successful poll of their space.
- A failed poll sets `chatapp_space_up` to 0 and keeps the values. After `max_age` (default 1h) without a successful
  poll, the series of the phone numbers are removed. The series of the space are not removed.
- A phone number is removed when a successful response no longer lists it. If the response lists no phone numbers, the
  exporter sends a second query, and removes the phone numbers only if the second response lists none either.
- Ratings, tiers and statuses are trimmed and in upper case. Values that this version does not know are exported too. A
  field that the API does not report has no series.
- A callback is the URL or queue to which the API delivers events of a phone number: incoming messages
  (`inbound_callback`) and the delivery status of sent messages (`status_callback`).

`/metrics` returns the text format 0.0.4 or OpenMetrics 1.0, depending on the `Accept` header, and gzip if the client
accepts it. `?name[]=` selects metrics by name, for example `/metrics?name[]=chatapp_space_up`.

## Useful queries

```promql
# phone numbers with the quality rating RED
chatapp_phone_number_quality_rating{quality_rating="RED"} == 1
# number of phone numbers by quality rating
sum by (quality_rating) (chatapp_phone_number_quality_rating)
# spaces without a successful poll in the last 15 minutes; the value is the time since the last success in seconds
time() - chatapp_space_last_success_timestamp_seconds > 900
# failed polls per second, by account and reason
sum by (account, reason) (rate(chatapp_space_poll_failures_total[15m]))
```

For alerts, use the [recorded series](#recorded-series). They keep the last known values if polls fail or the exporter
restarts.
"""
_SECTIONS = {
    "Phone numbers": ("Labels of all these metrics: `account`, `space` and `phone_number`.", NUMBER_LABELS),
    "Spaces": ("Labels of all these metrics: `account` and `space`.", SPACE_LABELS),
    "Accounts": ("Label of all these metrics: `account`.", ("account",)),
    "API": ("Requests to the API, and delays of polls.", ()),
    "Exporter": ("The exporter process, its configuration and its files.", ()),
}
"""Maps the title of each section to its text and to the labels that the table omits."""
_PROCESS = """
The metrics `process_*`, `python_gc_*` and `python_info` of prometheus_client are also exported: memory, CPU time, open
file descriptors and start time.
"""
_UNITS = {
    "_timestamp_seconds$": "Unix timestamp",
    "_seconds$": "seconds",
    "_messaging_limit$": "unique users",
    "_qps_": "queries per second",
}
"""Maps patterns of metric names to units."""
_REASONS = {
    Reason.THROTTLED: "The API throttled the request: too many requests.",
    Reason.TIMEOUT: f"No complete response within {REQUEST_TIMEOUT_SECONDS:g} seconds.",
    Reason.TRANSPORT: "No response: connection refused or reset, host name not resolved, or TLS error.",
    Reason.DENIED: "The API denied the request because of the access key, permissions, subscription or system time of"
    " the host, or no access key was available.",
    Reason.REJECTED: "The API does not accept the id or the parameters of the space.",
    Reason.MALFORMED: "The response does not match the API documentation, or is not from the API, for example a page"
    " of a proxy.",
    Reason.SERVER: "Server error: HTTP status 5xx, or an error code such as `InternalError`.",
}
_ACCOUNT_STATES = {
    AccountState.OK: "The API responds and authorizes the account.",
    AccountState.DENIED: "The polls of three consecutive spaces (all spaces, if there are fewer) failed with the reason"
    " `denied`.",
    AccountState.UNREACHABLE: "The polls of three consecutive spaces (all spaces, if there are fewer) failed with a"
    " network error, timeout, server error, or a response that is not from the API.",
    AccountState.THROTTLED: "The API throttled requests, and `chatapp_account_qps_current` is still below"
    " `chatapp_account_qps_limit`.",
}
_CODES = {
    "`OK`": "Success.",
    "for example `Throttling.User`": "Error code of the API.",
    "`timeout`, `transport`, `malformed`": "See [reasons of failed polls](#reasons-of-failed-polls).",
    "for example `http_503`": "Error response without an error code, with its HTTP status. It can be from a proxy.",
    "`credentials`": "The request was not sent, because no access key was available.",
}
_UNKNOWN_FIELDS = {
    "`quality_rating`, `messaging_limit_tier`, `status`": "The label `value` is the unknown value, counted at every"
    " poll. The value `missing` means that the API no longer reports the field, counted once for each phone number.",
    "`phone_number`": "Entries without a phone number. The label `value` is `missing`.",
}
_STATE_FILE_REASONS: Mapping[FailureReason, str] = {
    "damaged": "The content is invalid or has an older schema version.",
    "foreign": "The file is from another program.",
    "newer": "The schema version is from a newer exporter.",
    "unwritable": "The file cannot be opened or written: permissions, full disk or time limit.",
}
_RECORDED = {
    "phone_number:chatapp_phone_number_quality_rank:last": "Last known quality rating: 0 GREEN, 1 UNKNOWN (also never"
    " reported, or an unknown value), 2 YELLOW, 3 RED.",
    "phone_number:chatapp_phone_number_low_quality_start_timestamp_seconds:last": "Time at which the last known quality"
    " rating became YELLOW or RED. Interruptions of less than 15 minutes do not count. If the rating changes"
    " repeatedly (`:flapping` is at least 2), longer ones do not count either.",
    "phone_number:chatapp_phone_number_quality_rank:flapping": "Only for ratings that changed more than twice in the"
    " last 3 hours: the highest rank that the rating had or exceeded for more than 24 of the last 60 minutes.",
    "phone_number:chatapp_phone_number_status_rank:flapping": "The same for the rank of the status.",
    "phone_number:chatapp_phone_number_messaging_limit_dropped:flapping": "The same for dropped messaging limits: 1 if"
    " the limit was below its maximum for more than 24 of the last 60 minutes, otherwise 0.",
    "phone_number:chatapp_phone_number_status_rank:last": "Last known status: 2 down, 1 restricted, 0 all others.",
    "phone_number:chatapp_phone_number_status:last": "1, with the last known status in the label `status`.",
    "phone_number:chatapp_phone_number_messaging_limit:last": "Last known messaging limit.",
    "phone_number:chatapp_phone_number_messaging_limit:max7d": "Maximum messaging limit of the last 7 days, recorded"
    " once per hour.",
    "phone_number:chatapp_phone_number_messaging_limit:max": "Maximum messaging limit of the last 7 days, in all"
    " spaces that listed the number.",
    "phone_number:chatapp_phone_number_messaging_limit_dropped:bool": "1 if the last known messaging limit is below its"
    " maximum of the last 7 days, otherwise 0.",
    "phone_number:chatapp_phone_number_last_change_timestamp_seconds:last": "Last known"
    " `chatapp_phone_number_last_change_timestamp_seconds`, with the label `field`.",
    "phone_number:chatapp_phone_number_info:last": "1 for each phone number that the last successful poll listed, and"
    " for numbers with a firing alert that are no longer listed, until they vanished (`:group`).",
    "phone_number:chatapp_phone_number_vanished:group": "1 for each phone number that the API no longer lists in any"
    " space, for up to 1 day.",
    "phone_number:chatapp_phone_number_vanished_timestamp_seconds:max": "Time at which the API stopped listing the"
    " phone number, for up to 1 day. Also for numbers that can have moved to a space that has not been polled since.",
    "phone_number:chatapp_phone_number_info:names": "1, with the names of the phone number and of the space in the"
    " labels `verified_name` and `name`, for joins. Kept for one day after the API no longer lists the number.",
    "space:chatapp_space_info:last": "1, with the last known name and team of the space in the labels `name` and"
    " `team`, for joins.",
    "phone_number:chatapp_phone_number_quality_rank:max1h": "Worst quality rating of one hour, recorded once per hour.",
    "phone_number:chatapp_phone_number_status_rank:max1h": "Worst status of one hour, recorded once per hour.",
    "phone_number:chatapp_phone_number_messaging_limit:max1h": "Maximum messaging limit of one hour, recorded once per"
    " hour.",
    "phone_number:chatapp_phone_number_messaging_limit_dropped:max1h": "1 if the messaging limit was below its maximum"
    " of the last 7 days at any time of one hour, otherwise 0; recorded once per hour.",
    "space:chatapp_space_seconds_since_success:min": "Seconds since the last successful poll.",
    "space:chatapp_space_last_success_timestamp_seconds:max": "Time of the last successful poll, converted to"
    " Prometheus' time.",
    "space:chatapp_space_blind:group": "1 for each blind space.",
    "account:chatapp_account_up:last": "Last known `chatapp_account_up`.",
    "account_state:chatapp_account_state:last": "Last known `chatapp_account_state`, with the label `state`.",
    "account:chatapp_account_unpolled:group": "1 for each configured account that no exporter polls. Removed after 1"
    " day if no running exporter has the account in its configuration.",
    "account:chatapp_account_down:group": "1 for each account that is denied, unreachable or not polled by any"
    " exporter.",
    "account:chatapp_account_effective_poll_interval_seconds:last": "Last known effective poll interval.",
    "account_instance:chatapp_space_blind:count": "Number of spaces that this exporter has not polled successfully"
    " for 3 effective intervals, although another exporter has.",
    "instance:chatapp_exporter_time_seconds:offset": "Seconds that the exporter's clock is behind Prometheus' clock;"
    " negative if it is ahead.",
    "account_quality_rating:chatapp_phone_numbers:sum": "Number of phone numbers by `quality_rating`.",
}
_RECORDED_TEXT = """
## Recorded series

[chatapp.rules.yml](../config/prometheus/chatapp.rules.yml) records these series for alerts and queries. The first part
of the name gives the labels: `phone_number:` series have `account`, `space` and `phone_number`, `space:` series have
`account` and `space`, and `account:` series have `account`. All have `job`. Only series with `instance` in the first
part of the name have `instance`.

"""


@dataclass(frozen=True, slots=True)
class _Row:
    """A family in a table, with example sample lines."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str
    example: str


def metrics_page() -> str:
    """Return the page in Markdown."""
    space = _example_space()
    groups = (
        [_row(family, space.numbers) for family in NUMBER_FAMILIES],
        [_row(family, [space]) for family in SPACE_FAMILIES],
        [_row(family, [_example_account()]) for family in ACCOUNT_FAMILIES],
        list(_instrument_rows()),
        [_row(family, [_example_exporter()]) for family in EXPORTER_FAMILIES],
    )
    sections = [
        _section(title, text, omitted, rows)
        for (title, (text, omitted)), rows in zip(_SECTIONS.items(), groups, strict=True)
    ]
    tables = (_reasons(), _account_states(), _label_values(), _tiers(), _recorded_series())
    return "\n".join([_INTRODUCTION, *sections]) + _PROCESS + "".join(tables)


def _section(title: str, text: str, omitted: Collection[str], rows: Sequence[_Row]) -> str:
    header = f"metric | type | unit | {'other ' if omitted else ''}labels | meaning"
    cells = [
        (code(row.name), row.type, _unit(row.name), ", ".join(map(code, row.labels[len(omitted) :])), row.help)
        for row in rows
    ]
    example = "".join(row.example for row in rows)
    return f"## {title}\n\n{text}\n\n{table(header, cells)}\nExample:\n\n```text\n{example}```\n"


def _unit(name: str) -> str:
    return next((unit for pattern, unit in _UNITS.items() if re.search(pattern, name)), "–")


def _row(family: Family[Any], subjects: Iterable[Labeled]) -> _Row:
    example = sample_lines(family, ((subject, format_labels(subject.labels)) for subject in subjects)).decode()
    return _Row(sample_name(family), family.type, family.labels, family.help, example)


def _example_space() -> SpaceView:
    number = PhoneNumber(
        "15550100001",
        "Contoso",
        "GREEN",
        "TIER_10K",
        "CONNECTED",
        "APPROVED",
        "NONE",
        "VERIFIED",
        "Y",
        Callback.URL,
        Callback.QUEUE,
    )
    changes = {(number.phone_number, "quality_rating"): Change(1_795_012_345.6, "GREEN")}
    failures = {Reason.TIMEOUT: 2}
    record = SpaceRecord(True, 1_795_600_042.7, (number,), changes, polls=288, failures=failures)
    return SpaceView(
        "acme", Space(id="29348393884000", name="Contoso", labels={"team": "emea"}), record, True, MESSAGING_LIMITS
    )


def _example_account() -> AccountView:
    return AccountView(
        "acme",
        AccountHealth(AccountState.OK, 1_795_600_000.0),
        spaces=1200,
        interval=300.0,
        effective_interval=300.0,
        needed_qps=4.0,
        limit_qps=5.0,
        current_qps=5.0,
        due_spaces=3,
        discovery=DiscoveryView(up=True, last_success=1_795_600_042.7, spaces=1200),
    )


def _example_exporter() -> ExporterView:
    state_file = StateFile(Path("state.db"), SystemClock())
    state_file.up = True
    state_file.failures["unwritable"] += 1
    return ExporterView(True, 1_795_599_000.3, {"spaces/emea.yml": True}, state_file, 1_795_600_060.2, ["acme"])


def _instrument_rows() -> Iterator[_Row]:
    """Return the counters and histograms, with samples of an example request."""
    instruments = Instruments(["acme"])
    instruments.poll_started("acme", 0.2)
    instruments.request_ended("acme", 0.08, None)
    instruments.request_ended("acme", 0.03, ThrottledError("Throttling.User"))
    instruments.count_unknown_values(Answer((PhoneNumber("15550100002", status="HIBERNATING"),)), MESSAGING_LIMITS)
    for family in instruments.collect():
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield _Row(name, family.type, tuple(labels), family.documentation, _samples(family))


def _samples(family: Any) -> str:
    """Return all sample lines of a family, or for a histogram the first bucket, the count and the sum."""
    text = generate_latest(_Registry(family)).decode().splitlines(keepends=True)
    samples = [line for line in text if not line.startswith("#")]
    return "".join(samples if family.type != "histogram" else [samples[0], *samples[-2:]])


@dataclass(frozen=True, slots=True)
class _Registry:
    family: Any

    def collect(self) -> Iterator[Any]:
        yield self.family


def _reasons() -> str:
    rows = [(code(reason), _REASONS[reason]) for reason in Reason]
    return "\n## Reasons of failed polls\n\nLabel `reason` of `chatapp_space_poll_failures_total`:\n\n" + table(
        "reason | meaning", rows
    )


def _account_states() -> str:
    rows = [(code(state), _ACCOUNT_STATES[state]) for state in AccountState]
    return "\n## Account states\n\nLabel `state` of `chatapp_account_state`:\n\n" + table("state | meaning", rows)


def _tiers() -> str:
    rows = [(code(tier), f"{limit:g}".replace("inf", "+Inf")) for tier, limit in MESSAGING_LIMITS.items()]
    text = "Set the limits of other tiers with `messaging_limits` in the configuration.\n\n"
    return f"\n## Messaging limit tiers\n\n{text}" + table(
        "messaging_limit_tier | chatapp_phone_number_messaging_limit", rows
    )


def _label_values() -> str:
    reasons = {code(reason): _STATE_FILE_REASONS[reason] for reason in get_args(FailureReason)}
    labels = {
        "`code` of `chatapp_api_requests_total`": _CODES,
        "`field` of `chatapp_api_unknown_values_total`": _UNKNOWN_FIELDS,
        "`reason` of `chatapp_exporter_state_file_failures_total`": reasons,
    }
    rows = [(label, value, meaning) for label, values in labels.items() for value, meaning in values.items()]
    text = "Further values are counted as `other` after 50 codes of an account, and after 50 values of a field.\n\n"
    return f"\n## Other label values\n\n{text}" + table("label | value | meaning", rows)


def _recorded_series() -> str:
    return _RECORDED_TEXT + table("recorded series | meaning", ((code(name), text) for name, text in _RECORDED.items()))
