"""A disk that is slow, hangs or is full: polls continue. Values are shown after the write, or after 10 seconds."""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from state_files import IDENTITIES, full_disk, opened_state_file, poll_for, state_file_samples, stored_spaces, wal_bytes
from structlog.testing import capture_logs
from virtual_time import START, run, virtual_loop
from world import World, scenario

from exporter.clock import SystemClock
from exporter.config.settings import Settings
from exporter.runtime.service import ConfigChange
from exporter.state.state_file import StateFile
from exporter.state.store import Key, SpaceRecord
from exporter.state.writer import StateWriter

RED = ({"at": "60s", "space": 1, "number": 1, "set": {"QualityRating": "RED"}},)
IS_RED = 'quality_rating="RED"} 1'
UP = "chatapp_exporter_state_file_up{} "


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def shown_red(world: World) -> bool:
    return any(IS_RED in line for line in world.samples("chatapp_phone_number_quality_rating"))


def stored_red(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as database:
        return any('"quality_rating":"RED"' in record for (record,) in database.execute("SELECT known FROM space"))


def test_a_value_is_shown_and_stored_after_the_disk_responds_again(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(58)
        virtual_loop().hangs = lambda _: True
        await asyncio.sleep(37)  # the response with RED was between 60 and 90 s
        virtual_loop().release()
        await asyncio.sleep(1)
        results: list[object] = [shown_red(world), stored_red(file)]
        await world.exporter.stop()
        return results

    assert run(main()) == [True, True]


def test_no_value_is_shown_before_it_is_written(file: Path) -> None:
    """Checked 10 times per second, with writes that take 0.5 seconds."""

    async def main() -> tuple[list[tuple[bool, bool]], int]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await world.exporter.start()
        results = []
        for tenth in range(1200):
            await asyncio.sleep(0.1)
            if tenth % 5 == 0:
                virtual_loop().release()
            else:
                virtual_loop().hangs = lambda _: True
            results.append((shown_red(world), stored_red(file)))
        virtual_loop().release()
        await world.exporter.stop()
        return results, len(world.polls)

    results, polls = run(main())

    assert polls >= 12
    assert (True, False) not in results
    assert (False, True) in results
    assert results[-1] == (True, True)


def test_a_hanging_disk_does_not_stop_polls_and_delays_values_by_at_most_10_seconds(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(35)
        polls = len(world.polls)
        virtual_loop().hangs = lambda _: True
        await asyncio.sleep(600)
        ages = [START + 635 - float(line.split()[-1]) for line in world.samples("chatapp_space_last_success")]
        results: list[object] = [
            len(world.polls) - polls,
            max(ages) <= 40,
            shown_red(world),
            state_file_samples(world)[0],
        ]
        virtual_loop().release()
        await asyncio.sleep(35)
        results += [state_file_samples(world)[0], stored_red(file)]
        await world.exporter.stop()
        return results

    with capture_logs() as logs:
        assert run(main()) == [60, True, True, UP + "0.0", UP + "1.0", True]
    assert [line["event"] for line in logs if line["event"].startswith("state file")] == [
        "state file cannot be written, continuing without it",
        "state file available again",
    ]


def test_values_polled_while_the_disk_hangs_are_shown_after_10_seconds(file: Path) -> None:
    async def main() -> float:
        world = World(scenario(30, poll_interval="30s"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(35)
        virtual_loop().hangs = lambda _: True
        await asyncio.sleep(12)
        oldest = min(float(line.split()[-1]) for line in world.samples("chatapp_space_last_success"))
        virtual_loop().release()
        await world.exporter.stop()
        return START + 47 - oldest

    assert run(main()) <= 31


def test_a_start_and_a_stop_have_a_time_limit_if_the_disk_hangs(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await poll_for(world, 100)
        second = World(scenario(3, poll_interval="30s"), clock=world.clock)
        loop = virtual_loop()
        loop.hangs = lambda _: True
        started = loop.time()
        await second.exporter.service.apply(second.settings.model_copy(update={"state_file": str(file)}))
        await asyncio.sleep(5)
        results: list[object] = [loop.time() - started <= 26, sorted(set(second.samples("chatapp_space_up")))]
        stopped = loop.time()
        await second.exporter.stop()
        return [*results, loop.time() - stopped <= 6]

    assert run(main()) == [True, ["chatapp_space_up{} 1"], True]


def test_records_are_restored_from_a_file_that_timed_out_at_the_start(file: Path) -> None:
    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await poll_for(world, 120)
        before = world.samples("chatapp_phone_number_last_change")
        without_file = world.settings.model_copy(update={"state_file": None})
        world.settings, settings = without_file, world.settings
        world.exporter = world.fresh_exporter()
        loop = virtual_loop()
        loop.hangs = lambda call: "StateFile.open" in repr(call)
        await world.exporter.service.apply(settings)
        await asyncio.sleep(10)
        loop.release()
        await asyncio.sleep(5)
        await world.exporter.service.recorder.reopen_state_file()
        await asyncio.sleep(1)
        await world.exporter.stop()
        return before, world.samples("chatapp_phone_number_last_change")

    before, after = run(main())

    assert len(before) == 1
    assert after == before


def test_records_that_wait_for_a_slow_disk_are_written_together(file: Path) -> None:
    writes: list[object] = []

    def record_and_hang(call: object) -> bool:
        writes.append(call)
        return True

    async def main() -> tuple[int, int]:
        world = World(scenario(40, poll_interval="60s"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(1)
        loop = virtual_loop()
        loop.hangs = record_and_hang
        await asyncio.sleep(8)
        loop.release()
        await asyncio.sleep(0.1)
        polls = len(world.polls)
        await world.exporter.stop()
        return len(writes), polls

    written, polls = run(main())

    assert written == 1
    assert polls >= 40
    assert len(stored_spaces(file)) == 40


def test_a_space_that_is_removed_while_its_write_hangs_is_not_stored(file: Path) -> None:
    async def main() -> set[str]:
        world = World(scenario(4, poll_interval="30s"), state_file=str(file))
        await world.exporter.start()
        virtual_loop().hangs = lambda _: True
        await asyncio.sleep(5)
        (account,) = world.settings.accounts
        kept = account.model_copy(update={"spaces": list(account.spaces or [])[:2]})
        virtual_loop().hangs = lambda call: "_write" in repr(call)
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [kept]}))
        virtual_loop().release()
        await asyncio.sleep(1)
        await world.exporter.stop()
        return {space.id for space in kept.spaces or []} ^ set(stored_spaces(file))

    assert run(main()) == set()


async def commit_while_a_write_hangs(world: World, settings: Settings) -> ConfigChange:
    """Commit a reload while the writes of the first polls hang. The caller must retire the change."""
    await world.exporter.start()
    virtual_loop().hangs = lambda call: "_write" in repr(call)
    await asyncio.sleep(5)
    change = await world.exporter.service.prepare(settings)
    world.exporter.service.commit(change)
    return change


def test_a_write_that_ends_after_a_reload_shows_no_value_of_the_old_access_key(file: Path) -> None:
    async def main() -> list[str]:
        world = World(scenario(3, poll_interval="1h"), state_file=str(file))
        change = await commit_while_a_write_hangs(world, world.settings.with_key_digests({"acme": "another"}, ()))
        virtual_loop().release()
        await asyncio.sleep(0.1)
        results = world.samples("chatapp_phone_number") + world.samples("chatapp_space_up")
        await world.exporter.service.retire(change)
        await world.exporter.stop()
        return results

    assert run(main()) == ["chatapp_space_up{} 0"] * 3


def test_a_late_write_to_the_old_file_does_not_replace_newer_values(file: Path) -> None:
    async def main() -> list[bool]:
        world = World(scenario(1, poll_interval="30s", events=RED), state_file=str(file))
        changed = world.settings.model_copy(update={"state_file": f"{file}.second"})
        change = await commit_while_a_write_hangs(world, changed)
        virtual_loop().hangs = lambda _: False
        world.exporter.service.recorder.sync_state_file(change.unsaved_spaces)
        await asyncio.sleep(90)
        results = [shown_red(world)]
        virtual_loop().release()
        await asyncio.sleep(1)
        results.append(shown_red(world))
        await world.exporter.service.retire(change)
        await world.exporter.stop()
        return results

    assert run(main()) == [True, True]


def test_after_an_exception_in_a_write_its_values_are_shown_and_the_next_write_succeeds(file: Path) -> None:
    shown: list[Key] = []

    async def main() -> list[object]:
        writer = StateWriter(StateFile(file, SystemClock()), shown.extend)
        await writer.open(IDENTITIES)
        writer.save({("unknown", "s1"): SpaceRecord()})  # unknown account: KeyError
        await asyncio.sleep(1)
        results: list[object] = [list(shown), writer.file.up]
        writer.retain([("a", "s2")], IDENTITIES)
        writer.save({("a", "s2"): SpaceRecord()})
        await asyncio.sleep(1)
        await writer.close()
        return results

    with capture_logs() as logs:
        assert run(main()) == [[("unknown", "s1")], False]
    assert "state file cannot be written because of a bug, please report it" in [line["event"] for line in logs]
    assert stored_spaces(file) == ["s2"]


def test_the_wal_of_a_state_file_stays_small(file: Path) -> None:
    """SQLite's default checkpoint at 4 MB could fill a small volume."""

    async def main() -> list[int]:
        world = World(scenario(50, poll_interval="30s"), state_file=str(file))
        await world.exporter.start()
        sizes = []
        for _ in range(60):
            await asyncio.sleep(30)
            sizes.append(wal_bytes(file))
        await world.exporter.stop()
        return sizes

    sizes = run(main())

    assert max(sizes) < 400_000
    assert sizes != sorted(sizes)


def test_a_wal_that_has_filled_the_disk_is_checkpointed_and_used_again(file: Path) -> None:
    with closing(opened_state_file(file)) as state_file, capture_logs():
        results = []
        for number in range(40):
            state_file.save({("a", "s"): SpaceRecord(last_success=float(number))})
        with full_disk(Path(f"{file}-wal").stat().st_size):
            for number in range(40, 43):
                state_file.save({("a", "s"): SpaceRecord(last_success=float(number))})
                results.append(state_file.up)

    assert results == [True, True, True]


def replace_with_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def test_a_state_file_that_is_replaced_with_a_fifo_does_not_stop_polls(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(35)
        replace_with_fifo(file)
        await world.exporter.service.recorder.reopen_state_file()
        polls = len(world.polls)
        await asyncio.sleep(60)
        results: list[object] = [
            len(world.polls) - polls,
            state_file_samples(world)[0],
            set(world.samples("chatapp_space_up")),
        ]
        await world.exporter.stop()
        return results

    with capture_logs() as logs:
        assert run(main()) == [6, UP + "0.0", {"chatapp_space_up{} 1"}]
    assert "expected a regular file, found a FIFO" in [line.get("problem") for line in logs]
    assert file.is_fifo()
