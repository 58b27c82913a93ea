"""The search of `make mutants` for faults that no test detects."""

from pathlib import Path
from typing import Any

import pytest
from mutants import FaultyRules, RecordedIncident, Search, different, report
from rule_faults import Fault

RULES = """
groups:
  - name: recording
    rules:
      - {record: "number:red:max", expr: "max by (number) (red)"}
      - {record: "number:weighted:max", expr: "number:red:max * on (number) weight"}
  - name: alerts
    rules:
      - {alert: Red, expr: "number:weighted:max == 1", for: 2m}
      - {alert: Other, expr: "other > 5"}
"""


@pytest.fixture
def rules(tmp_path: Path) -> FaultyRules:
    file = tmp_path / "rules.yml"
    file.write_text(RULES)
    return FaultyRules(file)


@pytest.fixture
def incident() -> RecordedIncident:
    """One of two numbers is red from minute 3, and the alert fires from minute 5."""
    expression = 'group by (alertname) (ALERTS{alertstate="firing"})'
    firing = [{"labels": '{alertname="Red"}', "value": 1}]
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [
            {"series": 'red{number="1"}', "values": "0 0 0 1 1 1 1 1"},
            {"series": 'red{number="2"}', "values": "0x7"},
            {"series": 'weight{number="1"}', "values": "1x7"},
            {"series": 'weight{number="2"}', "values": "1x7"},
        ],
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{minute}m", "exp_samples": firing if minute >= 5 else []}
            for minute in range(8)
        ],
        "alert_rule_test": [],
    }
    return RecordedIncident("red", {"evaluation_interval": "1m", "tests": [test]}, frozenset({"Red"}))


def descriptions(faults: dict[int, Fault]) -> set[str]:
    return {f"{fault.rule}: {fault.description}" for fault in faults.values()}


def test_a_changed_result_is_found_without_a_run_for_each_fault(rules: FaultyRules, incident: RecordedIncident) -> None:
    faults = dict(enumerate(rules.faults))

    changed, failed = different(rules, incident, faults)

    assert descriptions({number: faults[number] for number in failed}) == {
        "number:weighted:max: number:red:max * on ( [number → ] ) weight"
    }
    assert descriptions({number: faults[number] for number in faults.keys() - changed - failed}) == {
        "Red: number:weighted:max [== → >=] 1",
        "Other: other [> → >=] 5",
        "Other: other [> → <] 5",
        "Other: other > [5 → 10]",
        "Other: other > [5 → 2.5]",
    }


@pytest.mark.parametrize("search_by", ["fault", "incident"])
def test_faults_that_change_the_alerts_are_detected(
    rules: FaultyRules, incident: RecordedIncident, search_by: str
) -> None:
    faults = {number: fault for number, fault in enumerate(rules.faults) if fault.rule != "Other"}
    search = Search(rules, faults, [incident])

    if search_by == "incident":
        search.run_incident(incident)
    else:
        for number in faults:
            search.run_fault(number)

    assert descriptions(search.alive) == {
        "Red: number:weighted:max [== → >=] 1",
    }


@pytest.mark.parametrize(("survivors", "status"), [(5, 0), (6, 1)])
def test_at_most_5_percent_may_survive(survivors: int, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    faults = [Fault("r", "number", f"[0 → {number}]", "expr", str(number)) for number in range(100)]

    assert report(faults, faults[:survivors]) == status

    output = capsys.readouterr().out
    assert "not detected: r: [0 → 0]" in output
    assert f"| number | 100 | {survivors} |" in output
