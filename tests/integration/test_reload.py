"""A new configuration while the exporter runs: what it does not change goes on as if nothing had happened."""

import asyncio
import gc
import itertools
import sqlite3
import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from virtual_time import START, VirtualClock, run
from world import Exporter, World, run_without_waiting, scenario

from exporter.config.problems import ConfigError, Problem
from exporter.config.settings import Account, Settings
from exporter.http import http_client
from exporter.model import Answer, Space
from exporter.runtime.reload import StaticLoader
from exporter.source import Attempt, Source, SourceContext, SourceError
from exporter.sources.cams.settings import CamsAccount, CamsSpace

REVOKED = {"at": "60s", "answer": "InvalidAccessKeyId.NotFound"}


def with_accounts(world: World, *accounts: Account) -> Settings:
    """The world's settings with these accounts."""
    return world.settings.model_copy(update={"accounts": list(accounts)})


def with_spaces(world: World, *numbers: int, **changes: Any) -> Settings:
    """The world's settings with these of its first account's spaces (from 1), and the account changed."""
    account = world.settings.accounts[0]
    spaces = [account.polled_spaces[number - 1] for number in numbers]
    changed = account.model_copy(update={"spaces": spaces, **changes})
    return with_accounts(world, changed, *world.settings.accounts[1:])


def spaces_shown(world: World) -> set[str]:
    lines = b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines()
    return {line.split('space="')[1].split('"')[0] for line in lines if line.startswith("chatapp_space_up{")}


def gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def test_a_space_that_stays_keeps_its_values_its_place_and_its_counters() -> None:
    async def main() -> tuple[World, list[str], list[str]]:
        world = World(scenario(20, poll_interval="1m", qps=10))
        await world.exporter.reconfigure(with_spaces(world, *range(1, 11)))
        await world.exporter.start()
        await asyncio.sleep(400)
        before = world.samples()
        await world.exporter.reconfigure(with_spaces(world, *range(6, 16)))
        after = world.samples()
        await asyncio.sleep(400)
        await world.exporter.stop()
        return world, before, after

    world, before, after = run(main())
    for number in range(6, 11):
        regular = world.polls_of(world.space_id(number))[1:]
        assert gaps(regular) == [pytest.approx(60, abs=0.2)] * 12
    kept = [line for line in before if line.startswith("chatapp_phone_number") and line in after]
    assert kept
    assert "chatapp_space_polls_total{} 7" in after


def test_new_spaces_are_polled_first_and_gone_ones_leave_at_once() -> None:
    async def main() -> World:
        world = World(scenario(20, poll_interval="5m", qps=10))
        await world.exporter.reconfigure(with_spaces(world, *range(1, 16)))
        await world.exporter.start()
        await asyncio.sleep(1000)
        world.polls.clear()
        await world.exporter.reconfigure(with_spaces(world, *range(6, 21)))
        assert spaces_shown(world) == {world.space_id(number) for number in range(6, 21)}
        assert world.exporter.view.unpolled() == 5
        await asyncio.sleep(1)
        assert {space for _, space in world.polls} >= {world.space_id(number) for number in range(16, 21)}
        assert world.exporter.view.unpolled() == 0
        await asyncio.sleep(1000)
        await world.exporter.stop()
        return world

    world = run(main())
    assert not any(world.polls_of(world.space_id(number)) for number in range(1, 6))
    for number in range(16, 21):
        _, *regular = world.polls_of(world.space_id(number))
        assert gaps(regular) == [pytest.approx(300, abs=0.2)] * len(regular[1:])


def test_a_poll_under_way_of_a_space_that_leaves_is_not_shown() -> None:
    async def main() -> set[str]:
        world = World(scenario(2, poll_interval="5m", latency="2s"))
        await world.exporter.start()
        await asyncio.sleep(0.5)
        await world.exporter.reconfigure(with_spaces(world, 2))
        await asyncio.sleep(10)
        shown = spaces_shown(world)
        await world.exporter.stop()
        assert shown == {world.space_id(2)}
        return shown

    assert len(run(main())) == 1


def test_names_labels_limits_and_ages_count_at_once() -> None:
    async def main() -> tuple[list[str], list[str], list[str]]:
        world = World(scenario(1, poll_interval="5m"))
        await world.exporter.start()
        await asyncio.sleep(10)
        space = world.settings.accounts[0].polled_spaces[0]
        named = CamsSpace(id=space.id, name="Contoso", labels={"team": "emea"})
        account = world.settings.accounts[0].model_copy(update={"spaces": [named]})
        tiers = dict.fromkeys(("TIER_250", "TIER_2K", "TIER_10K", "TIER_100K", "TIER_UNLIMITED"), 7.0)
        await world.exporter.reconfigure(Settings(accounts=[account], messaging_limits=tiers))
        info, limits = world.samples("chatapp_space_info"), world.samples("chatapp_phone_number_messaging_limit{")
        await world.exporter.reconfigure(Settings(accounts=[account], max_age="5s"))
        too_old = world.samples("chatapp_phone_number")
        await world.exporter.stop()
        return info, limits, too_old

    info, limits, too_old = run(main())

    assert info == ['chatapp_space_info{name="Contoso",team="emea"} 1']
    assert {line.rsplit(" ", 1)[1] for line in limits} == {"7.0"}
    assert too_old == []


