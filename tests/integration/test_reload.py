"""Reloads of a running exporter: spaces and accounts that did not change are not affected."""

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
    """Return the world's settings with these accounts."""
    return world.settings.model_copy(update={"accounts": list(accounts)})


def with_spaces(world: World, *numbers: int, **changes: Any) -> Settings:
    """Return the world's settings with only these spaces (from 1) in the first account, and this account changed."""
    account = world.settings.accounts[0]
    spaces = [account.polled_spaces[number - 1] for number in numbers]
    changed = account.model_copy(update={"spaces": spaces, **changes})
    return with_accounts(world, changed, *world.settings.accounts[1:])


def exported_spaces(world: World) -> set[str]:
    lines = b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines()
    return {line.split('space="')[1].split('"')[0] for line in lines if line.startswith("chatapp_space_up{")}


def samples_of_spaces(world: World, *numbers: int) -> list[str]:
    """Return the sample lines of these spaces (from 1)."""
    labels = [f'space="{world.space_id(number)}"' for number in numbers]
    lines = b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines()
    return [line for line in lines if any(label in line for label in labels)]


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_an_unchanged_space_keeps_its_values_schedule_and_counters_after_a_reload() -> None:
    async def main() -> tuple[World, list[str], list[str]]:
        world = World(scenario(20, poll_interval="1m", qps=10))
        await world.exporter.reconfigure(with_spaces(world, *range(1, 11)))
        await world.exporter.start()
        await asyncio.sleep(400)
        before = samples_of_spaces(world, *range(6, 11))
        await world.exporter.reconfigure(with_spaces(world, *range(6, 16)))
        after = samples_of_spaces(world, *range(6, 11))
        await asyncio.sleep(400)
        await world.exporter.stop()
        return world, before, after

    world, before, after = run(main())
    for number in range(6, 11):
        regular_polls = world.polls_of(world.space_id(number))[1:]
        assert gaps(regular_polls) == [pytest.approx(60, abs=0.2)] * 12
    assert sorted(after) == sorted(before)
    assert any(line.startswith("chatapp_phone_number_quality_rating{") for line in after)
    polls = [line.split(" ")[1] for line in after if line.startswith("chatapp_space_polls_total{")]
    assert polls == ["8", "7", "7", "7", "7"]


def test_new_spaces_are_polled_first_and_removed_spaces_disappear_immediately() -> None:
    async def main() -> World:
        world = World(scenario(20, poll_interval="5m", qps=10))
        await world.exporter.reconfigure(with_spaces(world, *range(1, 16)))
        await world.exporter.start()
        await asyncio.sleep(1000)
        world.polls.clear()
        await world.exporter.reconfigure(with_spaces(world, *range(6, 21)))
        assert exported_spaces(world) == {world.space_id(number) for number in range(6, 21)}
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
        _, *regular_polls = world.polls_of(world.space_id(number))
        assert gaps(regular_polls) == [pytest.approx(300, abs=0.2)] * len(regular_polls[1:])


def test_the_result_of_a_poll_in_flight_is_discarded_if_its_space_is_removed() -> None:
    async def main() -> set[str]:
        world = World(scenario(2, poll_interval="5m", latency="2s"))
        await world.exporter.start()
        await asyncio.sleep(0.5)
        await world.exporter.reconfigure(with_spaces(world, 2))
        await asyncio.sleep(10)
        exported = exported_spaces(world)
        await world.exporter.stop()
        assert exported == {world.space_id(2)}
        return exported

    assert len(run(main())) == 1


def test_new_names_labels_messaging_limits_and_max_age_apply_immediately() -> None:
    async def main() -> tuple[list[str], list[str], list[str]]:
        world = World(scenario(1, poll_interval="5m"))
        await world.exporter.start()
        await asyncio.sleep(10)
        space = world.settings.accounts[0].polled_spaces[0]
        named_space = CamsSpace(id=space.id, name="Contoso", labels={"team": "emea"})
        account = world.settings.accounts[0].model_copy(update={"spaces": [named_space]})
        tiers = dict.fromkeys(("TIER_250", "TIER_2K", "TIER_10K", "TIER_100K", "TIER_UNLIMITED"), 7.0)
        await world.exporter.reconfigure(Settings(accounts=[account], messaging_limits=tiers))
        info, limits = world.samples("chatapp_space_info"), world.samples("chatapp_phone_number_messaging_limit{")
        await world.exporter.reconfigure(Settings(accounts=[account], max_age="5s"))
        after_max_age = world.samples("chatapp_phone_number")
        await world.exporter.stop()
        return info, limits, after_max_age

    info, limits, after_max_age = run(main())

    assert info == ['chatapp_space_info{name="Contoso",team="emea"} 1']
    assert {line.rsplit(" ", 1)[1] for line in limits} == {"7.0"}
    assert after_max_age == []


