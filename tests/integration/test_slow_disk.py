"""A disk that is slow, hangs or is full: polls go on, and what a scrape has shown is in the state file."""

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


def knows_red(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as database:
        return any('"quality_rating":"RED"' in known for (known,) in database.execute("SELECT known FROM space"))


def test_a_value_is_shown_once_the_state_file_has_it(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(58)
        virtual_loop().hangs = lambda _: True
        await asyncio.sleep(37)  # the RED answer was between 60 and 90 s
        virtual_loop().release()
        await asyncio.sleep(1)
        seen: list[object] = [shown_red(world), knows_red(file)]
        await world.exporter.stop()
        return seen

    assert run(main()) == [True, True]


def test_nothing_is_shown_that_a_kill_would_lose(file: Path) -> None:
    """Looked at ten times a second while writes take half a second each."""

    async def main() -> tuple[list[tuple[bool, bool]], int]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await world.exporter.start()
        seen = []
        for tenth in range(1200):
            await asyncio.sleep(0.1)
            if tenth % 5 == 0:
                virtual_loop().release()
            else:
                virtual_loop().hangs = lambda _: True
            seen.append((shown_red(world), knows_red(file)))
        virtual_loop().release()
        await world.exporter.stop()
        return seen, len(world.polls)

    seen, polls = run(main())

    assert polls >= 12
    assert (True, False) not in seen
    assert (False, True) in seen
    assert seen[-1] == (True, True)


def test_a_disk_that_does_not_answer_stops_no_poll_and_hides_a_value_for_ten_seconds_at_most(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(35)
        polls = len(world.polls)
        virtual_loop().hangs = lambda _: True
        await asyncio.sleep(600)
        ages = [START + 635 - float(line.split()[-1]) for line in world.samples("chatapp_space_last_success")]
        seen: list[object] = [len(world.polls) - polls, max(ages) <= 40, shown_red(world), state_file_samples(world)[0]]
        virtual_loop().release()
        await asyncio.sleep(35)
        seen += [state_file_samples(world)[0], knows_red(file)]
        await world.exporter.stop()
        return seen

    with capture_logs() as logs:
        assert run(main()) == [60, True, True, UP + "0.0", UP + "1.0", True]
    assert [line["event"] for line in logs if line["event"].startswith("state file")] == [
        "state file cannot be written, continuing without it",
        "state file available again",
    ]


def test_what_was_polled_while_the_disk_did_not_answer_is_shown_after_ten_seconds(file: Path) -> None:
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


def test_a_start_and_a_stop_do_not_wait_for_a_disk_that_does_not_answer(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await poll_for(world, 100)
        another = World(scenario(3, poll_interval="30s"), clock=world.clock)
        loop = virtual_loop()
        loop.hangs = lambda _: True
        started = loop.time()
        await another.exporter.service.apply(another.settings.model_copy(update={"state_file": str(file)}))
        await asyncio.sleep(5)
        seen: list[object] = [loop.time() - started <= 26, sorted(set(another.samples("chatapp_space_up")))]
        stopped = loop.time()
        await another.exporter.stop()
        return [*seen, loop.time() - stopped <= 6]

    assert run(main()) == [True, ["chatapp_space_up{} 1"], True]


def test_what_a_file_knew_that_did_not_answer_at_the_start_is_known_once_it_answers(file: Path) -> None:
    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await poll_for(world, 120)
        before = world.samples("chatapp_phone_number_last_change")
        bare = world.settings.model_copy(update={"state_file": None})
        world.settings, settings = bare, world.settings
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


def test_states_that_wait_for_a_slow_disk_are_written_together(file: Path) -> None:
    writes: list[object] = []

    def hangs(call: object) -> bool:
        writes.append(call)
        return True

    async def main() -> tuple[int, int]:
        world = World(scenario(40, poll_interval="60s"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(1)
        loop = virtual_loop()
        loop.hangs = hangs
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


def test_a_space_that_is_removed_while_its_write_hangs_is_not_in_the_file(file: Path) -> None:
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


async def reconfigured_while_a_write_hangs(world: World, settings: Settings) -> ConfigChange:
    """A reload that is committed, and not retired yet, when the writes of the first polls end."""
    await world.exporter.start()
    virtual_loop().hangs = lambda call: "_write" in repr(call)
    await asyncio.sleep(5)
    change = await world.exporter.service.prepare(settings)
    world.exporter.service.commit(change)
    return change


def test_a_write_that_ends_after_a_reload_shows_no_value_of_another_account(file: Path) -> None:
    async def main() -> list[str]:
        world = World(scenario(3, poll_interval="1h"), state_file=str(file))
        change = await reconfigured_while_a_write_hangs(world, world.settings.with_key_digests({"acme": "another"}, ()))
        virtual_loop().release()
        await asyncio.sleep(0.1)
        seen = world.samples("chatapp_phone_number") + world.samples("chatapp_space_up")
        await world.exporter.service.retire(change)
        await world.exporter.stop()
        return seen

    assert run(main()) == ["chatapp_space_up{} 0"] * 3


def test_a_write_to_the_file_before_shows_no_value_that_is_older_than_the_one_that_is_shown(file: Path) -> None:
    async def main() -> list[bool]:
        world = World(scenario(1, poll_interval="30s", events=RED), state_file=str(file))
        another = world.settings.model_copy(update={"state_file": f"{file}.another"})
        change = await reconfigured_while_a_write_hangs(world, another)
        virtual_loop().hangs = lambda _: False
        world.exporter.service.recorder.sync_state_file(change.unsaved_spaces)
        await asyncio.sleep(90)
        seen = [shown_red(world)]
        virtual_loop().release()
        await asyncio.sleep(1)
        seen.append(shown_red(world))
        await world.exporter.service.retire(change)
        await world.exporter.stop()
        return seen

    assert run(main()) == [True, True]


def test_a_write_that_fails_by_a_bug_is_repeated_and_hides_no_value(file: Path) -> None:
    kept: list[Key] = []

    async def main() -> list[object]:
        writer = StateWriter(StateFile(file, SystemClock()), lambda states: kept.extend(states))
        await writer.open(IDENTITIES)
        writer.save({("unknown", "s1"): SpaceRecord()})  # of no account: KeyError
        await asyncio.sleep(1)
        seen: list[object] = [list(kept), writer.file.up]
        writer.retain([("a", "s2")], IDENTITIES)
        writer.save({("a", "s2"): SpaceRecord()})
        await asyncio.sleep(1)
        await writer.close()
        return seen

    with capture_logs() as logs:
        assert run(main()) == [[("unknown", "s1")], False]
    assert "state file cannot be written because of a bug, please report it" in [line["event"] for line in logs]
    assert stored_spaces(file) == ["s2"]


def test_the_log_of_a_state_file_stays_small(file: Path) -> None:
    """SQLite's default writes it back at 4 MB only, which a small volume does not have."""

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


def test_a_log_that_has_filled_the_disk_is_written_back_and_used_again(file: Path) -> None:
    with closing(opened_state_file(file)) as state_file, capture_logs():
        seen = []
        for number in range(40):
            state_file.save({("a", "s"): SpaceRecord(last_success=float(number))})
        with full_disk(Path(f"{file}-wal").stat().st_size):
            for number in range(40, 43):
                state_file.save({("a", "s"): SpaceRecord(last_success=float(number))})
                seen.append(state_file.up)

    assert seen == [True, True, True]


def replace_by_a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def test_a_state_file_that_becomes_a_fifo_stops_no_poll(file: Path) -> None:
    async def main() -> list[object]:
        world = World(scenario(3, poll_interval="30s"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(35)
        replace_by_a_fifo(file)
        await world.exporter.service.recorder.reopen_state_file()
        polls = len(world.polls)
        await asyncio.sleep(60)
        seen: list[object] = [
            len(world.polls) - polls,
            state_file_samples(world)[0],
            set(world.samples("chatapp_space_up")),
        ]
        await world.exporter.stop()
        return seen

    with capture_logs() as logs:
        assert run(main()) == [6, UP + "0.0", {"chatapp_space_up{} 1"}]
    assert "expected a regular file, found a FIFO" in [line.get("problem") for line in logs]
    assert file.is_fifo()
