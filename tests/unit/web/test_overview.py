"""The entries of the status pages and the JSON API: states, order, search and filters."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from exporter.clock import Now
from exporter.metrics.catalogue import AccountView, SpaceView
from exporter.model import (
    DOWN_STATUSES,
    MESSAGING_LIMITS,
    RESTRICTED_STATUSES,
    AccountHealth,
    AccountState,
    PhoneNumber,
    State,
)
from exporter.runtime.view import Snapshot
from exporter.source import Reason
from exporter.sources.cams.settings import CamsSpace
from exporter.state.store import Change, SpaceRecord
from exporter.web.overview import MEANINGS, Entry, Filter, entries_of, select, worst_per_space

NOW = 1_800_000_000.0
USAGE = Path(__file__).parents[3] / "docs" / "usage.md"
ACCOUNTS = tuple(
    AccountView(
        name,
        health=AccountHealth(AccountState.OK, NOW - 1000),
        spaces=9,
        interval=300,
        effective_interval=300,
        needed_qps=0.03,
        limit_qps=5,
        current_qps=5,
    )
    for name in ("acme", "globex")
)


def number(phone_number: str = "15550100", **values: str) -> PhoneNumber:
    return PhoneNumber(phone_number, **{"quality_rating": "GREEN", "status": "CONNECTED", **values})  # type: ignore[arg-type]


def space(
    name: str,
    *numbers: PhoneNumber,
    seen: float | None = 60,
    added: float = 5000,
    polls: int = 5,
    account: str = "acme",
    **changes: Any,
) -> SpaceView:
    """Return a space. Its last success was `seen` seconds ago; with None, it was added `added` seconds ago."""
    last_success = None if seen is None else NOW - seen
    monotonic = -(added if seen is None else seen)
    record = SpaceRecord(seen is not None, last_success, numbers, polls=polls, seen=monotonic, **changes)
    labels = {"team": "Emea"} if name == "Contoso" else {}
    now, configured = Now(NOW, 0.0), CamsSpace(id=f"id-{name}", name=name, labels=labels)
    fresh, age = record.is_fresh(now, 3600), record.seconds_since_success(now)
    return SpaceView(account, configured, record, fresh, MESSAGING_LIMITS, age)


def entries(*spaces: SpaceView) -> list[Entry]:
    return entries_of(Snapshot(NOW, spaces, ACCOUNTS))


def names_and_states(entries: list[Entry]) -> list[tuple[str, str]]:
    return [(entry.space.space.name, entry.state) for entry in entries]


ONE_PER_STATE = (
    space("connected", number()),
    space("new", seen=None, added=10, polls=0),
    space("without", seen=60),
    space("pending", number(status="PENDING")),
    space("yellow", number(quality_rating="YELLOW")),
    space("flagged", number(status="FLAGGED")),
    space("failing", seen=None),
    space("red", number(quality_rating="RED", status="FLAGGED")),
    space("banned", number(quality_rating="RED", status="BANNED")),
)


@pytest.mark.parametrize(("state", "statuses"), [(State.DOWN, DOWN_STATUSES), (State.RESTRICTED, RESTRICTED_STATUSES)])
def test_the_meaning_of_a_state_lists_its_statuses(state: State, statuses: frozenset[str]) -> None:
    (row,) = re.findall(rf"^\| `{state}` \| (.+) \|$", USAGE.read_text("utf-8"), re.MULTILINE)

    assert set(re.split(", | or ", MEANINGS[state])) == {status.lower().replace("_", " ") for status in statuses}
    assert set(re.split(", | or ", row)) == statuses


def test_the_usage_page_has_the_same_meaning_of_each_state_as_the_status_pages() -> None:
    table = USAGE.read_text("utf-8").partition("| state | means |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE))

    assert list(rows) == list(State)
    for state in set(State) - {State.DOWN, State.RESTRICTED}:
        assert rows[state] == MEANINGS[state]


def test_blind_means_no_success_for_three_intervals_or_an_account_that_is_down() -> None:
    """Alerts and dashboards have the same definition."""
    assert MEANINGS[State.BLIND] == (
        "no successful poll for 3 effective intervals, or the account is denied or unreachable"
    )


def test_entries_are_sorted_by_severity() -> None:
    assert names_and_states(entries(*ONE_PER_STATE)) == [
        ("banned", "down"),
        ("red", "red"),
        ("failing", "blind"),
        ("flagged", "restricted"),
        ("yellow", "yellow"),
        ("pending", "unknown"),
        ("without", "empty"),
        ("new", "waiting"),
        ("connected", "green"),
    ]


def test_entries_of_the_same_state_are_sorted_by_last_change_latest_first() -> None:
    red = {"quality_rating": "RED"}
    spaces = [
        space(name, number(**red), changes={("15550100", "quality_rating"): Change(NOW - age)} if age else {})
        for name, age in (("a day", 86_400), ("never", 0), ("an hour", 3_600))
    ]

    assert [name for name, _ in names_and_states(entries(*spaces))] == ["an hour", "a day", "never"]


@pytest.mark.parametrize(("seen", "state"), [(899, "green"), (901, "blind"), (3_599, "blind")])
def test_a_green_number_becomes_blind_after_three_intervals_without_a_success(seen: float, state: str) -> None:
    """Three effective intervals of 300 s."""
    assert names_and_states(entries(space("Contoso", number(), seen=seen))) == [("Contoso", state)]


def test_a_space_with_stale_values_is_waiting_until_it_is_blind() -> None:
    (entry,) = entries(replace(space("Contoso", number(), seen=100), fresh=False))

    assert (entry.state, entry.number) == (State.WAITING, None)


@pytest.mark.parametrize(("added", "polls", "state"), [(899, 0, "waiting"), (899, 3, "waiting"), (901, 3, "blind")])
def test_a_space_without_a_successful_poll_is_blind_after_three_intervals(added: float, polls: int, state: str) -> None:
    assert names_and_states(entries(space("Contoso", seen=None, added=added, polls=polls))) == [("Contoso", state)]


@pytest.mark.parametrize(
    ("state", "blind"),
    [("denied", True), ("unreachable", True), ("throttled", False), ("ok", False), (None, False)],
)
def test_every_space_of_a_denied_or_unreachable_account_is_blind(state: AccountState | None, blind: bool) -> None:
    account = replace(ACCOUNTS[0], health=AccountHealth(AccountState(state), NOW) if state else None)
    new = space("new", seen=None, added=1, polls=0)
    spaces = (space("polled", number(), seen=1), new, space("banned", number(status="BANNED")))

    found = entries_of(Snapshot(NOW, spaces, (account,)))

    expected = [("polled", "blind"), ("new", "blind")] if blind else [("new", "waiting"), ("polled", "green")]
    assert names_and_states(found) == [("banned", "down"), *expected]
    assert {entry.blind for entry in found} == {blind}
    assert select(found, Filter()).counts[State.BLIND] == (3 if blind else 0)


def test_blind_depends_on_the_effective_interval() -> None:
    slower = replace(ACCOUNTS[0], effective_interval=400)

    assert names_and_states(entries(space("Contoso", number(), seen=1000))) == [("Contoso", "blind")]
    (entry,) = entries_of(Snapshot(NOW, (space("Contoso", number(), seen=1000),), (slower,)))
    assert entry.state == "green"


def test_the_age_of_a_success_in_the_future_is_its_distance_from_now() -> None:
    now, record = Now(NOW, 0.0), SpaceRecord(True, NOW + 1000, (number(),))
    contoso = replace(space("Contoso"), record=record, seconds_since_success=record.seconds_since_success(now))

    assert contoso.seconds_since_success == 1000
    assert names_and_states(entries(contoso)) == [("Contoso", "blind")]


def test_spaces_of_an_account_that_is_not_started_yet_are_listed() -> None:
    new = replace(ACCOUNTS[0], account="new", health=None)
    spaces = (space("Contoso", seen=None, added=1, polls=0, account="new"),)

    assert names_and_states(entries_of(Snapshot(NOW, spaces, (new,)))) == [("Contoso", "waiting")]


@pytest.mark.parametrize(
    ("values", "missing", "state", "since"),
    [
        ({"quality_rating": ""}, {"quality_rating": "RED"}, "red", 100),
        ({"quality_rating": ""}, {"quality_rating": "YELLOW"}, "yellow", 100),
        ({"quality_rating": ""}, {"quality_rating": "GREEN"}, "unknown", 500),
        ({"status": ""}, {"status": "BANNED"}, "down", 200),
        ({"status": ""}, {"status": "FLAGGED"}, "restricted", 200),
        ({"status": ""}, {"status": "CONNECTED"}, "unknown", 500),
        ({"messaging_limit_tier": ""}, {"messaging_limit_tier": "TIER_1K"}, "green", 200),
        ({"quality_rating": "RED", "status": ""}, {"status": "CONNECTED"}, "red", 100),
        ({"quality_rating": "", "status": ""}, {"quality_rating": "RED", "status": "BANNED"}, "down", 200),
        ({"quality_rating": "", "status": "PENDING"}, {}, "unknown", 200),
    ],
)
def test_a_missing_field_never_improves_the_state_of_a_number(
    values: Mapping[str, str], missing: Mapping[str, str], state: str, since: float
) -> None:
    changes = {("15550100", field): Change(at) for field, at in (("quality_rating", 100.0), ("status", 200.0))}
    missing_fields = {("15550100", field): Change(500.0, before) for field, before in missing.items()}

    (entry,) = entries(space("Contoso", number(**values), changes=changes, missing=missing_fields))

    assert (entry.state, entry.since) == (state, since)


def test_a_search_for_a_stale_number_finds_its_blind_space() -> None:
    found = select(entries(space("Contoso", number("4930123", verified_name="Care"), seen=4000)), Filter(q="4930123"))

    assert [(entry.state, entry.number) for entry in found.entries] == [(State.BLIND, None)]
    assert found.counts[State.BLIND] == 1


@pytest.mark.parametrize(
    ("values", "state"),
    [({"quality_rating": "YELLOW"}, "blind"), ({"status": "FLAGGED"}, "blind"), ({"status": "BANNED"}, "down")],
)
def test_blind_is_more_severe_than_yellow_and_restricted_but_not_down(values: Mapping[str, str], state: str) -> None:
    assert names_and_states(entries(space("Contoso", number(**values), seen=1000))) == [("Contoso", state)]


def test_a_red_number_of_a_blind_space_matches_the_filters_red_and_blind() -> None:
    found = entries(space("Contoso", number(quality_rating="RED"), seen=1000))

    assert names_and_states(found) == [("Contoso", "red")]
    for state in (State.RED, State.BLIND):
        assert select(found, Filter(state=(state,))).total == 1
    assert select(found, Filter(state=(State.GREEN,))).total == 0


def test_a_space_with_stale_numbers_is_one_blind_entry_since_its_last_success() -> None:
    (entry,) = entries(space("Contoso", number("1"), number("2", quality_rating="RED"), seen=4000))

    assert (entry.state, entry.number, entry.since) == (State.BLIND, None, NOW - 4000)


@pytest.mark.parametrize(
    ("values", "since"),
    [
        ({"quality_rating": "RED"}, 100),
        ({"quality_rating": "YELLOW"}, 100),
        ({"status": "BANNED", "quality_rating": "RED"}, 200),
        ({"status": "FLAGGED"}, 200),
        ({"status": "PENDING"}, 200),
        ({}, 200),
    ],
)
def test_since_is_the_last_change_of_the_fields_that_decide_the_state(values: Mapping[str, str], since: float) -> None:
    changes = {
        ("15550100", field): Change(at)
        for field, at in (("quality_rating", 100.0), ("status", 200.0), ("messaging_limit_tier", 300.0))
    }

    (entry,) = entries(space("Contoso", number(**values), changes=changes))

    assert entry.since == since


def test_counts_are_numbers_per_state_and_spaces_for_blind() -> None:
    blind = space("old", number("1"), number("2"), number("3", quality_rating="RED"), seen=1000)
    counts = select(entries(*ONE_PER_STATE, blind), Filter()).counts

    assert {state: count for state, count in counts.items() if count != 1} == {State.RED: 2, State.BLIND: 2}
    assert len(counts) == 9


def test_counts_include_matches_of_the_search_in_all_states() -> None:
    found = select(entries(*ONE_PER_STATE), Filter(q="ed", state=(State.YELLOW,)))

    assert {state for state, count in found.counts.items() if count} == {"down", "red", "restricted", "green"}
    assert (found.total, found.pages) == (0, 1)


CONTOSO = space("Contoso", number("15550100", verified_name="Größe & Co"))
FABRIKAM = space("Fabrikam", number("15550199"), account="globex")


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("contoso", ["Contoso"]),
        ("GRÖSSE", ["Contoso"]),
        ("co größe", ["Contoso"]),
        ("+155501", ["Contoso", "Fabrikam"]),
        ("id-fab", ["Fabrikam"]),
        ("globex", ["Fabrikam"]),
        ("emea", ["Contoso"]),
        ("contoso globex", []),
        ("  ", ["Contoso", "Fabrikam"]),
    ],
)
def test_all_words_of_a_search_must_match_names_numbers_ids_accounts_or_labels(search: str, names: list[str]) -> None:
    selection = select(entries(CONTOSO, FABRIKAM), Filter(q=search))

    assert [entry.space.space.name for entry in selection.entries] == names


AMERICAN = space("Contoso", number("15550100000", verified_name="Desk 2024"))
CHINESE = space("Fabrikam", number("8613800138000"))
BRITISH = space("Initech", number("+44 20 7946-0000"))  # with separators, as in an old record


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("+1-555-010-0000", ["Contoso"]),
        ("+1 (555) 010-0000", ["Contoso"]),
        ("(555) 010-0000", ["Contoso"]),
        ("555.010", ["Contoso"]),
        ("\u202a+1\u00a0555\u2011010\u200b0000\u202c", ["Contoso"]),
        ("+1 555 - 010 - 0000", ["Contoso"]),
        ("1 555 020 0000", []),
        ("+86 138-0013-8000", ["Fabrikam"]),
        ("fabrikam +86 138-0013-8000", ["Fabrikam"]),
        ("contoso +86 138-0013-8000", []),
        ("＋８６ １３８", ["Fabrikam"]),
        ("+44 (20) 7946 0000", ["Initech"]),
        ("442079460000", ["Initech"]),
        ("2024 15550100000", ["Contoso"]),
        ("2024", ["Contoso"]),
        ("-", ["Contoso", "Fabrikam", "Initech"]),
    ],
)
def test_a_number_is_found_in_every_usual_format(search: str, names: list[str]) -> None:
    selection = select(entries(AMERICAN, CHINESE, BRITISH), Filter(q=search))

    assert [entry.space.space.name for entry in selection.entries] == names


def test_the_account_filter_matches_only_the_complete_name() -> None:
    for account, names in (("globex", ["Fabrikam"]), ("glob", []), ("", ["Contoso", "Fabrikam"])):
        selection = select(entries(CONTOSO, FABRIKAM), Filter(account=account))
        assert [entry.space.space.name for entry in selection.entries] == names


def test_every_entry_is_on_one_page_and_a_page_after_the_last_is_empty() -> None:
    many = entries(*(space(f"{index:03}", number()) for index in range(250)))
    pages = [select(many, Filter(page=page)) for page in (1, 2, 3, 4)]

    assert [len(page.entries) for page in pages] == [100, 100, 50, 0]
    assert [entry for page in pages for entry in page.entries] == many
    assert {(page.total, page.pages) for page in pages} == {(250, 3)}


@pytest.mark.parametrize(
    "filters", [{"page": 0}, {"per_page": 1001}, {"state": ["purple"]}, {"q": "x" * 201}, {"stat": ["red"]}]
)
def test_invalid_or_unknown_filters_are_an_error(filters: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Filter.model_validate(filters)


def test_the_state_of_a_space_is_that_of_its_most_severe_number() -> None:
    mixed = space("mixed", number("1"), number("2", status="BANNED"), failures={Reason.SERVER: 1})

    assert names_and_states(list(worst_per_space(entries(*ONE_PER_STATE[:2], mixed)))) == [
        ("mixed", "down"),
        ("new", "waiting"),
        ("connected", "green"),
    ]
