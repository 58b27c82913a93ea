"""Several shards with one configuration, observed at the API that they poll, in virtual time."""

import asyncio
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs
from virtual_time import run
from world import World, max_per_second, scenario

from exporter.config.effective import Shard
from exporter.config.settings import Settings
from exporter.runtime.reload import StaticLoader
from exporter.web.routes import create_app

ACCOUNTS = ("acme", "globex", "umbrella")
"""With three shards, each shard polls one account. With two shards, the first shard polls acme and umbrella."""


class Shards:
    """`count` exporters with the configuration of the world. The exporter of the world is not used."""

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
        """Return the sample lines that start with `prefix`, for each shard."""
        pages = [b"".join(exporter.exposition(openmetrics=False)).decode().splitlines() for exporter in self.exporters]
        return [[line for line in page if line.startswith(prefix)] for page in pages]


def arrivals_of(world: World, settings: Settings, account: str) -> list[float]:
    """Return the times of the queries for spaces of the account."""
    spaces = {space for name, space in settings.spaces if name == account}
    return [at for at, space in world.polls if space in spaces]


@pytest.mark.parametrize(
    ("qps", "count", "spaces"), [(10, 5, 150), (5, 3, 120), (3, 5, 90), (7.5, 2, 120), (0.5, 5, 20)]
)
def test_shards_poll_each_space_once_per_interval_within_the_budget_of_each_account(
    qps: float, count: int, spaces: int
) -> None:
    async def main() -> World:
        world = World(scenario(spaces, accounts=ACCOUNTS, qps=qps, poll_interval="1h", latency="300ms"))
        shards = Shards(world, count)
        await shards.start()
        # after the last slot of the third interval and before the first slot of the fourth interval
        await asyncio.sleep(3 * 3600 + spaces / qps + 20)
        await shards.stop()
        return world

    world = run(main())
    times = {space: world.polls_of(space) for _, space in world.settings.spaces}

    assert Counter(space for at, space in world.polls if at < spaces / qps + 20) == dict.fromkeys(times, 1)
    for space_times in times.values():
        assert [later - earlier for earlier, later in pairwise(space_times[1:])] == [pytest.approx(3600, abs=2)] * 2
    for account in ACCOUNTS:
        assert max_per_second(arrivals_of(world, world.settings, account)) <= math.ceil(qps)


@pytest.mark.parametrize(("qps", "count"), [(10, 5), (5, 3), (3, 5), (0.5, 5)])
def test_overloaded_shards_use_the_complete_budget_of_each_account_and_do_not_exceed_it(qps: float, count: int) -> None:
    async def main() -> World:
        world = World(scenario(200, accounts=ACCOUNTS, qps=qps, poll_interval="1s", latency="100ms"))
        shards = Shards(world, count)
        await shards.start()
        await asyncio.sleep(120)
        await shards.stop()
        return world

    world = run(main())

    for account in ACCOUNTS:
        arrivals = arrivals_of(world, world.settings, account)
        assert max_per_second(arrivals) == max(1, qps)
        assert len(arrivals) > 0.88 * 120 * qps


def test_one_shard_exports_an_account_and_a_shard_without_an_account_is_ready_and_reports_it() -> None:
    async def main() -> tuple[list[int], list[list[str]]]:
        shards = Shards(World(scenario(60, qps=3)), 5)
        idle, *_ = shards.exporters
        client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(idle.view)), base_url="http://exporter")
        statuses = [(await client.get("/-/ready")).status_code, (await client.get("/metrics")).status_code]
        assert "No account is assigned to this shard." in (await client.get("/")).text
        await shards.start()
        await asyncio.sleep(60)
        await shards.stop()
        return statuses, shards.samples("chatapp_account")

    with capture_logs() as logs:
        statuses, samples = run(main())

    assert statuses == [200, 200]
    assert [line["warning"] for line in logs if "warning" in line] == [
        "no account is assigned to this shard, so nothing is polled",
        "no account is assigned to this shard, so nothing is polled",
        "account acme: 60 spaces at 3 queries per second and 200ms latency are polled every 24s, not every 5s;"
        " set poll_interval: 30s",
        "no account is assigned to this shard, so nothing is polled",
        "no account is assigned to this shard, so nothing is polled",
    ]
    assert [samples[0], samples[1], samples[3], samples[4]] == [[], [], [], []]
    assert 'chatapp_account_up{account="acme"} 1' in samples[2]
    assert 'chatapp_account_qps_limit{account="acme"} 3.0' in samples[2]
    assert 'chatapp_account_spaces{account="acme"} 60' in samples[2]


