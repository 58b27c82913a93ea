"""The rules that record one value per hour, evaluated once per hour, and the queries of the Review dashboard.

`promtool test rules` ignores the interval of a group. Therefore the group is in a separate file, and the evaluation
interval of the test is one hour.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from incident import RULES, run_promtool

from dashboards.__main__ import DIRECTORY

LABELS = 'job="chatapp-exporter",account="acme",space="1",phone_number="15550100001"'
RANK, STATUS_RANK, DROPPED = (
    f"phone_number:chatapp_phone_number_{name}" for name in ("quality_rank", "status_rank", "messaging_limit_dropped")
)
VARIABLES = {"job": ".+", "account": ".+", "space": ".+", "__range": "4d"}


def run(directory: Path, interval: str, series: dict[str, str], *tests: tuple[str, str, Mapping[str, float]]) -> None:
    """Evaluate the hourly group with these series, and check the value of each query: query, time, value by label."""
    groups = [group for group in yaml.safe_load(RULES.read_text())["groups"] if group["name"] == "chatapp.hourly"]
    rules = directory / "hourly.yml"
    rules.write_text(yaml.safe_dump({"groups": groups}))
    document: dict[str, Any] = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1h",
        "tests": [
            {
                "interval": interval,
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": time,
                        "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
                    }
                    for query, time, samples in tests
                ],
            }
        ],
    }
    result = run_promtool(document, directory)

    assert result.returncode == 0, result.stderr


def query(title: str, ref: str = "A") -> str:
    """Return a query of the panel of the Review dashboard, with values for its variables."""
    panels = json.loads((DIRECTORY / "review.json").read_text())["panels"]
    (panel,) = (panel for panel in panels if panel["title"] == title)
    (expression,) = (target["expr"] for target in panel["targets"] if target["refId"] == ref)
    return re.sub(r"\$(\w+)", lambda match: VARIABLES[match[1]], expression)


def hourly(*runs: tuple[int, int]) -> str:
    """Return the samples of a series at half past each hour: each value for a number of hours."""
    return " ".join(f"_ {value}" for value, hours in runs for _ in range(hours))


@pytest.mark.parametrize(
    ("series", "recorded", "worst"),
    [
        (f"{RANK}:last", f"{RANK}:max1h", 3),
        (f"{STATUS_RANK}:last", f"{STATUS_RANK}:max1h", 2),
        (f"{DROPPED}:bool", f"{DROPPED}:max1h", 1),
    ],
)
def test_an_hourly_value_is_the_worst_value_of_the_hour(series: str, recorded: str, worst: int, tmp_path: Path) -> None:
    def value(time: str, expected: int) -> tuple[str, str, Mapping[str, float]]:
        return recorded, time, {f"{recorded}{{{LABELS}}}": expected}

    worst_after_5_minutes = {f"{series}{{{LABELS}}}": f"0 {worst} 0+0x34"}

    run(tmp_path, "5m", worst_after_5_minutes, value("1h", worst), value("2h", 0), value("3h", 0))


RED_AT_2_O_CLOCK_THEN_YELLOW_FOR_A_DAY = hourly((0, 25), (3, 1), (0, 22), (2, 24), (0, 24))


def test_a_bar_is_about_the_worst_value_of_the_day_after_its_time(tmp_path: Path) -> None:
    other = LABELS.replace("15550100001", "15550100002")
    series = {
        f"{RANK}:max1h{{{LABELS}}}": RED_AT_2_O_CLOCK_THEN_YELLOW_FOR_A_DAY,
        f"{RANK}:max1h{{{other}}}": hourly((0, 96)),
        f"{STATUS_RANK}:max1h{{{LABELS}}}": hourly((0, 50), (2, 1), (1, 30), (0, 15)),
        f"{DROPPED}:max1h{{{LABELS}}}": hourly((0, 71), (1, 25)),
    }
    red, yellow = query("Phone numbers RED or YELLOW"), query("Phone numbers RED or YELLOW", "B")
    down, restricted = query("Phone numbers down or restricted"), query("Phone numbers down or restricted", "B")
    dropped = query("Phone numbers with a dropped limit")
    expected = {red: (0, 1, 0, 0), yellow: (0, 0, 1, 0), down: (0, 0, 1, 0), restricted: (0, 0, 0, 1)}
    expected |= {dropped: (0, 0, 1, 1)}

    run(
        tmp_path,
        "30m",
        series,
        *((expr, f"{24 * day}h", {"{}": value}) for expr, days in expected.items() for day, value in enumerate(days)),
        (red, "96h", {}),  # no values: no zero
        (yellow, "120h", {}),
    )


def test_a_change_at_midnight_is_counted_once(tmp_path: Path) -> None:
    series = {f"{RANK}:max1h{{{LABELS}}}": RED_AT_2_O_CLOCK_THEN_YELLOW_FOR_A_DAY}
    changes = query("Changes")

    run(
        tmp_path,
        "30m",
        series,
        *((changes, f"{24 * day}h", {"{}": count}) for day, count in enumerate((0, 2, 1, 1))),
        ("vector(1)", "120h", {"{}": 1}),
    )


def test_a_customer_got_worse_if_a_number_was_better_in_the_time_range(tmp_path: Path) -> None:
    """The first number became RED, the second was always RED, the third is GREEN again, the fourth became DISCONNECTED,
    the messaging limit of the fifth dropped."""
    now = {1: (3, 0, 0), 2: (3, 0, 0), 3: (0, 0, 0), 4: (0, 2, 0), 5: (0, 0, 1)}
    series = {}
    for number, values in now.items():
        labels = LABELS[:-2] + f'{number}"'
        for series_name, suffix, value in zip(
            (RANK, STATUS_RANK, DROPPED), ("last", "last", "bool"), values, strict=True
        ):
            series[f"{series_name}:{suffix}{{{labels}}}"] = f"{value}+0x96"
        best, worst = {1: (0, 3), 2: (3, 3), 3: (0, 3)}.get(number, (0, 0))
        series[f"{RANK}:max1h{{{labels}}}"] = hourly((worst, 20), (best, 28))
        series[f"{STATUS_RANK}:max1h{{{labels}}}"] = hourly((0, 48))
    worse = {LABELS[:-2] + f'{number}"': severity for number, severity in ((4, 10), (1, 3), (5, 0))}

    run(
        tmp_path,
        "30m",
        series,
        (query("Customers that got worse (at most 100 numbers)"), "48h", {f"{{{k}}}": v for k, v in worse.items()}),
    )


def test_the_numbers_of_a_customer_with_problems_are_counted_under_its_name(tmp_path: Path) -> None:
    unnamed = LABELS.replace('space="1"', 'space="2"')
    series = {
        f"{RANK}:max1h{{{LABELS}}}": RED_AT_2_O_CLOCK_THEN_YELLOW_FOR_A_DAY,
        f"{RANK}:max1h{{{unnamed}}}": RED_AT_2_O_CLOCK_THEN_YELLOW_FOR_A_DAY,
        f"phone_number:chatapp_phone_number_info:last{{{unnamed}}}": "1+0x200",
        'space:chatapp_space_info:last{job="chatapp-exporter",account="acme",space="1",name="Contoso",team="emea"}': (
            "1+0x200"
        ),
    }
    space = '{job="chatapp-exporter",account="acme",space="%s"%s}'

    run(
        tmp_path,
        "30m",
        series,
        (
            query("Customers with problems", "B"),
            "96h",
            {space % ("1", ',name="Contoso"'): 1, space % ("2", ""): 1},
        ),
        (query("Customers with problems", "D"), "96h", {}),
        # the rows are sorted by the worst problem and its number of phone numbers
        (
            query("Customers with problems", "G"),
            "96h",
            {space % ("1", ',name="Contoso"'): 1e9, space % ("2", ""): 1e9},
        ),
    )
