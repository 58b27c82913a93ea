"""`poll_interval_unhealthy`: spaces in trouble are polled more often, from the same budget, and starve nobody."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from virtual_time import run
from world import World, busiest_second, scenario

from exporter.config.settings import Account, Settings

MINUTE = 60
RED = {"at": "20m", "for": "20m", "space": 1, "number": 1, "set": {"QualityRating": "RED"}}


def in_trouble_every(seconds: float | None, world: World) -> Settings:
    """The world's settings with this `poll_interval_unhealthy` of its account."""
    account = world.settings.accounts[0].model_copy(update={"poll_interval_unhealthy": seconds})
    return world.settings.model_copy(update={"accounts": [account]})


async def play(world: World, seconds: float) -> None:
    await world.exporter.start()
    await asyncio.sleep(seconds)
    await world.exporter.stop()


def gaps(world: World, number: int, since: float = 0, until: float = 1e9) -> list[float]:
    """Between the polls of a space (from 1) in a span of time."""
    times = [at for at in world.polls_of(world.space_id(number)) if since <= at < until]
    return [later - earlier for earlier, later in pairwise(times)]


def every(seconds: float) -> Any:
    """A gap of so many seconds, but for the tenths that it waits when several are due at once."""
    return pytest.approx(seconds, abs=0.5)


def test_a_space_in_trouble_is_polled_more_often_until_it_is_well_and_then_at_its_regular_times() -> None:
    async def main() -> World:
        world = World(scenario(30, qps=5, poll_interval="5m", events=(RED,)))
        await world.exporter.reconfigure(in_trouble_every(30, world))
        await play(world, 3600)
        return world

    world = run(main())
    seen, well = 25 * MINUTE, 40 * MINUTE + 30

    assert all(gap == every(30) for gap in gaps(world, 1, seen, well))
    assert all(gap == every(300) for gap in gaps(world, 1, well))
    regular = [at % 300 for at in world.polls_of(world.space_id(1)) if at < 20 * MINUTE or at > well]
    assert regular[1:] == [pytest.approx(regular[1], abs=0.1)] * (len(regular) - 1)
    for number in range(2, 31):
        assert all(gap == every(300) for gap in gaps(world, number)[1:])


@pytest.mark.parametrize(
    "fields", [{"QualityRating": "YELLOW"}, {"QualityRating": "NA"}, {"Status": "FLAGGED"}, {"Status": ""}], ids=str
)
def test_anything_but_green_and_connected_is_trouble_from_the_first_poll_on(fields: dict[str, str]) -> None:
    async def main() -> World:
        world = World(scenario(2, poll_interval="5m", events=({**RED, "at": "0s", "set": fields},)))
        await world.exporter.reconfigure(in_trouble_every(30, world))
        await play(world, 10 * MINUTE)
        return world

    world = run(main())

    assert all(gap == every(30) for gap in gaps(world, 1)[1:])
    assert len(world.polls_of(world.space_id(1))) == 21
    assert all(gap == every(300) for gap in gaps(world, 2)[1:])


@pytest.mark.parametrize("latency", [0.05, 0.5])
def test_however_many_are_in_trouble_the_others_wait_for_one_poll_of_each_and_the_budget_holds(latency: float) -> None:
    """60 spaces at 2 a second are a sweep of 30 s; half of them ask for a poll a second."""
    trouble = tuple({**RED, "at": "0s", "for": "1d", "space": space} for space in range(1, 31))

    async def main() -> World:
        world = World(scenario(60, qps=2, poll_interval="30s", latency=f"{latency * 1000:.0f}ms", events=trouble))
        await world.exporter.reconfigure(in_trouble_every(1, world))
        await play(world, 3600)
        return world

    world = run(main())
    sweep = 60 / 2 * (1 + latency) * 1.1

    for healthy in range(31, 61):
        assert max(gaps(world, healthy)) <= 30 + sweep  # due after 30 s, then one poll of each
        assert max(gaps(world, healthy, since=5 * MINUTE)) <= sweep
    assert busiest_second(world.api.arrivals) == 2


def test_with_room_in_the_budget_no_healthy_space_is_late_and_the_budget_holds() -> None:
    trouble = tuple({**RED, "at": "0s", "for": "1d", "space": space} for space in range(1, 21))

    async def main() -> World:
        world = World(scenario(60, qps=3, poll_interval="2m", latency="100ms", events=trouble))
        await world.exporter.reconfigure(in_trouble_every(30, world))
        await play(world, 3600)
        return world

    world = run(main())

    for unhealthy in range(1, 21):
        assert max(gaps(world, unhealthy)[1:]) <= 32
    for healthy in range(21, 61):
        assert max(gaps(world, healthy)[1:]) <= 122
    assert busiest_second(world.api.arrivals) == 3