def test_an_account_that_comes_or_goes_has_its_series_come_or_go() -> None:
    async def main() -> tuple[str, str]:
        world = World(scenario(2))
        await world.exporter.start()
        await asyncio.sleep(10)
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        await world.exporter.reconfigure(with_accounts(world, *world.settings.accounts, renamed))
        await asyncio.sleep(10)
        both = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        await world.exporter.reconfigure(with_accounts(world, renamed))
        await asyncio.sleep(10)
        one = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        await world.exporter.stop()
        return both, one

    both, one = run(main())

    assert (both.count("chatapp_account_up{"), one.count("chatapp_account_up{")) == (2, 1)
    assert 'chatapp_api_requests_total{account="acme",code="OK"}' in both
    assert 'account="acme"' not in one
    assert 'chatapp_api_requests_total{account="globex",code="OK"}' in one


@pytest.mark.parametrize(
    ("change", "least"), [("name", 50), ("endpoint", 50), ("qps", 50), ("gone", 50), ("isv_code", 200)]
)
def test_the_budget_holds_over_a_reload_and_is_used(change: str, least: int) -> None:
    changes: Mapping[str, Callable[[int], Any]] = {
        "name": lambda n: f"acme-{n}",
        "isv_code": str,
        "endpoint": lambda n: f"http://127.0.0.1:{n + 1}",
        "qps": lambda n: 10 if n % 2 else 3,
    }

    async def main() -> list[float]:
        world = World(scenario(200, poll_interval="5s", qps=10, latency="300ms"))
        await world.exporter.start()
        for number in range(20):
            await asyncio.sleep(1.37)
            if change == "gone":
                await world.exporter.reconfigure(with_spaces(world, 1, name="meanwhile", qps=0.001))
                await asyncio.sleep(0.2)
            changed = {change: changes[change](number)} if change in changes else {}
            account = world.settings.accounts[0].model_copy(update=changed)
            await world.exporter.reconfigure(with_accounts(world, account))
        await asyncio.sleep(2)
        await world.exporter.stop()
        return world.api.arrivals

    with capture_logs() as logs:
        arrivals = run(main())

    assert [line for line in logs if line["log_level"] == "error"] == []
    assert max(sum(start <= at < start + 1 for at in arrivals) for start in arrivals) <= 10
    assert len(arrivals) > least


def test_an_account_that_left_is_asked_no_more() -> None:
    async def main() -> tuple[int, int, int]:
        world = World(scenario(5, poll_interval="5s"))
        await world.exporter.start()
        await asyncio.sleep(20)
        other = with_spaces(world, 1, name="globex", poll_interval=600.0)
        await world.exporter.reconfigure(other)
        await asyncio.sleep(5)
        asked = len(world.polls)
        await asyncio.sleep(500)
        jobs = len(world.exporter.service.schedule)
        await world.exporter.stop()
        return asked, len(world.polls), jobs

    before, after, jobs = run(main())
    assert (after, jobs) == (before, 1)


def test_more_queries_a_second_are_used_at_once() -> None:
    async def main() -> tuple[int, int]:
        world = World(scenario(200, poll_interval="5s", qps=2))
        await world.exporter.start()
        await asyncio.sleep(20)
        slow = len(world.polls)
        await world.exporter.reconfigure(with_spaces(world, *range(1, 201), qps=10.0))
        await asyncio.sleep(20)
        await world.exporter.stop()
        return slow, len(world.polls) - slow

    slow, fast = run(main())

    assert 35 <= slow <= 42
    assert 190 <= fast <= 202


def test_another_interval_spreads_the_spaces_over_it() -> None:
    async def main() -> World:
        world = World(scenario(30, poll_interval="5m", qps=10))
        await world.exporter.start()
        await asyncio.sleep(100)
        world.polls.clear()
        await world.exporter.reconfigure(with_spaces(world, *range(1, 31), poll_interval=60.0))
        await asyncio.sleep(120.5)
        await world.exporter.stop()
        return world

    world = run(main())
    assert gaps([at for at, _ in world.polls]) == [pytest.approx(2, abs=0.1)] * 59
    assert {len(world.polls_of(world.space_id(number))) for number in range(1, 31)} == {2}


