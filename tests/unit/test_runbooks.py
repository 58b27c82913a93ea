"""The runbooks against what they tell of: the rules file and the families that the exporter has."""

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
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(RUNBOOKS.glob("*.md")) if path.stem != "README"}
INDEX = (RUNBOOKS / "README.md").read_text("utf-8")
SECTIONS = ["Meaning", "Impact", "Find out more", "What to do"]

METRIC = re.compile(r"(?:[a-z_]+:)?\bchatapp_\w+(?::\w+)?")
CJK = re.compile(r"[\u4e00-\u9fff]")
ROW = re.compile(r"^\| \[(\w+)\]\((\S+)\) \| (\w+) \| (.+) \| (.+) \|$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def metric_names() -> set[str]:
    """Every name that a query can ask for: samples of the exporter, and what the rules record."""
    families = [(family.name, str(family.type)) for family in FAMILIES]
    families += [(family.name, family.type) for family in Instruments().collect()]
    samples = {name + suffix for name, kind in families for suffix in SUFFIXES.get(kind, ("",))}
    return samples | {rule["record"] for rule in RULES if "record" in rule}


def paragraphs(page: str) -> list[str]:
    return page.split("\n\n")


def indexed() -> dict[str, tuple[str, str, str]]:
    """By alert: its link, severity and when it fires."""
    return {alert: (link, severity, when) for alert, link, severity, when, _ in ROW.findall(INDEX)}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert sorted(PAGES) == sorted(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_its_own_runbook(alert: str) -> None:
    assert ALERTS[alert]["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{alert}.md")


@pytest.mark.parametrize("alert", PAGES)
def test_a_runbook_begins_with_what_has_happened_in_three_languages(alert: str) -> None:
    title, english, chinese, indonesian = paragraphs(PAGES[alert])[:4]

    assert title == f"# {alert}"
    assert english.isascii()
    assert chinese.startswith("**中文** ")
    assert len(CJK.findall(chinese)) > 20
    assert indonesian.startswith("**Bahasa Indonesia** ")
    assert not CJK.search(indonesian)


@pytest.mark.parametrize("alert", PAGES)
def test_a_runbook_goes_from_the_meaning_to_what_to_do(alert: str) -> None:
    sections = re.findall(r"^## (.+)$", PAGES[alert], re.MULTILINE)

    assert sections in (SECTIONS, [*SECTIONS, "Policy"])


@pytest.mark.parametrize("alert", PAGES)
def test_a_policy_says_as_of_when_and_from_which_page(alert: str) -> None:
    _, found, policy = PAGES[alert].partition("\n## Policy\n")

    assert not found or re.search(r"As of \w+ \d{4}\b.*\bSource:\s.*https://", policy, re.DOTALL)


@pytest.mark.parametrize("alert", PAGES)
def test_a_runbook_tells_severity_and_times_of_its_rule(alert: str) -> None:
    rule = ALERTS[alert]
    times = [f"`{key}: {rule[key]}`" if key in rule else f"no `{key}`" for key in ("for", "keep_firing_for")]

    assert f"- Severity `{rule['labels']['severity']}`, {', '.join(times)}.\n" in PAGES[alert]


@pytest.mark.parametrize("alert", PAGES)
def test_a_runbook_has_queries_and_numbered_steps(alert: str) -> None:
    assert "```promql\n" in PAGES[alert]
    assert "\n1. " in PAGES[alert].partition("\n## What to do\n")[2]


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_a_runbook_names_only_metrics_that_exist(page: str) -> None:
    named = set(METRIC.findall({**PAGES, "README": INDEX}[page]))

    assert named
    assert named <= metric_names()


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_a_link_of_a_runbook_leads_somewhere(page: str) -> None:
    for target in LINK.findall({**PAGES, "README": INDEX}[page]):
        assert (RUNBOOKS / target).is_file(), target


def test_the_index_has_a_row_for_every_alert() -> None:
    assert sorted(indexed()) == sorted(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_the_index_tells_page_severity_and_time_of_an_alert(alert: str) -> None:
    rule = ALERTS[alert]
    link, severity, when = indexed()[alert]

    assert link == f"{alert}.md"
    assert severity == rule["labels"]["severity"]
    assert when.endswith(f", for {rule['for']}" if "for" in rule else ", at once")
