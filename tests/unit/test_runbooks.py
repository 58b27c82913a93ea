"""The runbooks: their sections, length and languages, and their facts compared with rules, metrics and dashboards."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.metrics.catalogue import FAMILIES
from exporter.metrics.instruments import Instruments

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "config" / "prometheus" / "chatapp.rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in RULES if "alert" in rule}
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(RUNBOOKS.glob("*.md"))}
INDEX = PAGES["README"]
ALERT_PAGES = {name: page for name, page in PAGES.items() if name != "README"}
SECTIONS = ["How bad it is", "What to check", "What to do", "When to escalate"]
MAX_LINES = 40
MAX_COLUMNS = 160

METRIC = re.compile(r"(?:[a-z_]+:)?\bchatapp_\w+(?::\w+)?")
CJK = re.compile(r"[\u4e00-\u9fff]")
ROW = re.compile(r"^\| \[(\w+)\]\((\S+)\) \| (\w+) \| (.+) \| (.+) \|$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")
POLICY = re.compile(r"As of \w+ \d{4}: .*\bSource\b.*?\]\(https://", re.DOTALL)
BOLD = re.compile(r"\*\*([^*]+)\*\*")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def metric_names() -> set[str]:
    """Return the names that a query can use: samples of the exporter and recorded series."""
    families = [(family.name, str(family.type)) for family in FAMILIES]
    families += [(family.name, family.type) for family in Instruments().collect()]
    samples = {name + suffix for name, kind in families for suffix in SUFFIXES.get(kind, ("",))}
    return samples | {rule["record"] for rule in RULES if "record" in rule}


def index_rows() -> dict[str, tuple[str, str, str]]:
    """Return the link, the severity and the condition of each alert in the index."""
    return {alert: (link, severity, condition) for alert, link, severity, condition, _ in ROW.findall(INDEX)}


def timing(rule: dict[str, Any]) -> str:
    """Return the sentence about the times of a rule, as far as the rule specifies it."""
    intervals = re.search(r"(\d+) \* \S*effective_poll_interval_seconds", rule["expr"])
    first = f"{intervals[1]} effective poll intervals and " if intervals else ""
    hours = re.search(r"> (\d+) \* 3600", rule["expr"])
    fires = f"after {first}{rule['for']}" if "for" in rule else f"after {hours[1]}h" if hours else "immediately"
    keep = rule.get("keep_firing_for")
    resolves = f", resolves {keep} after the cause is fixed" if keep else ", resolves "
    return f"- Severity: {rule['labels']['severity']}. Fires {fires}{resolves}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert sorted(ALERT_PAGES) == sorted(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_the_runbook_url_of_an_alert_is_its_page(alert: str) -> None:
    assert ALERTS[alert]["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{alert}.md")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_at_most_40_lines_long_and_160_columns_wide(page: str) -> None:
    lines = PAGES[page].splitlines()

    assert len(lines) <= MAX_LINES
    assert max(len(line) for line in lines) <= MAX_COLUMNS


@pytest.mark.parametrize("alert", ALERT_PAGES)
def test_a_runbook_starts_with_a_summary_in_three_languages(alert: str) -> None:
    title, english, chinese, indonesian = ALERT_PAGES[alert].split("\n\n")[:4]

    assert title == f"# {alert}"
    assert english.isascii()
    assert chinese.startswith("**中文** ")
    assert len(CJK.findall(chinese)) > 20
    assert indonesian.startswith("**Bahasa Indonesia** ")
    assert not CJK.search(indonesian)


@pytest.mark.parametrize("alert", ALERT_PAGES)
def test_all_runbooks_have_the_same_sections_in_the_same_order(alert: str) -> None:
    assert re.findall(r"^## (.+)$", ALERT_PAGES[alert], re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("alert", ALERT_PAGES)
def test_a_runbook_has_the_severity_and_the_times_of_its_rule(alert: str) -> None:
    assert f"\n{timing(ALERTS[alert])}" in ALERT_PAGES[alert]


@pytest.mark.parametrize("alert", ALERT_PAGES)
def test_a_runbook_has_checks_with_a_query_or_a_command_and_numbered_steps(alert: str) -> None:
    checks, _, actions = ALERT_PAGES[alert].partition("\n## What to check\n")[2].partition("\n## What to do\n")
    steps = actions.partition("\n## ")[0]

    assert "```promql\n" in checks or "`chatapp-exporter " in checks
    assert re.findall(r"^(\d+)\. ", steps, re.MULTILINE)[:2] == ["1", "2"]


@pytest.mark.parametrize("alert", [name for name, page in ALERT_PAGES.items() if "As of" in page])
def test_a_platform_rule_has_a_date_and_a_source(alert: str) -> None:
    assert POLICY.search(ALERT_PAGES[alert])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_metrics_that_exist(page: str) -> None:
    names = set(METRIC.findall(PAGES[page]))

    assert names
    assert names <= metric_names()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_dashboards_and_panels_that_exist(page: str) -> None:
    boards = [json.loads(path.read_text("utf-8")) for path in (ROOT / "dashboards").glob("*.json")]
    names = {board["title"].removeprefix("ChatApp / ") for board in boards}
    names |= {panel["title"] for board in boards for panel in board["panels"]}

    assert set(BOLD.findall(PAGES[page])) <= names | {"中文", "Bahasa Indonesia"}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_are_not_broken(page: str) -> None:
    for target in LINK.findall(PAGES[page]):
        assert (RUNBOOKS / target).is_file(), target


def test_the_index_has_a_row_for_every_alert() -> None:
    assert sorted(index_rows()) == sorted(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_the_index_has_the_link_the_severity_and_the_time_of_an_alert(alert: str) -> None:
    rule = ALERTS[alert]
    link, severity, condition = index_rows()[alert]

    assert link == f"{alert}.md"
    assert severity == rule["labels"]["severity"]
    fires = (
        "for 6h"
        if alert == "ChatAppPhoneNumberQualityYellow"
        else f"for {rule['for']}"
        if "for" in rule
        else "immediately"
    )
    assert condition.endswith(f", {fires}")
