"""The recorded series that dashboards and descriptions read, with written samples of one space and one number."""

from pathlib import Path

import yaml
from incident import RULES, promtool_document, query_test, run_promtool, written_series

TARGET = 'job="chatapp-exporter",instance="a:10144"'
SPACE = f'account="acme",space="1",{TARGET}'
NUMBER = f'phone_number="1555",{SPACE}'
RECORDED_SPACE = 'job="chatapp-exporter",account="acme",space="1"'
RECORDED_NUMBER = f'{RECORDED_SPACE},phone_number="1555"'
Samples = list[tuple[str, float]]
"""Labels and values."""
DROPPED = "phone_number:chatapp_phone_number_messaging_limit_dropped:bool"
MAXIMUM = "phone_number:chatapp_phone_number_messaging_limit:max"


def assert_recorded(
    directory: Path, series: dict[str, str], expected: dict[tuple[str, str], Samples], *, rules: Path = RULES
) -> None:
    """Check the samples of each query and time, with these series in promtool's notation, one sample per minute."""
    tests = [
        query_test(query, time, ((f"{'' if '(' in query else query}{{{labels}}}", value) for labels, value in samples))
        for (query, time), samples in expected.items()
    ]
    result = run_promtool(promtool_document(written_series(series), rules, promql_expr_test=tests), directory)

    assert result.returncode == 0, result.stderr


def exporter_down_for_a_day_from_minute_10() -> dict[str, str]:
    """Return the series of an exporter that is down from minute 10 and polls one space with one number before."""
    until_10 = "1+0x9 stale"
    return {
        f"up{{{TARGET}}}": "1+0x9 0+0x1500",
        f'chatapp_exporter_account_info{{account="acme",{TARGET}}}': until_10,
        f'chatapp_account_spaces{{account="acme",{TARGET}}}': until_10,
        f"chatapp_space_up{{{SPACE}}}": until_10,
        f"chatapp_space_last_success_timestamp_seconds{{{SPACE}}}": "0+60x9 stale",
        f'chatapp_space_info{{name="Contoso",team="emea",{SPACE}}}': until_10,
        f'chatapp_phone_number_info{{verified_name="Contoso Care",{NUMBER}}}': until_10,
        f'chatapp_phone_number_last_change_timestamp_seconds{{field="status",{NUMBER}}}': "300+0x9 stale",
    }


def test_names_team_and_last_changes_are_kept_while_the_exporter_is_down(tmp_path: Path) -> None:
    samples: dict[str, Samples] = {
        "space:chatapp_space_info:last": [(f'{RECORDED_SPACE},name="Contoso",team="emea"', 1)],
        "phone_number:chatapp_phone_number_info:names": [
            (f'{RECORDED_NUMBER},verified_name="Contoso Care",name="Contoso"', 1)
        ],
        "phone_number:chatapp_phone_number_last_change_timestamp_seconds:last": [
            (f'{RECORDED_NUMBER},field="status"', 300)
        ],
    }
    expected = {(query, time): values for query, values in samples.items() for time in ("5m", "23h")}

    # after a day without a poll, the account is no longer known
    assert_recorded(
        tmp_path, exporter_down_for_a_day_from_minute_10(), expected | {(query, "24h20m"): [] for query in samples}
    )


def test_values_are_recorded_if_the_time_of_the_exporter_is_not_scraped(tmp_path: Path) -> None:
    series = {
        f"chatapp_space_up{{{SPACE}}}": "1+0x20",
        f"chatapp_space_last_success_timestamp_seconds{{{SPACE}}}": "0+60x20",
        f'chatapp_phone_number_quality_rating{{quality_rating="RED",{NUMBER}}}': "1+0x20",
    }
    query = "phone_number:chatapp_phone_number_quality_rank:max"

    assert_recorded(tmp_path, series, {(query, "5m"): [(RECORDED_NUMBER, 3)]})


def test_a_space_and_a_number_have_one_series_while_two_exporters_have_different_names(tmp_path: Path) -> None:
    other = "b:10144"
    series = {
        f"chatapp_space_up{{{SPACE}}}": "1+0x20",
        f'chatapp_space_info{{name="Contoso",{SPACE}}}': "1+0x20",
        f'chatapp_space_info{{name="Contoso Ltd",team="emea",{SPACE.replace("a:10144", other)}}}': "_x9 1+0x11",
        f'chatapp_phone_number_info{{verified_name="Old",{NUMBER}}}': "1+0x20",
        f'chatapp_phone_number_info{{verified_name="New",{NUMBER.replace("a:10144", other)}}}': "_x9 1+0x11",
    }
    counts = ("count(space:chatapp_space_info:last)", "count(phone_number:chatapp_phone_number_info:names)")

    assert_recorded(tmp_path, series, {(count, time): [("", 1)] for count in counts for time in ("5m", "15m")})