def test_a_reload_adds_new_spaces_and_accounts_to_their_shards_and_moves_no_other_space() -> None:
    async def main() -> tuple[set[str], Counter[str], list[list[str]], World]:
        world = World(scenario(60, accounts=ACCOUNTS, qps=10, poll_interval="5m"))
        acme, globex, umbrella = world.settings.accounts
        fewer = globex.model_copy(update={"spaces": globex.polled_spaces[:50]})
        all_settings, world.settings = world.settings, world.settings.model_copy(update={"accounts": [acme, fewer]})
        shards = Shards(world, 3)
        await shards.start()
        await asyncio.sleep(50)
        polls_before = len(world.polls)
        for exporter in shards.exporters:
            await exporter.reloader(StaticLoader(all_settings)).reload()
        await asyncio.sleep(10)
        await shards.stop()
        new = {space.id for space in (*globex.polled_spaces[50:], *umbrella.polled_spaces)}
        polled = Counter(space for _, space in world.polls[polls_before:])
        return new, polled, shards.samples("chatapp_account_up"), world

    new, polled, up, world = run(main())

    assert {space: polled[space] for space in new} == dict.fromkeys(new, 1)
    assert sum(polled.values()) - len(new) <= 5  # spaces that were due in these ten seconds
    assert max_per_second(world.api.arrivals) <= 10 + 10  # globex and umbrella
    assert up == [[f'chatapp_account_up{{account="{account}"}} 1'] for account in ACCOUNTS]


def test_shards_with_the_same_state_file_setting_restore_their_own_values(tmp_path: Path) -> None:
    async def main() -> tuple[list[list[str]], list[list[str]], list[int]]:
        world = World(
            scenario(30, accounts=ACCOUNTS, qps=10, poll_interval="5m"), state_file=str(tmp_path / "state.db")
        )
        shards = Shards(world, 2)
        await shards.start()
        await asyncio.sleep(60)
        await shards.stop()
        before = shards.samples("chatapp_phone_number")
        restarted = Shards(world, 2)
        await restarted.stop()
        unpolled = [exporter.view.unpolled() for exporter in restarted.exporters]
        return before, restarted.samples("chatapp_phone_number"), unpolled

    before, restored, unpolled = run(main())

    assert all(before)
    assert (restored, unpolled) == (before, [0, 0])
    assert {path.name for path in tmp_path.glob("*.shard-?")} == {"state.db.shard-1", "state.db.shard-2"}


def test_each_shard_exports_all_accounts_of_the_configuration() -> None:
    async def main() -> tuple[list[list[str]], list[list[str]]]:
        world = World(scenario(accounts=ACCOUNTS))
        shards = Shards(world, 3)
        await shards.start()
        before = shards.samples("chatapp_exporter_account_info")
        first, *_ = world.settings.accounts
        renamed = world.settings.model_copy(update={"accounts": [first.model_copy(update={"name": "contoso"})]})
        await asyncio.gather(*(exporter.reloader(StaticLoader(renamed)).reload() for exporter in shards.exporters))
        after = shards.samples("chatapp_exporter_account_info")
        await shards.stop()
        return before, after

    before, after = run(main())

    assert before == [[f'chatapp_exporter_account_info{{account="{name}"}} 1' for name in ACCOUNTS]] * 3
    assert after == [['chatapp_exporter_account_info{account="contoso"} 1']] * 3
