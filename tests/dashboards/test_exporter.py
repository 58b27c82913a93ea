"""The queries of the Exporter dashboard, evaluated by promtool: with an exporter, with its target down, and without."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from incident import promtool_document, query_test, run_promtool, written_series

from dashboards.__main__ import DIRECTORY

Series = dict[str, str]
Samples = Mapping[str, float]

PANELS = {panel["title"]: panel for panel in json.loads((DIRECTORY / "exporter.json").read_text())["panels"]}
VARIABLES = {"job": ".+", "account": ".+", "space": ".+", "__range": "1h", "__interval": "1m", "__rate_interval": "4m"}
TARGET = 'job="chatapp", instance="e:10144"'
ACCOUNT = 'account="acme", job="chatapp"'
OTHER: Series = {
    'up{job="node", instance="n:9100"}': "0x60",
    'up{job="api", instance="n:8080"}': "1x60",
    'process_resident_memory_bytes{job="api", instance="n:8080"}': "5e9x60",
    'scrape_duration_seconds{job="node", instance="n:9100"}': "10x60",
}
"""Targets of Prometheus that are not exporters."""
EXPORTER: Series = {
    f"up{{{TARGET}}}": "1x60",
    f'chatapp_exporter_build_info{{{TARGET}, version="1.2.3"}}': "1x60",
    f"process_resident_memory_bytes{{{TARGET}}}": "1e8x60",
    f"chatapp_exporter_config_last_reload_successful{{{TARGET}}}": "1x60",
    f'chatapp_space_up{{{TARGET}, account="acme", space="1"}}': "1x60",
    f'chatapp_exporter_space_file_up{{{TARGET}, file="a.yml"}}': "1x60",
}
RULES: Series = {f"account:chatapp_account_up:last{{{ACCOUNT}}}": "1x60"}
WITH_ERRORS: Series = {
    f"chatapp_exporter_config_last_reload_successful{{{TARGET}}}": "0x60",
    f'chatapp_space_up{{{TARGET}, account="acme", space="1"}}': "0x60",
    f'chatapp_exporter_space_file_up{{{TARGET}, file="a.yml"}}': "0x60",
    f"account:chatapp_account_down:group{{{ACCOUNT}}}": "1x60",
}
DOWN: Series = {
    **dict.fromkeys(EXPORTER, "1x9 stale"),
    f"up{{{TARGET}}}": "1x9 0x50",
    f"account:chatapp_account_down:group{{{ACCOUNT}}}": "1x60",
}
COUNTS = ("Exporters down", "Accounts down", "Spaces failing", "Config errors", "File errors")


def query(title: str, ref: str = "A") -> str:
    """Return a query of a panel, with values for the variables."""
    (expression,) = (target["expr"] for target in PANELS[title]["targets"] if target["refId"] == ref)
    return re.sub(r"\$([a-z_]\w*)", lambda name: VARIABLES[name[1]], expression)


def evaluate(directory: Path, series: Series, *tests: tuple[str, Samples], at: str = "40m") -> None:
    """Fail if a query does not return exactly these samples at this time."""
    values = {
        name: re.sub(r"([^\s+_]+)x(\d+)", r"\1+0x\2", each) if "+" not in each else each
        for name, each in series.items()
    }
    cases = [
        query_test(expression, at, ((f"{{{labels}}}", value) for labels, value in samples.items()))
        for expression, samples in tests
    ]
    document = promtool_document(written_series(values), rules=None, promql_expr_test=cases)
    result = run_promtool(document, directory)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("series", "counts"),
    [
        pytest.param({**EXPORTER, **RULES}, (0, 0, 0, 0, 0), id="healthy"),
        pytest.param({**EXPORTER, **RULES, **WITH_ERRORS}, (0, 1, 1, 1, 1), id="errors"),
        pytest.param(EXPORTER, (0, None, 0, 0, 0), id="rules missing"),
        pytest.param({**DOWN, **RULES}, (1, 1, None, None, None), id="exporter down"),
        pytest.param({}, (None, None, None, None, None), id="no exporter"),
    ],
)
def test_a_count_is_zero_only_with_series_of_exporters(
    series: Series, counts: tuple[int | None, ...], tmp_path: Path
) -> None:
    expected = zip(COUNTS, counts, strict=True)

    evaluate(
        tmp_path,
        {**OTHER, **series},
        *((query(title), {} if count is None else {"": count}) for title, count in expected),
    )


def test_only_exporters_are_shown_and_an_exporter_that_is_down_is_listed(tmp_path: Path) -> None:
    evaluate(
        tmp_path,
        {**OTHER, **DOWN, f"scrape_duration_seconds{{{TARGET}}}": "0.1x60"},
        (query("Exporters"), {TARGET: 0}),
        (query("Memory"), {}),
        (query("Scrape duration"), {f'__name__="scrape_duration_seconds", {TARGET}': 0.1}),
    )


def test_discovery_lists_accounts_that_fail_and_accounts_without_a_complete_list(tmp_path: Path) -> None:
    def labels(account: str, state: str) -> str:
        return f'account="{account}", job="chatapp", state="{state}"'

    series = {
        f'chatapp_account_discovery_up{{{TARGET}, account="{account}"}}': f"{up}x60"
        for account, up in (("ok", 1), ("failing", 0), ("never", 0))
    }
    last = "chatapp_account_discovery_last_success_timestamp_seconds"
    series |= {f'{last}{{{TARGET}, account="ok"}}': "2000x60", f'{last}{{{TARGET}, account="failing"}}': "100x60"}
    rows = {labels("ok", "complete"): 2e6, labels("failing", "failing"): 1e5, labels("never", "failing"): 0}

    evaluate(tmp_path, series, (query("Discovery"), rows))


def test_files_with_errors_have_a_higher_value_so_that_they_are_first(tmp_path: Path) -> None:
    series = {
        f'chatapp_exporter_space_file_up{{{TARGET}, file="a.yml"}}': "1x60",
        f'chatapp_exporter_state_file_up{{{TARGET}, file="state.db"}}': "0x60",
    }
    rows = {f'{TARGET}, file="a.yml", kind="space file"': 0, f'{TARGET}, file="state.db", kind="state file"': 1}

    evaluate(tmp_path, series, (query("State file and space files"), rows))


def test_the_age_is_shown_in_effective_intervals_and_sorts_the_accounts(tmp_path: Path) -> None:
    since = "space:chatapp_space_seconds_since_success:min"
    series = {
        f'{since}{{{ACCOUNT}, space="1"}}': "900x60",
        f'{since}{{{ACCOUNT}, space="2"}}': "60x60",
        f"account:chatapp_account_effective_poll_interval_seconds:last{{{ACCOUNT}}}": "300x60",
    }

    evaluate(
        tmp_path,
        series,
        (query("Age of the values in poll intervals"), {'account="acme"': 3}),
        (query("Accounts"), {ACCOUNT: 3}),
        (query("Age of the values", "B"), {"": 480}),
    )


def test_a_failed_poll_is_counted_as_a_share_and_accounts_without_failures_have_zero(tmp_path: Path) -> None:
    series = {
        f'chatapp_space_polls_total{{{TARGET}, account="acme", space="1"}}': "0+4x60",
        f'chatapp_space_poll_failures_total{{{TARGET}, account="acme", space="1", reason="timeout"}}': "0+1x60",
        f'chatapp_space_polls_total{{{TARGET}, account="globex", space="2"}}': "0+4x60",
    }
    globex = ACCOUNT.replace("acme", "globex")

    evaluate(
        tmp_path,
        {**series, **_ages("acme", "globex")},
        (query("Failed polls"), {'account="acme"': 0.25, 'account="globex"': 0}),
        (query("Failed polls by reason"), {'reason="timeout"': 0.125}),
        (query("Accounts", "H"), {ACCOUNT: 0.25, globex: 0}),
    )


def test_the_first_failed_poll_of_each_space_is_counted(tmp_path: Path) -> None:
    series: Series = {}
    for minute in range(30, 40):
        labels = f'{TARGET}, account="acme", space="{minute}"'
        series[f"chatapp_space_polls_total{{{labels}}}"] = f"0x{minute} 1x60"
        series[f'chatapp_space_poll_failures_total{{{labels}, reason="denied"}}'] = f"_x{minute + 1} 1x60"

    evaluate(
        tmp_path,
        {**series, **_ages("acme")},
        (query("Failed polls"), {'account="acme"': 1}),
        (query("Failed polls by reason"), {'reason="denied"': 1}),
        (query("Accounts", "H"), {ACCOUNT: 1}),
    )


@pytest.mark.parametrize("at", ["39m30s", "40m", "41m30s", "42m", "42m30s"])
def test_an_account_whose_only_poll_in_the_window_failed_has_a_share_of_1(tmp_path: Path, at: str) -> None:
    labels = f'{TARGET}, account="acme", space="1"'
    series = {
        f"chatapp_space_polls_total{{{labels}}}": "5x38 6x20",
        f'chatapp_space_poll_failures_total{{{labels}, reason="denied"}}': "_x39 1x20",
    }

    evaluate(tmp_path, series, (query("Failed polls"), {'account="acme"': 1}), at=at)


def test_failures_before_the_exporter_was_first_scraped_are_not_counted(tmp_path: Path) -> None:
    series = {
        f'chatapp_space_polls_total{{{TARGET}, account="acme", space="1"}}': "_x38 1000+1x20",
        f'chatapp_space_poll_failures_total{{{TARGET}, account="acme", space="1", reason="denied"}}': "_x38 900x20",
    }

    evaluate(tmp_path, series, (query("Failed polls"), {'account="acme"': 0}))


def test_an_account_that_is_not_polled_has_no_failed_polls_and_keeps_its_number_of_spaces(tmp_path: Path) -> None:
    series = {
        f'chatapp_space_polls_total{{{TARGET}, account="acme", space="1"}}': "0+1x30 stale",
        f'chatapp_api_requests_total{{{TARGET}, account="acme", code="OK"}}': "0+1x30 stale",
        f"account:chatapp_account_unpolled:group{{{ACCOUNT}}}": "_x35 1x30",
    }

    evaluate(
        tmp_path,
        {**series, **_ages("acme")},
        (query("Accounts", "H"), {}),
        (query("Accounts", "I"), {}),
        (query("Accounts", "F"), {ACCOUNT: 1}),
    )


def test_an_empty_list_has_a_row_that_says_if_data_are_missing(tmp_path: Path) -> None:
    lists = {"Discovery": "B", "State file and space files": "B", "Failures of the state file": "B"}
    lists |= {"Unknown values in API responses": "B"}
    build = {f"chatapp_exporter_build_info{{{TARGET}}}": "1x60"}

    evaluate(
        tmp_path,
        OTHER,
        *((query(title, ref), {'note="No data: exporter missing"': 1}) for title, ref in lists.items()),
        (query("Accounts", "N"), {'note="No data: exporter or rules missing"': 1}),
    )
    evaluate(tmp_path, build, *((query(title, ref), {'note="none"': 1}) for title, ref in lists.items()))
    evaluate(tmp_path, EXPORTER, (query("State file and space files", "B"), {}))


def test_the_version_of_an_exporter_that_is_down_is_its_last_version(tmp_path: Path) -> None:
    builds = {
        f'chatapp_exporter_build_info{{{TARGET}, version="1.2.2"}}': "1x10 stale",
        f'chatapp_exporter_build_info{{{TARGET}, version="1.2.3"}}': "_x11 1x20 stale",
    }

    evaluate(tmp_path, builds, (f"group without () ({query('Exporters', 'B')})", {f'{TARGET}, version="1.2.3"': 1}))


def _ages(*accounts: str) -> Series:
    return {
        series: "300x60"
        for account in accounts
        for series in (
            f'space:chatapp_space_seconds_since_success:min{{account="{account}", job="chatapp", space="1"}}',
            f'account:chatapp_account_effective_poll_interval_seconds:last{{account="{account}", job="chatapp"}}',
        )
    }


def test_of_many_accounts_the_graphs_show_those_with_the_highest_values_in_the_time_range(tmp_path: Path) -> None:
    due = {f'chatapp_account_due_spaces{{{TARGET}, account="{n}"}}': f"{n + 10}x60" for n in range(11)}
    due |= {f'chatapp_account_due_spaces{{{TARGET}, account="earlier"}}': "99x9 0x60"}

    evaluate(
        tmp_path,
        due,
        (query("Due spaces"), {**{f'account="{n}"': n + 10 for n in range(2, 11)}, 'account="earlier"': 0}),
    )
