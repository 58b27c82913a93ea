"""What people are shown of the fleet, and in which order."""

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
    """One that was seen so many seconds ago, or never since it was `added`."""
    last_success = None if seen is None else NOW - seen
    monotonic = -(added if seen is None else seen)
    state = SpaceRecord(seen is not None, last_success, numbers, polls=polls, seen=monotonic, **changes)
    labels = {"team": "Emea"} if name == "Contoso" else {}
    now, configured = Now(NOW, 0.0), CamsSpace(id=f"id-{name}", name=name, labels=labels)
    fresh, unseen = state.is_fresh(now, 3600), state.seconds_since_success(now)
    return SpaceView(account, configured, state, fresh, MESSAGING_LIMITS, unseen)


def entries(*spaces: SpaceView) -> list[Entry]:
    return entries_of(Snapshot(NOW, spaces, ACCOUNTS))


def shown(found: list[Entry]) -> list[tuple[str, str]]:
    return [(entry.space.space.name, entry.state) for entry in found]


ONE_OF_EACH = (
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
def test_a_state_says_which_statuses_it_stands_for(state: State, statuses: frozenset[str]) -> None:
    (row,) = re.findall(rf"^\| `{state}` \| (.+) \|$", USAGE.read_text("utf-8"), re.MULTILINE)

    assert set(re.split(", | or ", MEANINGS[state])) == {status.lower().replace("_", " ") for status in statuses}
    assert set(re.split(", | or ", row)) == statuses


def test_the_document_says_of_every_state_what_the_pages_say() -> None:
    table = USAGE.read_text("utf-8").partition("| state | means |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE))

    assert list(rows) == list(State)
    for state in set(State) - {State.DOWN, State.RESTRICTED}:
        assert rows[state] == MEANINGS[state]


def test_blind_means_the_same_everywhere() -> None:
    """As the design words it; the alert and the dashboards use the same function."""
    assert MEANINGS[State.BLIND] == (
        "no successful poll for 3 effective intervals, or the account is denied or unreachable"
    )


def test_the_worst_comes_first() -> None:
    assert shown(entries(*ONE_OF_EACH)) == [
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


def test_of_equal_ones_that_comes_first_which_changed_last_and_those_that_were_never_seen_to_change_last() -> None:
    red = {"quality_rating": "RED"}
    spaces = [
        space(name, number(**red), changes={("15550100", "quality_rating"): Change(NOW - age)} if age else {})
        for name, age in (("a day", 86_400), ("never", 0), ("an hour", 3_600))
    ]

    assert [name for name, _ in shown(entries(*spaces))] == ["an hour", "a day", "never"]


@pytest.mark.parametrize(("seen", "state"), [(899, "green"), (901, "blind"), (3_599, "blind")])
def test_a_number_is_not_shown_as_green_once_its_space_is_blind(seen: float, state: str) -> None:
    """Three effective intervals of 300 s."""
    assert shown(entries(space("Contoso", number(), seen=seen))) == [("Contoso", state)]


def test_a_space_whose_values_are_too_old_to_show_is_waiting_until_it_is_blind() -> None:
    (entry,) = entries(replace(space("Contoso", number(), seen=100), fresh=False))

    assert (entry.state, entry.number) == (State.WAITING, None)


@pytest.mark.parametrize(("added", "polls", "state"), [(899, 0, "waiting"), (899, 3, "waiting"), (901, 3, "blind")])
def test_a_space_that_never_had_a_successful_poll_is_waiting_and_blind_after_three_intervals(
    added: float, polls: int, state: str
) -> None:
    assert shown(entries(space("Contoso", seen=None, added=added, polls=polls))) == [("Contoso", state)]


@pytest.mark.parametrize(
    ("state", "blind"),
    [("denied", True), ("unreachable", True), ("throttled", False), ("ok", False), (None, False)],
)
def test_every_space_of_an_account_that_is_down_is_blind_also_one_that_was_never_polled(
    state: AccountState | None, blind: bool
) -> None:
    account = replace(ACCOUNTS[0], health=AccountHealth(AccountState(state), NOW) if state else None)
    new = space("new", seen=None, added=1, polls=0)
    spaces = (space("seen", number(), seen=1), new, space("red", number(status="BANNED")))

    found = entries_of(Snapshot(NOW, spaces, (account,)))

    others = [("seen", "blind"), ("new", "blind")] if blind else [("new", "waiting"), ("seen", "green")]
    assert shown(found) == [("red", "down"), *others]
    assert {entry.blind for entry in found} == {blind}
    assert select(found, Filter()).counts[State.BLIND] == (3 if blind else 0)


def test_blind_follows_the_effective_interval() -> None:
    slower = replace(ACCOUNTS[0], effective_interval=400)

    assert shown(entries(space("Contoso", number(), seen=1000))) == [("Contoso", "blind")]
    (entry,) = entries_of(Snapshot(NOW, (space("Contoso", number(), seen=1000),), (slower,)))
    assert entry.state == "green"


def test_a_success_that_another_process_dated_ahead_counts_as_that_old() -> None:
    now, ahead = Now(NOW, 0.0), SpaceRecord(True, NOW + 1000, (number(),))
    of_another_process = replace(space("Contoso"), record=ahead, seconds_since_success=ahead.seconds_since_success(now))

    assert shown(entries(of_another_process)) == [("Contoso", "blind")]


def test_spaces_of_an_account_that_a_reload_is_about_to_start_are_shown() -> None:
    new = replace(ACCOUNTS[0], account="new", health=None)
    spaces = (space("Contoso", seen=None, added=1, polls=0, account="new"),)

    assert shown(entries_of(Snapshot(NOW, spaces, (new,)))) == [("Contoso", "waiting")]


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
def test_a_missing_field_never_improves_a_number(
    values: Mapping[str, str], missing: Mapping[str, str], state: str, since: float
) -> None:
    changes = {("15550100", field): Change(at) for field, at in (("quality_rating", 100.0), ("status", 200.0))}
    lost = {("15550100", field): Change(500.0, before) for field, before in missing.items()}

    (entry,) = entries(space("Contoso", number(**values), changes=changes, missing=lost))

    assert (entry.state, entry.since) == (state, since)


def test_a_number_that_is_too_old_to_show_is_found_as_what_cannot_be_seen() -> None:
    found = select(entries(space("Contoso", number("4930123", verified_name="Care"), seen=4000)), Filter(q="4930123"))

    assert [(entry.state, entry.number) for entry in found.entries] == [(State.BLIND, None)]
    assert found.counts[State.BLIND] == 1


@pytest.mark.parametrize(
    ("values", "state"),
    [({"quality_rating": "YELLOW"}, "blind"), ({"status": "FLAGGED"}, "blind"), ({"status": "BANNED"}, "down")],
)
def test_a_blind_space_is_worse_than_what_was_only_half_bad(values: Mapping[str, str], state: str) -> None:
    assert shown(entries(space("Contoso", number(**values), seen=1000))) == [("Contoso", state)]


def test_a_red_number_of_a_blind_space_is_found_as_red_and_as_blind() -> None:
    found = entries(space("Contoso", number(quality_rating="RED"), seen=1000))

    assert shown(found) == [("Contoso", "red")]
    for state in (State.RED, State.BLIND):
        assert select(found, Filter(state=(state,))).total == 1
    assert select(found, Filter(state=(State.GREEN,))).total == 0


def test_what_is_too_old_to_show_is_one_blind_entry_of_its_space_since_it_was_seen_last() -> None:
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
def test_a_number_is_so_since_the_field_changed_that_makes_it_so(values: Mapping[str, str], since: float) -> None:
    changes = {
        ("15550100", field): Change(at)
        for field, at in (("quality_rating", 100.0), ("status", 200.0), ("messaging_limit_tier", 300.0))
    }

    (entry,) = entries(space("Contoso", number(**values), changes=changes))

    assert entry.since == since


def test_numbers_are_counted_by_state_and_what_cannot_be_seen_by_space() -> None:
    blind = space("old", number("1"), number("2"), number("3", quality_rating="RED"), seen=1000)
    counts = select(entries(*ONE_OF_EACH, blind), Filter()).counts

    assert {state: count for state, count in counts.items() if count != 1} == {State.RED: 2, State.BLIND: 2}
    assert len(counts) == 9


def test_counts_are_of_all_that_has_the_words_whatever_its_state() -> None:
    found = select(entries(*ONE_OF_EACH), Filter(q="ed", state=(State.YELLOW,)))

    assert {state for state, count in found.counts.items() if count} == {"down", "red", "restricted", "green"}
    assert (found.total, found.pages) == (0, 1)


CONTOSO = space("Contoso", number("15550100", verified_name="Größe & Co"))
OTHER = space("Fabrikam", number("15550199"), account="globex")


@pytest.mark.parametrize(
    ("words", "found"),
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
def test_all_words_are_looked_for_in_names_numbers_ids_accounts_and_labels(words: str, found: list[str]) -> None:
    selection = select(entries(CONTOSO, OTHER), Filter(q=words))

    assert [entry.space.space.name for entry in selection.entries] == found


AMERICAN = space("Contoso", number("15550100000", verified_name="Desk 2024"))
CHINESE = space("Fabrikam", number("8613800138000"))
FROM_BEFORE = space("Initech", number("+44 20 7946-0000"))


@pytest.mark.parametrize(
    ("words", "found"),
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
def test_a_number_is_found_in_every_usual_spelling(words: str, found: list[str]) -> None:
    selection = select(entries(AMERICAN, CHINESE, FROM_BEFORE), Filter(q=words))

    assert [entry.space.space.name for entry in selection.entries] == found


def test_an_account_is_asked_for_by_its_whole_name() -> None:
    for account, found in (("globex", ["Fabrikam"]), ("glob", []), ("", ["Contoso", "Fabrikam"])):
        selection = select(entries(CONTOSO, OTHER), Filter(account=account))
        assert [entry.space.space.name for entry in selection.entries] == found


def test_every_entry_is_on_one_page_and_a_page_past_the_last_is_empty() -> None:
    many = entries(*(space(f"{index:03}", number()) for index in range(250)))
    pages = [select(many, Filter(page=page)) for page in (1, 2, 3, 4)]

    assert [len(page.entries) for page in pages] == [100, 100, 50, 0]
    assert [entry for page in pages for entry in page.entries] == many
    assert {(page.total, page.pages) for page in pages} == {(250, 3)}


@pytest.mark.parametrize(
    "asked", [{"page": 0}, {"per_page": 1001}, {"state": ["purple"]}, {"q": "x" * 201}, {"stat": ["red"]}]
)
def test_what_cannot_be_asked_for_is_refused_and_not_left_aside(asked: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Filter.model_validate(asked)


def test_a_space_is_as_bad_as_the_worst_of_its_numbers() -> None:
    mixed = space("mixed", number("1"), number("2", status="BANNED"), failures={Reason.SERVER: 1})

    assert shown(list(worst_per_space(entries(*ONE_OF_EACH[:2], mixed)))) == [
        ("mixed", "down"),
        ("new", "waiting"),
        ("connected", "green"),
    ]