def test_a_reload_asks_at_once_where_the_account_was_refused() -> None:
    async def main() -> list[float]:
        world = World(scenario(5, poll_interval="5m", events=(REVOKED,)))
        await world.exporter.start()
        await asyncio.sleep(1000)
        assert world.samples("chatapp_account_up") == ["chatapp_account_up{} 0"]
        asked = len(world.polls)
        await world.exporter.reconfigure(with_spaces(world, *range(1, 6), isv_code="other"))
        await asyncio.sleep(1)
        await world.exporter.stop()
        return [at for at, _ in world.polls[asked:]]

    assert run(main()) == [1000]


def test_a_space_that_is_refused_asks_at_once_with_another_isv_code() -> None:
    async def main() -> list[tuple[float, str]]:
        world = World(
            scenario(5, poll_interval="5m", events=({"at": "0s", "space": 2, "answer": "Authentication.NoAuth"},))
        )
        await world.exporter.start()
        await asyncio.sleep(400)
        asked, account = len(world.polls), world.settings.accounts[0]
        spaces: list[Space] = list(account.polled_spaces)
        spaces[1:3] = [CamsSpace(id=space.id, name=space.name, isv_code="other") for space in spaces[1:3]]
        changed = account.model_copy(update={"spaces": spaces})
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [changed]}))
        await asyncio.sleep(1)
        await world.exporter.stop()
        assert world.polls[asked:] == [(400, world.space_id(2))]
        return world.polls[asked:]

    assert len(run(main())) == 1


def test_a_reload_in_the_midst_of_a_stop_begins_nothing() -> None:
    async def main() -> tuple[int, list[str]]:
        world = World(scenario(3, poll_interval="5s", latency="2s"))
        await world.exporter.start()
        await asyncio.sleep(11)
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        other = world.settings.model_copy(update={"accounts": [renamed]})
        with capture_logs() as logs:
            await asyncio.gather(world.exporter.reconfigure(other), world.exporter.stop())
        asked = len(world.polls)
        await asyncio.sleep(60)
        return len(world.polls) - asked, [line["event"] for line in logs]

    assert run(main()) == (0, [])


def test_a_refused_account_stays_refused_whatever_spaces_come_or_go() -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(8, poll_interval="5m", events=(REVOKED,)))
        await world.exporter.reconfigure(with_spaces(world, 1, 2, 3))
        await world.exporter.start()
        await asyncio.sleep(900)
        told = []
        for spaces in ((2, 3), (2, 3, 4, 5, 6), (7, 8)):
            await world.exporter.reconfigure(with_spaces(world, *spaces))
            told.append(world.samples("chatapp_account_up"))
            await asyncio.sleep(1)
        await world.exporter.stop()
        return told

    assert run(main()) == [["chatapp_account_up{} 0"]] * 3


def test_series_of_an_account_that_left_do_not_come_back_with_an_answer_under_way() -> None:
    async def main() -> str:
        world = World(scenario(5, poll_interval="5s", latency="2s"))
        await world.exporter.start()
        await asyncio.sleep(0.5)
        await world.exporter.reconfigure(with_spaces(world, 1, name="globex"))
        await asyncio.sleep(60)
        page = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        await world.exporter.stop()
        return page

    assert 'account="acme"' not in run(main())


def test_a_new_space_is_polled_before_those_that_wait_already() -> None:
    async def main() -> list[str]:
        world = World(scenario(201, poll_interval="5s", qps=2))
        await world.exporter.reconfigure(with_spaces(world, *range(1, 201)))
        await world.exporter.start()
        await asyncio.sleep(200)
        await world.exporter.reconfigure(with_spaces(world, *range(1, 202)))
        asked = len(world.polls)
        await asyncio.sleep(3)
        await world.exporter.stop()
        assert world.space_id(201) in [space for _, space in world.polls[asked:]]
        return [space for _, space in world.polls[asked:]]

    assert len(run(main())) <= 7


def test_another_endpoint_is_asked_at_once_with_another_key() -> None:
    async def main() -> tuple[list[str], int, list[str]]:
        world = World(scenario(5, poll_interval="5m"))
        await world.exporter.start()
        await asyncio.sleep(400)
        asked = len(world.polls)
        await world.exporter.reconfigure(with_spaces(world, *range(1, 6), endpoint="http://127.0.0.1:2"))
        await asyncio.sleep(3)
        moved = len(world.polls) - asked
        other = {"access_key_id": "wrong", "access_key_secret": SecretStr("wrong"), "endpoint": "http://127.0.0.1:2"}
        await world.exporter.reconfigure(with_spaces(world, *range(1, 6), **other))
        await asyncio.sleep(400)
        requests = world.samples("chatapp_api_requests_total")
        await world.exporter.stop()
        return world.endpoints, moved, requests

    endpoints, moved, requests = run(main())

    assert endpoints == [
        "http://127.0.0.1:1",
        "http://127.0.0.1:2",
        "http://127.0.0.1:2",
    ]  # another key, another client
    assert moved == 5
    assert any("InvalidAccessKeyId.NotFound" in line for line in requests)


