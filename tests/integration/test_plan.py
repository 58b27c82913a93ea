"""What is said beforehand: whether a configuration fits, how old values get, how large a scrape will be."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from virtual_time import run
from world import World, scenario

from exporter.config.settings import Settings
from exporter.planning import plans, warnings


def settings_of(spaces: int, *, max_age: str = "1d", **account: object) -> Settings:
    listed = [{"id": f"space-{number}"} for number in range(spaces)]
    return Settings.model_validate({"accounts": [{"name": "acme", "spaces": listed, **account}], "max_age": max_age})


def warned(settings: Settings) -> list[str]:
    return list(warnings(plans(settings, {}), settings.max_age))


def sizes(world: World) -> list[int]:
    """The series and bytes that a scrape will have by our word."""
    return [round(float(line.split(" ")[1])) for line in world.samples("chatapp_account_scrape")]


def measured(world: World) -> list[int]:
    """What a scrape has of spaces and numbers."""
    page = b"".join(world.exporter.exposition(openmetrics=False)).splitlines(keepends=True)
    lines = [line for line in page if b'space="' in line]
    return [len(lines), sum(map(len, lines))]


def test_the_size_of_a_scrape_is_estimated_before_the_first_sweep_and_measured_after_it() -> None:
    async def main() -> tuple[list[int], list[int], list[int]]:
        world = World(scenario(20))
        before = sizes(world)
        await world.exporter.start()
        await asyncio.sleep(10)
        after = sizes(world), measured(world)
        await world.exporter.stop()
        return before, *after

    before, after, there = run(main())

    assert before[0] == 20 * 35  # three numbers with ten series each, and five of the space
    assert after == there


def test_half_a_sweep_tells_what_the_whole_will_have() -> None:
    async def main() -> tuple[list[int], list[int]]:
        world = World(scenario(200, qps=10, poll_interval="1m"))
        await world.exporter.start()
        await asyncio.sleep(11)
        half = sizes(world)
        await asyncio.sleep(30)
        whole = measured(world)
        await world.exporter.stop()
        return half, whole

    half, whole = run(main())

    assert half[0] == pytest.approx(whole[0], rel=0.2)


def test_a_space_that_leaves_takes_its_size_along() -> None:
    async def main() -> tuple[list[int], list[int]]:
        world = World(scenario(20))
        await world.exporter.start()
        await asyncio.sleep(10)
        (account,) = world.settings.accounts
        fewer = account.model_copy(update={"spaces": (account.spaces or [])[:5]})
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [fewer]}))
        told = sizes(world), measured(world)
        await world.exporter.stop()
        return told

    told, there = run(main())

    assert told == there


def test_check_measures_on_the_state_file_of_a_process_that_runs_or_has_ended(tmp_path: Path) -> None:
    async def main() -> tuple[list[str], list[str], list[int]]:
        world = World(scenario(3), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(5)
        path = tmp_path / "exporter.yml"
        path.write_text(world.exporter.redacted_config().replace("<secret>", "something"))
        running, there = row(path), measured(world)
        await world.exporter.stop()
        return running, row(path), there

    running, ended, (series, size) = run(main())

    assert running[-2:] == ended[-2:] == [str(series), f"{size / 1000:.1f} kB"]


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    """What root made beside the state file, the service could not write."""

    async def main() -> list[set[str]]:
        world = World(scenario(3), state_file=str(tmp_path / "state.db"))
        path = tmp_path / "exporter.yml"
        path.write_text(world.exporter.redacted_config().replace("<secret>", "something"))
        await world.exporter.start()
        await asyncio.sleep(5)
        await world.exporter.stop()
        row(path)
        closed = names_in(tmp_path)
        (tmp_path / "state.db").unlink()
        row(path)
        return [closed, names_in(tmp_path)]

    assert run(main()) == [{"exporter.yml", "state.db"}, {"exporter.yml"}]


def test_check_plans_with_the_spaces_that_were_discovered(tmp_path: Path) -> None:
    async def main() -> list[str]:
        world = World(scenario(3), state_file=str(tmp_path / "state.db"))
        (account,) = world.settings.accounts
        accounts = [account.model_copy(update={"discover": True, "spaces": None})]
        world.settings = world.settings.model_copy(update={"accounts": accounts})
        world.exporter = world.fresh_exporter()
        path = tmp_path / "exporter.yml"
        path.write_text(world.exporter.redacted_config().replace("<secret>", "something"))
        before = row(path)
        await world.exporter.start()
        await asyncio.sleep(5)
        await world.exporter.stop()
        return [*before[2:4], before[-1], *row(path)[2:4]]

    assert run(main()) == ["0 and more", "0", "~0 bytes", "3 and more", "0.6"]


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def row(config: Path) -> list[str]:
    """Of the plan that `check` prints, the cells of its one account."""
    command = (sys.executable, "-m", "exporter", "check", "--config.file", str(config))
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in printed.splitlines() if "acme" in line)
    return re.split(r" {2,}", line.rstrip())


def test_values_can_be_as_old_as_the_interval_and_a_poll_that_takes_as_long_as_it_may() -> None:
    async def main() -> list[str]:
        world = World(scenario(300, qps=10, poll_interval="20s"))
        return world.samples("chatapp_account_max_value_age_seconds") + world.samples("chatapp_account_qps")

    assert run(main()) == [
        "chatapp_account_max_value_age_seconds{} 40.0",
        'chatapp_account_qps{kind="needed"} 15.0',
        'chatapp_account_qps{kind="limit"} 10.0',
        'chatapp_account_qps{kind="current"} 10.0',
    ]


@pytest.mark.parametrize("spaces", [31, 300, 1501, 3000, 10_000])
def test_what_a_warning_says_would_fit_does_fit(spaces: int) -> None:
    (warning,) = warned(settings_of(spaces, qps=1, poll_interval="30s"))

    qps, interval = re.search(r"qps: (\d+)", warning), re.search(r"poll_interval: (\w+)", warning)

    assert bool(qps) == (spaces <= 272)  # with a tenth of headroom, and the API allows ten
    assert not qps or warned(settings_of(spaces, qps=int(qps[1]), poll_interval="30s")) == []
    assert interval
    assert warned(settings_of(spaces, qps=1, poll_interval=interval[1])) == []


def test_a_max_age_that_polls_cannot_keep_is_told_with_one_that_they_can() -> None:
    (warning,) = warned(settings_of(10, poll_interval="2h", max_age="1h"))

    assert warning == (
        "account acme: values are polled every 2h and leave after max_age 1h, so series will come and go;"
        " max_age: 6h1m would fit"
    )
    assert warned(settings_of(10, poll_interval="2h", max_age="6h1m")) == []


def test_the_log_tells_the_plan_at_the_start_and_what_does_not_fit_once() -> None:
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

    (plan,) = [line for line in logs if line["event"] == "polling"]
    assert (plan["needed_qps"], plan["effective_interval"], plan["oldest_age"], plan["series"]) == (2, 120, 130, 2100)
    assert [line["warning"].split(" are ")[0] for line in logs if line["event"] == "plan does not fit"] == [
        "account acme: 60 spaces at 0.5 queries a second",
        "account acme: 60 spaces at 0.25 queries a second",
    ]
