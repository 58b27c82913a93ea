"""The rendered page means what prometheus_client makes of the same rows, whatever the API sends."""

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
EXPORTER = ExporterView(True, NOW, {"spaces/emea.yml": True, "spaces/apac.yml": False}, STATE_FILE)

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
def states(draw: st.DrawFn) -> SpaceRecord:
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


def not_validated(**values: Any) -> CamsSpace:
    space = object.__new__(CamsSpace)
    for name, value in values.items():
        object.__setattr__(space, name, value)
    return space


spaces = st.builds(
    not_validated,  # the page must not rely on it
    id=text,
    name=text,
    labels=st.dictionaries(st.sampled_from(["team", "region", "_x9"]), text),
)


def view_of(key: Key, state: SpaceRecord, space: CamsSpace | None = None) -> SpaceView:
    """As the page gets a new state."""
    fresh = state.last_success is not None
    return SpaceView(key[0], space or CamsSpace(id=key[1]), state, fresh, MESSAGING_LIMITS)


def page_of(listed: list[tuple[CamsSpace, SpaceRecord]]) -> RenderedMetrics:
    page = RenderedMetrics()
    for space, state in listed:
        page.update(view_of(("acme", space.id), state, space))
    return page


def exposition(page: RenderedMetrics, *, openmetrics: bool, names: tuple[str, ...] = ()) -> str:
    for _ in page.expire(Now(NOW, 0), MAX_AGE):
        pass
    closing = b"# EOF\n" if openmetrics else b""
    rendered = page.render([ACCOUNT], EXPORTER, openmetrics=openmetrics, names=names)
    return (b"".join(rendered) + closing).decode()


def meaning(parse: Callable[[str], Iterable[Any]], exposed: str) -> dict[str, Any]:
    """What a parser makes of a page: families with help, type and samples, whatever their order."""
    return {
        family.name: (
            family.documentation,
            family.type,
            sorted((s.name, sorted(s.labels.items()), s.value) for s in family.samples),
        )
        for family in parse(exposed)
    }


@given(st.lists(st.tuples(spaces, states()), max_size=3, unique_by=lambda entry: entry[0].id))
def test_the_page_means_what_prometheus_client_means_in_text_and_in_openmetrics(
    listed: list[tuple[CamsSpace, SpaceRecord]],
) -> None:
    page = page_of(listed)
    oracle = CollectorRegistry()
    oracle.register(
        ExporterCollector(lambda: (list(page.views(Now(NOW, 0), MAX_AGE)), [ACCOUNT], EXPORTER), Instruments())
    )

    in_text = meaning(parse_text, exposition(page, openmetrics=False))
    in_openmetrics = meaning(parse_openmetrics, exposition(page, openmetrics=True))

    assert in_text == of_the_catalogue(meaning(parse_text, generate_latest(oracle).decode()))
    expected = meaning(parse_openmetrics, generate_openmetrics(oracle).decode())  # type: ignore[no-untyped-call]
    assert in_openmetrics == of_the_catalogue(expected)


def of_the_catalogue(families: dict[str, Any]) -> dict[str, Any]:
    """Without counters and histograms of requests, which prometheus_client renders itself."""
    names = {family.name for family in FAMILIES}
    assert names == {name for name in families if not name.startswith(("chatapp_api_", "chatapp_poll_"))}
    return {name: family for name, family in families.items() if name in names}


def one_number(**fields: Any) -> RenderedMetrics:
    number = PhoneNumber("15550100001", **fields)
    state = SpaceRecord(up=True, last_success=NOW, phone_numbers=(number,), polls=1)
    return page_of([(CamsSpace(id="s1", name="Contoso", labels={"team": "emea"}), state)])


def lines(page: RenderedMetrics, name: str) -> list[str]:
    exposed = exposition(page, openmetrics=False, names=(name,)).splitlines()
    return [line.removeprefix(name) for line in exposed if not line.startswith("#")]


def test_a_rating_is_one_for_the_current_value_and_zero_for_the_others() -> None:
    assert lines(one_number(quality_rating="RED"), "chatapp_phone_number_quality_rating") == [
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="GREEN"} 0',
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="YELLOW"} 0',
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="RED"} 1',
        '{account="acme",space="s1",phone_number="15550100001",quality_rating="UNKNOWN"} 0',
    ]


def test_a_rating_that_is_not_reported_has_no_series_and_the_number_is_still_listed() -> None:
    page = one_number(quality_rating="")

    assert lines(page, "chatapp_phone_number_quality_rating") == []
    assert len(lines(page, "chatapp_phone_number_info")) == 1


