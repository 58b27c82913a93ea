"""Several processes on one configuration, as the one API that they poll sees them, under virtual time."""

import asyncio
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs
from virtual_time import run
from world import World, busiest_second, scenario

from exporter.config.settings import Settings
from exporter.config.shard import Shard
from exporter.service import Fixed, Reloader
from exporter.web.routes import create_app


class Shards:
    """So many processes on the world's configuration; the world's own exporter stays unused."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.exporters = [world.fresh_exporter(shard=Shard(index, count)) for index in range(1, count + 1)]

    async def start(self) -> None:
        for exporter in self.exporters:
            await exporter.start()
            await asyncio.sleep(0.13)

    async def stop(self) -> None:
        await asyncio.gather(*(exporter.stop() for exporter in self.exporters))

    def samples(self, prefix: str) -> list[list[str]]:
        """The sample lines that start so, process by process."""
        pages = [b"".join(exporter.exposition(openmetrics=False)).decode().splitlines() for exporter in self.exporters]
        return [[line for line in page if line.startswith(prefix)] for page in pages]


@pytest.mark.parametrize(
    ("qps", "count", "spaces"), [(10, 5, 150), (5, 3, 120), (3, 5, 90), (7.5, 2, 120), (0.5, 5, 20)]
)
def test_together_they_poll_each_space_once_a_sweep_and_never_exceed_the_budget(
    qps: float, count: int, spaces: int
) -> None:
    async def main() -> World:
        world = World(scenario(spaces, qps=qps, poll_interval="1h", latency="300ms"))
        shards = Shards(world, count)
        await shards.start()
        await asyncio.sleep(3 * 3600 + 65)  # the last slot of three intervals, and not yet the first of the fourth
        await shards.stop()
        return world

    world = run(main())
    times = {space.id: world.polls_of(space.id) for space in world.settings.accounts[0].polled_spaces}

    assert Counter(space for at, space in world.polls if at < 60) == dict.fromkeys(times, 1)
    for of_space in times.values():
        assert [later - earlier for earlier, later in pairwise(of_space[1:])] == [pytest.approx(3600, abs=2)] * 2
    assert busiest_second(world.api.arrivals) <= max(1, qps)


@pytest.mark.parametrize(("qps", "count"), [(10, 5), (5, 3), (3, 5), (0.5, 5)])
def test_with_more_to_ask_than_the_budget_allows_it_is_used_and_kept(qps: float, count: int) -> None:
    async def main() -> list[float]:
        world = World(scenario(200, qps=qps, poll_interval="1s", latency="100ms"))
        shards = Shards(world, count)
        await shards.start()
        await asyncio.sleep(120)
        await shards.stop()
        return world.api.arrivals

    arrivals = run(main())

    assert busiest_second(arrivals) == max(1, qps)
    assert len(arrivals) > 0.88 * 120 * qps


def test_a_sweep_is_nearly_as_fast_as_with_one_process() -> None:
    async def main() -> int:
        shards = Shards(World(scenario(1000, qps=10, poll_interval="5m", latency="100ms")), 5)
        await shards.start()
        await asyncio.sleep(1000 / 10 * 1.1 * 1.1)  # a tenth for the latency, a tenth for what the hash makes uneven
        await shards.stop()
        return sum(exporter.unpolled() for exporter in shards.exporters)

    assert run(main()) == 0


def test_only_those_that_poll_an_account_tell_of_it_and_one_without_any_is_ready_and_says_so() -> None:
    async def main() -> tuple[list[int], list[list[str]]]:
        shards = Shards(World(scenario(60, qps=3)), 5)
        idle, *_ = shards.exporters
        client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(idle)), base_url="http://exporter")
        answers = [(await client.get("/-/ready")).status_code, (await client.get("/metrics")).status_code]
        assert "No space falls to this shard." in (await client.get("/")).text
        await shards.start()
        await asyncio.sleep(60)
        await shards.stop()
        return answers, shards.samples("chatapp_account")

    with capture_logs() as logs:
        answers, told = run(main())

    assert answers == [200, 200]
    warned = [line["warning"] for line in logs if line["event"] == "plan does not fit"]
    assert warned[:2] == ["no space falls to this shard; it will poll nothing"] * 2
    assert [re.sub(r".* are|every \d+s", "…", warning) for warning in warned[2:]] == [
        "… polled …, not …; poll_interval: 30s would fit"
    ] * 3  # a shard does not know what qps the account would need
    assert [told[0], told[1]] == [[], []]
    for lines in told[2:]:
        assert 'chatapp_account_up{account="acme"} 1' in lines
        assert 'chatapp_account_qps{account="acme",kind="limit"} 1.0' in lines
    spaces = [int(line.split()[-1]) for lines in told for line in lines if line.startswith("chatapp_account_spaces")]
    assert sum(spaces) == 60


def test_each_says_which_of_how_many_it_is() -> None:
    async def main() -> tuple[list[list[str]], list[str]]:
        world = World(scenario(5))
        return Shards(world, 2).samples("chatapp_exporter_shard_info"), world.samples("chatapp_exporter_shard_info")

    assert run(main()) == (
        [
            ['chatapp_exporter_shard_info{shard="1",shards="2"} 1.0'],
            ['chatapp_exporter_shard_info{shard="2",shards="2"} 1.0'],
        ],
        ['chatapp_exporter_shard_info{shard="1",shards="1"} 1.0'],
    )


def test_a_reload_brings_each_its_part_of_what_is_new_and_moves_nothing_else() -> None:
    async def main() -> tuple[set[str], Counter[str], list[float]]:
        world = World(scenario(120, qps=10, poll_interval="5m"))
        account = world.settings.accounts[0]
        fewer = account.model_copy(update={"spaces": account.polled_spaces[:100]})
        everything, world.settings = world.settings, world.settings.model_copy(update={"accounts": [fewer]})
        shards = Shards(world, 5)
        await shards.start()
        await asyncio.sleep(50)
        asked = len(world.polls)
        for exporter in shards.exporters:
            await Reloader(Fixed(everything), exporter).reload()
        await asyncio.sleep(10)
        await shards.stop()
        new = {space.id for space in account.polled_spaces[100:]}
        return new, Counter(space for _, space in world.polls[asked:]), world.api.arrivals

    new, polled, arrivals = run(main())

    assert {space: polled[space] for space in new} == dict.fromkeys(new, 1)
    assert sum(polled.values()) - len(new) <= 5  # what was due in these ten seconds
    assert busiest_second(arrivals) <= 10


def test_another_budget_taken_over_by_one_after_the_other_is_never_exceeded() -> None:
    def with_qps(settings: Settings, qps: float) -> Settings:
        return settings.model_copy(update={"accounts": [settings.accounts[0].model_copy(update={"qps": qps})]})

    async def main() -> list[float]:
        world = World(scenario(300, qps=10, poll_interval="1s", latency="100ms"))
        world.settings = with_qps(world.settings, 3)
        shards = Shards(world, 5)
        await shards.start()
        for qps in (7.0, 2.0, 7.0, 0.5, 7.0):
            for exporter in shards.exporters:
                await exporter.reconfigure(with_qps(world.settings, qps))
                await asyncio.sleep(3.3)
        await shards.stop()
        return world.api.arrivals

    assert busiest_second(run(main())) <= 7


def test_they_may_be_told_of_one_state_file_and_each_finds_its_own_values_again(tmp_path: Path) -> None:
    async def main() -> tuple[list[list[str]], list[list[str]], list[int]]:
        world = World(scenario(30, qps=10, poll_interval="5m"), state_file=str(tmp_path / "state.db"))
        shards = Shards(world, 2)
        await shards.start()
        await asyncio.sleep(60)
        await shards.stop()
        shown = shards.samples("chatapp_phone_number")
        again = Shards(world, 2)
        await again.stop()
        return shown, again.samples("chatapp_phone_number"), [exporter.unpolled() for exporter in again.exporters]

    shown, again, unpolled = run(main())

    assert all(shown)
    assert (again, unpolled) == (shown, [0, 0])
    assert {path.name for path in tmp_path.glob("*.shard-?")} == {"state.db.shard-1", "state.db.shard-2"}
