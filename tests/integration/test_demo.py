"""The first five minutes of the demo: they show the problems that the alerts detect."""

import asyncio
import re
from itertools import groupby

from virtual_time import run
from world import World

from exporter.simulator.fleet import load_scenario


async def five_minutes() -> list[set[str]]:
    """Return the sample lines of each scrape, with a scrape every five seconds."""
    world = World(load_scenario(None))
    await world.exporter.start()
    scrapes = []
    for _ in range(60):
        await asyncio.sleep(5)
        page = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        scrapes.append({line for line in page.splitlines() if not line.startswith("#")})
    await world.exporter.stop()
    return scrapes


SCRAPES = run(five_minutes())


def was_exported(pattern: str) -> bool:
    return any(re.fullmatch(pattern, line) for scrape in SCRAPES for line in scrape)


def values(pattern: str) -> list[float]:
    """Return the values of a series in the order of the scrapes."""
    return [float(line.split(" ")[-1]) for scrape in SCRAPES for line in scrape if re.match(pattern, line)]


def phone_numbers(scrape: set[str]) -> set[str]:
    return {
        match[1] for line in scrape if (match := re.match(r'chatapp_phone_number_info{.*phone_number="(\d+)"', line))
    }


def test_quality_ratings_become_yellow_and_red() -> None:
    for rating in ("YELLOW", "RED"):
        assert was_exported(rf'chatapp_phone_number_quality_rating{{.*quality_rating="{rating}"}} 1')


def test_statuses_become_banned_flagged_and_an_unknown_value() -> None:
    for status in ("BANNED", "FLAGGED", "HIBERNATING"):
        assert was_exported(rf'chatapp_phone_number_status{{.*status="{status}"}} 1')
    assert was_exported(r'chatapp_api_unknown_values_total{.*field="status",value="HIBERNATING"} .*')


def test_the_messaging_limit_of_one_number_drops() -> None:
    dropped = [
        limits
        for number in sorted(phone_numbers(SCRAPES[0]))
        if (limits := values(rf'chatapp_phone_number_messaging_limit{{.*phone_number="{number}"'))
        and min(limits) < max(limits)
        and limits[-1] == min(limits)
    ]

    assert [(limits[0], limits[-1]) for limits in dropped] == [(10_000, 250)]


def test_one_number_is_no_longer_listed() -> None:
    no_longer_listed = phone_numbers(SCRAPES[0]) - phone_numbers(SCRAPES[-1])

    assert len(no_longer_listed) == 1


def test_a_space_is_down_and_polls_fail_with_the_reasons_rejected_and_server() -> None:
    failing = {line for line in SCRAPES[-1] if re.fullmatch(r"chatapp_space_up{.*} 0", line)}

    assert failing
    assert was_exported(r'chatapp_space_poll_failures_total{.*reason="rejected"} .*')
    assert was_exported(r'chatapp_space_poll_failures_total{.*reason="server"} .*')


def test_an_account_becomes_denied_then_unreachable_and_recovers_each_time() -> None:
    states = [
        match[1]
        for scrape in SCRAPES
        for line in sorted(scrape)
        if (match := re.fullmatch(r'chatapp_account_state{account="globex",state="(\w+)",?} 1(?:\.0)?', line))
    ]

    assert [state for state, _ in groupby(states)] == ["ok", "denied", "ok", "unreachable", "ok"]


def test_a_missing_quality_rating_is_counted() -> None:
    missing = values(r'chatapp_api_unknown_values_total{field="quality_rating",value="missing"}')

    assert (missing[0], missing[-1]) == (0, 1)


def test_an_account_is_throttled_and_its_rate_recovers() -> None:
    current = values(r'chatapp_account_qps_current{account="acme"}')

    assert values(r'chatapp_api_throttled_total{account="acme"}')[-1] > 0
    assert current[0] == 10
    assert min(current) <= 5
    assert current[-1] > min(current)


def test_the_effective_interval_of_an_account_is_longer_than_configured() -> None:
    configured = values(r'chatapp_account_poll_interval_seconds{account="initech"}')[-1]
    effective = values(r'chatapp_account_effective_poll_interval_seconds{account="initech"}')[-1]

    assert (configured, effective) == (5, 13)
