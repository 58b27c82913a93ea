"""When each space is polled: the schedule, the queue and the budget together, in virtual time."""

import asyncio
from itertools import pairwise

import pytest
from virtual_time import VirtualClock, run
from world import World, max_per_second, scenario


async def poll_for(world: World, seconds: float) -> None:
    await world.exporter.start()
    await asyncio.sleep(seconds)
    await world.exporter.stop()


def gaps(times: list[float]) -> list[float]:
    return [round(later - earlier, 1) for earlier, later in pairwise(times)]


def test_300_spaces_with_qps_10_and_an_interval_of_20_seconds_are_polled_every_30_seconds() -> None:
    async def main() -> World:
        world = World(scenario(300, qps=10, poll_interval="20s"))
        await poll_for(world, 600)
        return world

    world = run(main())
    times = [world.polls_of(space.id) for space in world.settings.accounts[0].polled_spaces]

    assert {gap for space_times in times for gap in gaps(space_times)} <= {30.0, 30.1}
    assert {len(space_times) for space_times in times} <= {20, 21}


@pytest.mark.parametrize(
    ("spaces", "due"),
    [
        # when the poll of a space ends, its next due time has passed
        pytest.param(300, 300, id="the budget is too small"),
        pytest.param(30, 0, id="the budget is sufficient"),
    ],
)
def test_the_metrics_show_how_many_spaces_are_due(spaces: int, due: int) -> None:
    async def main() -> list[str]:
        world = World(scenario(spaces, qps=1, poll_interval="1m"))
        await world.exporter.start()
        await asyncio.sleep(1200.5)
        samples = world.samples("chatapp_account_due_spaces")
        await world.exporter.stop()
        return samples

    assert run(main()) == [f"chatapp_account_due_spaces{{}} {due}"]


def intervals_of(world: World) -> list[str]:
    return [line for line in world.samples("chatapp_account_") if "poll_interval" in line]


def test_an_account_can_have_no_spaces_temporarily() -> None:
    async def main() -> tuple[list[str], int]:
        world = World(scenario(1, poll_interval="1m"))
        (account,) = world.settings.accounts
        empty = world.settings.model_copy(update={"accounts": [account.model_copy(update={"spaces": []})]})
        world.settings, settings = empty, world.settings
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(100)
        shown = intervals_of(world)
        await world.exporter.reconfigure(settings)
        await asyncio.sleep(100)
        await world.exporter.reconfigure(empty)
        await asyncio.sleep(100)
        await world.exporter.stop()
        return shown, len(world.polls)

    shown, polls = run(main())

    assert shown == [
        "chatapp_account_poll_interval_seconds{} 60.0",
        "chatapp_account_effective_poll_interval_seconds{} 60.0",
    ]
    assert polls == 2


def test_the_effective_interval_is_longer_if_the_budget_is_too_small() -> None:
    async def main() -> list[str]:
        return intervals_of(World(scenario(300, qps=10, poll_interval="20s")))

    assert run(main()) == [
        "chatapp_account_poll_interval_seconds{} 20.0",
        "chatapp_account_effective_poll_interval_seconds{} 36.0",
    ]


@pytest.mark.parametrize("reloaded", [False, True])
def test_accounts_with_the_same_key_do_not_exceed_its_rate_limit(reloaded: bool) -> None:
    """Each of the three accounts has 4 permits, because qps is rounded up."""

    async def main() -> World:
        world = World(scenario(90, poll_interval="5s"))
        (account,) = world.settings.accounts
        same_key = [
            account.model_copy(update={"name": f"a{n}", "qps": 3.3, "spaces": (account.spaces or [])[n::3]})
            for n in range(3)
        ]
        world.settings = world.settings.model_copy(update={"accounts": same_key[:1] if reloaded else same_key})
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(10)
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": same_key}))
        await asyncio.sleep(110)
        await world.exporter.stop()
        return world

    world = run(main())

    assert max_per_second(world.api.arrivals) == 10
    assert len([at for at in world.api.arrivals if at >= 20]) > 0.95 * 100 * 9.9


def test_30_spaces_with_an_interval_of_5_minutes_are_spread_evenly() -> None:
    async def main() -> World:
        world = World(scenario(30, qps=5, poll_interval="5m"))
        await poll_for(world, 3600)
        return world

    world = run(main())
    later = [at for at, _ in world.polls if 600 <= at < 900]

    assert set(gaps(later)) == {10.0}
    for space in world.settings.accounts[0].polled_spaces:
        assert set(gaps(world.polls_of(space.id))[1:]) == {300.0}


def test_after_a_start_all_spaces_are_polled_as_fast_as_the_budget_allows() -> None:
    async def main() -> tuple[int, int, list[float]]:
        world = World(scenario(50, qps=10, poll_interval="5m"))
        await world.exporter.start()
        await asyncio.sleep(2.5)
        halfway = world.exporter.view.unpolled()
        await asyncio.sleep(2.5)
        unpolled = world.exporter.view.unpolled()
        await world.exporter.stop()
        return halfway, unpolled, [at for at, _ in world.polls]

    halfway, unpolled, times = run(main())

    assert halfway == 50 - 25
    assert unpolled == 0
    assert times[49] < 5


