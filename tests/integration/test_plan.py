"""The poll schedule of a configuration: effective interval, maximum age of values, and warnings."""

import asyncio
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from structlog.testing import capture_logs
from virtual_time import run
from world import World, scenario

from exporter import sources
from exporter.config.settings import Settings
from exporter.polling.plan import plans_by_account, warnings


def settings_of(spaces: int, *, max_age: str = "1d", **account: object) -> Settings:
    listed = [{"id": f"space-{number}"} for number in range(spaces)]
    return sources.Settings.model_validate(
        {"accounts": [{"name": "acme", "spaces": listed, **account}], "max_age": max_age}
    )


def schedule_warnings(settings: Settings) -> list[str]:
    return [warning.text for warning in warnings(plans_by_account(settings), settings.max_age)]


def test_check_creates_no_files(tmp_path: Path) -> None:
    """If root ran `check` and it created files, the service could not write them."""

    async def main() -> list[set[str]]:
        world = World(scenario(3), state_file=str(tmp_path / "state.db"))
        path = tmp_path / "exporter.yml"
        path.write_text(world.exporter.view.redacted_config().replace("<secret>", "something"))
        await world.exporter.start()
        await asyncio.sleep(5)
        await world.exporter.stop()
        run_check(path)
        with_state_file = file_names(tmp_path)
        (tmp_path / "state.db").unlink()
        run_check(path)
        return [with_state_file, file_names(tmp_path)]

    assert run(main()) == [{"exporter.yml", "state.db"}, {"exporter.yml"}]


def file_names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def run_check(config: Path) -> None:
    command = (sys.executable, "-m", "exporter", "check", "--config.file", str(config))
    subprocess.run(command, capture_output=True, check=True)


def test_the_metrics_show_the_configured_the_current_and_the_needed_qps() -> None:
    async def main() -> list[str]:
        return World(scenario(300, qps=10, poll_interval="20s")).samples("chatapp_account_qps")

    assert run(main()) == [
        "chatapp_account_qps_limit{} 10.0",
        "chatapp_account_qps_current{} 10.0",
        "chatapp_account_qps_needed{} 15.0",
    ]


@pytest.mark.parametrize("spaces", [31, 300, 1501, 3000, 10_000])
def test_the_values_suggested_by_a_warning_fit(spaces: int) -> None:
    (warning,) = schedule_warnings(settings_of(spaces, qps=1, poll_interval="30s"))

    qps, interval = re.search(r"qps: (\d+)", warning), re.search(r"poll_interval: (\w+)", warning)

    assert bool(qps) == (spaces <= 272)  # with 10 % headroom, more spaces need more than 10 qps
    assert not qps or schedule_warnings(settings_of(spaces, qps=int(qps[1]), poll_interval="30s")) == []
    assert interval
    assert schedule_warnings(settings_of(spaces, qps=1, poll_interval=interval[1])) == []


def test_a_max_age_below_the_poll_interval_is_reported_with_a_suggested_value() -> None:
    (warning,) = schedule_warnings(settings_of(10, poll_interval="2h", max_age="1h"))

    assert warning == (
        "account acme: spaces are polled every 2h, but values are removed after max_age 1h, so series will have gaps;"
        " set max_age: 6h1m"
    )
    assert schedule_warnings(settings_of(10, poll_interval="2h", max_age="6h1m")) == []


def test_the_schedule_is_logged_at_the_start_and_each_schedule_warning_once() -> None:
    async def main() -> None:
        world = World(scenario(60, qps=0.5, poll_interval="30s"))
        await world.exporter.start()
        await world.exporter.reconfigure(world.settings)
        (account,) = world.settings.accounts
        slower = account.model_copy(update={"qps": 0.25})
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [slower]}))
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    (plan,) = [line for line in logs if line["event"] == "account polling started"]
    assert (plan["needed_qps"], plan["effective_interval_seconds"], plan["oldest_value_seconds"]) == (2, 132, 142)
    assert [
        line["warning"].split(" are ")[0]
        for line in logs
        if line["event"] == "account polled less often than configured"
    ] == [
        "account acme: 60 spaces at 0.5 queries per second and 200ms latency",
        "account acme: 60 spaces at 0.25 queries per second and 200ms latency",
    ]