def test_series_of_added_accounts_appear_and_series_of_removed_accounts_disappear() -> None:
    async def main() -> tuple[str, str]:
        world = World(scenario(2))
        await world.exporter.start()
        await asyncio.sleep(10)
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        await world.exporter.reconfigure(with_accounts(world, *world.settings.accounts, renamed))
        await asyncio.sleep(10)
        with_both = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        await world.exporter.reconfigure(with_accounts(world, renamed))
        await asyncio.sleep(10)
        renamed_only = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        await world.exporter.stop()
        return with_both, renamed_only

    with_both, renamed_only = run(main())

    assert (with_both.count("chatapp_account_up{"), renamed_only.count("chatapp_account_up{")) == (2, 1)
    assert 'chatapp_api_requests_total{account="acme",code="OK"}' in with_both
    assert 'account="acme"' not in renamed_only
    assert 'chatapp_api_requests_total{account="globex",code="OK"}' in renamed_only


@pytest.mark.parametrize(
    ("change", "min_requests"), [("name", 50), ("endpoint", 50), ("qps", 50), ("removed", 50), ("isv_code", 200)]
)
def test_reloads_do_not_exceed_the_budget_and_requests_continue(change: str, min_requests: int) -> None:
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
            if change == "removed":
                await world.exporter.reconfigure(with_spaces(world, 1, name="temporary", qps=0.001))
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
    assert len(arrivals) > min_requests


def test_a_removed_account_is_not_polled() -> None:
    async def main() -> tuple[int, int, int]:
        world = World(scenario(5, poll_interval="5s"))
        await world.exporter.start()
        await asyncio.sleep(20)
        globex_only = with_spaces(world, 1, name="globex", poll_interval=600.0)
        await world.exporter.reconfigure(globex_only)
        await asyncio.sleep(5)
        polls_before = len(world.polls)
        await asyncio.sleep(500)
        jobs = len(world.exporter.service.schedule)
        await world.exporter.stop()
        return polls_before, len(world.polls), jobs

    before, after, jobs = run(main())
    assert (after, jobs) == (before, 1)


def test_a_higher_qps_is_used_immediately() -> None:
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


def test_a_new_poll_interval_redistributes_the_spaces() -> None:
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


def test_a_reload_with_another_isv_code_probes_a_denied_account_immediately() -> None:
    async def main() -> list[float]:
        world = World(scenario(5, poll_interval="5m", events=(REVOKED,)))
        await world.exporter.start()
        await asyncio.sleep(1000)
        assert world.samples("chatapp_account_up") == ["chatapp_account_up{} 0"]
        polls_before = len(world.polls)
        await world.exporter.reconfigure(with_spaces(world, *range(1, 6), isv_code="other"))
        await asyncio.sleep(1)
        await world.exporter.stop()
        return [at for at, _ in world.polls[polls_before:]]

    assert run(main()) == [1000]


def test_a_rejected_space_is_polled_immediately_after_its_isv_code_changes() -> None:
    async def main() -> list[tuple[float, str]]:
        world = World(
            scenario(5, poll_interval="5m", events=({"at": "0s", "space": 2, "answer": "Authentication.NoAuth"},))
        )
        await world.exporter.start()
        await asyncio.sleep(400)
        polls_before, account = len(world.polls), world.settings.accounts[0]
        spaces: list[Space] = list(account.polled_spaces)
        spaces[1:3] = [CamsSpace(id=space.id, name=space.name, isv_code="other") for space in spaces[1:3]]
        changed = account.model_copy(update={"spaces": spaces})
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [changed]}))
        await asyncio.sleep(1)
        await world.exporter.stop()
        assert world.polls[polls_before:] == [(400, world.space_id(2))]
        return world.polls[polls_before:]

    assert len(run(main())) == 1


def test_a_reload_during_a_stop_sends_no_request_and_logs_nothing() -> None:
    async def main() -> tuple[int, list[str]]:
        world = World(scenario(3, poll_interval="5s", latency="2s"))
        await world.exporter.start()
        await asyncio.sleep(11)
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        globex_only = world.settings.model_copy(update={"accounts": [renamed]})
        polls_before = len(world.polls)
        with capture_logs() as logs:
            await asyncio.gather(world.exporter.reconfigure(globex_only), world.exporter.stop())
        await asyncio.sleep(60)
        return len(world.polls) - polls_before, [line["event"] for line in logs]

    assert run(main()) == (0, [])