def test_a_blocked_event_loop_delays_polls_and_skips_none() -> None:
    async def main() -> World:
        world = World(scenario(10, qps=10, poll_interval="10s"))
        await world.exporter.start()
        await asyncio.sleep(20.5)
        asyncio.get_running_loop()._jumping.elapsed += 25  # type: ignore[attr-defined]  # the loop is blocked for 25 s
        await asyncio.sleep(30)
        await world.exporter.stop()
        return world

    world = run(main())

    for space in world.settings.accounts[0].polled_spaces:
        times = world.polls_of(space.id)
        assert not [at for at in times if 20.6 < at < 45.4]
        assert [at for at in times if 45.4 <= at < 47.5]
        assert max(gaps([at for at in times if at >= 45.4])) <= 10.5


def test_a_change_of_the_system_clock_does_not_move_polls() -> None:
    async def main() -> World:
        clock = VirtualClock()
        world = World(scenario(5, qps=10, poll_interval="10s"), clock=clock)
        await world.exporter.start()
        await asyncio.sleep(20)
        clock.offset -= 600
        await asyncio.sleep(40)
        await world.exporter.stop()
        return world

    world = run(main())

    for space in world.settings.accounts[0].polled_spaces:
        assert set(gaps(world.polls_of(space.id))[1:]) == {10.0}


def test_a_space_with_a_temporary_failure_is_polled_again_with_exponential_backoff() -> None:
    async def main() -> World:
        failing = {"at": "0s", "space": 1, "answer": "InternalError", "for": "10m"}
        world = World(scenario(2, qps=10, poll_interval="2m", events=(failing,)))
        await poll_for(world, 1200)
        return world

    world = run(main())
    failing_gaps = gaps(world.polls_of(world.space_id(1)))
    pauses = failing_gaps[:5]

    for pause, max_pause in zip(pauses, (10, 20, 40, 80, 120), strict=True):
        assert max_pause / 2 - 0.1 <= pause <= max_pause + 0.2
    assert set(failing_gaps[-3:]) == {120.0}
    assert set(gaps(world.polls_of(world.space_id(2)))[1:]) == {120.0}


def test_a_rejected_space_is_polled_less_often_and_other_spaces_are_not_affected() -> None:
    async def main() -> World:
        rejected = {"at": "0s", "space": 1, "answer": "Unknown.ResourceOwnerId"}
        world = World(scenario(4, qps=10, poll_interval="1m", events=(rejected,)))
        await poll_for(world, 3600)
        return world

    world = run(main())

    assert 11 <= len(world.polls_of(world.space_id(1))) <= 14
    for number in (2, 3, 4):
        assert set(gaps(world.polls_of(world.space_id(number)))[1:]) == {60.0}


def test_a_denied_account_is_probed_once_per_interval_until_access_is_restored() -> None:
    async def main() -> tuple[World, list[str], list[str]]:
        revoked = {"at": "5m", "answer": "InvalidAccessKeyId.NotFound", "for": "20m"}
        world = World(scenario(30, qps=10, poll_interval="1m", events=(revoked,)))
        await world.exporter.start()
        await asyncio.sleep(15 * 60)
        during = world.samples("chatapp_account_up")
        await asyncio.sleep(12 * 60)
        after = world.samples("chatapp_account_up")
        await world.exporter.stop()
        return world, during, after

    world, during, after = run(main())
    probe_times = [at for at, _ in world.polls if 310 <= at < 1500]

    assert (during[0][-2:], after[0][-2:]) == (" 0", " 1")
    assert 17 <= len(probe_times) <= 20
    assert min(later - earlier for earlier, later in pairwise(probe_times)) > 59.9
    assert len({space for at, space in world.polls if 1500 < at < 1566}) == 30


def test_two_denied_spaces_of_30_do_not_affect_the_account_or_other_spaces() -> None:
    async def main() -> tuple[World, list[str]]:
        denied = tuple({"at": "0s", "space": n, "answer": "NoPermission"} for n in (1, 20))
        world = World(scenario(30, qps=10, poll_interval="1m", events=denied))
        await poll_for(world, 1800)
        return world, world.samples("chatapp_account_up")

    world, up = run(main())

    assert up == ["chatapp_account_up{} 1"]
    assert len(world.polls_of(world.space_id(2))) == 31
    assert 5 <= len(world.polls_of(world.space_id(1))) <= 9


def test_a_request_with_an_expired_timestamp_is_retried_only_once() -> None:
    async def main() -> tuple[World, list[str]]:
        expired = {"at": "0s", "answer": "InvalidTimeStamp.Expired"}
        world = World(scenario(1, qps=10, poll_interval="1m", events=(expired,)))
        await poll_for(world, 150)
        return world, world.samples("chatapp_space_poll_failures_total")

    world, failures = run(main())

    # two attempts before the account is denied, then one probe per interval
    assert len(world.polls) == 2 + 2
    assert failures == ['chatapp_space_poll_failures_total{reason="denied"} 3']


def test_a_stop_waits_for_polls_in_flight() -> None:
    async def main() -> tuple[int, float]:
        world = World(scenario(5, qps=5, poll_interval="1m", latency="4s"))
        await world.exporter.start()
        await asyncio.sleep(1)
        started, before = len(world.polls), world.clock.monotonic()
        await world.exporter.stop()
        assert len(world.polls) == started
        return 5 - world.exporter.view.unpolled(), world.clock.monotonic() - before

    finished, seconds = run(main())

    assert finished == 5
    assert seconds < 7
