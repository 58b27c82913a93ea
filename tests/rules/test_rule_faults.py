"""The faults that `make mutants` plants in the rules."""

import subprocess
from pathlib import Path

import pytest
import yaml
from incident import RULES
from mutants import load_equivalent_faults
from programs import require_program
from rule_faults import Rule, find_faults, rule_name

SHIPPED = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a >= 2", {"a > 2", "a < 2", "a >= 4", "a >= 1"}),
        ("a == 0  # a comment with 1 or 2", {"a != 0", "a >= 0", "a == 1"}),
        ("rate(a[10m])", {"rate (a[20m])", "rate (a[5m])"}),
        ("a offset 10m", {"a offset 20m", "a offset 5m"}),
        ("sum by (job, account) (a)", {"sum by (account) (a)", "sum by (job) (a)"}),
        ("a / on (job) group_left () b", {"a / on () group_left () b"}),
        (
            'a{b="1|2",c=~"1|2"}',
            {f"a{{{m}}}" for m in ('c =~ "1|2"', 'b = "1|2"', 'b = "1|2", c =~ "1"', 'b = "1|2", c =~ "2"')},
        ),
        ("a or on (x) b and c", {"b and c", "a", "a or on () b and c", "a or on (x) c", "a or on (x) b"}),
        ("f(a unless (b or c), d)", {"f ((b or c), d)", "f (a, d)", "f (a unless (c), d)", "f (a unless (b), d)"}),
    ],
)
def test_faults_of_an_expression(expression: str, expected: set[str]) -> None:
    assert {fault.value for fault in find_faults([{"record": "r", "expr": expression}])} == expected


def test_faults_of_an_alert() -> None:
    rule: Rule = {"alert": "A", "expr": "up", "for": "10m", "keep_firing_for": "1m", "labels": {"severity": "critical"}}

    assert [fault.plant(rule) for fault in find_faults([rule])] == [
        {**rule, "for": "20m"},
        {**rule, "for": "5m"},
        {**rule, "keep_firing_for": "2m"},
        {**rule, "keep_firing_for": "30s"},
        {**rule, "labels": {"severity": "warning"}},
    ]


def test_rules_with_a_fault_of_the_shipped_rules_are_valid_and_different(tmp_path: Path) -> None:
    """An invalid rule would be counted as detected."""
    shipped = {rule_name(rule): rule for rule in SHIPPED}
    faults = find_faults(SHIPPED)
    # a fault has the same description only once per rule
    assert len({(fault.rule, fault.description) for fault in faults}) == len(faults)
    faulty = [fault.plant(shipped[fault.rule]) for fault in faults]
    numbered = [
        {
            "alert" if "alert" in rule else "record": f"r{number}",
            **{k: v for k, v in rule.items() if k not in ("alert", "record")},
        }
        for number, rule in enumerate(faulty)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.dump({"groups": [{"name": "faulty", "rules": numbered}]}, Dumper=yaml.CSafeDumper))

    promtool = require_program("promtool", package="prometheus")
    result = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_equivalent_faults_exist() -> None:
    assert load_equivalent_faults().keys() <= {(fault.rule, fault.description) for fault in find_faults(SHIPPED)}