def test_a_denied_account_stays_denied_when_a_reload_changes_its_spaces() -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(8, poll_interval="5m", events=(REVOKED,)))
        await world.exporter.reconfigure(with_spaces(world, 1, 2, 3))
        await world.exporter.start()
        await asyncio.sleep(900)
        up_samples = []
        for spaces in ((2, 3), (2, 3, 4, 5, 6), (7, 8)):
            await world.exporter.reconfigure(with_spaces(world, *spaces))
            up_samples.append(world.samples("chatapp_account_up"))
            await asyncio.sleep(1)
        await world.exporter.stop()
        return up_samples

    assert run(main()) == [["chatapp_account_up{} 0"]] * 3


def test_a_response_in_flight_does_not_restore_the_series_of_a_removed_account() -> None:
    async def main() -> str:
        world = World(scenario(5, poll_interval="5s", latency="2s"))
        await world.exporter.start()
        await asyncio.sleep(0.5)
        await world.exporter.reconfigure(with_spaces(world, 1, name="globex"))
        await asyncio.sleep(60)
        exposition = b"".join(world.exporter.exposition(openmetrics=False)).decode()
        await world.exporter.stop()
        return exposition

    assert 'account="acme"' not in run(main())


def test_a_new_space_is_polled_before_spaces_that_are_already_queued() -> None:
    async def main() -> int:
        world = World(scenario(201, poll_interval="5s", qps=2))
        await world.exporter.reconfigure(with_spaces(world, *range(1, 201)))
        await world.exporter.start()
        await asyncio.sleep(200)
        await world.exporter.reconfigure(with_spaces(world, *range(1, 202)))
        polls_before = len(world.polls)
        await asyncio.sleep(3)
        await world.exporter.stop()
        return [space for _, space in world.polls[polls_before:]].index(world.space_id(201))

    assert run(main()) <= 2  # two polls already wait for a permit


def test_a_new_endpoint_is_polled_immediately_and_a_new_key_gets_a_new_http_client() -> None:
    async def main() -> tuple[list[str], int, list[str]]:
        world = World(scenario(5, poll_interval="5m"))
        await world.exporter.start()
        await asyncio.sleep(400)
        polls_before = len(world.polls)
        await world.exporter.reconfigure(with_spaces(world, *range(1, 6), endpoint="http://127.0.0.1:2"))
        await asyncio.sleep(3)
        polls_after_move = len(world.polls) - polls_before
        new_key = {"access_key_id": "wrong", "access_key_secret": SecretStr("wrong"), "endpoint": "http://127.0.0.1:2"}
        await world.exporter.reconfigure(with_spaces(world, *range(1, 6), **new_key))
        await asyncio.sleep(400)
        requests = world.samples("chatapp_api_requests_total")
        await world.exporter.stop()
        return world.endpoints, polls_after_move, requests

    endpoints, polls_after_move, requests = run(main())

    assert endpoints == [
        "http://127.0.0.1:1",
        "http://127.0.0.1:2",
        "http://127.0.0.1:2",
    ]  # the new key has its own client
    assert polls_after_move == 5
    assert any("InvalidAccessKeyId.NotFound" in line for line in requests)


