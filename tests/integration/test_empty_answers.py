"""If a response has no phone numbers and the space had some, a second response must confirm the result."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from virtual_time import run
from world import World, max_per_second, scenario

from exporter.runtime.sweep import sweep
from exporter.state.state_file import read_state_file

INTERVAL = 30

NO_NUMBERS: dict[str, dict[str, Any]] = {"empty": {"PhoneNumbers": []}, "null": {"PhoneNumbers": None}, "absent": {}}


def empty_response(form: str = "empty") -> Response:
    return JSONResponse({"Code": "OK", **NO_NUMBERS[form]})


def error_response(code: str, status: int = 400) -> Response:
    return JSONResponse({"Code": code, "Message": code}, status)


def create_world(spaces: int = 1, **changes: Any) -> World:
    return World(scenario(spaces, poll_interval=f"{INTERVAL}s", qps=5), **changes)


def number_count(world: World) -> int:
    return len(world.samples("chatapp_phone_number_info"))


def sample_value(world: World, name: str) -> str:
    return next((line.rpartition(" ")[2] for line in world.samples(f"{name}{{")), "absent")


async def poll_with_responses(
    world: World, next_responses: Sequence[Response], seconds: float = INTERVAL
) -> tuple[int, list[float]]:
    """Return the number count after a normal poll, and the request times of the next poll, with these responses."""
    await world.exporter.start()
    await asyncio.sleep(INTERVAL)
    before, polls = number_count(world), len(world.polls)
    space = world.polls[0][1]
    world.api.next_responses[space] = list(next_responses)
    await asyncio.sleep(seconds)
    await world.exporter.stop()
    return before, [at for at, _ in world.polls[polls:]]


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_a_single_response_without_numbers_removes_no_number(form: str) -> None:
    async def main() -> None:
        world = create_world()
        before, sent = await poll_with_responses(world, [empty_response(form)])

        assert before > 0
        assert number_count(world) == before
        assert sample_value(world, "chatapp_space_up") == "1"
        assert sample_value(world, "chatapp_space_polls_total") == "2"
        assert sample_value(world, "chatapp_space_poll_failures_total") == "absent"
        assert len(sent) == 2

    run(main())


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_two_consecutive_responses_without_numbers_remove_all_numbers(form: str) -> None:
    async def main() -> None:
        world = create_world()
        before, sent = await poll_with_responses(world, [empty_response(), empty_response(form)])

        assert before > 0
        assert number_count(world) == 0
        assert sample_value(world, "chatapp_space_up") == "1"
        assert sample_value(world, "chatapp_space_phone_numbers") == "0"
        assert sent[1] - sent[0] < 1

    run(main())


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (error_response("ServiceUnavailable", 503), "server"),
        (error_response("Throttling.User"), "throttled"),
        (error_response("NoPermission", 403), "denied"),
        (JSONResponse({"Code": "OK", "PhoneNumbers": [{}]}), "malformed"),
    ],
)
def test_if_the_second_response_is_an_error_the_poll_fails_and_the_numbers_are_kept(
    second: Response, reason: str
) -> None:
    async def main() -> None:
        world = create_world()
        before, sent = await poll_with_responses(world, [empty_response(), second], seconds=2)

        assert len(sent) == 2
        assert number_count(world) == before > 0
        assert sample_value(world, "chatapp_space_up") == "0"
        assert world.samples("chatapp_space_poll_failures_total") == [
            f'chatapp_space_poll_failures_total{{reason="{reason}"}} 1'
        ]

    run(main())


def test_a_space_without_stored_numbers_needs_no_second_response() -> None:
    async def main() -> None:
        world = create_world()
        world.api.next_responses[world.space_id(1)] = [empty_response(), empty_response()]
        await world.exporter.start()
        await asyncio.sleep(INTERVAL - 1)

        assert len(world.polls) == 1
        assert sample_value(world, "chatapp_space_phone_numbers") == "0"
        await world.exporter.stop()

    run(main())


def test_a_single_response_without_numbers_does_not_remove_an_account_s_own_numbers() -> None:
    async def main() -> None:
        own = create_world().settings.accounts[0].model_copy(update={"spaces": None})
        world = create_world(accounts=[own])
        before, sent = await poll_with_responses(world, [empty_response()])

        assert number_count(world) == before > 0
        assert len(sent) == 2

    run(main())


def test_a_single_response_without_numbers_does_not_remove_restored_numbers(tmp_path: Path) -> None:
    async def main() -> None:
        world = create_world(state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(INTERVAL)
        before = number_count(world)
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        world.api.next_responses[world.space_id(1)] = [empty_response()]
        await world.exporter.start()
        shown = set()
        for _ in range(2 * INTERVAL):
            await asyncio.sleep(1)
            shown.add(number_count(world))
        await world.exporter.stop()

        assert world.api.next_responses[world.space_id(1)] == []
        assert shown == {before}
        assert before > 0

    run(main())


def test_a_single_response_without_numbers_in_a_sweep_does_not_remove_stored_numbers(tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "state.db"
        world = create_world(state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(INTERVAL)
        await world.exporter.stop()
        fresh = create_world()
        fresh.api.next_responses[fresh.space_id(1)] = [empty_response()]
        result = await sweep(fresh.exporter.service, stored_records=read_state_file(file, fresh.settings.identities))
        await fresh.exporter.stop()

        assert len(fresh.polls) == 2
        assert len(result.spaces[0].phone_numbers) > 0

    run(main())


def test_second_queries_stay_within_the_budget_and_do_not_count_as_poll_delay() -> None:
    async def main() -> None:
        world = create_world(spaces=20)
        await world.exporter.start()
        await asyncio.sleep(INTERVAL)
        before = number_count(world)
        world.api.next_responses = {world.space_id(number): [empty_response()] for number in range(1, 21)}
        await asyncio.sleep(2 * INTERVAL)
        await world.exporter.stop()

        assert number_count(world) == before > 0
        assert max_per_second(world.api.arrivals) == 5
        polls = sum(float(line.rpartition(" ")[2]) for line in world.samples("chatapp_space_polls_total"))
        assert len(world.polls) == polls + 20
        assert sample_value(world, "chatapp_poll_delay_seconds_count") == str(polls)

    run(main())