def test_a_space_without_a_name_has_a_series_too(tmp_path: Path) -> None:
    series = {f"chatapp_space_up{{{SPACE}}}": "0+0x10"}

    assert_recorded(tmp_path, series, {("space:chatapp_space_info:last", "5m"): [(RECORDED_SPACE, 1)]})


def test_the_names_of_a_number_that_is_no_longer_listed_are_kept_for_one_day_with_the_current_name_of_its_space(
    tmp_path: Path,
) -> None:
    series = {
        f"chatapp_space_up{{{SPACE}}}": "1+0x1500",
        f"chatapp_space_last_success_timestamp_seconds{{{SPACE}}}": "0+60x1500",
        f'chatapp_space_info{{name="Contoso",{SPACE}}}': "1+0x20 stale",
        f'chatapp_space_info{{name="Contoso Ltd",{SPACE}}}': "_x21 1+0x1500",
        f'chatapp_phone_number_info{{verified_name="Contoso Care",{NUMBER}}}': "1+0x9 stale",
    }
    query = "phone_number:chatapp_phone_number_info:names"

    def named(name: str) -> Samples:
        return [(f'{RECORDED_NUMBER},verified_name="Contoso Care",name="{name}"', 1)]

    assert_recorded(
        tmp_path,
        series,
        {
            (query, "5m"): named("Contoso"),
            (query, "15m"): named("Contoso"),
            (query, "23h"): named("Contoso Ltd"),
            (query, "24h15m"): [],
        },
    )


def limits(values: str) -> dict[str, str]:
    """Return the series of a number with these messaging limits."""
    return {
        f"chatapp_space_up{{{SPACE}}}": "1+0x240",
        f"chatapp_space_last_success_timestamp_seconds{{{SPACE}}}": "0+60x240",
        f'chatapp_phone_number_info{{verified_name="Contoso Care",{NUMBER}}}': "1+0x240",
        f"chatapp_phone_number_messaging_limit{{{NUMBER}}}": values,
    }


def test_the_maximum_messaging_limit_contains_the_hourly_maxima(tmp_path: Path) -> None:
    assert_recorded(
        tmp_path,
        limits("1000+0x99 250+0x140"),
        {
            (MAXIMUM, "1h30m"): [(RECORDED_NUMBER, 1000)],
            (DROPPED, "1h30m"): [(RECORDED_NUMBER, 0)],
            (MAXIMUM, "3h30m"): [(RECORDED_NUMBER, 1000)],
            (DROPPED, "3h30m"): [(RECORDED_NUMBER, 1)],
        },
    )


def test_the_maximum_messaging_limit_contains_the_current_hour(tmp_path: Path) -> None:
    # promtool evaluates the hourly group every minute: without this group, the hourly maximum can be older
    document = yaml.safe_load(RULES.read_text())
    rules = tmp_path / "without_hourly.rules.yml"
    groups = [group for group in document["groups"] if group["name"] == "chatapp.recording"]
    rules.write_text(yaml.safe_dump({"groups": groups}))
    hourly = f"phone_number:chatapp_phone_number_messaging_limit:max7d{{{RECORDED_NUMBER}}}"
    series = limits("250+0x19 1000+0x19 250+0x60")

    for hourly_maximum, maximum in ((250, 1000), (2000, 2000)):
        assert_recorded(
            tmp_path,
            {**series, hourly: f"{hourly_maximum}+0x100"},
            {(MAXIMUM, "50m"): [(RECORDED_NUMBER, maximum)], (DROPPED, "50m"): [(RECORDED_NUMBER, 1)]},
            rules=rules,
        )


def test_a_messaging_limit_that_was_unlimited_has_dropped(tmp_path: Path) -> None:
    series = limits(" ".join(["Inf"] * 20 + ["100000+0x20"]))

    assert_recorded(
        tmp_path, series, {(DROPPED, "10m"): [(RECORDED_NUMBER, 0)], (DROPPED, "30m"): [(RECORDED_NUMBER, 1)]}
    )
