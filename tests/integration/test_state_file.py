"""A restart with a state file shows what was known, with its true age."""

import asyncio
import sqlite3
from pathlib import Path

from virtual_time import VirtualClock, run
from world import World, scenario


def test_a_restart_shows_the_known_values_at_once_and_is_ready(tmp_path: Path) -> None:
    file = str(tmp_path / "state.db")
    events = ({"at": "60s", "space": 1, "number": 1, "set": {"QualityRating": "RED"}},)

    async def main() -> tuple[list[str], list[str], int, int]:
        before = World(scenario(3, poll_interval="30s", events=events), state_file=file)
        await before.exporter.start()
        await asyncio.sleep(120)
        await before.exporter.stop()
        shown = before.samples("chatapp_phone_number") + before.samples("chatapp_space_last_success")
        await asyncio.sleep(100)

        after = World(scenario(3, poll_interval="30s"), state_file=file)
        again = after.samples("chatapp_phone_number") + after.samples("chatapp_space_last_success")
        missing = after.exporter.unpolled()
        await after.exporter.start()
        await asyncio.sleep(1)
        await after.exporter.stop()
        return shown, again, missing, len(after.polls)

    shown, again, missing, polls = run(main())

    assert 'quality_rating="RED"} 1' in "\n".join(shown)
    assert any(line.startswith("chatapp_phone_number_last_change_timestamp_seconds") for line in shown)
    assert again == shown
    assert missing == 0
    assert polls == 0  # known spaces wait for their slots


def test_after_a_stop_longer_than_max_age_the_spaces_count_as_unknown_and_go_first(tmp_path: Path) -> None:
    file = str(tmp_path / "state.db")

    async def main() -> tuple[int, int]:
        before = World(scenario(20), state_file=file)
        await before.exporter.start()
        await asyncio.sleep(10)
        await before.exporter.stop()
        await asyncio.sleep(3 * 3600)

        after = World(scenario(20, poll_interval="5m"), state_file=file)
        at_first = after.exporter.unpolled()
        await after.exporter.start()
        await asyncio.sleep(3)
        await after.exporter.stop()
        return at_first, after.exporter.unpolled()

    assert run(main()) == (20, 0)


def test_a_state_file_with_damaged_pages_does_not_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "state.db"

    async def main() -> list[str]:
        before = World(scenario(200, poll_interval="5m"), state_file=str(file))
        await before.exporter.start()
        await asyncio.sleep(30)
        await before.exporter.stop()
        content = bytearray(file.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        file.write_bytes(content)

        after = World(scenario(1), state_file=str(file))
        await after.exporter.start()
        await asyncio.sleep(1)
        await after.exporter.stop()
        return after.samples("chatapp_space_up")

    assert run(main()) == ["chatapp_space_up{} 1"]


def test_a_state_file_that_cannot_be_used_does_not_stop_the_polls(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    file.write_bytes(b"this is no database" * 100)

    async def main() -> list[str]:
        world = World(scenario(1), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(1)
        await world.exporter.stop()
        return world.samples("chatapp_space_up")

    assert run(main()) == ["chatapp_space_up{} 1"]
    assert file.read_bytes().startswith(b"this is no database")


def test_a_state_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version=99")
    database.close()

    async def main() -> int:
        world = World(scenario(1), state_file=str(file), clock=VirtualClock())
        await world.exporter.start()
        await asyncio.sleep(1)
        await world.exporter.stop()
        return world.exporter.unpolled()

    assert run(main()) == 0
    again = sqlite3.connect(file)
    assert again.execute("PRAGMA user_version").fetchone() == (99,)
    again.close()