def test_a_reload_deletes_removed_spaces_from_the_state_file(tmp_path: Path) -> None:
    async def main() -> set[str]:
        world = World(scenario(5), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        await world.exporter.reconfigure(with_spaces(world, 1, 2))
        await asyncio.sleep(1)
        with closing(sqlite3.connect(tmp_path / "state.db")) as database:
            stored = {space for (space,) in database.execute("SELECT space FROM space")}
        await world.exporter.stop()
        assert stored == {world.space_id(1), world.space_id(2)}
        return stored

    assert len(run(main())) == 2


def test_a_reload_with_another_state_file_saves_the_values_there(tmp_path: Path) -> None:
    async def main() -> tuple[list[str], list[str], list[str]]:
        world = World(scenario(2, poll_interval="5m"), state_file=str(tmp_path / "first.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        before = world.samples("chatapp_phone_number")
        changed = world.settings.model_copy(update={"state_file": str(tmp_path / "second.db")})
        await world.exporter.reconfigure(changed)
        up = world.samples("chatapp_exporter_state_file_up")
        await world.exporter.stop()
        world.settings = changed
        world.exporter = world.fresh_exporter()
        restored = world.samples("chatapp_phone_number")
        await world.exporter.stop()
        return before, restored, up

    before, restored, up = run(main())

    assert before == restored
    assert up == [f'chatapp_exporter_state_file_up{{file="{tmp_path / "second.db"}"}} 1.0']


def test_a_reload_restores_only_configured_spaces_from_a_new_state_file(tmp_path: Path) -> None:
    async def main() -> tuple[World, int, set[str]]:
        world = World(scenario(3), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        await world.exporter.stop()
        two_spaces = with_spaces(world, 1, 2)
        world.settings = two_spaces.model_copy(update={"state_file": None})
        world.exporter = world.fresh_exporter()
        await world.exporter.reconfigure(two_spaces)
        shown = len(world.samples("chatapp_space_last_success"))
        await world.exporter.stop()
        with closing(sqlite3.connect(tmp_path / "state.db")) as database:
            return world, shown, {space for (space,) in database.execute("SELECT space FROM space")}

    world, shown, stored = run(main())

    assert shown == 2
    assert stored == {space.id for space in world.settings.accounts[0].polled_spaces}


def test_a_reload_opens_the_state_file_after_its_directory_was_created(tmp_path: Path) -> None:
    async def main() -> tuple[list[str], int]:
        directory = tmp_path / "not-yet"
        world = World(scenario(2, poll_interval="5m"), state_file=str(directory / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(10)
        up = world.samples("chatapp_exporter_state_file_up")
        directory.mkdir()
        await world.exporter.reconfigure(world.settings)
        up += world.samples("chatapp_exporter_state_file_up")
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        unpolled = world.exporter.view.unpolled()
        await world.exporter.stop()
        return up, unpolled

    up, unpolled = run(main())
    assert [line.split(" ")[-1] for line in up] == ["0.0", "1.0"]
    assert unpolled == 0


class ScriptedLoader:
    """Returns these settings in order, or raises the given error."""

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


def test_an_invalid_configuration_changes_nothing_and_both_reload_metrics_show_it() -> None:
    async def main() -> tuple[list[list[str]], World]:
        world = World(scenario(2))
        await world.exporter.start()
        await asyncio.sleep(100)
        reloader = world.exporter.reloader(ScriptedLoader(ConfigError([Problem("x.yml", (), "wrong")]), world.settings))
        before = world.samples("chatapp_space")
        with pytest.raises(ConfigError, match=r"x\.yml: wrong"):
            await reloader.reload()
        assert world.samples("chatapp_space") == before
        results = [world.samples("chatapp_exporter_config")]
        await asyncio.sleep(50)
        await reloader.reload()
        results.append(world.samples("chatapp_exporter_config"))
        await world.exporter.stop()
        return results, world

    (after_error, after_success), _ = run(main())

    assert after_error == [
        "chatapp_exporter_config_last_reload_successful 0.0",
        "chatapp_exporter_config_last_reload_success_timestamp_seconds 1.8e+09",
    ]
    assert after_success[0] == "chatapp_exporter_config_last_reload_successful 1.0"
    assert float(after_success[1].split(" ")[1]) >= START + 150


def reload_successful(world: World) -> str:
    """Return the value of chatapp_exporter_config_last_reload_successful."""
    return world.samples("chatapp_exporter_config_last_reload_successful")[0].split(" ")[1]


def test_concurrent_reloads_run_one_after_the_other() -> None:
    steps: list[str] = []

    class RecordingLoader(ScriptedLoader):
        def load(self) -> Settings:
            steps.append("load")
            return super().load()

    async def main() -> list[str]:
        world = World(scenario(4, poll_interval="5m", latency="1s"))
        await world.exporter.start()
        await asyncio.sleep(0.1)
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        reloader = world.exporter.reloader(RecordingLoader(with_accounts(world, renamed), world.settings))

        async def reload() -> None:
            await reloader.reload()
            steps.append("applied")

        await asyncio.gather(reload(), reload())
        await asyncio.sleep(20)
        accounts = [view.account for view in world.exporter.view.accounts()]
        await world.exporter.stop()
        return accounts

    assert run(main()) == ["acme"]
    assert steps == ["load", "applied"] * 2


def test_1000_reloads_leak_no_tasks_jobs_or_series() -> None:
    async def main() -> tuple[tuple[int, ...], tuple[int, ...]]:
        world = World(scenario(20, poll_interval="5s", latency="50ms"))
        renamed = world.settings.accounts[0].model_copy(update={"name": "globex"})
        variants = [
            with_spaces(world, *range(1, 11)),
            with_spaces(world, *range(6, 21), poll_interval=7.0),
            with_accounts(world, *world.settings.accounts, renamed),
            with_spaces(world, *range(1, 21), qps=3.0),
        ]
        await world.exporter.start()

        def resource_counts() -> tuple[int, ...]:
            exposition = b"".join(world.exporter.exposition(openmetrics=False))
            jobs = len(world.exporter.service.schedule)
            return len(asyncio.all_tasks()), jobs, exposition.count(b"\n")

        for number in range(40):
            await world.exporter.reconfigure(variants[number % 4])
            await asyncio.sleep(0.07)
        await asyncio.sleep(20)
        before = resource_counts()
        for number in range(1000):
            await world.exporter.reconfigure(variants[number % 4])
            await asyncio.sleep(0.07)
        await asyncio.sleep(20)
        after = resource_counts()
        await world.exporter.stop()
        return before, after

    before, after = run(main())

    assert after == before


def test_after_an_exception_in_a_reload_the_metric_is_0_and_the_next_reload_works() -> None:
    """The schedule overflows with this qps. Validation rejects such a value, and `model_copy` does not validate."""

    async def main() -> tuple[list[str], int]:
        world = World(scenario(5, poll_interval="5m"))
        await world.exporter.reconfigure(with_spaces(world, 1, 2))
        await world.exporter.start()
        await asyncio.sleep(10)
        impossible = with_spaces(world, 1, 2, 3, 4, qps=1e-300)
        good = with_spaces(world, 1, 2, 3, 4, 5)
        reloader = world.exporter.reloader(ScriptedLoader(impossible, good))
        with pytest.raises(OverflowError):
            await reloader.reload()
        results = [reload_successful(world)]
        await reloader.reload()
        results.append(reload_successful(world))
        await asyncio.sleep(5)
        shown = exported_spaces(world)
        await world.exporter.stop()
        assert world.exporter.view.unpolled() == 0
        return results, len(shown)

    assert run(main()) == (["0.0", "1.0"], 5)


@pytest.mark.parametrize("replaced_after", [5, 1000])
def test_a_denied_account_is_up_within_30_seconds_after_its_key_file_was_replaced(
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
        reloader_task = asyncio.create_task(reloader.run(asyncio.Event()))
        await asyncio.sleep(replaced_after)
        polls_before = len(world.polls)
        assert world.samples("chatapp_account_up") == ["chatapp_account_up{} 0"]
        key.write_text("secret-acme")
        await asyncio.sleep(30)
        up = world.samples("chatapp_account_up")
        reloader_task.cancel()
        await world.exporter.stop()
        return up, polls_before

    up, polls_before = run(main())

    assert up == ["chatapp_account_up{} 1"]
    assert polls_before <= 3 + 1000 / 300


class FakeSource(Source):
    """Returns an empty answer after `latency` seconds."""

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency
        self.queries: list[str] = []
        self.ended = 0
        self.queries_ended_at_close: int | None = None
        """None until the source is closed."""

    async def query(self, space: Space, attempt: Attempt) -> Answer:
        async with attempt():
            self.queries.append(space.id)
            await asyncio.sleep(self.latency)
            self.ended += 1
            return Answer(())

    async def aclose(self) -> None:
        assert self.queries_ended_at_close is None, "closed twice"
        self.queries_ended_at_close = self.ended


class FakeAccount(CamsAccount):
    """An account that opens these sources in order. An error in the list is raised."""

    sources: ClassVar[list[Source | SourceError]]

    def open(self, context: SourceContext) -> Source:
        opened = self.sources.pop(0)
        if isinstance(opened, SourceError):
            raise opened
        return opened


def fake_account(name: str = "acme", spaces: int = 3, **changes: Any) -> FakeAccount:
    listed = [{"id": f"{name}-{number}"} for number in range(spaces)]
    keys = {"access_key_id": "id", "access_key_secret": "secret", "poll_interval": "1m", "qps": 1}
    return FakeAccount.model_validate({"name": name, "spaces": listed, **keys, **changes})


def create_exporter(*accounts: Account) -> Exporter:
    return Exporter(Settings(accounts=list(accounts)), SourceContext({}, VirtualClock(), http_client))


def test_waiting_polls_use_a_new_key_and_the_old_source_is_queries_ended_at_close_its_last_request() -> None:
    old, new = FakeSource(latency=3), FakeSource()
    FakeAccount.sources = [old, new]

    async def main() -> tuple[int | None, int | None]:
        exporter = create_exporter(fake_account(qps=2))
        await exporter.start()
        await asyncio.sleep(1.2)  # two polls are in flight, the third waits for a permit
        await exporter.reconfigure(Settings(accounts=[fake_account(qps=2, access_key_secret="another")]))
        closed_at_reload = old.queries_ended_at_close
        await asyncio.sleep(5)
        closed_later = old.queries_ended_at_close
        await exporter.stop()
        return closed_at_reload, closed_later

    assert run(main()) == (None, 2)
    assert (old.queries, new.queries) == (["acme-0", "acme-1"], ["acme-2"])
    assert new.queries_ended_at_close == 1


def file_names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def write(file: Path, text: str) -> None:
    file.write_text(text)


def observable_state(exporter: Exporter) -> tuple[list[str], str, int, int]:
    """Return the exporter's own metrics, the shown configuration, and the numbers of jobs and tasks."""
    lines = b"".join(exporter.exposition()).decode().splitlines()
    shown = [line for line in lines if line.startswith("chatapp_")]
    return shown, exporter.view.redacted_config(), len(exporter.service.schedule), len(asyncio.all_tasks())


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_reload_that_cannot_be_prepared_changes_nothing_and_closes_its_new_sources(
    position: int, tmp_path: Path
) -> None:
    running = FakeSource()
    opened: list[Source | SourceError] = [FakeSource(), FakeSource(), FakeSource()]
    opened[position] = SourceError("endpoint", "cannot be opened")

    async def main() -> None:
        FakeAccount.sources = [running]
        exporter = create_exporter(fake_account())
        await exporter.start()
        await asyncio.sleep(10)
        FakeAccount.sources = list(opened)
        write(tmp_path / "state.db", "damaged\0")
        before = observable_state(exporter)
        accounts = [
            fake_account(access_key_secret="another", spaces=1),
            fake_account("globex"),
            fake_account("initech"),
        ]
        changed = Settings(accounts=accounts, max_age="1s", state_file=str(tmp_path / "state.db"))
        with pytest.raises(ConfigError, match="cannot be opened"):
            await exporter.reconfigure(changed)
        assert observable_state(exporter) == before
        assert file_names(tmp_path) == ["state.db"]
        await asyncio.sleep(60)
        await exporter.stop()

    run(main())

    assert len(running.queries) == 6
    assert [source.queries_ended_at_close for source in opened[:position] if isinstance(source, FakeSource)] == [
        0
    ] * position


def test_an_account_is_exported_at_all_times_while_its_endpoint_changes() -> None:
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

    assert len(shown) > 5  # the reload waits for polls in flight
    assert shown == [["chatapp_account_spaces{} 5"]] * len(shown)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_reload_changes_nothing_if_an_http_client_cannot_be_created(position: int) -> None:
    polled: list[str] = []
    clients: list[httpx.AsyncClient] = []

    def respond(request: httpx.Request) -> httpx.Response:
        polled.append(request.url.host)
        return httpx.Response(200, stream=httpx.ByteStream(b'{"Code": "OK", "PhoneNumbers": []}'))

    def create_client(endpoint: str) -> httpx.AsyncClient:
        if endpoint == f"https://new-{position}.example":
            return http_client(endpoint, {"HTTPS_PROXY": "socks5://proxy.example"})
        clients.append(httpx.AsyncClient(transport=httpx.MockTransport(respond)))
        return clients[-1]

    def account(name: str, host: str) -> CamsAccount:
        keys = {"access_key_id": f"id-{name}", "access_key_secret": "secret", "poll_interval": "1m"}
        return CamsAccount.model_validate({"name": name, "endpoint": f"https://{host}.example", **keys})

    async def main() -> str:
        before = Settings(accounts=[account("old", "old"), account("stays", "stays")])
        exporter = Exporter(before, SourceContext({}, VirtualClock(), create_client))
        await exporter.start()
        await asyncio.sleep(30)
        state_before = observable_state(exporter)
        accounts = [account(f"new-{number}", f"new-{number}") for number in range(3)]
        with pytest.raises(ConfigError) as error:
            await exporter.reconfigure(Settings(accounts=[*accounts, account("stays", "stays")]))
        assert observable_state(exporter) == state_before
        await asyncio.sleep(60)
        await exporter.stop()
        return str(error.value)

    assert run(main()) == (
        "environment: HTTPS_PROXY: expected a proxy with http:// or https://, found socks5://, which is not supported"
    )
    assert polled == ["old.example", "stays.example"] * 2
    assert all(client.is_closed for client in clients)
    assert len(clients) == 2 + position


def test_a_reload_keeps_the_last_secret_if_its_file_is_empty(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-acme")

    async def main() -> tuple[int, list[str], list[str]]:
        world = World(scenario(1, poll_interval="5s"))
        world.settings = with_spaces(world, 1, access_key_secret=None, access_key_secret_file=str(key))
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(6)
        key.write_text("")
        await world.exporter.reconfigure(world.settings.model_copy(update={"max_age": 60.0}))
        with pytest.raises(ConfigError, match="access_key_secret_file"):
            await world.exporter.reconfigure(with_spaces(world, 1, access_key_id="another"))
        polls_before = len(world.polls)
        await asyncio.sleep(30)
        polls_after = len(world.polls) - polls_before
        await world.exporter.stop()
        return polls_after, world.samples("chatapp_space_up"), world.samples("chatapp_space_poll_failures")

    assert run(main()) == (6, ["chatapp_space_up{} 1"], [])


def test_a_new_key_uses_no_permit_and_does_not_delay_a_waiting_poll() -> None:
    old, new = FakeSource(), FakeSource()
    FakeAccount.sources = [old, new]
    query_times: list[float] = []

    async def main() -> None:
        exporter = create_exporter(fake_account(spaces=5, qps=0.001))
        await exporter.start()
        await asyncio.sleep(1500)
        await exporter.reconfigure(Settings(accounts=[fake_account(spaces=5, qps=0.001, access_key_secret="another")]))
        for _ in range(200):
            await asyncio.sleep(10)
            if len(new.queries) > len(query_times):
                query_times.append(asyncio.get_running_loop().time())
        await exporter.stop()

    run(main())

    assert len(old.queries) == 2
    assert query_times == [pytest.approx(2000, abs=20), pytest.approx(3000, abs=20)]


def test_replaced_sources_are_garbage_collected() -> None:
    class Unhashable(FakeSource):
        __hash__ = None  # type: ignore[assignment]

    FakeAccount.sources = [Unhashable() for _ in range(51)]
    references = [weakref.ref(source) for source in FakeAccount.sources]

    async def main() -> int:
        exporter = create_exporter(fake_account())
        await exporter.start()
        for number in range(50):
            await asyncio.sleep(2)
            await exporter.reconfigure(Settings(accounts=[fake_account(access_key_secret=f"secret-{number}")]))
        gc.collect()
        remaining = sum(source() is not None for source in references)
        await exporter.stop()
        return remaining

    assert run(main()) == 1


def test_an_exception_from_closing_a_source_is_logged_and_the_reload_continues() -> None:
    class BrokenSource(FakeSource):
        async def aclose(self) -> None:
            raise ZeroDivisionError

    new = FakeSource()
    FakeAccount.sources = [BrokenSource(), new]

    async def main() -> None:
        exporter = create_exporter(fake_account())
        await exporter.start()
        await asyncio.sleep(10)
        await exporter.reconfigure(Settings(accounts=[fake_account("globex")]))
        await asyncio.sleep(10)
        await exporter.stop()

    with capture_logs() as logs:
        run(main())

    assert len(new.queries) == 3
    assert "API client cannot be closed because of a bug, please report it" in [line["event"] for line in logs]


class DiscoverySource(FakeSource):
    """A source that also lists these spaces."""

    def __init__(self, *spaces: str, latency: float = 0.0) -> None:
        super().__init__(latency)
        self.spaces = list(spaces)
        self.list_count = 0

    async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
        async with attempt():
            self.list_count += 1
            return dict.fromkeys(self.spaces, "")


def discovery_account(name: str = "acme", **changes: Any) -> FakeAccount:
    return fake_account(name, qps=10, **changes).model_copy(update={"spaces": None, "discover": True})


def test_a_sweep_lists_the_spaces_once() -> None:
    source = DiscoverySource("s1", "s2")
    FakeAccount.sources = [source]

    async def main() -> int:
        exporter = create_exporter(discovery_account())
        swept = (await exporter.sweep()).spaces
        await asyncio.sleep(10)
        await exporter.stop()
        return len(swept)

    assert (run(main()), source.list_count, len(source.queries)) == (2, 1, 2)


def test_a_discovery_that_ends_during_the_preparation_of_a_reload_is_not_lost() -> None:
    source = DiscoverySource("s1", "s2")

    class DiscoversDuringOpen(FakeAccount):
        def open(self, context: SourceContext) -> Source:
            source.spaces.append("s3")
            run_without_waiting(exporters[0].service.accounts["acme"].discovery.list_once())
            return FakeSource()

    exporters: list[Exporter] = []

    async def main() -> list[str]:
        FakeAccount.sources = [source]
        exporters.append(create_exporter(discovery_account()))
        await exporters[0].start()
        await asyncio.sleep(10)
        globex = DiscoversDuringOpen.model_validate({"name": "globex", "spaces": [{"id": "s9"}], "access_key_id": "x"})
        await exporters[0].reconfigure(Settings(accounts=[discovery_account(), globex]))
        shown = sorted(view.space.id for view in exporters[0].view.snapshot().spaces)
        await exporters[0].stop()
        return shown

    assert run(main()) == ["s1", "s2", "s3", "s9"]


def test_a_discovery_during_a_reload_does_not_start_added_accounts_early() -> None:
    slow, renamed, globex = DiscoverySource("s1", "s2", latency=5), DiscoverySource("s1", "s2"), DiscoverySource("s1")
    FakeAccount.sources = [slow, globex, renamed]

    async def main() -> tuple[int, int]:
        exporter = create_exporter(discovery_account("acme"), discovery_account("globex"))
        await exporter.start()
        await asyncio.sleep(1)  # the polls of acme are in flight
        reload = asyncio.create_task(
            exporter.reconfigure(Settings(accounts=[discovery_account("renamed"), discovery_account("globex")]))
        )
        await asyncio.sleep(0.1)
        globex.spaces.append("s2")
        await exporter.service.accounts["globex"].discovery.list_once()
        await asyncio.sleep(2)
        requests_during_reload = renamed.list_count + len(renamed.queries)
        await reload
        await asyncio.sleep(10)
        await exporter.stop()
        return requests_during_reload, renamed.list_count

    assert run(main()) == (0, 1)


def test_a_failed_reload_after_a_file_change_is_retried_and_logged_once() -> None:
    class ChangedLoader(ScriptedLoader):
        def changed(self, *, retry: bool) -> bool:
            return retry or asyncio.get_running_loop().time() < 1

    broken = SourceError("access_key_secret_file", "expected a secret in this file, found nothing")
    FakeAccount.sources = [FakeSource(), broken, broken, FakeSource()]
    settings = [Settings(accounts=[fake_account(access_key_secret="another")])] * 3

    async def main() -> list[float]:
        exporter = create_exporter(fake_account())
        reloader = exporter.reloader(ChangedLoader(*settings))
        await exporter.start()
        results = []
        for _ in range(2):
            with pytest.raises(ConfigError):
                await reloader.follow_once()
            results.append(float(exporter.reloads.successful))
            await asyncio.sleep(10)
        await reloader.follow_once()
        results.append(float(exporter.reloads.successful))
        await exporter.stop()
        return results

    with capture_logs() as logs:
        assert run(main()) == [0, 0, 1]

    failed = [line for line in logs if line["event"] == "config reload failed, keeping the current configuration"]
    assert len(failed) == 1


def test_each_failure_of_a_requested_reload_is_logged() -> None:
    error = ConfigError([Problem("x.yml", (), "wrong")])

    async def main() -> None:
        world = World(scenario(1))
        reloader = world.exporter.reloader(ScriptedLoader(error, error))
        for _ in range(2):
            with pytest.raises(ConfigError):
                await reloader.reload()
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    assert len(logs) == 2


def test_the_state_file_is_queries_ended_at_close_a_stop_during_a_reload(tmp_path: Path) -> None:
    FakeAccount.sources = [FakeSource(latency=3), FakeSource()]

    def state_file_up(exporter: Exporter) -> list[str]:
        lines = b"".join(exporter.exposition()).decode().splitlines()
        return [line.rpartition(" ")[2] for line in lines if line.startswith("chatapp_exporter_state_file_up{")]

    async def main() -> list[str]:
        accounts, file = [fake_account()], str(tmp_path / "state.db")
        context = SourceContext({}, VirtualClock(), http_client)
        exporter = Exporter(Settings(accounts=list(accounts), state_file=file), context)
        await exporter.start()
        await asyncio.sleep(0.5)
        up = state_file_up(exporter)
        changed = Settings(accounts=[fake_account("globex")], state_file=file)
        await asyncio.gather(exporter.reconfigure(changed), exporter.stop())
        return up + state_file_up(exporter)

    assert run(main()) == ["1.0", "0.0"]


def test_a_reload_that_is_prepared_during_a_stop_closes_all_sources() -> None:
    running, new = FakeSource(latency=3), FakeSource()
    FakeAccount.sources = [running, new]

    async def main() -> None:
        exporter = create_exporter(fake_account())
        await exporter.start()
        await asyncio.sleep(0.5)
        await asyncio.gather(exporter.stop(), exporter.reconfigure(Settings(accounts=[fake_account("globex")])))

    run(main())

    assert (running.queries_ended_at_close, new.queries_ended_at_close) == (1, 0)
