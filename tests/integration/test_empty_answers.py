"""An answer that lists no number of a space that had some: believed only when the next answer says the same."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from virtual_time import run
from world import World, busiest_second, scenario

from exporter.runtime.sweep import sweep
from exporter.state.state_file import read_state_file

INTERVAL = 30

NO_NUMBERS: dict[str, dict[str, Any]] = {"empty": {"PhoneNumbers": []}, "null": {"PhoneNumbers": None}, "absent": {}}


def empty(form: str = "empty") -> Response:
    return JSONResponse({"Code": "OK", **NO_NUMBERS[form]})


def error(code: str, status: int = 400) -> Response:
    return JSONResponse({"Code": code, "Message": code}, status)


def world_of(spaces: int = 1, **changes: Any) -> World:
    return World(scenario(spaces, poll_interval=f"{INTERVAL}s", qps=5), **changes)


def numbers_of(world: World) -> int:
    return len(world.samples("chatapp_phone_number_info"))


def value(world: World, name: str) -> str:
    return next((line.rpartition(" ")[2] for line in world.samples(f"{name}{{")), "absent")


async def polled_with(
    world: World, next_responses: Sequence[Response], seconds: float = INTERVAL
) -> tuple[int, list[float]]:
    """How many numbers were shown before a poll that gets these answers first; and when its requests were sent."""
    await world.exporter.start()
    await asyncio.sleep(INTERVAL)
    before, polls = numbers_of(world), len(world.polls)
    space = world.polls[0][1]
    world.api.next_responses[space] = list(next_responses)
    await asyncio.sleep(seconds)
    await world.exporter.stop()
    return before, [at for at, _ in world.polls[polls:]]


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_one_answer_without_numbers_removes_none(form: str) -> None:
    async def main() -> None:
        world = world_of()
        before, sent = await polled_with(world, [empty(form)])

        assert before > 0
        assert numbers_of(world) == before
        assert value(world, "chatapp_space_up") == "1"
        assert value(world, "chatapp_space_polls_total") == "2"
        assert value(world, "chatapp_space_poll_failures_total") == "absent"
        assert len(sent) == 2

    run(main())


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_two_answers_without_numbers_right_after_each_other_are_believed(form: str) -> None:
    async def main() -> None:
        world = world_of()
        before, sent = await polled_with(world, [empty(), empty(form)])

        assert before > 0
        assert numbers_of(world) == 0
        assert value(world, "chatapp_space_up") == "1"
        assert value(world, "chatapp_space_phone_numbers") == "0"
        assert sent[1] - sent[0] < 1

    run(main())


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (error("ServiceUnavailable", 503), "server"),
        (error("Throttling.User"), "throttled"),
        (error("NoPermission", 403), "denied"),
        (JSONResponse({"Code": "OK", "PhoneNumbers": [{}]}), "malformed"),
    ],
)
def test_if_the_second_answer_is_a_failure_the_poll_failed_and_the_numbers_stay(second: Response, reason: str) -> None:
    async def main() -> None:
        world = world_of()
        before, sent = await polled_with(world, [empty(), second], seconds=2)

        assert len(sent) == 2
        assert numbers_of(world) == before > 0
        assert value(world, "chatapp_space_up") == "0"
        assert world.samples("chatapp_space_poll_failures_total") == [
            f'chatapp_space_poll_failures_total{{reason="{reason}"}} 1'
        ]

    run(main())


def test_a_space_without_known_numbers_needs_one_answer_only() -> None:
    async def main() -> None:
        world = world_of()
        world.api.next_responses[world.space_id(1)] = [empty(), empty()]
        await world.exporter.start()
        await asyncio.sleep(INTERVAL - 1)

        assert len(world.polls) == 1
        assert value(world, "chatapp_space_phone_numbers") == "0"
        await world.exporter.stop()

    run(main())


def test_it_holds_for_an_account_s_own_numbers() -> None:
    async def main() -> None:
        own = world_of().settings.accounts[0].model_copy(update={"spaces": None})
        world = world_of(accounts=[own])
        before, sent = await polled_with(world, [empty()])

        assert numbers_of(world) == before > 0
        assert len(sent) == 2

    run(main())


def test_it_holds_for_numbers_that_only_the_state_file_knows(tmp_path: Path) -> None:
    async def main() -> None:
        world = world_of(state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(INTERVAL)
        before = numbers_of(world)
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        world.api.next_responses[world.space_id(1)] = [empty()]
        await world.exporter.start()
        shown = set()
        for _ in range(2 * INTERVAL):
            await asyncio.sleep(1)
            shown.add(numbers_of(world))
        await world.exporter.stop()

        assert world.api.next_responses[world.space_id(1)] == []
        assert shown == {before}
        assert before > 0

    run(main())


def test_it_holds_for_a_sweep_with_a_state_file(tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "state.db"
        world = world_of(state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(INTERVAL)
        await world.exporter.stop()
        once = world_of()
        once.api.next_responses[once.space_id(1)] = [empty()]
        swept = await sweep(once.exporter.service, stored_records=read_state_file(file, once.settings.identities))
        await once.exporter.stop()

        assert len(once.polls) == 2
        assert len(swept.spaces[0].phone_numbers) > 0

    run(main())


def test_the_second_polls_stay_within_the_budget_and_count_as_no_delay() -> None:
    async def main() -> None:
        world = world_of(spaces=20)
        await world.exporter.start()
        await asyncio.sleep(INTERVAL)
        before = numbers_of(world)
        world.api.next_responses = {world.space_id(number): [empty()] for number in range(1, 21)}
        await asyncio.sleep(2 * INTERVAL)
        await world.exporter.stop()

        assert numbers_of(world) == before > 0
        assert busiest_second(world.api.arrivals) == 5
        polls = sum(float(line.rpartition(" ")[2]) for line in world.samples("chatapp_space_polls_total"))
        assert len(world.polls) == polls + 20
        assert value(world, "chatapp_poll_delay_seconds_count") == str(polls)

    run(main())