@pytest.mark.parametrize("latency", ["5ms", "200ms", "500ms"])
@pytest.mark.parametrize("qps", [0.5, 1.9, 5, 10])
def test_the_effective_interval_is_the_measured_interval(qps: float, latency: str) -> None:
    async def main() -> tuple[float, list[float]]:
        world = World(scenario(int(60 * qps), qps=qps, poll_interval="30s", latency=latency))
        await world.exporter.start()
        await asyncio.sleep(450)
        await world.exporter.stop()
        (shown,) = world.samples("chatapp_account_effective_poll_interval_seconds")
        spaces = {space for _, space in world.polls}
        return float(shown.split()[1]), [gap for space in spaces for gap in gaps(world.polls_of(space)[1:])]

    effective, measured = run(main())

    print(f"qps {qps:g}, {latency}: effective {effective:g} s, measured {mean(measured):.1f} s")
    assert effective == pytest.approx(mean(measured), rel=0.03)


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("after", [2, 101])
def test_a_budget_that_is_increased_soon_after_the_start_is_used_at_once(after: int) -> None:
    async def main() -> tuple[list[str], int]:
        world = World(scenario(300, qps=0.01, poll_interval="30s"))
        await world.exporter.start(hold_off=True)
        await asyncio.sleep(after)
        (account,) = world.settings.accounts
        faster = world.settings.model_copy(update={"accounts": [account.model_copy(update={"qps": 5})]})
        await world.exporter.reconfigure(faster)
        await asyncio.sleep(10)
        await world.exporter.stop()
        return world.samples("chatapp_account_qps_current"), len([at for at, _ in world.polls if at > after])

    current, polls = run(main())

    assert current == ["chatapp_account_qps_current{} 5.0"]
    assert polls >= 48


def test_the_effective_interval_follows_the_rate_while_the_api_throttles() -> None:
    """The API allows 1 query per second and the budget is 5, so spaces are polled every 470 seconds instead of 120."""

    async def main() -> tuple[list[float], list[float]]:
        throttling = scenario(300, qps=5, poll_interval="2m", latency="200ms").model_copy(update={"limit_qps": 1.0})
        world = World(throttling)
        await world.exporter.start()
        await asyncio.sleep(1800)
        effective, oldest = [], []
        for _ in range(30):
            await asyncio.sleep(60)
            (shown,) = world.samples("chatapp_account_effective_poll_interval_seconds")
            effective.append(float(shown.split()[1]))
            samples = world.samples("chatapp_space_last_success_timestamp_seconds")
            oldest.append(world.clock.now() - min(float(line.split()[1]) for line in samples))
        await world.exporter.stop()
        return effective, oldest

    effective, oldest = run(main())

    assert 400 < mean(effective) < 550
    assert all(age < 2 * interval for age, interval in zip(oldest, effective, strict=True))


def test_an_outage_does_not_increase_the_effective_interval() -> None:
    """Each request times out after 10 seconds, so a sweep takes six times as long. Alerts wait for 3 effective
    intervals: a longer effective interval would delay them."""

    async def main() -> list[str]:
        world = World(scenario(300, qps=5, poll_interval="1m", latency="200ms"))
        await world.exporter.start()
        await asyncio.sleep(300)
        world.api.hangs = True
        await asyncio.sleep(1800)
        await world.exporter.stop()
        return world.samples("chatapp_account_effective_poll_interval") + world.samples("chatapp_account_up")

    effective, up = run(main())

    assert up == "chatapp_account_up{} 0"
    assert float(effective.split()[1]) < 120
