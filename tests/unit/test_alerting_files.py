"""The files for Prometheus, its operator and Alertmanager: valid, complete and consistent."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import require_program

from exporter.metrics.catalogue import BLIND_INTERVALS, FAMILIES, NUMBER_FAMILIES, SPACE_FAMILIES
from exporter.metrics.instruments import Instruments
from exporter.model import DOWN_STATUSES, RESTRICTED_STATUSES

CONFIG = Path(__file__).parents[2] / "config"
RULES = CONFIG / "prometheus" / "chatapp.rules.yml"
REMOTE_WRITE = CONFIG / "prometheus" / "remote-write.example.yml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RECORDS = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
ALERTMANAGER = yaml.safe_load((CONFIG / "alertmanager" / "alertmanager.yml").read_text())
DASHBOARDS = {
    "chatapp-phone-number": ("job", "account", "space", "phone_number"),
    "chatapp-fleet": ("job", "account", "space"),
    "chatapp-exporter": ("job", "account"),
}
"""Maps the uid of each dashboard that alerts link to its variables."""
EXPECTED_ALERTS = {
    "ChatAppPhoneNumberQualityRed": ("critical", "10m", "15m"),
    "ChatAppPhoneNumberQualityYellow": ("warning", None, "1h"),
    "ChatAppMessagingLimitDropped": ("warning", "10m", "15m"),
    "ChatAppPhoneNumberDown": ("critical", "10m", "15m"),
    "ChatAppPhoneNumberRestricted": ("warning", "10m", "15m"),
    "ChatAppPhoneNumberVanished": ("warning", "10m", "15m"),
    "ChatAppSpaceBlind": ("warning", "1m", "30m"),
    "ChatAppAccountDenied": ("critical", "2m", "10m"),
    "ChatAppAccountUnreachable": ("critical", "1m", "10m"),
    "ChatAppThrottled": ("warning", "10m", "15m"),
    "ChatAppScheduleOverrun": ("warning", "15m", "30m"),
    "ChatAppDiscoveryFailing": ("warning", "30m", "30m"),
    "ChatAppUnknownValue": ("info", None, None),
    "ChatAppConfigReloadFailed": ("warning", "5m", "15m"),
    "ChatAppExporterDown": ("critical", "5m", None),
    "ChatAppExporterClockSkew": ("warning", "10m", "15m"),
}
"""The severity, `for` and `keep_firing_for` of each alert."""


def families() -> set[str]:
    """Return the names of all metrics of the exporter."""
    instruments = {sample.name for family in Instruments(["acme"]).collect() for sample in family.samples} | {
        "chatapp_api_unknown_values_total",
        "chatapp_api_requests_total",
    }  # no series at startup
    catalogue = [(row.name, row.type) for row in FAMILIES]
    return instruments | {f"{name}_total" if kind == "counter" else name for name, kind in catalogue}


@pytest.mark.parametrize(
    ("command", "package", "arguments"),
    [
        ("promtool", "prometheus", ["check", "rules", "--lint-fatal", RULES]),
        ("promtool", "prometheus", ["check", "config", CONFIG / "prometheus" / "prometheus.yml"]),
        ("promtool", "prometheus", ["check", "config", REMOTE_WRITE]),
        ("amtool", "prometheus-alertmanager", ["check-config", CONFIG / "alertmanager" / "alertmanager.yml"]),
    ],
)
def test_promtool_or_amtool_accepts_the_file(command: str, package: str, arguments: list[Any]) -> None:
    process = subprocess.run([require_program(command, package=package), *arguments], capture_output=True, text=True)

    assert process.returncode == 0, process.stdout + process.stderr


def test_the_alerts_have_the_documented_names_severities_and_times() -> None:
    assert {
        rule["alert"]: (rule["labels"]["severity"], rule.get("for"), rule.get("keep_firing_for")) for rule in ALERTS
    } == EXPECTED_ALERTS


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_static_summary_a_description_a_runbook_and_a_dashboard(rule: dict[str, Any]) -> None:
    annotations = rule["annotations"]

    assert set(annotations) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert "{{" not in annotations["summary"]
    page = annotations["runbook_url"].partition("/blob/main/")[2]
    assert (CONFIG.parent / page).is_file(), page


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_the_dashboard_url_of_an_alert_selects_its_labels(rule: dict[str, Any]) -> None:
    address, _, query = rule["annotations"]["dashboard_url"].partition("?")
    uid = address.removeprefix("https://grafana.example.com/d/")
    variables = re.sub(r'{{ or (\S+) "\$__all" \| ', r"{{ \1 | ", query).split("&")

    assert uid in {json.loads(path.read_text())["uid"] for path in (CONFIG.parent / "dashboards").glob("*.json")}
    assert variables == [
        f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in DASHBOARDS[uid][: len(variables)]
    ]
    if "group_left (team)" in rule["expr"]:  # an alert about a phone number or a space
        assert f"$labels.{'phone_number' if uid == 'chatapp-phone-number' else 'space'}" in query
        assert ("$labels.phone_number" in query) == ("$labels.phone_number" in rule["annotations"]["description"])


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_about_phone_numbers_and_spaces_have_the_team_of_the_space(rule: dict[str, Any]) -> None:
    about_a_space = rule["alert"].startswith(("ChatAppPhoneNumber", "ChatAppSpace", "ChatAppMessagingLimit"))
    team = "* on (job, account, space) group_left (team) space:chatapp_space_info:last"

    assert rule["expr"].rstrip().endswith(team) == about_a_space


def test_descriptions_have_the_same_down_and_restricted_statuses_as_the_rules() -> None:
    descriptions = {rule["alert"]: rule["annotations"]["description"] for rule in ALERTS}
    statuses = {
        name: re.findall(r'status=~\\"([^"]*)\\"', descriptions[name])
        for name in ("ChatAppPhoneNumberDown", "ChatAppPhoneNumberRestricted")
    }

    assert statuses == {
        "ChatAppPhoneNumberDown": ["|".join(sorted(DOWN_STATUSES))],
        "ChatAppPhoneNumberRestricted": ["|".join(sorted(RESTRICTED_STATUSES))],
    }


def test_the_rules_use_only_metrics_of_the_exporter_and_recorded_series() -> None:
    expressions = " ".join(rule["expr"] for group in GROUPS for rule in group["rules"])
    descriptions = " ".join(rule["annotations"]["description"] for rule in ALERTS)
    names = set(re.findall(r"(?:\w+:)?chatapp_\w+(?::\w+)?", expressions + descriptions))

    assert names <= families() | RECORDS


def test_the_rules_and_the_exporter_agree_on_down_and_restricted_statuses() -> None:
    (ranks,) = (
        rule["expr"]
        for group in GROUPS
        for rule in group["rules"]
        if rule.get("record") == "phone_number:chatapp_phone_number_status_rank:last"
    )
    ranked = re.findall(r'(\d) \* [^{]*{status ?=~ ?"([^"]*)"}', ranks)

    assert [(rank, frozenset(statuses.split("|"))) for rank, statuses in ranked] == [
        ("2", DOWN_STATUSES),
        ("1", RESTRICTED_STATUSES),
    ]


@pytest.mark.parametrize("name", ["space:chatapp_space_blind:group", "ChatAppSpaceBlind", "ChatAppAccountUnreachable"])
def test_the_rules_and_the_pages_use_the_same_number_of_intervals(name: str) -> None:
    rules = [rule for group in GROUPS for rule in group["rules"]]
    (expression,) = (rule["expr"] for rule in rules if name in (rule.get("record"), rule.get("alert")))

    assert set(re.findall(r"(\d+) \* [\w: (]*effective_poll_interval_seconds", expression)) == {str(BLIND_INTERVALS)}


def test_the_names_of_maxima_have_the_length_of_their_time_window() -> None:
    rules = {rule["record"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "record" in rule}
    windows = {name: re.findall(r"\[(\w+)\]", expression) for name, expression in rules.items()}
    lengths = {name: match[1] for name in rules if (match := re.search(r":max(\d+\w)$", name))}

    assert lengths
    assert {name: windows[name] for name in lengths} == {name: [length] for name, length in lengths.items()}


def test_remote_write_sends_all_series_and_removes_the_instance_from_spaces_and_phone_numbers() -> None:
    ((kept, *without_instance),) = [
        [re.compile(config["regex"]) for config in remote["write_relabel_configs"]]
        for remote in yaml.safe_load(REMOTE_WRITE.read_text())["remote_write"]
    ]
    names = families() | RECORDS
    rows = [(row.name, row.type) for row in NUMBER_FAMILIES] + [(row.name, row.type) for row in SPACE_FAMILIES]
    expected = {f"{name}_total" if kind == "counter" else name for name, kind in rows}

    assert all(kept.fullmatch(name) for name in names if "chatapp_" in name)
    assert {name for name in names if without_instance[0].fullmatch(name)} == expected
    assert len({pattern.pattern for pattern in without_instance}) == 1


def test_the_prometheus_rule_has_the_same_groups() -> None:
    manifest = yaml.safe_load((CONFIG / "kubernetes" / "prometheusrule.yaml").read_text())

    assert (manifest["kind"], manifest["spec"]) == ("PrometheusRule", {"groups": GROUPS}), "run: make generate"


def test_alertmanager_names_only_existing_alerts_and_receivers() -> None:
    names = set(re.findall(r"ChatApp\w+", str(ALERTMANAGER)))
    receivers = {receiver["name"] for receiver in ALERTMANAGER["receivers"]}
    root = ALERTMANAGER["route"]
    route_receivers = {root["receiver"], *(route["receiver"] for route in root["routes"])}

    assert names <= set(EXPECTED_ALERTS)
    assert route_receivers == receivers
