"""Tests of single rules: each rule alone, with written results of the rules that it reads.

`rules/single_rules.yml` maps names of rules to cases. A case has the input (`given`: series in promtool's notation, one
sample per minute) and the result by minute (`then`: labels and values). The result of an alert is that of its
expression. If the series of a case have no job, account or space, they are used for two jobs, accounts and spaces.
The cases of a rule need less than a second, therefore `make mutants` uses these tests for each fault.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from programs import require_program
from rule_faults import Rule

SINGLE_RULES = Path(__file__).parent / "rules" / "single_rules.yml"


def load_cases() -> Mapping[str, list[dict[str, Any]]]:
    """Return the cases of each rule."""
    cases: Mapping[str, list[dict[str, Any]]] = yaml.safe_load(SINGLE_RULES.read_text())
    return cases


def failures(rule: Rule, cases: list[dict[str, Any]]) -> str:
    """Return the failures of these cases, in promtool's notation."""
    record = rule.get("record", "result")
    with TemporaryDirectory() as directory:
        path = Path(directory)
        group = {"name": "rule", "rules": [{"record": record, "expr": rule["expr"]}]}
        (path / "rules.json").write_text(json.dumps({"groups": [group]}))
        tests = [_promtool_test(record, case) for case in cases]
        document = {"rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": tests}
        (path / "test.json").write_text(json.dumps(document))
        promtool = require_program("promtool", package="prometheus")
        result = subprocess.run([promtool, "test", "rules", path / "test.json"], capture_output=True, text=True)
    return result.stderr if result.returncode else ""


def _promtool_test(record: str, case: dict[str, Any]) -> dict[str, Any]:
    given, then = (case["given"], case["then"]) if record.startswith("rules:") else _copied(case)
    return {
        "interval": "1m",
        "input_series": [{"series": series, "values": str(values)} for series, values in given.items()],
        "promql_expr_test": [
            {
                "expr": record,
                "eval_time": time,
                "exp_samples": [{"labels": record + labels, "value": value} for labels, value in samples.items()],
            }
            for time, samples in then.items()
        ],
    }


def _copied(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the input and the results of two jobs, accounts and spaces, if the case does not have these labels."""
    given, then, text = case["given"], case["then"], str(case)
    levels = 3 if "phone_number=" in text else 2 if "space=" in text else 1
    for label in ("job", "account", "space")[:levels]:
        if f"{label}=" not in text:
            given = _with_label(given, label)
            then = {time: _with_label(samples, label) for time, samples in then.items()}
    return given, then


def _with_label(samples: dict[str, Any], label: str) -> dict[str, Any]:
    """Return the samples twice, with different values of this label. Series about evaluations have no labels."""
    copied = {series: value for series, value in samples.items() if series.startswith("rules:")}
    for series in samples.keys() - copied.keys():
        name, _, labels = series.partition("{")
        for number in ("1", "2"):
            copied[f'{name}{{{label}="{number}",{labels or "}"}'.replace(",}", "}")] = samples[series]
    return copied
