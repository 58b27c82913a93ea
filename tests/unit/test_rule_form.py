"""The form of the rules: labels of joins, and previous results."""

from typing import Any

import pytest
import yaml
from incident import RULES
from rule_form import problems_of_form

GROUPS = yaml.safe_load(RULES.read_text())["groups"]
RESUMED = "rules:chatapp_evaluation_timestamp_seconds:resumed"


def problems_of(expression: str, *, record: str = "space:a:max") -> list[str]:
    rule: dict[str, Any] = {"record": record, "expr": expression}
    return problems_of_form([{"name": "g", "rules": [rule, {"record": "space:later:max", "expr": "b"}]}])


def test_the_rules_have_the_right_form() -> None:
    assert problems_of_form(GROUPS) == []


@pytest.mark.parametrize(
    "expression",
    [
        "max by (job, account, space) (b)",
        "max by (job, account, space, phone_number, status) (b)",
        "topk by (job, account) (1, b)",
        "b and on (job, instance, account) c",
        "b and on (job, instance, account) chatapp_account_up",
        f"(space:a:max or last_over_time(space:a:max[1h]) and on () {RESUMED}) and on (job) c",
        f"(space:later:max or last_over_time(space:later:max[1h])\nand on () {RESUMED}) # or (\nand on (job) c",
    ],
)
def test_expressions_without_problems(expression: str) -> None:
    assert problems_of(expression) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("max by (job, account) (b)", "does not have the labels of the level"),
        ("max by (job, space) (b)", "is not a level"),
        ("b and on (account, space) c", "is not a level"),
        ("b and on () c", "without labels"),
        ("max by (job) (b)", "is not a level"),
        ("b and on (job, account) space:c:max", "does not have the labels of space:"),
        ("b > on (job) group_left () 3 * max_over_time(account:c:last[5m])", "does not have the labels of account:"),
        ("b and on (job, account) chatapp_phone_number_info", "does not have the labels of chatapp_phone_number_info"),
        ("b and on (job, account, space) (space_instance:c:max or d)", "does not have the labels of space_instance:"),
        ("b or space:a:max", "has the form"),
        (f"last_over_time(space:a:max[1h]) and on () {RESUMED}", "has the form"),
        (f"space:a:max or last_over_time(space:a:max[2h]) and on () {RESUMED}", "has the form"),
        ("space:a:max or last_over_time(space:a:max[1h])", "has the form"),
        (f"(space:a:max or last_over_time(space:a:max[1h]) and on () {RESUMED}) or c", "has the form"),
        ("b and on (job, account, space) space:later:max", "has the form"),
    ],
)
def test_expressions_with_problems(expression: str, problem: str) -> None:
    (found,) = problems_of(expression)

    assert problem in found


def test_a_last_value_is_kept() -> None:
    assert problems_of("max by (job, account, space) (b)", record="space:a:last") == ["space:a:last: keeps no value"]


def test_rules_of_flapping_series_are_the_same() -> None:
    rules = [
        {"record": f"phone_number:{name}:flapping", "expr": f"changes(phone_number:{name}:last[1h]) > {number}"}
        for name, number in (("a", 2), ("b", 2), ("c", 3))
    ]

    assert problems_of_form([{"name": "g", "rules": rules[:2]}]) == []
    assert len(problems_of_form([{"name": "g", "rules": rules}])) == 1
