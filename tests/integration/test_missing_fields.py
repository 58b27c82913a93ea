"""A field of a number that the API reported before and does not report any more."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from virtual_time import run
from world import World, scenario

FIELDS = {"QualityRating": "quality_rating", "MessagingLimitTier": "messaging_limit_tier", "Status": "status"}


def event(at: str, lasts: str | None = None, number: int = 1, **fields: str) -> Mapping[str, Any]:
    """The first space's number has these fields, for a while or from then on."""
    changes = {"at": at, "space": 1, "number": number, "set": fields}
    return {**changes, "for": lasts} if lasts else changes


def counted(world: World) -> dict[str, str]:
    """The counts of missing values, by field."""
    lines = world.samples("chatapp_api_unknown_values_total")
    return {line.split('"')[1]: line.split(" ")[1] for line in lines if 'value="missing"' in line}


def test_missing_values_are_counted_from_zero() -> None:
    async def main() -> dict[str, str]:
        return counted(World(scenario(1)))

    assert run(main()) == dict.fromkeys(FIELDS.values(), "0.0")


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_disappears_has_no_series_and_is_counted_once_for_each_number(field: str) -> None:
    async def main() -> tuple[dict[str, str], list[str], int]:
        gone = tuple(event("50s", number=number, **{field: ""}) for number in (1, 2))
        world = World(scenario(1, poll_interval="30s", events=gone))
        await world.exporter.start()
        await asyncio.sleep(600)
        await world.exporter.stop()
        numbers = world.api.fleet.spaces["acme"][0].numbers
        of_the_two = [
            line
            for line in world.samples(f"chatapp_phone_number_{FIELDS[field]}{{")
            for n in numbers[:2]
            if str(n["PhoneNumber"]) in line
        ]
        return counted(world), of_the_two, len(world.samples("chatapp_phone_number_info"))

    counts, series, listed = run(main())

    assert counts == {**dict.fromkeys(FIELDS.values(), "0.0"), FIELDS[field]: "2.0"}
    assert series == []
    assert listed >= 2


def test_a_value_that_is_missing_again_after_it_was_reported_is_counted_again() -> None:
    async def main() -> dict[str, str]:
        twice = (event("50s", "60s", Status=""), event("200s", "60s", Status=""))
        world = World(scenario(1, poll_interval="30s", events=twice))
        await world.exporter.start()
        await asyncio.sleep(600)
        await world.exporter.stop()
        return counted(world)

    assert run(main())["status"] == "2.0"


def test_a_restart_knows_what_was_missing_and_counts_it_no_second_time(tmp_path: Path) -> None:
    async def main() -> tuple[str, dict[str, str]]:
        story = (event("0s", "100s", QualityRating="RED", Status="BANNED"), event("100s", QualityRating="", Status=""))
        world = World(scenario(1, poll_interval="30s", events=story), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(300)
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(300)
        await world.exporter.stop()
        (view,) = world.exporter.view.snapshot().spaces
        return view.record.state_of(view.phone_numbers[0]), counted(world)

    state, counts = run(main())

    assert state == "down"
    assert counts == dict.fromkeys(FIELDS.values(), "0.0")


def test_a_restart_counts_what_disappeared_while_it_was_down(tmp_path: Path) -> None:
    async def main() -> dict[str, str]:
        story = (event("100s", QualityRating=""),)
        world = World(scenario(1, poll_interval="30s", events=story), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(60)
        await world.exporter.stop()
        await asyncio.sleep(60)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(60)
        await world.exporter.stop()
        return counted(world)

    assert run(main())["quality_rating"] == "1.0"