@pytest.mark.parametrize(
    ("code", "shortest"),
    [
        pytest.param("InternalError", [5, 10, 20, 40, 80, 150, 150, 150], id="passing"),
        pytest.param("Unknown.ResourceOwnerId", [270, 540, 1080, 1620], id="refused"),
    ],
)
def test_a_space_in_trouble_that_fails_is_not_asked_more_often_for_it(code: str, shortest: list[float]) -> None:
    failing = {"at": "10m", "space": 1, "answer": code}

    async def main() -> World:
        world = World(scenario(4, poll_interval="5m", events=({**RED, "at": "0s", "for": "1d"}, failing)))
        await world.exporter.reconfigure(in_trouble_every(30, world))
        await play(world, 2 * 3600)
        return world

    pauses = gaps(run(main()), 1, since=10 * MINUTE)

    assert all(pause >= least for pause, least in zip(pauses, shortest, strict=False))
    assert len(pauses) >= len(shortest)


def test_after_a_restart_a_space_in_trouble_goes_on_at_its_pace(tmp_path: Path) -> None:
    async def main() -> World:
        red = {**RED, "at": "0s", "for": "1d"}
        world = World(scenario(10, poll_interval="5m", events=(red,)), state_file=str(tmp_path / "state.db"))
        world.settings = in_trouble_every(30, world)
        for seconds in (400, 95, 5, 600):
            world.exporter = world.fresh_exporter()
            await play(world, seconds)
        return world

    world = run(main())

    assert max(gaps(world, 1, 30)) <= 31
    for healthy in range(2, 11):
        assert all(gap == every(300) for gap in gaps(world, healthy)[1:])


def test_a_restart_with_the_key_new_finds_in_the_state_file_who_is_in_trouble(tmp_path: Path) -> None:
    async def main() -> World:
        red = {**RED, "at": "0s", "for": "1d"}
        world = World(scenario(10, poll_interval="1h", events=(red,)), state_file=str(tmp_path / "state.db"))
        await play(world, 10 * MINUTE)
        world.settings = in_trouble_every(30, world)
        world.exporter = world.fresh_exporter()
        await play(world, 10 * MINUTE)
        return world

    world = run(main())

    assert len([at for at in world.polls_of(world.space_id(1)) if at > 10 * MINUTE]) >= 19
    assert all(len(world.polls_of(world.space_id(number))) == 1 for number in range(5, 11))


def test_a_reload_changes_the_pace_at_once_and_leaves_all_others_alone() -> None:
    async def main() -> World:
        world = World(scenario(10, poll_interval="5m", events=({**RED, "at": "0s", "for": "1d", "space": 5},)))
        await world.exporter.start()
        for seconds in (None, 60.0, 30.0, None):
            await world.exporter.reconfigure(in_trouble_every(seconds, world))
            await asyncio.sleep(20 * MINUTE)
        await world.exporter.stop()
        return world

    world = run(main())

    def polls(since: float, until: float) -> tuple[int, float]:
        """Of the space in trouble: how many, and how soon after."""
        times = [at for at in world.polls_of(world.space_id(5)) if since * MINUTE <= at < until * MINUTE]
        return len(times), times[0] - since * MINUTE

    assert polls(5, 20) == (3, every(151))
    assert polls(20, 40) == (20, every(31))
    assert polls(40, 60) == (40, every(1))
    assert polls(60, 80) == (4, every(151))
    for healthy in (1, 2, 3, 4, 6, 7, 8, 9, 10):
        assert all(gap == every(300) for gap in gaps(world, healthy)[1:])


def test_a_reload_with_another_poll_interval_keeps_the_pace_of_a_space_in_trouble() -> None:
    async def main() -> World:
        world = World(scenario(10, poll_interval="5m", events=({**RED, "at": "0s", "for": "1d"},)))
        await world.exporter.reconfigure(in_trouble_every(30, world))
        await world.exporter.start()
        await asyncio.sleep(10 * MINUTE)
        world.settings = in_trouble_every(30, world)
        account = world.settings.accounts[0].model_copy(update={"poll_interval": 3600.0})
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [account]}))
        await asyncio.sleep(10 * MINUTE)
        await world.exporter.stop()
        return world

    world = run(main())

    after = gaps(world, 1, 10 * MINUTE)
    assert world.polls_of(world.space_id(1))[-len(after) - 1] <= 10 * MINUTE + 30
    assert all(gap == every(30) for gap in after)


def test_it_may_be_shorter_than_30_seconds_against_this_machine_only() -> None:
    account = Account(name="acme", endpoint="http://127.0.0.1:1", poll_interval="5s", poll_interval_unhealthy="1s")

    assert account.poll_interval_unhealthy == 1
    with pytest.raises(ValueError, match="at least 30s"):
        Account(name="acme", poll_interval_unhealthy="1s")


def test_a_reload_after_a_restart_reaches_who_was_in_trouble_before_it(tmp_path: Path) -> None:
    async def main() -> World:
        red = {**RED, "at": "0s", "for": "1d"}
        world = World(scenario(10, poll_interval="1h", events=(red,)), state_file=str(tmp_path / "state.db"))
        await play(world, 10 * MINUTE)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(5)
        await world.exporter.reconfigure(in_trouble_every(60, world))
        await asyncio.sleep(10 * MINUTE)
        await world.exporter.stop()
        return world

    world = run(main())

    assert len([at for at in world.polls_of(world.space_id(1)) if at > 10 * MINUTE]) >= 9
