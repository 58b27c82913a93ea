"""Run each incident in `incidents` with the shipped rules in promtool."""

from pathlib import Path

import pytest
from incident import INCIDENTS, RULES, load_incident, promtool_test, record_series, run_promtool


@pytest.mark.parametrize("path", sorted(INCIDENTS.glob("*.yml")), ids=lambda path: path.stem)
def test_exactly_the_expected_alerts_fire_apart_from_their_slack(path: Path, tmp_path: Path) -> None:
    incident = load_incident(path)
    world, series = record_series(incident)

    result = run_promtool(promtool_test(incident, world, series), tmp_path)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "added_spaces_waiting",
        "api_down_while_a_space_is_blind",
        "exporter_down_while_denied",
        "fields_no_longer_reported_during_an_outage_and_restarts",
        "number_no_longer_listed",
        "one_of_two_replicas_blind",
        "restarted_while_unreachable",
        "restarted_without_a_state_file_at_a_low_qps",
        "shard_down_during_red",
        "tier_of_all_numbers_no_longer_reported",
    ],
)
def test_the_same_alerts_fire_if_prometheus_evaluates_the_rules_only_every_10_minutes(
    name: str, tmp_path: Path
) -> None:
    """Each evaluation is the first one after a gap that is longer than the lookback of 5 minutes."""
    incident = load_incident(INCIDENTS / f"{name}.yml")
    world, series = record_series(incident)

    result = run_promtool(promtool_test(incident, world, series, evaluation_minutes=10), tmp_path)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("original", "faulty", "name", "alert"),
    [
        pytest.param(
            "quality_rank:last == 3",
            "quality_rank:last >= 2",
            "all_green",
            "ChatAppPhoneNumberQualityRed",
            id="wrong threshold",
        ),
        pytest.param("for: 10m", "for: 20m", "red_for_20_minutes", "ChatAppPhoneNumberQualityRed", id="wrong for"),
        pytest.param(
            "unless on (phone_number) phone_number:chatapp_phone_number_info:group",
            "unless on () phone_number:chatapp_phone_number_info:group",
            "number_no_longer_listed",
            "ChatAppPhoneNumberVanished",
            id="missing label in a join",
        ),
        pytest.param(
            " and on (job, account, space) space:chatapp_space_unseen:group",
            " and on (job, account, space) (space:chatapp_space_unseen:group == 2)",
            "api_down_during_red",
            "ChatAppPhoneNumberQualityRed",
            id="values of spaces with failed polls are not kept",
        ),
    ],
)
def test_an_incident_fails_for_an_alert_of_a_faulty_rule(
    original: str, faulty: str, name: str, alert: str, tmp_path: Path
) -> None:
    """`make mutants` plants many more faults."""
    shipped_rules = RULES.read_text()
    assert original in shipped_rules
    faulty_rules = tmp_path / "faulty.rules.yml"
    faulty_rules.write_text(shipped_rules.replace(original, faulty))
    incident = load_incident(INCIDENTS / f"{name}.yml")
    world, series = record_series(incident)

    result = run_promtool(promtool_test(incident, world, series, faulty_rules), tmp_path)

    assert result.returncode == 1
    assert f'alertname="{alert}"' in result.stdout + result.stderr  # not an invalid rules file
