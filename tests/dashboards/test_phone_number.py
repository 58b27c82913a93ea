"""The Phone number dashboard selects the right number for each search text, and its panels are true in bad times."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from incident import (
    JOB,
    MINUTE,
    RULES,
    Incident,
    Series,
    input_series,
    promtool_document,
    query_test,
    record_series,
    run_promtool,
)
from world import World

from dashboards.__main__ import DIRECTORY
from dashboards.phone_number import NO_VALUE, digits_of_the_search_text, matching_numbers

Sample = tuple[str, float]
"""Labels in PromQL notation, and a value."""

DOCUMENT: dict[str, Any] = json.loads((DIRECTORY / "phone_number.json").read_text())
VARIABLES = {variable["name"]: variable for variable in DOCUMENT["templating"]["list"]}
NO_SELECTION = {"job": ".+", "account": ".+", "space": ".+", "digits": "", "__range": "7d"}


def interpolate(expression: str, **values: str) -> str:
    """Replace the variables of a query as Grafana does."""
    values = NO_SELECTION | values
    expression = re.sub(r"\$\{(\w+):percentencode\}", lambda match: quote(values[match[1]], safe="-_.~"), expression)
    return re.sub(r"\$([a-z_]+)", lambda match: values[match[1]], expression)


def panel_query(title: str, ref: str = "A") -> str:
    """Return a query of the panel with this title."""
    targets = next(panel["targets"] for panel in DOCUMENT["panels"] if panel["title"] == title)
    return str(next(target["expr"] for target in targets if target["refId"] == ref))


def assert_results(
    expected: dict[str, list[Sample]],
    directory: Path,
    time: str,
    series: list[dict[str, str]],
    rules: Path | None = None,
) -> None:
    """Assert that each query has exactly these samples at this time."""
    tests = [query_test(query, time, rows) for query, rows in expected.items()]
    result = run_promtool(promtool_document(series, rules, promql_expr_test=tests), directory)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("+15553745328", "15553745328"),
        (" 15553745328 ", "15553745328"),
        ("+1 (555) 374-5328", "15553745328"),
        ("00-1 555/374.5328, Contoso", "0015553745328"),
        ("5328", "5328"),
        ("1 5 5 5 3 7 4 5 3 2 8 0 9 1 2", "155537453280912"),
        ("四5328", "5328"),
        (r".*[(\d+$\1\"'`", "1"),
        ("", ""),
        ("+", ""),
    ],
)
def test_the_digits_of_every_search_text_are_found(text: str, digits: str, tmp_path: Path) -> None:
    query = interpolate(digits_of_the_search_text(), phone_number=text)

    labels = f'{{digits="{digits}"}}' if digits else "{}"
    assert_results({f"group by (digits) ({query})": [(labels, 1)]}, tmp_path, "1m", [])
    assert selected_value("digits", labels) == digits


def selected_value(variable: str, result: str) -> str:
    """Return the value that the regular expression of a variable matches in a line of `query_result`, or ''."""
    pattern = VARIABLES[variable]["regex"].removeprefix("/").removesuffix("/").replace("(?<", "(?P<")
    match = re.search(pattern, f"{result} 1 1700000000000")
    return match.groupdict().get("value", match[1]) if match else ""


def test_the_text_of_a_number_has_its_digits_and_its_name() -> None:
    result = '{display="15551 Contoso "Asia"",phone_number="15551",verified_name="Contoso "Asia""}'

    assert selected_value("number", result) == "15551"


def test_texts_and_derived_variables_are_in_the_dashboard() -> None:
    assert VARIABLES["phone_number"]["type"] == "textbox"
    assert VARIABLES["digits"]["query"] == f"query_result({digits_of_the_search_text()})"
    assert VARIABLES["number"]["query"] == f"query_result({matching_numbers()})"
    # Grafana does not validate a value in the URL: digits of a previous search would select the wrong number
    assert VARIABLES["digits"]["skipUrlSync"]
    # the first match is the default, so the order of the query must remain
    assert VARIABLES["number"]["sort"] == 0


RANK = "phone_number:chatapp_phone_number_quality_rank:last"
STATUS_RANK = "phone_number:chatapp_phone_number_status_rank:last"
NAMES = "phone_number:chatapp_phone_number_info:names"
VANISHED = "phone_number:chatapp_phone_number_vanished_timestamp_seconds:max"
HOURLY = "phone_number:chatapp_phone_number_quality_rank:max1h"
STORED: dict[str, dict[str, str]] = {
    "101": {RANK: "0x99", STATUS_RANK: "2x99", NAMES: "1x99"},
    "102": {RANK: "3x99", STATUS_RANK: "0x99", NAMES: "1x99"},
    "103": {RANK: "0x99", STATUS_RANK: "1x99", NAMES: "1x99"},
    "104": {RANK: "0x99", STATUS_RANK: "0x99", NAMES: "1x99"},
    "1045": {RANK: "3x99", STATUS_RANK: "0x99"},
    "106": {VANISHED: "60x99", NAMES: "1x99"},
    "107": {HOURLY: "3x9"},
    "108": {"chatapp_phone_number_info": "1x99"},
}
"""Numbers: down, RED, restricted, GREEN, RED without names, vanished, vanished long ago, without recorded series."""


def stored_series() -> list[dict[str, str]]:
    return [
        {"series": f"{name}{{{labels_of(name, number)}}}", "values": values.replace("x", "+0x")}
        for number, series in STORED.items()
        for name, values in series.items()
    ]


def labels_of(name: str, number: str) -> str:
    names = f',verified_name="N{number}"' if name == NAMES else ""
    return f'job="{JOB}",account="acme",space="s",phone_number="{number}"{names}'


@pytest.mark.parametrize(
    ("digits", "severities"),
    [
        ("", {"101": 10, "102": 3, "1045": 3, "103": 2.5, "106": 2, "104": 0, "108": -1}),
        ("04", {"1045": 3, "104": 0}),
        ("104", {"104": 101, "1045": 3}),
        ("106", {"106": 101}),
        ("107", {"107": -2}),
        ("999", {}),
    ],
)
def test_matching_numbers_are_ordered_by_severity_after_the_exact_match(
    digits: str, severities: dict[str, float], tmp_path: Path
) -> None:
    query = f"sum by (display, phone_number) ({interpolate(matching_numbers(), digits=digits)})"

    named = {number for number, series in STORED.items() if NAMES in series}
    samples = [
        (f'{{display="{number} {f"N{number}" if number in named else ""}", phone_number="{number}"}}', value)
        for number, value in severities.items()
    ]
    assert_results({query: samples}, tmp_path, "90m", stored_series())


SCRIPT = {
    "incident": "A number is removed, another one is RED, the space of a third one is blind, then the exporter is down",
    "lasts": "4h30m",
    "account": {"spaces": "3"},
    "events": [
        {"at": "1h", "space": 1, "number": 1, "remove": True},
        {"at": "90m", "space": 2, "number": 1, "set": {"QualityRating": "RED"}},
        {"at": "152m", "space": 3, "answer": "Unknown.ResourceOwnerId"},
    ],
    "exporter": [{"at": "3h", "down": "2h"}],
}
UP, BLIND, DOWN = "150m", "178m", "4h30m"


@cache
def recorded() -> tuple[World, Series, list[str]]:
    """Return the world, its series, and three numbers: vanished, RED and GREEN."""
    world, series = record_series(Incident.model_validate(SCRIPT))
    numbers = [
        re.search(rf'space="{world.space_id(space)}",phone_number="(\d+)"', " ".join(series)) for space in (1, 2, 3)
    ]
    return world, series, [number[1] for number in numbers if number]


def check(time: str, number: str, directory: Path, *queries: tuple[str, list[Sample]]) -> None:
    """Assert the results of queries of the dashboard when `number` is selected."""
    expected = {interpolate(query, number=number): rows for query, rows in queries}
    assert_results(expected, directory, time, input_series(recorded()[1]), RULES)


@pytest.mark.parametrize("time", [UP, DOWN])
def test_a_vanished_number_shows_its_names_its_history_and_when_it_vanished(time: str, tmp_path: Path) -> None:
    series, number = recorded()[1], recorded()[2][0]
    names = re.search(rf'phone_number="{number}",verified_name="([^"]+)"', " ".join(series))
    assert names
    after_the_removal = f">= 1000 * {60 * MINUTE} < 1000 * {70 * MINUTE}"

    check(
        time,
        number,
        tmp_path,
        (
            f"group by (verified_name) (({panel_query('Phone number')}) {after_the_removal})",
            [(f'{{verified_name="{names[1]}"}}', 1)],
        ),
        (f"group(({panel_query('Last seen', 'C')}) {after_the_removal})", [("{}", 1)]),
        (f"({panel_query('Alerts over time')}) == 2", [('{alertname="ChatAppPhoneNumberVanished"}', 2)]),
        (panel_query("Values over time"), [(f'{{quality_rating="{NO_VALUE}"}}', 1)]),
        (panel_query("Quality rating"), []),
    )
    check("50m", number, tmp_path, (panel_query("Values over time"), [('{quality_rating="GREEN"}', 1)]))


def test_a_number_without_alerts_shows_no_alerts(tmp_path: Path) -> None:
    check(
        UP,
        recorded()[2][2],
        tmp_path,
        (panel_query("Alerts over time"), [('{state="No alerts"}', 0)]),
        (panel_query("Alerts"), [('{alertstate="no alerts"}', 0)]),
        (panel_query("Last changes"), [('{field="no change recorded"}', 0)]),
        (panel_query("Quality rating"), [("{}", 0)]),
        (panel_query("Quality rating", "C"), [("{}", 0)]),
        (panel_query("Status"), [('{status="CONNECTED"}', 0)]),
    )


def test_an_unknown_number_shows_no_data_instead_of_no_alerts(tmp_path: Path) -> None:
    check(
        UP,
        "99999",
        tmp_path,
        (panel_query("Alerts over time"), [('{state="No data"}', -1)]),
        (panel_query("Alerts"), []),
        (panel_query("Last changes"), []),
        (panel_query("Phone number"), []),
    )


def test_an_alert_of_a_space_is_shown_for_its_numbers_only(tmp_path: Path) -> None:
    _, red, green = recorded()[2]
    alerts = panel_query("Alerts over time")

    check(BLIND, green, tmp_path, (alerts, [('{alertname="ChatAppSpaceBlind"}', 2)]))
    check(BLIND, red, tmp_path, (alerts, [('{alertname="ChatAppPhoneNumberQualityRed"}', 3)]))
    check(BLIND, "", tmp_path, (alerts, [('{state="No data"}', -1)]))


def test_while_the_exporter_is_down_the_last_values_remain_and_the_age_increases(tmp_path: Path) -> None:
    number = recorded()[2][1]
    age = panel_query("Age of the values")
    change = f">= 1000 * {90 * MINUTE} < 1000 * {100 * MINUTE}"

    check(
        DOWN,
        number,
        tmp_path,
        (panel_query("Quality rating"), []),
        (panel_query("Quality rating", "B"), [("{}", 3)]),
        (f"({panel_query('Status')}) >= bool 0", [('{last_known="CONNECTED"}', 1)]),
        (f"group(({panel_query('Quality rating', 'C')}) {change})", [("{}", 1)]),
        (f"({panel_query('Last changes')}) {change} > bool 0", [('{field="quality_rating"}', 1)]),
        (f"({age}) >= bool {90 * MINUTE}", [("{}", 1)]),
        (panel_query("Last seen"), []),
        (f"({panel_query('Last seen', 'B')}) < bool 1000 * {180 * MINUTE + 1}", [("{}", 1)]),
        (
            panel_query("Alerts over time"),
            [('{alertname="ChatAppExporterDown"}', 3), ('{alertname="ChatAppPhoneNumberQualityRed"}', 3)],
        ),
        (panel_query("Values over time"), [(f'{{quality_rating="{NO_VALUE}"}}', 1)]),
    )