@pytest.mark.parametrize(
    ("state", "up"), [("ok", " 1"), ("denied", " 0"), ("unreachable", " 0"), ("throttled", " 1"), (None, None)]
)
def test_an_account_is_up_while_the_api_answers_and_admits_it_and_absent_before_that_is_known(
    state: str | None, up: str | None
) -> None:
    health = AccountHealth(AccountState(state), NOW) if state else None
    text = b"".join(RenderedMetrics().render([replace(ACCOUNT, health=health)], EXPORTER, openmetrics=False)).decode()
    found = re.findall(r'^chatapp_account_(up|state)\{account="acme"(?:,state="(\w+)")?\}( \d)$', text, re.MULTILINE)

    assert [value for name, _, value in found if name == "up"] == ([up] if up else [])
    assert {of: value for name, of, value in found if name == "state"} == (
        {name: f" {int(name == state)}" for name in ("ok", "denied", "unreachable", "throttled")} if state else {}
    )


def test_a_rating_that_we_do_not_know_gets_a_series_of_its_own() -> None:
    assert lines(one_number(quality_rating="PURPLE"), "chatapp_phone_number_quality_rating")[-1] == (
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
def test_a_tier_stands_for_its_limit_and_any_other_for_none(tier: str, values: list[str]) -> None:
    found = lines(one_number(messaging_limit_tier=tier), "chatapp_phone_number_messaging_limit")

    assert [line.split(" ")[-1] for line in found] == values


def test_what_is_not_reported_has_no_sample() -> None:
    page = one_number()

    for field in ("messaging_limit_tier", "status", "name_status", "new_name_status", "code_verification_status"):
        assert lines(page, f"chatapp_phone_number_{field}") == []


def test_names_are_escaped_as_the_format_says() -> None:
    found = lines(one_number(verified_name='a"b\\c\nd'), "chatapp_phone_number_info")

    assert r'verified_name="a\"b\\c\nd"' in found[0]


def test_a_space_has_the_name_and_labels_that_the_configuration_gives_it() -> None:
    assert lines(one_number(), "chatapp_space_info") == ['{account="acme",space="s1",name="Contoso",team="emea"} 1']


def test_values_that_grew_too_old_leave_and_the_space_stays_as_down() -> None:
    page = page_of(
        [(CamsSpace(id="s1"), SpaceRecord(True, NOW - MAX_AGE, (PhoneNumber("1", status="CONNECTED"),), polls=1))]
    )

    exposed = exposition(page, openmetrics=False)

    assert "chatapp_phone_number_status{" not in exposed
    assert 'chatapp_space_up{account="acme",space="s1"} 0\n' in exposed
    assert 'chatapp_space_last_success_timestamp_seconds{account="acme",space="s1"} 1.7999964e+09\n' in exposed


def test_values_just_within_max_age_stay() -> None:
    page = page_of(
        [(CamsSpace(id="s1"), SpaceRecord(True, NOW - MAX_AGE + 1, (PhoneNumber("1", status="X"),), polls=1))]
    )

    assert "chatapp_phone_number_status{" in exposition(page, openmetrics=False)


def test_a_space_that_was_never_polled_is_down_without_numbers_or_ages() -> None:
    exposed = exposition(page_of([(CamsSpace(id="s1"), SpaceRecord())]), openmetrics=False)

    assert [line for line in exposed.splitlines() if 'space="s1"' in line] == [
        'chatapp_space_up{account="acme",space="s1"} 0',
        'chatapp_space_info{account="acme",space="s1",name=""} 1',
        'chatapp_space_polls_total{account="acme",space="s1"} 0',
    ]


@pytest.mark.parametrize("name", ["chatapp_space_polls", "chatapp_space_polls_total"])
def test_a_family_is_found_by_its_name_or_its_sample_s(name: str) -> None:
    exposed = exposition(one_number(), openmetrics=False, names=(name,))

    assert exposed.splitlines()[1:] == [
        "# TYPE chatapp_space_polls_total counter",
        'chatapp_space_polls_total{account="acme",space="s1"} 1',
    ]


def test_help_texts_need_no_escaping_so_one_header_serves_both_formats() -> None:
    texts = [family.help for family in FAMILIES]

    assert [text for text in texts if set('"\\\n') & set(text)] == []


def test_every_sample_has_the_labels_that_its_family_declares() -> None:
    number = PhoneNumber("1", "n", "RED", "TIER_1K", "X", "X", "X", "X", "Y")
    state = SpaceRecord(True, NOW, (number,), {("1", "status"): Change(NOW)}, polls=1, failures={Reason.SERVER: 1})
    space = SpaceView("acme", CamsSpace(id="s1"), state, True, MESSAGING_LIMITS)
    subjects: list[tuple[Family[Any], Any]] = [(family, NumberView(space, number)) for family in NUMBER_FAMILIES]
    subjects += [(family, space) for family in SPACE_FAMILIES]
    subjects += [(family, ACCOUNT) for family in ACCOUNT_FAMILIES]
    subjects += [(family, EXPORTER) for family in EXPORTER_FAMILIES]

    for family, subject in subjects:
        names = {tuple(name for name, _ in subject.labels + more) for more, _ in family.samples(subject)}
        assert names == {family.labels}, family.name


def test_rendering_again_shows_a_new_state_and_nothing_of_the_old() -> None:
    space = CamsSpace(id="s1")
    before = SpaceRecord(True, NOW, (PhoneNumber("1"), PhoneNumber("2")), polls=1)
    page = page_of([(space, before)])

    page.update(view_of(("acme", "s1"), SpaceRecord(True, NOW, (PhoneNumber("2"),), polls=2)))

    assert 'phone_number="1"' not in exposition(page, openmetrics=False)
    assert 'phone_number="2"' in exposition(page, openmetrics=False)


changes = st.lists(st.tuples(st.integers(0, 39), st.none() | st.integers(0, 4)), max_size=120)


@given(changes)
def test_whatever_changed_in_whatever_order_it_shows_what_a_page_made_at_once_shows(
    history: list[tuple[int, int | None]],
) -> None:
    """Of forty spaces in two accounts: each gets so many numbers, or leaves."""
    page, now = page_of([]), dict[Key, SpaceRecord]()
    for polls, (name, listed) in enumerate(history):
        key = (f"account-{name % 2}", f"s{name}")
        if listed is None:
            now.pop(key, None)
            page.retain(now)
        else:
            shown = tuple(PhoneNumber(f"{name}{number}", status="X" * polls) for number in range(listed))
            now[key] = SpaceRecord(True, NOW, shown, polls=polls)
            page.update(view_of(key, now[key]))
    fresh = page_of([])
    for key, state in now.items():
        fresh.update(view_of(key, state))

    assert sorted(exposition(page, openmetrics=False).splitlines()) == sorted(
        exposition(fresh, openmetrics=False).splitlines()
    )


def test_families_stay_together_however_many_spaces_there_are() -> None:
    state = SpaceRecord(True, NOW, (PhoneNumber("1", status="X"),), polls=1)
    page = page_of([(CamsSpace(id=f"s{number}"), state) for number in range(100)])

    names = [re.split("[{ ]", line)[0] for line in exposition(page, openmetrics=False).splitlines() if line[0] != "#"]

    assert len([name for name, _ in groupby(names)]) == len(set(names))


def test_what_is_too_old_leaves_step_by_step_and_what_changes_meanwhile_stays_right() -> None:
    old = SpaceRecord(True, NOW - MAX_AGE, (PhoneNumber("1", status="X"),), polls=1)
    page = page_of([(CamsSpace(id=f"s{number}"), old) for number in range(30)])

    steps = page.expire(Now(NOW, 0), MAX_AGE)
    next(steps)
    page.update(view_of(("acme", "s29"), SpaceRecord(True, NOW, (PhoneNumber("2", status="X"),), polls=2)))
    page.retain([("acme", f"s{number}") for number in range(20, 30)])
    rest = sum(1 for _ in steps)

    assert rest == 9  # without the one that is new
    shown = exposition(page, openmetrics=False)
    assert 'phone_number="1"' not in shown
    assert shown.count('chatapp_phone_number_status{account="acme",space="s29",phone_number="2"') == 1


def test_a_number_is_spelt_as_it_is_whatever_was_spelt_before() -> None:
    values = iter((1, 1.0, 1, 1.0))
    family: Family[AccountView] = Family("x", "x", ("account",), lambda _: [((), next(values))])

    assert [sample_lines(family, [(ACCOUNT, 'account="acme"')]).split()[-1] for _ in range(4)] == [
        b"1",
        b"1.0",
        b"1",
        b"1.0",
    ]


def test_a_scrape_that_takes_long_shows_one_moment_and_yields_a_part_of_a_family_at_a_time() -> None:
    state = SpaceRecord(True, NOW, (PhoneNumber("1", status="X"),), polls=1)
    page = page_of([(CamsSpace(id=f"s{number}"), state) for number in range(2500)])

    rendered = page.render([ACCOUNT], EXPORTER, openmetrics=False)
    parts = [next(rendered)]
    page.update(view_of(("acme", "s1"), SpaceRecord(True, NOW, (PhoneNumber("2", status="X"),), polls=2)))
    parts += rendered

    shown = b"".join(parts).decode()
    assert shown.count('phone_number="1",status="X"') == 2500
    assert 'phone_number="2"' not in shown
    assert max(part.count(b"status=") for part in parts) == 1000
