"""The rendered exposition has the same meaning as the output of prometheus_client for the same values."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.clock import Now, SystemClock
from exporter.metrics.catalogue import (
    ACCOUNT_FAMILIES,
    EXPORTER_FAMILIES,
    FAMILIES,
    NUMBER_FAMILIES,
    SPACE_FAMILIES,
    AccountView,
    DiscoveryView,
    ExporterView,
    Family,
    NumberView,
    SpaceView,
)
from exporter.metrics.collector import ExporterCollector
from exporter.metrics.instruments import Instruments
from exporter.metrics.lines import sample_lines
from exporter.metrics.rendered import RenderedMetrics
from exporter.model import MESSAGING_LIMITS, AccountHealth, AccountState, Callback, PhoneNumber
from exporter.source import Reason
from exporter.sources.cams.settings import CamsSpace
from exporter.state.state_file import StateFile
from exporter.state.store import Change, Key, SpaceRecord

NOW = 1_800_000_000.0
MAX_AGE = 3600.0
ACCOUNT = AccountView(
    "acme",
    health=AccountHealth(AccountState.OK, NOW),
    spaces=3,
    interval=300.0,
    effective_interval=300.0,
    needed_qps=0.01,
    limit_qps=5.0,
    current_qps=2.5,
    discovery=DiscoveryView(up=True, last_success=NOW, spaces=2),
)
STATE_FILE = StateFile(Path("state.db"), SystemClock())
STATE_FILE.failures["damaged"] += 1
EXPORTER = ExporterView(
    True, NOW, {"spaces/emea.yml": True, "spaces/apac.yml": False}, STATE_FILE, NOW, ["acme", "globex"]
)

text = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ['"', "\\", "\n", '\\n"', "é中\u2028😀", "\r\t\0"]
)
ratings = st.sampled_from(["GREEN", "YELLOW", "RED", "UNKNOWN"]) | text
tiers = st.sampled_from(["", "TIER_1K", "TIER_UNLIMITED", "TIER_NOT_SET"]) | text
callbacks = st.sampled_from(Callback)
numbers = st.builds(
    PhoneNumber,
    phone_number=text,
    verified_name=text,
    quality_rating=ratings,
    messaging_limit_tier=tiers,
    status=text,
    name_status=text,
    new_name_status=text,
    code_verification_status=text,
    is_official=text,
    inbound_callback=callbacks,
    status_callback=callbacks,
)
timestamps = st.floats(min_value=0, max_value=2e9)


@st.composite
def records(draw: st.DrawFn) -> SpaceRecord:
    listed = draw(st.lists(numbers, max_size=3, unique_by=lambda number: number.phone_number))
    fields = st.sampled_from(["quality_rating", "status"])
    changes = {(number.phone_number, draw(fields)): Change(draw(timestamps)) for number in listed}
    return SpaceRecord(
        up=draw(st.booleans()),
        last_success=draw(st.none() | st.floats(min_value=NOW - 2 * MAX_AGE, max_value=NOW)),
        phone_numbers=tuple(listed),
        changes=changes,
        polls=draw(st.integers(0, 10**9)),
        failures=draw(st.dictionaries(st.sampled_from(Reason), st.integers(1, 10**6))),
    )


def unvalidated_space(**values: Any) -> CamsSpace:
    space = object.__new__(CamsSpace)
    for name, value in values.items():
        object.__setattr__(space, name, value)
    return space


spaces = st.builds(
    unvalidated_space,  # rendering must not depend on validation
    id=text,
    name=text,
    labels=st.dictionaries(st.sampled_from(["team", "region", "_x9"]), text),
)


def view_of(key: Key, record: SpaceRecord, space: CamsSpace | None = None) -> SpaceView:
    """Return the view for a new record of a space. Its values are fresh if a poll succeeded."""
    fresh = record.last_success is not None
    return SpaceView(key[0], space or CamsSpace(id=key[1]), record, fresh, MESSAGING_LIMITS)


def rendered_metrics(spaces: list[tuple[CamsSpace, SpaceRecord]]) -> RenderedMetrics:
    metrics = RenderedMetrics()
    for space, record in spaces:
        metrics.update(view_of(("acme", space.id), record, space))
    return metrics


def exposition(metrics: RenderedMetrics, *, openmetrics: bool, names: tuple[str, ...] = ()) -> str:
    for _ in metrics.expire(Now(NOW, 0), MAX_AGE):
        pass
    closing = b"# EOF\n" if openmetrics else b""
    rendered = metrics.render([ACCOUNT], EXPORTER, openmetrics=openmetrics, names=names)
    return (b"".join(rendered) + closing).decode()


def parsed_families(parse: Callable[[str], Iterable[Any]], exposed: str) -> dict[str, Any]:
    """Return help, type and sorted samples of each family by name."""
    return {
        family.name: (
            family.documentation,
            family.type,
            sorted((s.name, sorted(s.labels.items()), s.value) for s in family.samples),
        )
        for family in parse(exposed)
    }


@given(st.lists(st.tuples(spaces, records()), max_size=3, unique_by=lambda entry: entry[0].id))
def test_the_exposition_matches_prometheus_client_in_text_format_and_in_openmetrics(
    spaces: list[tuple[CamsSpace, SpaceRecord]],
) -> None:
    metrics = rendered_metrics(spaces)
    oracle = CollectorRegistry()
    oracle.register(
        ExporterCollector(lambda: (list(metrics.views(Now(NOW, 0), MAX_AGE)), [ACCOUNT], EXPORTER), Instruments())
    )

    in_text = parsed_families(parse_text, exposition(metrics, openmetrics=False))
    in_openmetrics = parsed_families(parse_openmetrics, exposition(metrics, openmetrics=True))

    assert in_text == catalogue_families(parsed_families(parse_text, generate_latest(oracle).decode()))
    expected = parsed_families(parse_openmetrics, generate_openmetrics(oracle).decode())  # type: ignore[no-untyped-call]
    assert in_openmetrics == catalogue_families(expected)


def catalogue_families(families: dict[str, Any]) -> dict[str, Any]:
    """Return the families without the counters and histograms of requests, which prometheus_client always renders."""
    names = {family.name for family in FAMILIES}
    assert names == {name for name in families if not name.startswith(("chatapp_api_", "chatapp_poll_"))}
    return {name: family for name, family in families.items() if name in names}


def metrics_of_number(**fields: Any) -> RenderedMetrics:
    number = PhoneNumber("15550100001", **fields)
    record = SpaceRecord(up=True, last_success=NOW, phone_numbers=(number,), polls=1)
    return rendered_metrics([(CamsSpace(id="s1", name="Contoso", labels={"team": "emea"}), record)])


def sample_texts(metrics: RenderedMetrics, name: str) -> list[str]:
    """Return labels and value of each sample of a family."""
    exposed = exposition(metrics, openmetrics=False, names=(name,)).splitlines()
    return [line.removeprefix(name) for line in exposed if not line.startswith("#")]


def test_the_rating_is_1_for_the_current_value_and_0_for_other_values() -> None:
    assert sample_texts(metrics_of_number(quality_rating="RED"), "chatapp_phone_number_quality_rating") == [
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="GREEN"} 0',
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="YELLOW"} 0',
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="RED"} 1',
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="UNKNOWN"} 0',
    ]


def test_a_number_without_a_reported_rating_has_no_rating_series_but_an_info_series() -> None:
    metrics = metrics_of_number(quality_rating="")

    assert sample_texts(metrics, "chatapp_phone_number_quality_rating") == []
    assert len(sample_texts(metrics, "chatapp_phone_number_info")) == 1


@pytest.mark.parametrize(
    ("state", "up"), [("ok", " 1"), ("denied", " 0"), ("unreachable", " 0"), ("throttled", " 1"), (None, None)]
)
def test_an_account_is_up_unless_denied_or_unreachable_and_has_no_series_without_a_state(
    state: str | None, up: str | None
) -> None:
    health = AccountHealth(AccountState(state), NOW) if state else None
    exposed = b"".join(
        RenderedMetrics().render([replace(ACCOUNT, health=health)], EXPORTER, openmetrics=False)
    ).decode()
    found = re.findall(r'^chatapp_account_(up|state)\{account="acme"(?:,state="(\w+)")?\}( \d)$', exposed, re.MULTILINE)

    assert [value for name, _, value in found if name == "up"] == ([up] if up else [])
    assert {label: value for name, label, value in found if name == "state"} == (
        {label: f" {int(label == state)}" for label in ("ok", "denied", "unreachable", "throttled")} if state else {}
    )


def test_an_unknown_rating_gets_an_additional_series() -> None:
    assert sample_texts(metrics_of_number(quality_rating="PURPLE"), "chatapp_phone_number_quality_rating")[-1] == (
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="PURPLE"} 1'
    )


@pytest.mark.parametrize(
    ("tier", "values"),
    [
        ("TIER_50", ["50"]),
        ("TIER_250", ["250"]),
        ("TIER_1K", ["1000"]),
        ("TIER_2K", ["2000"]),
        ("TIER_10K", ["10000"]),
        ("TIER_100K", ["100000"]),
        ("TIER_UNLIMITED", ["+Inf"]),
        ("UNLIMITED", ["+Inf"]),
        ("TIER_10", []),
        ("TIER_1000", []),
        ("TIER_NOT_SET", []),
        ("", []),
    ],
)
def test_a_known_tier_is_exported_as_a_limit_and_an_unknown_tier_is_not(tier: str, values: list[str]) -> None:
    samples = sample_texts(metrics_of_number(messaging_limit_tier=tier), "chatapp_phone_number_messaging_limit")

    assert [sample.split(" ")[-1] for sample in samples] == values


def test_a_field_that_is_not_reported_has_no_sample() -> None:
    metrics = metrics_of_number()

    for field in ("messaging_limit_tier", "status", "name_status", "new_name_status", "code_verification_status"):
        assert sample_texts(metrics, f"chatapp_phone_number_{field}") == []


def test_label_values_are_escaped() -> None:
    (sample,) = sample_texts(metrics_of_number(verified_name='a"b\\c\nd'), "chatapp_phone_number_info")

    assert r'verified_name="a\"b\\c\nd"' in sample


def test_space_info_has_the_configured_name_and_labels() -> None:
    assert sample_texts(metrics_of_number(), "chatapp_space_info") == [
        '{account="acme",space="s1",name="Contoso",team="emea"} 1'
    ]


def test_stale_numbers_are_removed_and_the_space_is_exported_as_down() -> None:
    metrics = rendered_metrics(
        [(CamsSpace(id="s1"), SpaceRecord(True, NOW - MAX_AGE, (PhoneNumber("1", status="CONNECTED"),), polls=1))]
    )

    exposed = exposition(metrics, openmetrics=False)

    assert "chatapp_phone_number_status{" not in exposed
    assert 'chatapp_space_up{account="acme",space="s1"} 0\n' in exposed
    assert 'chatapp_space_last_success_timestamp_seconds{account="acme",space="s1"} 1.7999964e+09\n' in exposed


def test_values_slightly_younger_than_max_age_are_exported() -> None:
    metrics = rendered_metrics(
        [(CamsSpace(id="s1"), SpaceRecord(True, NOW - MAX_AGE + 1, (PhoneNumber("1", status="X"),), polls=1))]
    )

    assert "chatapp_phone_number_status{" in exposition(metrics, openmetrics=False)


def test_a_space_that_was_never_polled_is_down_without_numbers_or_timestamps() -> None:
    exposed = exposition(rendered_metrics([(CamsSpace(id="s1"), SpaceRecord())]), openmetrics=False)

    assert [line for line in exposed.splitlines() if 'space="s1"' in line] == [
        'chatapp_space_up{account="acme",space="s1"} 0',
        'chatapp_space_info{account="acme",space="s1",name=""} 1',
        'chatapp_space_polls_total{account="acme",space="s1"} 0',
    ]


@pytest.mark.parametrize("name", ["chatapp_space_polls", "chatapp_space_polls_total"])
def test_a_family_is_selected_by_its_name_or_the_name_of_its_samples(name: str) -> None:
    exposed = exposition(metrics_of_number(), openmetrics=False, names=(name,))

    assert exposed.splitlines()[1:] == [
        "# TYPE chatapp_space_polls_total counter",
        'chatapp_space_polls_total{account="acme",space="s1"} 1',
    ]


def test_help_texts_need_no_escaping_in_either_format() -> None:
    texts = [family.help for family in FAMILIES]

    assert [text for text in texts if set('"\\\n') & set(text)] == []


def test_every_sample_has_the_declared_labels_of_its_family() -> None:
    number = PhoneNumber("1", "n", "RED", "TIER_1K", "X", "X", "X", "X", "Y")
    record = SpaceRecord(True, NOW, (number,), {("1", "status"): Change(NOW)}, polls=1, failures={Reason.SERVER: 1})
    space = SpaceView("acme", CamsSpace(id="s1"), record, True, MESSAGING_LIMITS)
    subjects: list[tuple[Family[Any], Any]] = [(family, NumberView(space, number)) for family in NUMBER_FAMILIES]
    subjects += [(family, space) for family in SPACE_FAMILIES]
    subjects += [(family, ACCOUNT) for family in ACCOUNT_FAMILIES]
    subjects += [(family, EXPORTER) for family in EXPORTER_FAMILIES]

    for family, subject in subjects:
        names = {tuple(name for name, _ in subject.labels + labels) for labels, _ in family.samples(subject)}
        assert names == {family.labels}, family.name


def test_an_update_replaces_all_samples_of_a_space() -> None:
    space = CamsSpace(id="s1")
    before = SpaceRecord(True, NOW, (PhoneNumber("1"), PhoneNumber("2")), polls=1)
    metrics = rendered_metrics([(space, before)])

    metrics.update(view_of(("acme", "s1"), SpaceRecord(True, NOW, (PhoneNumber("2"),), polls=2)))

    assert 'phone_number="1"' not in exposition(metrics, openmetrics=False)
    assert 'phone_number="2"' in exposition(metrics, openmetrics=False)


changes = st.lists(st.tuples(st.integers(0, 39), st.none() | st.integers(0, 4)), max_size=120)


@given(changes)
def test_any_updates_give_the_same_exposition_as_rendering_the_final_records(
    history: list[tuple[int, int | None]],
) -> None:
    """Forty spaces in two accounts. Each event (space, count) sets the space's count of numbers; None removes it."""
    updated, records = rendered_metrics([]), dict[Key, SpaceRecord]()
    for polls, (space, count) in enumerate(history):
        key = (f"account-{space % 2}", f"s{space}")
        if count is None:
            records.pop(key, None)
            updated.retain(records)
        else:
            listed = tuple(PhoneNumber(f"{space}{number}", status="X" * polls) for number in range(count))
            records[key] = SpaceRecord(True, NOW, listed, polls=polls)
            updated.update(view_of(key, records[key]))
    rendered_once = rendered_metrics([])
    for key, record in records.items():
        rendered_once.update(view_of(key, record))

    assert sorted(exposition(updated, openmetrics=False).splitlines()) == sorted(
        exposition(rendered_once, openmetrics=False).splitlines()
    )


