"""The demo's five minutes: for every alert of the design there is something to see."""

import asyncio
import re
from itertools import groupby

from virtual_time import run
from world import World

from exporter.simulator.fleet import load_scenario


async def five_minutes() -> tuple[list[set[str]], list[str]]:
    """The sample lines of a scrape every five seconds, and those of the last one with all labels."""
    world = World(load_scenario(None))
    await world.exporter.start()
    scrapes = []
    for _ in range(60):
        await asyncio.sleep(5)
        page = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        scrapes.append({line for line in page.splitlines() if not line.startswith("#")})
    await world.exporter.stop()
    return scrapes, sorted(scrapes[-1])


SCRAPES, LAST = run(five_minutes())


def ever(pattern: str) -> bool:
    return any(re.fullmatch(pattern, line) for scrape in SCRAPES for line in scrape)


def values(pattern: str) -> list[float]:
    """The values of one series, scrape by scrape."""
    return [float(line.split(" ")[-1]) for scrape in SCRAPES for line in scrape if re.match(pattern, line)]


def numbers(scrape: set[str]) -> set[str]:
    return {
        match[1] for line in scrape if (match := re.match(r'chatapp_phone_number_info{.*phone_number="(\d+)"', line))
    }


def test_a_number_turns_yellow_and_one_turns_red() -> None:
    for rating in ("YELLOW", "RED"):
        assert ever(rf'chatapp_phone_number_quality_rating{{.*quality_rating="{rating}"}} 1')


def test_a_number_is_banned_one_is_flagged_and_one_has_a_status_that_we_do_not_know() -> None:
    for status in ("BANNED", "FLAGGED", "HIBERNATING"):
        assert ever(rf'chatapp_phone_number_status{{.*status="{status}"}} 1')
    assert ever(r'chatapp_api_unknown_values_total{.*field="status",value="HIBERNATING"} .*')


def test_a_messaging_limit_drops() -> None:
    dropped = [
        limits
        for number in sorted(numbers(SCRAPES[0]))
        if (limits := values(rf'chatapp_phone_number_messaging_limit{{.*phone_number="{number}"'))
        and min(limits) < max(limits)
        and limits[-1] == min(limits)
    ]

    assert [(limits[0], limits[-1]) for limits in dropped] == [(10_000, 250)]


def test_a_number_vanishes_while_its_space_stays_up() -> None:
    gone = numbers(SCRAPES[0]) - numbers(SCRAPES[-1])

    assert len(gone) == 1


def test_a_space_is_blind_from_the_start_and_one_only_for_a_while() -> None:
    refused = {line for line in SCRAPES[-1] if re.fullmatch(r"chatapp_space_up{.*} 0", line)}

    assert refused
    assert ever(r'chatapp_space_poll_failures_total{.*reason="rejected"} .*')
    assert ever(r'chatapp_space_poll_failures_total{.*reason="server"} .*')


def test_an_account_is_denied_then_unreachable_and_up_again_after_each() -> None:
    states = [
        match[1]
        for scrape in SCRAPES
        for line in sorted(scrape)
        if (match := re.fullmatch(r'chatapp_account_state{account="globex",state="(\w+)",?} 1(?:\.0)?', line))
    ]

    assert [state for state, _ in groupby(states)] == ["ok", "denied", "ok", "unreachable", "ok"]


def test_a_rating_is_no_longer_reported_for_a_while() -> None:
    missing = values(r'chatapp_api_unknown_values_total{field="quality_rating",value="missing"}')

    assert (missing[0], missing[-1]) == (0, 1)


def test_an_account_is_throttled_and_its_rate_climbs_back() -> None:
    current = values(r'chatapp_account_qps_current{account="acme"}')

    assert values(r'chatapp_api_throttled_total{account="acme"}')[-1] > 0
    assert current[0] == 10
    assert min(current) <= 5
    assert current[-1] > min(current)


def test_a_schedule_cannot_be_kept() -> None:
    configured = values(r'chatapp_account_poll_interval_seconds{account="initech"}')[-1]
    effective = values(r'chatapp_account_effective_poll_interval_seconds{account="initech"}')[-1]

    assert (configured, effective) == (5, 13)
