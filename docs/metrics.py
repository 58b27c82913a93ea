"""The page about metrics: every family of the catalogue and of the instruments, with example samples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

from docs.tables import code, table
from exporter.clock import SystemClock
from exporter.metrics.catalogue import (
    ACCOUNT_FAMILIES,
    EXPORTER_FAMILIES,
    NUMBER_FAMILIES,
    SPACE_FAMILIES,
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
from exporter.source import PermanentError, Reason, TemporaryError, ThrottledError
from exporter.state.state_file import StateFile
from exporter.state.store import Change, SpaceRecord

_TOP = """\
# Metrics

Written from the code by `make generate`.

Values are those of the last successful poll of a space. A failed poll sets `chatapp_space_up` to 0 and keeps the last
numbers; after `max_age` (1 h) without a success they leave, and `chatapp_space_up` 0 stays. Numbers that a successful
answer no longer lists leave at once. Values of the API are shown as it spells them, in capitals and without spaces
around them, also those that this version does not know. A field that the API does not report has no series.

`/metrics` is text 0.0.4 or, where the client prefers it, OpenMetrics 1.0; packed where it takes gzip. `?name[]=` picks
families, by their own names or those of their samples. Counters stand here with the names of their samples.
"""
_GROUPS = {
    "Phone numbers": "What on-call and account managers look at. Alerts are made from these.",
    "Spaces": "Whether a customer space is seen, and how old what is known of it is.",
    "Accounts": "The state of an account, and how its polls fit its budget.",
    "API": "What happens between the exporter and the API.",
    "Exporter": "How the exporter itself is.",
}
_PROCESS = """
Besides these, `process_*`, `python_gc_*` and `python_info` come as prometheus_client has them: memory, CPU time, open
files and when the process began.
"""


@dataclass(frozen=True, slots=True)
class _Row:
    """A family as the page shows it, with the lines of its samples."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str
    example: str


def metrics_page() -> str:
    """The whole page."""
    space = _space()
    groups = (
        [_row(family, space.numbers) for family in NUMBER_FAMILIES],
        [_row(family, [space]) for family in SPACE_FAMILIES],
        [_row(family, [_account()]) for family in ACCOUNT_FAMILIES],
        list(_instruments()),
        [_row(family, [_exporter()]) for family in EXPORTER_FAMILIES],
    )
    sections = [_section(title, text, rows) for (title, text), rows in zip(_GROUPS.items(), groups, strict=True)]
    return "\n".join([_TOP, *sections]) + _PROCESS + _reasons() + _limits()


def _section(title: str, text: str, rows: Sequence[_Row]) -> str:
    shown = [(code(row.name), row.type, ", ".join(map(code, row.labels)), row.help) for row in rows]
    example = "".join(row.example for row in rows)
    families = table("metric | type | labels | value", shown)
    return f"## {title}\n\n{text}\n\n{families}\nFor example:\n\n```text\n{example}```\n"


def _row(family: Family[Any], subjects: Iterable[Labeled]) -> _Row:
    example = sample_lines(family, ((subject, format_labels(subject.labels)) for subject in subjects)).decode()
    return _Row(sample_name(family), family.type, family.labels, family.help, example)


def _space() -> SpaceView:
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
    state = SpaceRecord(True, 1_795_600_042.7, (number,), changes, polls=288, failures=failures)
    return SpaceView(
        "acme", Space(id="29348393884000", name="Contoso", labels={"team": "emea"}), state, True, MESSAGING_LIMITS
    )


def _account() -> AccountView:
    return AccountView(
        "acme",
        AccountHealth(AccountState.OK, 1_795_600_000.0),
        spaces=1200,
        interval=300.0,
        effective_interval=300.0,
        needed_qps=4.0,
        limit_qps=5.0,
        current_qps=5.0,
        discovery=DiscoveryView(up=True, last_success=1_795_600_042.7, spaces=1),
    )


def _exporter() -> ExporterView:
    state_file = StateFile(Path("state.db"), SystemClock())
    state_file.up = True
    state_file.failures["unwritable"] += 1
    return ExporterView(True, 1_795_599_000.3, {"spaces/emea.yml": True}, state_file)


def _instruments() -> Iterator[_Row]:
    """Counters and histograms, each with a sample of something that happened."""
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
    """Of a histogram the first bucket, the count and the sum; of any other family all samples."""
    page = generate_latest(_Registry(family)).decode().splitlines(keepends=True)
    shown = [line for line in page if not line.startswith("#")]
    return "".join(shown if family.type != "histogram" else [shown[0], *shown[-2:]])


@dataclass(frozen=True, slots=True)
class _Registry:
    family: Any

    def collect(self) -> Iterator[Any]:
        yield self.family


def _reasons() -> str:
    errors = [*TemporaryError.__subclasses__(), *PermanentError.__subclasses__()]
    meanings = [(code(error.reason), str(error.__doc__).splitlines()[0].split(" `")[0]) for error in errors]
    text = "\n## Why a poll failed\n\nThe label `reason` of `chatapp_space_poll_failures_total`:\n\n"
    return text + table("reason | meaning", meanings)


def _limits() -> str:
    rows = [(code(tier), f"{limit:g}".replace("inf", "+Inf")) for tier, limit in MESSAGING_LIMITS.items()]
    return "\n## Tiers that stand for a number\n\nThe configuration maps others with `messaging_limits`.\n\n" + table(
        "messaging_limit_tier | chatapp_phone_number_messaging_limit", rows
    )