def test_the_samples_of_a_family_are_consecutive_with_many_spaces() -> None:
    record = SpaceRecord(True, NOW, (PhoneNumber("1", status="X"),), polls=1)
    exposed = exposition(
        rendered_metrics([(CamsSpace(id=f"s{number}"), record) for number in range(100)]), openmetrics=False
    )

    names = [re.split("[{ ]", line)[0] for line in exposed.splitlines() if line[0] != "#"]

    assert len([name for name, _ in groupby(names)]) == len(set(names))


def test_stale_numbers_are_removed_in_steps_and_spaces_may_change_between_two_steps() -> None:
    stale = SpaceRecord(True, NOW - MAX_AGE, (PhoneNumber("1", status="X"),), polls=1)
    metrics = rendered_metrics([(CamsSpace(id=f"s{number}"), stale) for number in range(30)])

    steps = metrics.expire(Now(NOW, 0), MAX_AGE)
    next(steps)
    metrics.update(view_of(("acme", "s29"), SpaceRecord(True, NOW, (PhoneNumber("2", status="X"),), polls=2)))
    metrics.retain([("acme", f"s{number}") for number in range(20, 30)])
    remaining_steps = sum(1 for _ in steps)

    assert remaining_steps == 9  # 10 spaces without s29, which is fresh
    exposed = exposition(metrics, openmetrics=False)
    assert 'phone_number="1"' not in exposed
    assert exposed.count('chatapp_phone_number_status{account="acme",space="s29",phone_number="2"') == 1


def test_equal_integers_and_floats_are_rendered_differently() -> None:
    values = iter((1, 1.0, 1, 1.0))
    family: Family[AccountView] = Family("x", "x", ("account",), lambda _: [((), next(values))])

    assert [sample_lines(family, [(ACCOUNT, 'account="acme"')]).split()[-1] for _ in range(4)] == [
        b"1",
        b"1.0",
        b"1",
        b"1.0",
    ]


def test_a_scrape_renders_the_values_at_its_start_and_at_most_1000_spaces_per_step() -> None:
    record = SpaceRecord(True, NOW, (PhoneNumber("1", status="X"),), polls=1)
    metrics = rendered_metrics([(CamsSpace(id=f"s{number}"), record) for number in range(2500)])

    rendered = metrics.render([ACCOUNT], EXPORTER, openmetrics=False)
    parts = [next(rendered)]
    metrics.update(view_of(("acme", "s1"), SpaceRecord(True, NOW, (PhoneNumber("2", status="X"),), polls=2)))
    parts += rendered

    exposed = b"".join(parts).decode()
    assert exposed.count('phone_number="1",status="X"') == 2500
    assert 'phone_number="2"' not in exposed
    assert max(part.count(b"status=") for part in parts) == 1000
