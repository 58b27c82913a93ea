"""Every incident of the library, judged by promtool with the shipped rules."""

from pathlib import Path

import pytest
from incident import INCIDENTS, RULES, judge, load, promtool_test, record


@pytest.mark.parametrize("path", sorted(INCIDENTS.glob("*.yml")), ids=lambda path: path.stem)
def test_what_must_fire_fires_and_nothing_else(path: Path, tmp_path: Path) -> None:
    incident = load(path)
    world, series = record(incident)

    verdict = judge(promtool_test(incident, world, series), tmp_path)

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
    ],
)
def test_a_fault_planted_in_a_rule_turns_an_incident_red(old: str, new: str, name: str, tmp_path: Path) -> None:
    shipped = RULES.read_text()
    assert old in shipped
    faulty = tmp_path / "faulty.rules.yml"
    faulty.write_text(shipped.replace(old, new))
    incident = load(INCIDENTS / f"{name}.yml")
    world, series = record(incident)

    verdict = judge(promtool_test(incident, world, series, faulty), tmp_path)

    assert verdict.returncode == 1
    assert "FAILED" in verdict.stdout + verdict.stderr
