"""The labels and descriptions of alerts about a phone number or a space, with written samples."""

from pathlib import Path

import pytest
import yaml
from incident import RULES, expanded_url, promtool_document, run_promtool, written_series

from exporter.metrics.lines import format_labels

JOB = "chatapp-exporter"
MINUTES = 40


def samples(family: str, values: str, /, **labels: str) -> dict[str, str]:
    """Return a series of the exporter in promtool's notation, with one value per minute."""
    target = {"account": "acme", "space": "1", "job": JOB, "instance": "a:10144", **labels}
    return {f"{family}{{{format_labels(tuple(target.items()))}}}": values}


def number_series(space_name: str = "Contoso", *, verified_name: str = "Contoso Care", **labels: str) -> dict[str, str]:
    """Return the series of a space with one number."""
    always = f"1+0x{MINUTES}"
    return {
        **samples("chatapp_space_up", always, **labels),
        **samples("chatapp_space_last_success_timestamp_seconds", f"0+60x{MINUTES}", **labels),
        **samples("chatapp_space_info", always, name=space_name, **labels),
        **samples("chatapp_phone_number_info", always, phone_number="1555", verified_name=verified_name, **labels),
    }


def banned(values: str, **labels: str) -> dict[str, str]:
    return samples("chatapp_phone_number_status", values, phone_number="1555", status="BANNED", **labels)


def assert_alerts(
    directory: Path, alert: str, series: dict[str, str], time: str, expected: list[tuple[dict[str, str], str]]
) -> None:
    """Check the labels and the descriptions of all firing alerts of a rule at this time."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rule = next(rule for group in groups for rule in group["rules"] if rule.get("alert") == alert)
    alerts = []
    for changed_labels, description in expected:
        labels = {"job": JOB, "account": "acme", "space": "1", **changed_labels}
        url = expanded_url(rule["annotations"]["dashboard_url"], labels)
        annotations = {**rule["annotations"], "description": description, "dashboard_url": url}
        alerts.append({"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": annotations})
    test = {"eval_time": time, "alertname": alert, "exp_alerts": alerts}
    result = run_promtool(promtool_document(written_series(series), alert_rule_test=[test]), directory)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("space_name", "verified_name", "names"),
    [
        ("Contoso", "Contoso Care", " (Contoso Care) of Contoso"),
        ("Contoso", "Contoso", " (Contoso)"),
        ("", "Contoso Care", " (Contoso Care)"),
        ("Contoso", "", " of Contoso"),
        ("", "", ""),
        ('"Contoso"\\', "<!channel> & *Co* {{ $value }}", ' (<!channel> & *Co* {{ $value }}) of "Contoso"\\'),
    ],
)
def test_a_description_has_each_name_once(space_name: str, verified_name: str, names: str, tmp_path: Path) -> None:
    series = number_series(space_name, verified_name=verified_name) | banned("1+0x40")
    description = (
        f"+1555{names} in space 1 of account acme was down for at least 10 minutes (status BANNED)."
        " A number that is down cannot send or receive messages."
    )

    assert_alerts(tmp_path, "ChatAppPhoneNumberDown", series, "20m", [({"phone_number": "1555"}, description)])


def test_a_description_does_not_name_the_space_of_own_numbers(tmp_path: Path) -> None:
    series = number_series("", space="own") | banned("1+0x40", space="own")
    description = (
        "+1555 (Contoso Care) of account acme was down for at least 10 minutes (status BANNED)."
        " A number that is down cannot send or receive messages."
    )
    labels = {"space": "own", "phone_number": "1555"}

    assert_alerts(tmp_path, "ChatAppPhoneNumberDown", series, "20m", [(labels, description)])


def test_a_description_has_the_status_that_fired_while_the_alert_is_kept_after_its_end(tmp_path: Path) -> None:
    connected = samples("chatapp_phone_number_status", "_x20 1+0x20", phone_number="1555", status="CONNECTED")
    series = number_series() | banned("1+0x19 stale") | connected
    description = (
        "+1555 (Contoso Care) of Contoso in space 1 of account acme was down for at least 10 minutes (status BANNED)."
        " A number that is down cannot send or receive messages."
    )

    assert_alerts(tmp_path, "ChatAppPhoneNumberDown", series, "30m", [({"phone_number": "1555"}, description)])


def test_the_same_number_in_two_jobs_and_with_two_statuses(tmp_path: Path) -> None:
    status = "chatapp_phone_number_status"
    staging = samples(status, "1+0x40", phone_number="1555", status="OFFLINE", job="staging")
    series = {
        **number_series(),
        **banned("1+0x9 stale"),
        **samples(status, "_x10 1+0x30", phone_number="1555", status="DELETED"),
        **number_series("Test", job="staging"),
        **staging,
    }
    end = " A number that is down cannot send or receive messages."
    text = "in space 1 of account acme was down for at least 10 minutes"
    expected = [
        (
            {"phone_number": "1555"},
            f"+1555 (Contoso Care) of Contoso {text} (status BANNED or DELETED).{end}",
        ),
        ({"phone_number": "1555", "job": "staging"}, f"+1555 (Contoso Care) of Test {text} (status OFFLINE).{end}"),
    ]

    assert_alerts(tmp_path, "ChatAppPhoneNumberDown", series, "20m", expected)


def test_a_number_that_is_no_longer_listed(tmp_path: Path) -> None:
    number = samples("chatapp_phone_number_info", "1+0x9 stale", phone_number="1555", verified_name="Contoso Care")
    labels = {"phone_number": "1555", "team": "emea"}
    series = {
        **samples("chatapp_space_up", "1+0x40"),
        **samples("chatapp_space_info", "1+0x40", name="Contoso", team="emea"),
        **samples("chatapp_space_last_success_timestamp_seconds", "0+60x40"),
        **number,
    }
    description = (
        "The API stopped listing +1555 (Contoso Care) of Contoso in space 1 of account acme."
        " A later poll of the space succeeded, and no polled space listed the number."
    )

    assert_alerts(tmp_path, "ChatAppPhoneNumberVanished", series, "30m", [(labels, description)])


@pytest.mark.parametrize(
    ("space", "name", "subject"),
    [
        ("1", "Contoso", "Space 1 (Contoso)"),
        ("1", "", "Space 1"),
        ("own", "", "The own phone numbers"),
    ],
)
def test_a_blind_space(space: str, name: str, subject: str, tmp_path: Path) -> None:
    interval = "chatapp_account_effective_poll_interval_seconds"
    account = f'account="acme",job="{JOB}",instance="a:10144"'
    series = {
        f"{interval}{{{account}}}": "300+0x40",
        f"chatapp_account_up{{{account}}}": "1+0x40",
        f"chatapp_account_spaces{{{account}}}": "1+0x40",
        **samples("chatapp_space_up", "0+0x40", space=space),
        **samples("chatapp_space_info", "1+0x40", space=space, name=name, team="apac"),
        **samples("chatapp_space_last_success_timestamp_seconds", "0+0x40", space=space),
    }
    description = (
        f"{subject} of account acme had no successful poll for 20m 0s. In this time, phone numbers had no new values."
        " If a number became RED or was banned, no alert fired."
    )

    assert_alerts(tmp_path, "ChatAppSpaceBlind", series, "20m", [({"space": space, "team": "apac"}, description)])
