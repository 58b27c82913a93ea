"""Fields of phone numbers that the API no longer reports."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from virtual_time import run
from world import World, scenario

FIELDS = {"QualityRating": "quality_rating", "MessagingLimitTier": "messaging_limit_tier", "Status": "status"}


def event(at: str, duration: str | None = None, number: int = 1, **fields: str) -> Mapping[str, Any]:
    """Return an event that sets fields of a number of the first space, permanently or for a duration."""
    changes = {"at": at, "space": 1, "number": number, "set": fields}
    return {**changes, "for": duration} if duration else changes


def missing_counts(world: World) -> dict[str, str]:
    """Return the count of missing values for each field."""
    lines = world.samples("chatapp_api_unknown_values_total")
    return {line.split('"')[1]: line.split(" ")[1] for line in lines if 'value="missing"' in line}


def test_the_counters_of_missing_values_start_at_zero() -> None:
    async def main() -> dict[str, str]:
        return missing_counts(World(scenario(1)))

    assert run(main()) == dict.fromkeys(FIELDS.values(), "0.0")


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_has_no_series_and_is_counted_once_per_number(field: str) -> None:
    async def main() -> tuple[dict[str, str], list[str], int]:
        missing = tuple(event("50s", number=number, **{field: ""}) for number in (1, 2))
        world = World(scenario(1, poll_interval="30s", events=missing))
        await world.exporter.start()
        await asyncio.sleep(600)
        await world.exporter.stop()
        numbers = world.api.fleet.spaces["acme"][0].numbers
        series = [
            line
            for line in world.samples(f"chatapp_phone_number_{FIELDS[field]}{{")
            for n in numbers[:2]
            if str(n["PhoneNumber"]) in line
        ]
        return missing_counts(world), series, len(world.samples("chatapp_phone_number_info"))

    counts, series, listed = run(main())

    assert counts == {**dict.fromkeys(FIELDS.values(), "0.0"), FIELDS[field]: "2.0"}
    assert series == []
    assert listed >= 2


def test_a_value_that_is_reported_and_then_missing_again_is_counted_again() -> None:
    async def main() -> dict[str, str]:
        events = (event("50s", "60s", Status=""), event("200s", "60s", Status=""))
        world = World(scenario(1, poll_interval="30s", events=events))
        await world.exporter.start()
        await asyncio.sleep(600)
        await world.exporter.stop()
        return missing_counts(world)

    assert run(main())["status"] == "2.0"


def test_after_a_restart_a_known_missing_value_sets_the_state_and_is_not_counted_again(tmp_path: Path) -> None:
    async def main() -> tuple[str, dict[str, str]]:
        events = (event("0s", "100s", QualityRating="RED", Status="BANNED"), event("100s", QualityRating="", Status=""))
        world = World(scenario(1, poll_interval="30s", events=events), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(300)
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(300)
        await world.exporter.stop()
        (view,) = world.exporter.view.snapshot().spaces
        return view.record.state_of(view.phone_numbers[0]), missing_counts(world)

    state, counts = run(main())

    assert state == "down"
    assert counts == dict.fromkeys(FIELDS.values(), "0.0")


def test_after_a_restart_a_value_that_disappeared_during_the_downtime_is_counted(tmp_path: Path) -> None:
    async def main() -> dict[str, str]:
        events = (event("100s", QualityRating=""),)
        world = World(scenario(1, poll_interval="30s", events=events), state_file=str(tmp_path / "state.db"))
        await world.exporter.start()
        await asyncio.sleep(60)
        await world.exporter.stop()
        await asyncio.sleep(60)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(60)
        await world.exporter.stop()
        return missing_counts(world)

    assert run(main())["quality_rating"] == "1.0"
