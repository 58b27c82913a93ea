"""Each rule alone, with written results of the rules that it reads: see single_rules.yml."""

import pytest
import yaml
from incident import RULES
from rule_faults import rule_name
from single_rules import failures, load_cases

SHIPPED = {rule_name(rule): rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


@pytest.mark.parametrize("name", load_cases())
def test_a_rule_has_the_expected_results(name: str) -> None:
    assert failures(SHIPPED[name], load_cases()[name]) == ""
