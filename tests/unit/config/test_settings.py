"""Parsing of durations and endpoints."""

import re

import pytest

from exporter import sources
from exporter.config.fields import format_duration, is_loopback, parse_duration
from exporter.sources.cams.settings import CamsAccount


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1d", 86_400),
        ("500ms", 0.5),
        ("90m", 5400),
        ("1d2h3m4s5ms", 93784.005),
    ],
)
def test_a_duration_is_the_sum_of_its_parts(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "5", "5 m", "m", "-5m", "1.5h", "30m1h", "1w", "٣m", "5M", "5m\n", "9" * 5000 + "d", None, 5],
)
def test_an_invalid_duration_is_an_error(text: object) -> None:
    with pytest.raises(ValueError, match=r"^a duration such as 30s, 5m or 1h30m$"):
        parse_duration(text)


def test_a_duration_is_longer_than_0_and_at_most_3650_days() -> None:
    for text in ("0s", "0h0m"):
        with pytest.raises(ValueError, match=r"^a duration longer than 0s$"):
            parse_duration(text)
    with pytest.raises(ValueError, match=r"^a duration of at most 3650d$"):
        parse_duration("3650d1s")
    assert parse_duration("3650d") == 3650 * 86_400


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30s"), (5400, "1h30m"), (86_400, "1d"), (0.5, "500ms"), (61.001, "1m1s1ms"), (0, "0s")]
)
def test_a_duration_is_formatted_in_its_shortest_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    "endpoint",
    ["http://localhost:10145", "http://127.0.0.1", "http://127.1.2.3:8080", "http://[::1]:1", "https://localhost"],
)
def test_a_local_endpoint_is_loopback(endpoint: str) -> None:
    assert is_loopback(CamsAccount(name="acme", endpoint=endpoint).endpoint)


@pytest.mark.parametrize(
    ("expected", "endpoints"),
    [
        ("a URL with https:// (http://", ["http://localhost.example", "http://127.0.0.1.example", "http://10.0.0.1"]),
        ("a URL without path, query and", ["https://host/path", "https://host?query", "https://host#part"]),
        ("a URL without user name and", ["https://user@host", "http://localhost@example.com"]),
        ("a URL such as https://cams", ["cams.ap-southeast-1.aliyuncs.com", "ftp://localhost", "https://"]),
        ("a URL such as https://cams", ["https://a..b", "https://a b", "https://ho\tst", "https://[1:2]"]),
        ("a URL such as https://cams", ["https://host:99999", "https://host:x", "https://[::1]:99999"]),
    ],
)
def test_the_error_of_an_invalid_endpoint_names_the_rule(expected: str, endpoints: list[str]) -> None:
    for endpoint in endpoints:
        with pytest.raises(ValueError, match=re.escape(expected)):
            CamsAccount(name="acme", endpoint=endpoint)


def test_the_schema_has_default_durations_as_text() -> None:
    account = sources.Settings.model_json_schema()["$defs"]["CamsAccount"]["properties"]

    assert account["poll_interval"]["default"] == "5m"
    assert sources.Settings.model_json_schema()["properties"]["max_age"]["default"] == "1h"
