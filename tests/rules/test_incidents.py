"""Every incident of the library, judged by promtool with the shipped rules."""

from pathlib import Path

import pytest
from incident import INCIDENTS, RULES, load, promtool_test, record, run_promtool


@pytest.mark.parametrize("path", sorted(INCIDENTS.glob("*.yml")), ids=lambda path: path.stem)
def test_what_must_fire_fires_and_nothing_else(path: Path, tmp_path: Path) -> None:
    incident = load(path)
    world, series = record(incident)

    verdict = run_promtool(promtool_test(incident, world, series), tmp_path)

    assert verdict.returncode == 0, verdict.stderr


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        pytest.param("quality_rank:last == 3", "quality_rank:last >= 2", "all_green", id="threshold"),
        pytest.param("for: 10m", "for: 20m", "red_for_20_minutes", id="for"),
        pytest.param(
            "unless on (phone_number) phone_number:chatapp_phone_number_info:group",
            "unless on () phone_number:chatapp_phone_number_info:group",
            "number_gone",
            id="label missing in a join",
        ),
        pytest.param(
            " and on (job, account, space) space:chatapp_space_unseen:group",
            " and on (job, account, space) (space:chatapp_space_unseen:group == 2)",
            "api_down_during_red",
            id="nothing held while nobody sees",
        ),
        pytest.param(
            "group by (job, account, space, phone_number) (chatapp_phone_number_info)",
            "group by (job, account, space, phone_number) (chatapp_phone_number_quality_rating)",
            "rating_no_longer_reported",
            id="a number is listed only while it has a rating",
        ),
        pytest.param(
            "reachable_timestamp_seconds:max\n            and on (job, account) (chatapp_account_spaces",
            "reachable_timestamp_seconds:max\n            and on (job, account) (chatapp_account_state",
            "restarted_while_unreachable",
            id="a restart starts the time of an outage again",
        ),
        pytest.param(
            "account:chatapp_account_up:last == 0 or account:chatapp_account_unpolled:group",
            "account:chatapp_account_up:last == 2 or account:chatapp_account_unpolled:group",
            "api_down_with_many_spaces",
            id="the time in which an account is down counts for its spaces",
        ),
    ],
)
def test_a_fault_planted_in_a_rule_turns_an_incident_red(old: str, new: str, name: str, tmp_path: Path) -> None:
    shipped = RULES.read_text()
    assert old in shipped
    faulty = tmp_path / "faulty.rules.yml"
    faulty.write_text(shipped.replace(old, new))
    incident = load(INCIDENTS / f"{name}.yml")
    world, series = record(incident)

    verdict = run_promtool(promtool_test(incident, world, series, faulty), tmp_path)

    assert verdict.returncode == 1
    assert "FAILED" in verdict.stdout + verdict.stderr
