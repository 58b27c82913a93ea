"""The queries of the Fleet dashboard, evaluated by promtool on recorded series."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from incident import promtool_document, query_test, run_promtool, written_series

from dashboards.__main__ import DIRECTORY

FLEET = json.loads((DIRECTORY / "fleet.json").read_text())
ALL = {"job": ".+", "account": ".+", "space": ".+"}
RANK = "phone_number:chatapp_phone_number_quality_rank:last"
STATUS_RANK = "phone_number:chatapp_phone_number_status_rank:last"
STATUS = "phone_number:chatapp_phone_number_status:last"
LIMIT = "phone_number:chatapp_phone_number_messaging_limit:last"
CHANGE = "phone_number:chatapp_phone_number_last_change_timestamp_seconds:last"
LAST_SUCCESS = "space:chatapp_space_last_success_timestamp_seconds:max"
SINCE_SUCCESS = "space:chatapp_space_seconds_since_success:min"
BLIND = "space:chatapp_space_blind:group"
ACCOUNT_UP = "account:chatapp_account_up:last"

Series = dict[str, str]
Samples = dict[str, float]


def account(name: str) -> str:
    return f'account="{name}", job="j"'


def space(number: int, account_name: str = "a") -> str:
    return f'{account(account_name)}, space="{number}"'


def number(digits: int, space_number: int = 1) -> str:
    return f'account="a", job="j", phone_number="{digits}", space="{space_number}"'


def query(panel: str, ref: str = "A", **selection: str) -> str:
    """Return a query of a panel, with the values of the variables."""
    (found,) = (each for each in FLEET["panels"] if each["title"] == panel)
    (expression,) = (target["expr"] for target in found["targets"] if target["refId"] == ref)
    return re.sub(r"\$([a-z]+)", lambda name: {**ALL, **selection}[name[1]], expression)


def evaluate(directory: Path, series: Series, *tests: tuple[str, Mapping[str, float]], at: str = "20m") -> None:
    """Fail if a query does not return exactly the samples."""
    cases = [
        query_test(expression, at, ((f"{{{labels}}}", value) for labels, value in samples.items()))
        for expression, samples in tests
    ]
    document = promtool_document(written_series(series), rules=None, promql_expr_test=cases)
    result = run_promtool(document, directory)

    assert result.returncode == 0, result.stdout + result.stderr


def test_without_series_no_count_has_a_result_and_each_list_says_that_data_is_missing(tmp_path: Path) -> None:
    counts = [panel["title"] for panel in FLEET["panels"] if panel["type"] == "stat"]
    missing = "No data: exporter or rules missing"
    not_polled = 'name="No data: no successful poll, or rules missing"'
    texts = {"Numbers with problems": "B", "Dropped messaging limits": "B", "Vanished numbers": "B"}
    texts |= {"Changes in the last 24 hours": "A"}

    evaluate(
        tmp_path,
        {"other": "1x30"},
        *((query(title), {}) for title in counts),
        *((query(title, ref), {not_polled: 1}) for title, ref in texts.items()),
        (query("List of blind spaces", "B"), {f'name="{missing}"': 1}),
        (query("Accounts", "B"), {f'note="{missing}"': 1}),
    )


def test_a_polled_space_is_the_evidence_for_0_and_for_an_empty_list(tmp_path: Path) -> None:
    series = {f"{LAST_SUCCESS}{{{space(1)}}}": "0x30", f"{SINCE_SUCCESS}{{{space(1)}}}": "0x30"}

    evaluate(
        tmp_path,
        series,
        *((query(title), {"": 0}) for title in ("Down", "RED", "Limit dropped", "Restricted", "YELLOW")),
        (query("Blind spaces"), {"": 0}),
        (query("Vanished"), {"": 0}),
        (query("Numbers with problems", "B"), {'name="none"': 1}),
        (query("List of blind spaces", "B"), {'name="none"': 1}),
        (query("RED", space="2"), {}),
    )


def test_numbers_are_sorted_by_severity_and_then_by_messaging_limit(tmp_path: Path) -> None:
    ranks = {1: (3, 0, "250"), 2: (3, 0, "Inf"), 3: (0, 2, "50"), 4: (2, 0, "1000"), 5: (2, 1, "1000"), 6: (0, 0, "50")}
    series = {f"{RANK}{{{number(digits)}}}": f"{rank}x30" for digits, (rank, _, _) in ranks.items()}
    series |= {f"{STATUS_RANK}{{{number(digits)}}}": f"{rank}x30" for digits, (_, rank, _) in ranks.items()}
    series |= {f"{LIMIT}{{{number(digits)}}}": " ".join([limit] * 30) for digits, (_, _, limit) in ranks.items()}

    evaluate(
        tmp_path,
        series,
        (
            query("Numbers with problems"),
            {
                number(3): 4e10 + 50,
                number(2): 3e10 + 1e9,
                number(1): 3e10 + 250,
                number(5): 2e10 + 1000,
                number(4): 1e10 + 1000,
            },
        ),
        (query("Numbers with problems", space="2"), {}),
    )


def test_a_list_reports_how_many_rows_it_does_not_show(tmp_path: Path) -> None:
    series = {f"{RANK}{{{number(digits)}}}": "3x30" for digits in range(1, 113)}
    series |= {f"{STATUS_RANK}{{{number(digits)}}}": "0x30" for digits in range(1, 113)}

    evaluate(
        tmp_path,
        {**series, f"{LAST_SUCCESS}{{{space(1)}}}": "0x30"},
        (f"count({query('Numbers with problems')})", {"": 100}),
        (query("Numbers with problems", "B"), {'more="12", name="and 12 more"': 1}),
    )


def test_since_is_the_last_change_or_the_start_of_the_alert(tmp_path: Path) -> None:
    def started(alert: str, digits: int, time: int) -> Series:
        return {f'ALERTS_FOR_STATE{{{number(digits)}, alertname="{alert}", severity="x", team="t"}}': f"{time}x30"}

    series = {f"{RANK}{{{number(digits)}}}": f"{rank}x30" for digits, rank in {1: 3, 2: 3, 3: 2, 4: 0}.items()}
    series |= {f"{STATUS_RANK}{{{number(digits)}}}": f"{rank}x30" for digits, rank in {1: 0, 2: 2, 3: 0, 4: 1}.items()}
    series |= {f'{CHANGE}{{{number(1)}, field="quality_rating"}}': "100x30"}
    series |= {f'{CHANGE}{{{number(1)}, field="status"}}': "900x30"}
    series |= {f'{CHANGE}{{{number(2)}, field="quality_rating"}}': "200x30"}
    series |= started("ChatAppPhoneNumberDown", 2, 300) | started("ChatAppPhoneNumberQualityYellow", 3, 400)
    series |= started("ChatAppPhoneNumberRestricted", 4, 500)

    since = {number(1): 100_000.0, number(2): 300_000.0, number(3): 400_000.0, number(4): 500_000.0}
    evaluate(tmp_path, series, (query("Numbers with problems", "G"), since))


def test_a_change_has_the_value_before_and_the_current_value(tmp_path: Path) -> None:
    changed = {1: "quality_rating", 2: "messaging_limit_tier", 3: "status", 5: "status", 6: "quality_rating"}
    series = {f'{CHANGE}{{{number(digits)}, field="{field}"}}': "18000x320" for digits, field in changed.items()}
    series |= {f"{RANK}{{{number(1)}}}": "0x140 2x159 3x20", f"{RANK}{{{number(4)}}}": "0x320"}
    series |= {f"{LIMIT}{{{number(2)}}}": " ".join(["Inf"] * 300 + ["250"] * 20)}
    series |= {f"{RANK}{{{number(6)}}}": "2x100 3x220"}
    for digits in (3, 5):
        series |= {f'{STATUS}{{{number(digits)}, status="BANNED"}}': "_x300 1x20"}
    series |= {f'{STATUS}{{{number(3)}, status="CONNECTED"}}': "1x140 stale"}
    series |= {f'{STATUS}{{{number(3)}, status="FLAGGED"}}': "_x141 1x158 stale"}
    series |= {f'{STATUS}{{{number(5)}, status="FLAGGED"}}': "1x80 stale _x100 1x118 stale"}
    series |= {f'{STATUS}{{{number(5)}, status="CONNECTED"}}': "_x81 1x98 stale"}
    title = "Changes in the last 24 hours"

    def values(label: str, *texts: str) -> Samples:
        rows = zip(changed.items(), texts, strict=True)
        return {f'{number(digits)}, field="{field}", {label}="{text}"': 1 for (digits, field), text in rows}

    evaluate(
        tmp_path,
        series,
        (f"group without () ({query(title, 'B')})", values("from", "2", "+Inf", "FLAGGED", "FLAGGED", "2")),
        (f"group without () ({query(title, 'C')})", values("to", "3", "250", "BANNED", "BANNED", "3")),
        at="310m",
    )


def test_the_reason_of_a_blind_space_is_the_state_of_its_account_or_the_last_failures(tmp_path: Path) -> None:
    spaces = [space(1, "gone"), space(2, "denied"), space(3), space(4), space(5)]
    series = {f"{name}{{{labels}}}": "1x70" for labels in spaces for name in (BLIND, SINCE_SUCCESS)}
    series |= {f"account:chatapp_account_unpolled:group{{{account('gone')}}}": "1x70"}
    states = {"gone": "ok", "denied": "denied", "a": "throttled"}
    series |= {
        f'account_state:chatapp_account_state:last{{{account(name)}, state="{state}"}}': f"{int(state == current)}x70"
        for name, current in states.items()
        for state in ("ok", "denied", "unreachable", "throttled")
    }
    failures = "chatapp_space_poll_failures_total"
    series |= {f'{failures}{{{space(3)}, instance="i", reason="timeout"}}': "0+1x70"}
    series |= {f'{failures}{{{space(3)}, instance="i", reason="server"}}': "0+2x70"}

    series |= {f'{failures}{{{space(5)}, instance="i", reason="rejected"}}': "_x40 1x30"}
    series |= {f'chatapp_space_polls_total{{{space(5)}, instance="i"}}': "0+1x70"}

    no_failure = "no failed poll in the last hour"
    reasons = ("account not polled by any exporter", "account denied", "server", no_failure, "rejected")
    expected = {
        f'{labels.split(", space")[0]}, reason="{reason}", space{labels.split(", space")[1]}': 1.0
        for labels, reason in zip(spaces, reasons, strict=True)
    }
    evaluate(tmp_path, series, (f"group without () ({query('List of blind spaces', 'C')})", expected), at="65m")


def test_accounts_are_those_of_the_selected_spaces(tmp_path: Path) -> None:
    series = {f"{ACCOUNT_UP}{{{account(name)}}}": "1x30" for name in ("a", "b", "empty")}
    series |= {f"{SINCE_SUCCESS}{{{space(1, 'a')}}}": "0x30", f"{SINCE_SUCCESS}{{{space(2, 'b')}}}": "0x30"}
    series |= {f"account:chatapp_account_down:group{{{account('b')}}}": "1x30"}

    evaluate(
        tmp_path,
        series,
        (query("Accounts"), {account("a"): 0, account("b"): 1e12, account("empty"): 0}),
        (query("Accounts", space="1"), {account("a"): 0, account("empty"): 0}),
        (query("Accounts down"), {"": 1}),
        (query("Accounts down", space="1"), {"": 0}),
        (query("Accounts down", account="a"), {"": 0}),
    )


def test_only_targets_that_are_exporters_count_as_exporters(tmp_path: Path) -> None:
    series = {'up{job="j", instance="1"}': "1x10 0x20", 'up{job="j", instance="2"}': "1x30"}
    series |= {'up{job="node", instance="3"}': "0x30"}
    series |= {f'chatapp_exporter_build_info{{job="j", instance="{instance}"}}': "1x5 stale" for instance in "12"}

    evaluate(tmp_path, series, (query("Exporters down"), {"": 1}), (query("Exporters down", job="node"), {}))