def test_spaces_that_left_leave_the_state_file_with_the_reload(tmp_path: Path) -> None:
    async def main() -> set[str]:
        world = World(scenario(5), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        await world.exporter.reconfigure(with_spaces(world, 1, 2))
        await asyncio.sleep(1)
        with closing(sqlite3.connect(tmp_path / "state.db")) as database:
            left = {space for (space,) in database.execute("SELECT space FROM space")}
        await world.exporter.stop()
        assert left == {world.space_id(1), world.space_id(2)}
        return left

    assert len(run(main())) == 2


def test_the_state_file_follows_the_configuration(tmp_path: Path) -> None:
    async def main() -> tuple[list[str], list[str], list[str]]:
        world = World(scenario(2, poll_interval="5m"), state_file=str(tmp_path / "one.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        shown = world.samples("chatapp_phone_number")
        other = world.settings.model_copy(update={"state_file": str(tmp_path / "other.db")})
        await world.exporter.reconfigure(other)
        file = world.samples("chatapp_exporter_state_file_up")
        await world.exporter.stop()
        world.settings = other
        world.exporter = world.fresh_exporter()
        again = world.samples("chatapp_phone_number")
        await world.exporter.stop()
        return shown, again, file

    shown, again, file = run(main())

    assert shown == again
    assert file == [f'chatapp_exporter_state_file_up{{file="{tmp_path / "other.db"}"}} 1.0']


def test_a_state_file_that_a_reload_takes_over_tells_of_configured_spaces_only(tmp_path: Path) -> None:
    async def main() -> tuple[World, int, set[str]]:
        world = World(scenario(3), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        await world.exporter.stop()
        kept = with_spaces(world, 1, 2)
        world.settings = kept.model_copy(update={"state_file": None})
        world.exporter = world.fresh_exporter()
        await world.exporter.reconfigure(kept)
        shown = len(world.samples("chatapp_space_last_success"))
        await world.exporter.stop()
        with closing(sqlite3.connect(tmp_path / "state.db")) as database:
            return world, shown, {space for (space,) in database.execute("SELECT space FROM space")}

    world, shown, stored = run(main())

    assert shown == 2
    assert stored == {space.id for space in world.settings.accounts[0].polled_spaces}


def test_a_state_file_that_was_repaired_is_used_after_a_reload(tmp_path: Path) -> None:
    async def main() -> tuple[list[str], int]:
        directory = tmp_path / "not-yet"
        world = World(scenario(2, poll_interval="5m"), state_file=str(directory / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        directory.mkdir()
        await world.exporter.reconfigure(world.settings)
        up = world.samples("chatapp_exporter_state_file_up")
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        missing = world.exporter.view.unpolled()
        await world.exporter.stop()
        return up, missing

    up, missing = run(main())
    assert up[0].endswith(" 1.0")
    assert missing == 0


class Scripted:
    """A configuration that is what the test says, or wrong."""

    def __init__(self, *loads: Settings | ConfigError) -> None:
        self._loads = iter(loads)

    def load(self) -> Settings:
        loaded = next(self._loads)
        if isinstance(loaded, ConfigError):
            raise loaded
        return loaded

    def changed(self, *, retry: bool) -> bool:
        return False

    def space_files(self) -> Mapping[str, bool]:
        return {}


def test_a_bad_configuration_changes_nothing_and_both_metrics_say_so() -> None:
    async def main() -> tuple[list[list[str]], World]:
        world = World(scenario(2))
        await world.exporter.start()
        await asyncio.sleep(100)
        reloader = world.exporter.reloader(Scripted(ConfigError([Problem("x.yml", (), "wrong")]), world.settings))
        before = world.samples("chatapp_space")
        with pytest.raises(ConfigError, match=r"x\.yml: wrong"):
            await reloader.reload()
        assert world.samples("chatapp_space") == before
        told = [world.samples("chatapp_exporter_config")]
        await asyncio.sleep(50)
        await reloader.reload()
        told.append(world.samples("chatapp_exporter_config"))
        await world.exporter.stop()
        return told, world

    (refused, taken), _ = run(main())

    assert refused == [
        "chatapp_exporter_config_last_reload_successful 0.0",
        "chatapp_exporter_config_last_reload_success_timestamp_seconds 1.8e+09",
    ]
    assert taken[0] == "chatapp_exporter_config_last_reload_successful 1.0"
    assert float(taken[1].split(" ")[1]) >= START + 150


def successful(world: World) -> str:
    """What the metric says of the last reload."""
    return world.samples("chatapp_exporter_config_last_reload_successful")[0].split(" ")[1]


def test_two_reloads_at_once_are_done_one_after_the_other() -> None:
    async def main() -> list[str]:
        world = World(scenario(4, poll_interval="5m", latency="1s"))
        await world.exporter.start()
        await asyncio.sleep(0.1)
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        one, other = with_accounts(world, renamed), world.settings
        reloader = world.exporter.reloader(Scripted(one, other))
        await asyncio.gather(reloader.reload(), reloader.reload())
        await asyncio.sleep(20)
        accounts = [view.account for view in world.exporter.view.accounts()]
        await world.exporter.stop()
        return accounts

    assert run(main()) == ["acme"]


def test_a_thousand_reloads_leave_nothing_behind() -> None:
    async def main() -> tuple[tuple[int, ...], tuple[int, ...]]:
        world = World(scenario(20, poll_interval="5s", latency="50ms"))
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        forms = [
            with_spaces(world, *range(1, 11)),
            with_spaces(world, *range(6, 21), poll_interval=7.0),
            with_accounts(world, *world.settings.accounts, renamed),
            with_spaces(world, *range(1, 21), qps=3.0),
        ]
        await world.exporter.start()

        def held() -> tuple[int, ...]:
            page = b"".join(world.exporter.exposition(openmetrics=False))
            jobs = len(world.exporter.service.schedule)
            return len(asyncio.all_tasks()), jobs, page.count(b"\n")

        for number in range(40):
            await world.exporter.reconfigure(forms[number % 4])
            await asyncio.sleep(0.07)
        await asyncio.sleep(20)
        before = held()
        for number in range(1000):
            await world.exporter.reconfigure(forms[number % 4])
            await asyncio.sleep(0.07)
        await asyncio.sleep(20)
        after = held()
        await world.exporter.stop()
        return before, after

    before, after = run(main())

    assert after == before


def test_a_bug_in_a_reload_is_told_and_the_next_one_is_possible() -> None:
    """A space that no schedule can hold, which no configuration lets through."""

    async def main() -> tuple[list[str], int]:
        world = World(scenario(5, poll_interval="5m"))
        await world.exporter.reconfigure(with_spaces(world, 1, 2))
        await world.exporter.start()
        await asyncio.sleep(10)
        impossible = with_spaces(world, 1, 2, 3, 4, qps=1e-300)
        good = with_spaces(world, 1, 2, 3, 4, 5)
        reloader = world.exporter.reloader(Scripted(impossible, good))
        with pytest.raises(OverflowError):
            await reloader.reload()
        told = [successful(world)]
        await reloader.reload()
        told.append(successful(world))
        await asyncio.sleep(5)
        shown = spaces_shown(world)
        await world.exporter.stop()
        assert world.exporter.view.unpolled() == 0
        return told, len(shown)

    assert run(main()) == (["0.0", "1.0"], 5)


@pytest.mark.parametrize("replaced_after", [5, 1000])
def test_a_key_that_is_replaced_in_its_file_lets_a_refused_account_in_within_thirty_seconds(
    tmp_path: Path, replaced_after: int
) -> None:
    key = tmp_path / "key"

    async def main() -> tuple[list[str], int]:
        world = World(scenario(3, poll_interval="5m"))
        key.write_text("wrong-secret")
        account = {"access_key_secret": None, "access_key_secret_file": str(key)}
        world.settings = with_spaces(world, 1, 2, 3, **account)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        reloader = world.exporter.reloader(StaticLoader(world.settings))
        following = asyncio.create_task(reloader.run(asyncio.Event()))
        await asyncio.sleep(replaced_after)
        asked = len(world.polls)
        assert world.samples("chatapp_account_up") == ["chatapp_account_up{} 0"]
        key.write_text("secret-acme")
        await asyncio.sleep(30)
        up = world.samples("chatapp_account_up")
        following.cancel()
        await world.exporter.stop()
        return up, asked

    up, asked = run(main())

    assert up == ["chatapp_account_up{} 1"]
    assert asked <= 3 + 1000 / 300


class Numbers(Source):
    """Answers after `latency`; counts its queries, and says when it is closed."""

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency
        self.queries: list[str] = []
        self.ended = 0
        self.closed_after: int | None = None

    async def query(self, space: Space, attempt: Attempt) -> Answer:
        async with attempt():
            self.queries.append(space.id)
            await asyncio.sleep(self.latency)
            self.ended += 1
            return Answer(())

    async def aclose(self) -> None:
        assert self.closed_after is None, "closed twice"
        self.closed_after = self.ended


class Prepared(CamsAccount):
    """An account whose sources are those of the test, in order; an exception cannot be opened."""

    sources: ClassVar[list[Source | SourceError]]

    def open(self, context: SourceContext) -> Source:
        opened = self.sources.pop(0)
        if isinstance(opened, SourceError):
            raise opened
        return opened


def prepared(name: str = "acme", spaces: int = 3, **changes: Any) -> Prepared:
    listed = [{"id": f"{name}-{number}"} for number in range(spaces)]
    keys = {"access_key_id": "id", "access_key_secret": "secret", "poll_interval": "1m", "qps": 1}
    return Prepared.model_validate({"name": name, "spaces": listed, **keys, **changes})


def process(*accounts: Account) -> Exporter:
    return Exporter(Settings(accounts=list(accounts)), SourceContext({}, VirtualClock(), http_client))


def test_a_new_key_is_used_at_once_by_polls_that_wait_and_the_old_source_is_closed_when_its_last_request_ends() -> None:
    old, new = Numbers(latency=3), Numbers()
    Prepared.sources = [old, new]

    async def main() -> tuple[int | None, int | None]:
        exporter = process(prepared(qps=2))
        await exporter.start()
        await asyncio.sleep(1.2)  # two are in flight, the third waits for a permit
        await exporter.reconfigure(Settings(accounts=[prepared(qps=2, access_key_secret="another")]))
        run_without_waiting = old.closed_after
        await asyncio.sleep(5)
        closed = old.closed_after
        await exporter.stop()
        return run_without_waiting, closed

    assert run(main()) == (None, 2)
    assert (old.queries, new.queries) == (["acme-0", "acme-1"], ["acme-2"])
    assert new.closed_after == 1


def observable(exporter: Exporter) -> tuple[list[str], str, int, int]:
    """What a scrape shows but the time and the process, the shown configuration, the schedule and the tasks."""
    lines = b"".join(exporter.exposition()).decode().splitlines()
    shown = [line for line in lines if line.startswith("chatapp_")]
    return shown, exporter.view.redacted_config(), len(exporter.service.schedule), len(asyncio.all_tasks())


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_change_that_cannot_be_prepared_changes_nothing_and_closes_what_it_opened(
    position: int, tmp_path: Path
) -> None:
    running = Numbers()
    opened: list[Source | SourceError] = [Numbers(), Numbers(), Numbers()]
    opened[position] = SourceError("endpoint", "no way to it")

    async def main() -> None:
        Prepared.sources = [running]
        exporter = process(prepared())
        await exporter.start()
        await asyncio.sleep(10)
        Prepared.sources = list(opened)
        write(tmp_path / "state.db", "damaged\0")
        before = observable(exporter)
        accounts = [prepared(access_key_secret="another", spaces=1), prepared("globex"), prepared("initech")]
        changed = Settings(accounts=accounts, max_age="1s", state_file=str(tmp_path / "state.db"))
        with pytest.raises(ConfigError, match="no way to it"):
            await exporter.reconfigure(changed)
        assert observable(exporter) == before
        assert names_in(tmp_path) == ["state.db"]
        await asyncio.sleep(60)
        await exporter.stop()

    run(main())

    assert len(running.queries) == 6
    assert [source.closed_after for source in opened[:position] if isinstance(source, Numbers)] == [0] * position


def test_a_change_of_the_endpoint_shows_the_account_at_every_moment() -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(5, poll_interval="5s", latency="2s"))
        await world.exporter.start()
        await asyncio.sleep(6)
        moved = with_spaces(world, *range(1, 6), endpoint="http://127.0.0.1:2")
        reload = asyncio.create_task(world.exporter.reconfigure(moved))
        shown = []
        while not reload.done():
            await asyncio.sleep(0.1)
            shown.append(world.samples("chatapp_account_spaces"))
        await world.exporter.stop()
        return shown

    shown = run(main())

    assert len(shown) > 5  # it waits for polls in flight
    assert shown == [["chatapp_account_spaces{} 5"]] * len(shown)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_http_client_that_cannot_be_created_changes_nothing(position: int) -> None:
    polled: list[str] = []
    clients: list[httpx.AsyncClient] = []

    def answer(request: httpx.Request) -> httpx.Response:
        polled.append(request.url.host)
        return httpx.Response(200, stream=httpx.ByteStream(b'{"Code": "OK", "PhoneNumbers": []}'))

    def factory(endpoint: str) -> httpx.AsyncClient:
        if endpoint == f"https://broken-{position}.example":
            return http_client(endpoint, {"HTTPS_PROXY": "socks5://proxy.example"})
        clients.append(httpx.AsyncClient(transport=httpx.MockTransport(answer)))
        return clients[-1]

    def account(name: str, host: str) -> CamsAccount:
        keys = {"access_key_id": f"id-{name}", "access_key_secret": "secret", "poll_interval": "1m"}
        return CamsAccount.model_validate({"name": name, "endpoint": f"https://{host}.example", **keys})

    async def main() -> str:
        before = Settings(accounts=[account("old", "old"), account("stays", "stays")])
        exporter = Exporter(before, SourceContext({}, VirtualClock(), factory))
        await exporter.start()
        await asyncio.sleep(30)
        shown = observable(exporter)
        accounts = [account(f"new-{number}", f"broken-{number}") for number in range(3)]
        with pytest.raises(ConfigError) as error:
            await exporter.reconfigure(Settings(accounts=[*accounts, account("stays", "stays")]))
        assert observable(exporter) == shown
        await asyncio.sleep(60)
        await exporter.stop()
        return str(error.value)

    assert run(main()) == (
        "environment: HTTPS_PROXY: expected a proxy with http:// or https://, found socks5://, which is not supported"
    )
    assert polled == ["old.example", "stays.example"] * 2
    assert all(client.is_closed for client in clients)
    assert len(clients) == 2 + position


def test_a_secret_that_cannot_be_read_during_a_reload_keeps_the_last_one(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-acme")

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(1, poll_interval="5s"))
        world.settings = with_spaces(world, 1, access_key_secret=None, access_key_secret_file=str(key))
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(6)
        key.write_text("")
        await world.exporter.reconfigure(world.settings.model_copy(update={"max_age": 60.0}))
        with pytest.raises(ConfigError, match="access_key_secret_file"):
            await world.exporter.reconfigure(with_spaces(world, 1, access_key_id="another"))
        await asyncio.sleep(30)
        await world.exporter.stop()
        return world.samples("chatapp_space_up"), world.samples("chatapp_space_poll_failures")

    assert run(main()) == (["chatapp_space_up{} 1"], [])


def names_in(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def write(file: Path, text: str) -> None:
    file.write_text(text)


def test_a_new_key_costs_no_permit_and_a_poll_that_waits_keeps_its_time() -> None:
    old, new = Numbers(), Numbers()
    Prepared.sources = [old, new]
    moments: list[float] = []

    async def main() -> None:
        exporter = process(prepared(spaces=5, qps=0.001))
        await exporter.start()
        await asyncio.sleep(1500)
        await exporter.reconfigure(Settings(accounts=[prepared(spaces=5, qps=0.001, access_key_secret="another")]))
        for _ in range(200):
            await asyncio.sleep(10)
            if len(new.queries) > len(moments):
                moments.append(asyncio.get_running_loop().time())
        await exporter.stop()

    run(main())

    assert len(old.queries) == 2
    assert moments == [pytest.approx(2000, abs=20), pytest.approx(3000, abs=20)]


def test_replaced_sources_are_not_kept() -> None:
    class Unhashable(Numbers):
        __hash__ = None  # type: ignore[assignment]

    Prepared.sources = [Unhashable() for _ in range(51)]
    alive = [weakref.ref(source) for source in Prepared.sources]

    async def main() -> int:
        exporter = process(prepared())
        await exporter.start()
        for number in range(50):
            await asyncio.sleep(2)
            await exporter.reconfigure(Settings(accounts=[prepared(access_key_secret=f"secret-{number}")]))
        gc.collect()
        left = sum(source() is not None for source in alive)
        await exporter.stop()
        return left

    assert run(main()) == 1


def test_a_source_that_cannot_be_closed_holds_up_no_account() -> None:
    class Stuck(Numbers):
        async def aclose(self) -> None:
            raise ZeroDivisionError

    new = Numbers()
    Prepared.sources = [Stuck(), new]

    async def main() -> None:
        exporter = process(prepared())
        await exporter.start()
        await asyncio.sleep(10)
        await exporter.reconfigure(Settings(accounts=[prepared("globex")]))
        await asyncio.sleep(10)
        await exporter.stop()

    with capture_logs() as logs:
        run(main())

    assert len(new.queries) == 3
    assert "closing the source failed because of a bug, please report it" in [line["event"] for line in logs]


class Listed(Numbers):
    """Lists these spaces too."""

    def __init__(self, *spaces: str, latency: float = 0.0) -> None:
        super().__init__(latency)
        self.spaces = list(spaces)
        self.lists = 0

    async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
        async with attempt():
            self.lists += 1
            return dict.fromkeys(self.spaces, "")


def discovering(name: str = "acme", **changes: Any) -> Prepared:
    return prepared(name, qps=10, **changes).model_copy(update={"spaces": None, "discover": True})


def test_a_sweep_lists_once() -> None:
    source = Listed("s1", "s2")
    Prepared.sources = [source]

    async def main() -> int:
        exporter = process(discovering())
        swept = (await exporter.sweep()).spaces
        await asyncio.sleep(10)
        await exporter.stop()
        return len(swept)

    assert (run(main()), source.lists, len(source.queries)) == (2, 1, 2)


def test_a_list_that_ends_while_a_change_is_prepared_is_not_lost() -> None:
    source = Listed("s1", "s2")

    class ListsMeanwhile(Prepared):
        def open(self, context: SourceContext) -> Source:
            source.spaces.append("s3")
            run_without_waiting(exporters[0].service.accounts["acme"].discovery.list_once())
            return Numbers()

    exporters: list[Exporter] = []

    async def main() -> list[str]:
        Prepared.sources = [source]
        exporters.append(process(discovering()))
        await exporters[0].start()
        await asyncio.sleep(10)
        other = ListsMeanwhile.model_validate({"name": "globex", "spaces": [{"id": "s9"}], "access_key_id": "x"})
        await exporters[0].reconfigure(Settings(accounts=[discovering(), other]))
        shown = sorted(view.space.id for view in exporters[0].view.snapshot().spaces)
        await exporters[0].stop()
        return shown

    assert run(main()) == ["s1", "s2", "s3", "s9"]


def test_a_list_of_another_account_starts_no_account_before_its_time() -> None:
    slow, renamed, other = Listed("s1", "s2", latency=5), Listed("s1", "s2"), Listed("s1")
    Prepared.sources = [slow, other, renamed]

    async def main() -> tuple[int, int]:
        exporter = process(discovering("acme"), discovering("globex"))
        await exporter.start()
        await asyncio.sleep(1)  # the polls of acme are in flight
        reload = asyncio.create_task(
            exporter.reconfigure(Settings(accounts=[discovering("renamed"), discovering("globex")]))
        )
        await asyncio.sleep(0.1)
        other.spaces.append("s2")
        await exporter.service.accounts["globex"].discovery.list_once()
        await asyncio.sleep(2)
        early = renamed.lists + len(renamed.queries)
        await reload
        await asyncio.sleep(10)
        await exporter.stop()
        return early, renamed.lists

    assert run(main()) == (0, 1)


def test_a_reload_that_could_not_be_prepared_for_a_changed_file_is_tried_again() -> None:
    class Changes(Scripted):
        def changed(self, *, retry: bool) -> bool:
            return retry or asyncio.get_running_loop().time() < 1

    broken = SourceError("access_key_secret_file", "expected a secret in this file, found nothing")
    Prepared.sources = [Numbers(), broken, broken, Numbers()]
    settings = [Settings(accounts=[prepared(access_key_secret="another")])] * 3

    async def main() -> list[float]:
        exporter = process(prepared())
        reloader = exporter.reloader(Changes(*settings))
        await exporter.start()
        seen = []
        for _ in range(2):
            with pytest.raises(ConfigError):
                await reloader.follow_once()
            seen.append(float(exporter.reloads.successful))
            await asyncio.sleep(10)
        await reloader.follow_once()
        seen.append(float(exporter.reloads.successful))
        await exporter.stop()
        return seen

    with capture_logs() as logs:
        assert run(main()) == [0, 0, 1]

    failed = [line for line in logs if line["event"] == "config reload failed, keeping the current configuration"]
    assert len(failed) == 1


def test_each_requested_reload_that_fails_is_logged() -> None:
    error = ConfigError([Problem("x.yml", (), "wrong")])

    async def main() -> None:
        world = World(scenario(1))
        reloader = world.exporter.reloader(Scripted(error, error))
        for _ in range(2):
            with pytest.raises(ConfigError):
                await reloader.reload()
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    assert len(logs) == 2


def test_a_stop_during_a_reload_leaves_the_state_file_closed(tmp_path: Path) -> None:
    Prepared.sources = [Numbers(latency=3), Numbers()]

    async def main() -> list[str]:
        accounts, file = [prepared()], str(tmp_path / "state.db")
        context = SourceContext({}, VirtualClock(), http_client)
        exporter = Exporter(Settings(accounts=list(accounts), state_file=file), context)
        await exporter.start()
        await asyncio.sleep(0.5)
        changed = Settings(accounts=[prepared("globex")], state_file=file)
        await asyncio.gather(exporter.reconfigure(changed), exporter.stop())
        return [line for line in b"".join(exporter.exposition()).decode().splitlines() if "state_file_up{" in line]

    assert [line[-3:] for line in run(main())] == ["0.0"]


def test_a_reload_that_is_prepared_during_a_stop_leaves_nothing_open() -> None:
    running, new = Numbers(latency=3), Numbers()
    Prepared.sources = [running, new]

    async def main() -> None:
        exporter = process(prepared())
        await exporter.start()
        await asyncio.sleep(0.5)
        await asyncio.gather(exporter.stop(), exporter.reconfigure(Settings(accounts=[prepared("globex")])))

    run(main())

    assert (running.closed_after, new.closed_after) == (1, 0)
