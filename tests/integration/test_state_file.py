"""A restart with a state file shows the stored values with their correct age. A failure of the file stops no poll."""

import asyncio
import itertools
import os
import shutil
import sqlite3
import time
from collections import UserDict
from collections.abc import Callable, ItemsView, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from state_files import IDENTITIES, full_disk, opened_state_file, poll_for, state_file_samples, stored_spaces, wal_bytes
from structlog.testing import capture_logs
from virtual_time import START, run
from world import World, scenario

from exporter.clock import SystemClock
from exporter.runtime.reload import StaticLoader
from exporter.state.state_file import StateFile
from exporter.state.store import Change, SpaceRecord

RED = ({"at": "60s", "space": 1, "number": 1, "set": {"QualityRating": "RED"}},)
VALUES = ("chatapp_phone_number", "chatapp_space_last_success", "chatapp_space_up", "chatapp_space_phone_numbers")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def values(world: World) -> list[str]:
    return [line for prefix in VALUES for line in world.samples(prefix)]


def test_a_restart_shows_the_stored_values_and_their_ages_immediately_and_is_ready(file: Path) -> None:
    async def main() -> tuple[list[str], list[str], int]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await poll_for(world, 120)
        before = values(world)
        await asyncio.sleep(100)
        world.exporter = world.fresh_exporter()
        restored = values(world), world.exporter.view.unpolled()
        await world.exporter.stop()
        return before, *restored

    before, restored, unpolled = run(main())

    assert any('quality_rating="RED"} 1' in line for line in before)
    assert any(line.startswith("chatapp_phone_number_last_change_timestamp_seconds") for line in before)
    assert (restored, unpolled) == (before, 0)


def test_a_restart_continues_the_schedule(file: Path) -> None:
    async def main() -> World:
        world = World(scenario(10, poll_interval="5m", qps=10), state_file=str(file))
        for seconds in (600, 30, 100, 900):
            await poll_for(world, seconds)
            world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return world

    world = run(main())
    for number in range(1, 11):
        first, *regular_polls = world.polls_of(world.space_id(number))
        gaps = [later - earlier for earlier, later in itertools.pairwise(regular_polls)]
        assert gaps == [pytest.approx(300, abs=0.1)] * len(gaps)
        assert (first < 2, len(gaps) >= 4) == (True, True)


def test_after_an_hour_of_downtime_the_space_with_the_oldest_poll_is_polled_first(file: Path) -> None:
    async def main() -> list[str]:
        world = World(scenario(10, poll_interval="5m", qps=10), state_file=str(file), max_age=86_400.0)
        await poll_for(world, 700)
        order = list(dict.fromkeys(space for _, space in reversed(world.polls)))[::-1]
        await asyncio.sleep(3600)
        world.polls.clear()
        world.exporter = world.fresh_exporter()
        await poll_for(world, 2)
        assert [space for _, space in world.polls][:10] == order
        return [f"{at % 3600:.1f}" for at, _ in world.polls[:10]]

    assert len(set(run(main()))) == 10  # at different times, because of the budget


def test_a_slot_stored_with_a_clock_one_day_ahead_does_not_delay_a_poll(file: Path) -> None:
    async def main() -> int:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        world.clock.offset = 86_400.0  # type: ignore[attr-defined]  # a virtual clock
        await poll_for(world, 400)
        world.clock.offset = 0.0  # type: ignore[attr-defined]
        world.polls.clear()
        world.exporter = world.fresh_exporter()
        await poll_for(world, 302)
        return len({space for _, space in world.polls})

    assert run(main()) == 3


def test_a_restart_does_not_show_values_with_a_time_one_day_in_the_future(file: Path) -> None:
    """Otherwise these values would count as fresh for a day."""
    down = ({"at": "90s", "answer": "InternalError"},)

    async def main() -> tuple[int, list[str], list[str]]:
        world = World(scenario(3, poll_interval="30s", events=down), state_file=str(file))
        world.clock.offset = 86_400.0  # type: ignore[attr-defined]  # a virtual clock
        await world.exporter.start()
        await asyncio.sleep(95)
        before = len(world.samples("chatapp_phone_number"))
        world.clock.offset = 0.0  # type: ignore[attr-defined]
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(15)
        after_start = world.samples("chatapp_phone_number")
        await asyncio.sleep(3700)
        await world.exporter.stop()
        return before, after_start, world.samples("chatapp_phone_number")

    before, after_start, after_max_age = run(main())

    assert before > 0
    assert (after_start, after_max_age) == ([], [])


def test_after_the_clock_was_set_back_a_restart_does_not_show_old_values_as_fresh(file: Path) -> None:
    """The account is denied, so no poll updates the times of the values."""
    revoked = ({"at": "100s", "answer": "InvalidAccessKeyId.NotFound"},)

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(50, poll_interval="5m", events=revoked), state_file=str(file))
        world.clock.offset = 86_400.0  # type: ignore[attr-defined]  # a virtual clock
        reloader_task = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(160)
        world.clock.offset = 0.0  # type: ignore[attr-defined]
        await asyncio.sleep(2 * 3600)
        reloader_task.cancel()
        results = []
        for _ in range(2):
            await world.exporter.stop()
            world.exporter = world.fresh_exporter()
            results.append(world.samples("chatapp_phone_number"))
            await asyncio.sleep(60)
        await world.exporter.stop()
        return results[0], results[1]

    assert run(main()) == ([], [])


@pytest.mark.parametrize("jump", [7200.0, -7200.0, -1.7e9])
def test_a_clock_change_does_not_hide_values_that_this_process_polled(jump: float) -> None:
    async def main() -> tuple[list[str], ...]:
        world = World(scenario(3, poll_interval="5m", events=RED))
        reloader_task = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(330)
        results = []
        for offset in (0.0, jump, 0.0):
            world.clock.offset = offset  # type: ignore[attr-defined]  # a virtual clock
            await asyncio.sleep(12)
            results.append(values(world))
        reloader_task.cancel()
        await world.exporter.stop()
        return tuple(results)

    before, during, after = run(main())

    assert any(line.startswith("chatapp_phone_number") for line in before)
    assert before == during == after


def test_a_blind_space_without_a_successful_poll_stays_blind_after_a_restart(file: Path) -> None:
    rejected = ({"at": "0s", "space": 1, "answer": "Unknown.ResourceOwnerId"},)

    async def main() -> list[bool]:
        world = World(scenario(2, poll_interval="5m", events=rejected), state_file=str(file))
        await world.exporter.start()
        blind = []
        for seconds in (800, 200):
            await asyncio.sleep(seconds)
            blind.append(is_blind(world))
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(1)
        blind.append(is_blind(world))
        await world.exporter.stop()
        return blind

    assert run(main()) == [False, True, True]


def is_blind(world: World) -> bool:
    """Return whether the first space is blind."""
    snapshot = world.exporter.view.snapshot()
    (account,), space = snapshot.accounts, snapshot.spaces[0]
    return account.is_blind(space)


@pytest.mark.parametrize("jump", [7200.0, -7200.0])
def test_a_clock_change_does_not_delay_the_removal_of_stale_values(jump: float) -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="5m", events=({"at": "310s", "answer": "InternalError"},)))
        await world.exporter.start()
        await asyncio.sleep(330)
        world.clock.offset = jump  # type: ignore[attr-defined]  # a virtual clock
        results = []
        for seconds in (3200, 400):
            await asyncio.sleep(seconds)
            results.append(world.samples("chatapp_phone_number_info"))
        await world.exporter.stop()
        return results

    before_max_age, after_max_age = run(main())

    assert before_max_age
    assert after_max_age == []


def test_a_denied_account_is_detected_within_3_seconds_after_a_restart(file: Path) -> None:
    revoked = ({"at": "60s", "answer": "InvalidAccessKeyId.NotFound"},)

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(6, poll_interval="30m", events=revoked), state_file=str(file), max_age=86_400.0)
        await poll_for(world, 4000)
        before = world.samples("chatapp_account_up")
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(3)
        after = world.samples("chatapp_account_up")
        await world.exporter.stop()
        return before, after

    assert run(main()) == (["chatapp_account_up{} 0"], ["chatapp_account_up{} 0"])


@pytest.mark.parametrize(("qps", "first_poll"), [(10, 1.0), (0.5, 2.0), (0.01, 100.0)])
def test_a_start_with_hold_off_sends_its_first_poll_after_one_hold_time(qps: float, first_poll: float) -> None:
    async def main() -> float:
        world = World(scenario(3, poll_interval="30s", qps=qps))
        await world.exporter.start(hold_off=True)
        await asyncio.sleep(300)
        await world.exporter.stop()
        return world.polls[0][0]

    assert run(main()) == first_poll


def test_all_spaces_are_polled_immediately_after_a_downtime_longer_than_max_age(file: Path) -> None:
    async def main() -> tuple[int, int]:
        world = World(scenario(20, poll_interval="5m"), state_file=str(file))
        await poll_for(world, 10)
        await asyncio.sleep(3 * 3600)
        world.exporter = world.fresh_exporter()
        unpolled_at_start = world.exporter.view.unpolled()
        await poll_for(world, 3)
        return unpolled_at_start, world.exporter.view.unpolled()

    assert run(main()) == (20, 0)


def test_spaces_that_are_not_configured_are_deleted_from_the_file(file: Path) -> None:
    async def main() -> list[str]:
        world = World(scenario(5), state_file=str(file))
        await poll_for(world, 10)
        world.exporter = world.fresh_exporter(spaces=2)
        await world.exporter.stop()
        stored = stored_spaces(file)
        assert stored == sorted(world.space_id(number) for number in (1, 2))
        return stored

    assert len(run(main())) == 2


@dataclass(frozen=True)
class RestartResult:
    """The values at the start, the metrics after a sweep, and the log events of the start."""

    at_start: list[str]
    state_file_samples: list[str]
    up: set[str]
    logged: list[str]


def restart_after(damage: Callable[[Path], object], file: Path) -> RestartResult:
    """Poll for a minute, damage the file, then restart the exporter."""

    async def main() -> RestartResult:
        world = World(scenario(40, poll_interval="5s"), state_file=str(file))
        await poll_for(world, 60)
        damage(file)
        with capture_logs() as logs:
            world.exporter = world.fresh_exporter()
        at_start = values(world)
        await world.exporter.start()
        await asyncio.sleep(5)
        results = state_file_samples(world), set(world.samples("chatapp_space_up"))
        await world.exporter.stop()
        return RestartResult(at_start, *results, [line["event"] for line in logs])

    return run(main())


def overwrite(at: int, content: bytes) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        with file.open("r+b") as stream:
            stream.seek(at)
            stream.write(content)

    return damage


def damage_row(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"last_success":', b'"last_success"?', 1))


def renamed_files(file: Path) -> list[Path]:
    return [path for path in file.parent.glob("state.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(overwrite(0, b"\xff" * 100), id="header"),
        pytest.param(overwrite(0, b"\0" * 4096), id="first page"),
        pytest.param(overwrite(4096, b"\xff" * 4096), id="second page"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:5000]), id="truncated"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:50]), id="truncated header"),
        pytest.param(lambda file: file.write_bytes(b"\x93" * 9000), id="invalid bytes"),
        pytest.param(damage_row, id="invalid row"),
    ],
)
def test_a_damaged_file_is_renamed_and_a_new_file_is_created(file: Path, damage: Callable[[Path], object]) -> None:
    damaged = b""

    def damage_and_read(path: Path) -> None:
        nonlocal damaged
        damage(path)
        damaged = path.read_bytes()

    after = restart_after(damage_and_read, file)

    assert [path.read_bytes() for path in renamed_files(file)] == [damaged]
    assert after.logged == ["state file damaged, renamed and replaced with a new file"]
    assert after.state_file_samples == [
        "chatapp_exporter_state_file_up{} 1.0",
        'chatapp_exporter_state_file_failures_total{reason="damaged"} 1.0',
    ]
    assert after.up == {"chatapp_space_up{} 1"}
    assert len(stored_spaces(file)) == 40


def test_damaged_files_do_not_overwrite_each_other(file: Path) -> None:
    async def main() -> None:
        world = World(scenario(1), state_file=str(file))
        for _ in range(3):
            await world.exporter.stop()
            overwrite(0, b"\xff" * 100)(file)
            world.exporter = world.fresh_exporter()
        await world.exporter.stop()

    run(main())

    assert len(renamed_files(file)) == 3


def replace_with_foreign_database(file: Path) -> None:
    file.unlink()
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE item (name)")
    database.close()


def set_newer_version(file: Path) -> None:
    database = sqlite3.connect(file)
    database.execute("PRAGMA user_version=99")
    database.close()


def replace_with_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link_to_missing_directory(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nowhere" / "state.db")


def replace_with_fifo(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def link_to_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(replace_with_foreign_database, "foreign", id="database of another program"),
        pytest.param(lambda file: file.write_text("accounts: [] # précis\n" * 20), "foreign", id="text"),
        pytest.param(set_newer_version, "newer", id="newer version"),
        pytest.param(replace_with_directory, "unwritable", id="directory"),
        pytest.param(link_to_missing_directory, "unwritable", id="missing directory"),
        pytest.param(replace_with_fifo, "unwritable", id="FIFO"),
        pytest.param(lambda file: replace_with_fifo(Path(f"{file}-wal")), "unwritable", id="FIFO as WAL"),
        pytest.param(link_to_device, "unwritable", id="device"),
    ],
)
def test_an_unusable_file_is_not_changed(file: Path, damage: Callable[[Path], object], reason: str) -> None:
    before: list[object] = []

    def damage_and_read(path: Path) -> None:
        damage(path)
        before.append(path.read_bytes() if path.is_file() else path.lstat().st_ino)

    after = restart_after(damage_and_read, file)

    assert before == [file.read_bytes() if file.is_file() else file.lstat().st_ino]
    assert renamed_files(file) == []
    assert after.logged == ["state file cannot be used, continuing without it"]
    assert after.state_file_samples == [
        "chatapp_exporter_state_file_up{} 0.0",
        f'chatapp_exporter_state_file_failures_total{{reason="{reason}"}} 1.0',
    ]
    assert after.up == {"chatapp_space_up{} 1"}


def block_wal_index(file: Path) -> None:
    """Prevent SQLite from creating the WAL index, as on a full disk."""
    Path(f"{file}-shm").symlink_to("nowhere/shm")


def unblock_wal_index(file: Path) -> None:
    Path(f"{file}-shm").unlink()


def copy_after_kill(file: Path, directory: Path) -> Path:
    """Copy the database and the WAL, as a kill would leave them, to a new directory. Return the copied database."""
    directory.mkdir()
    for path in file.parent.glob(f"{file.name}*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, directory)
    return directory / file.name


@pytest.mark.parametrize("linked", [False, True], ids=["plain", "linked"])
def test_after_a_kill_values_are_restored_from_a_full_disk_and_saved_when_space_is_free(
    tmp_path: Path, linked: bool
) -> None:
    """With a link, the WAL is next to the target of the link. The database without the WAL has older values."""

    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(tmp_path / "state.db"))
        await poll_for(world, 40)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(80)
        results, copy = [values(world)], copy_after_kill(tmp_path / "state.db", tmp_path / "copy")
        await world.exporter.stop()
        block_wal_index(copy)
        (tmp_path / "link").symlink_to(copy)
        file = tmp_path / "link" if linked else copy
        world.settings = world.settings.model_copy(update={"state_file": str(file)})
        world.exporter = world.fresh_exporter()
        results.append(values(world))
        reloader_task = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(5)
        unblock_wal_index(copy)
        await asyncio.sleep(40)
        reloader_task.cancel()
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        results.append(world.samples("chatapp_phone_number_last_change"))
        await world.exporter.stop()
        return results

    before, restored, later = run(main())

    assert any('quality_rating="RED"} 1' in line for line in before)
    assert restored == before
    assert later == [line for line in before if "last_change" in line]
    assert len(later) == 1


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make a directory and its files read-only, also if the tests run as root."""
    for path in directory.iterdir():
        path.chmod(0o444)
    directory.chmod(0o555)
    if os.getuid() == 0:  # file modes do not restrict root
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        directory.chmod(0o755)


@pytest.mark.parametrize("linked", [False, True], ids=["plain", "linked"])
@pytest.mark.parametrize("has_wal", [False, True])
def test_values_on_a_read_only_disk_are_restored_only_without_a_wal(has_wal: bool, linked: bool) -> None:
    async def main(directory: Path) -> tuple[list[str], list[str], list[str]]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(directory / "first" / "state.db"))
        await poll_for(world, 40)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(80)
        if not has_wal:
            await world.exporter.stop()
        before = values(world)
        copy = copy_after_kill(directory / "first" / "state.db", directory / "copy")
        await world.exporter.stop()
        (directory / "link").symlink_to(copy)
        file = directory / "link" if linked else copy
        world.settings = world.settings.model_copy(update={"state_file": str(file)})
        with read_only(copy.parent):
            world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return before, values(world), state_file_samples(world)

    with TemporaryDirectory() as name:  # a directory that every user can access
        (directory := Path(name)).chmod(0o755)
        (directory / "first").mkdir()
        before, restored, samples = run(main(directory))

    assert any('quality_rating="RED"} 1' in line for line in before)
    assert restored == (["chatapp_space_up{} 0"] * 3 if has_wal else before)
    assert samples[0] == "chatapp_exporter_state_file_up{} 0.0"


def test_a_file_of_a_newer_version_is_not_used_on_a_full_disk(file: Path) -> None:
    def set_newer_version_and_fill_disk(path: Path) -> None:
        set_newer_version(path)
        block_wal_index(path)

    after = restart_after(set_newer_version_and_fill_disk, file)

    assert not any(line.startswith("chatapp_phone_number") for line in after.at_start)
    assert after.state_file_samples[1] == 'chatapp_exporter_state_file_failures_total{reason="newer"} 1.0'


def test_records_are_restored_from_a_file_that_is_mounted_after_the_start(tmp_path: Path) -> None:
    """A change during the downtime gets the time of the last poll before the downtime."""
    directory, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    downtime_event = {"at": "150s", "space": 2, "number": 1, "set": {"QualityRating": "YELLOW"}}

    async def main() -> tuple[list[str], list[str]]:
        world = World(
            scenario(3, poll_interval="30s", events=(*RED, downtime_event)), state_file=str(directory / "state.db")
        )
        await poll_for(world, 120)
        before = world.samples("chatapp_phone_number_last_change")
        directory.rename(elsewhere)
        await asyncio.sleep(600)
        world.exporter = world.fresh_exporter()
        reloader_task = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(5)
        assert world.samples("chatapp_phone_number_last_change") == []
        elsewhere.rename(directory)
        await asyncio.sleep(60)
        reloader_task.cancel()
        await world.exporter.stop()
        return before, world.samples("chatapp_phone_number_last_change")

    directory.mkdir()
    before, after = run(main())

    assert len(before) == 1
    assert before[0] in after
    (downtime_change,) = set(after) - set(before)
    assert START + 90 <= float(downtime_change.rsplit(" ", 1)[1]) <= START + 120


def test_values_polled_before_a_file_is_mounted_are_saved_after_it_is_mounted(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(3, poll_interval="1h"), state_file=str(directory / "state.db"))
        await poll_for(world, 30)
        directory.rename(elsewhere)
        await asyncio.sleep(600)
        world.exporter = world.fresh_exporter()
        reloader_task = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(5)
        elsewhere.rename(directory)
        await asyncio.sleep(15)
        reloader_task.cancel()
        before = world.samples("chatapp_space_last_success")
        copy = copy_after_kill(directory / "state.db", tmp_path / "copy")
        await world.exporter.stop()
        world.settings = world.settings.model_copy(update={"state_file": str(copy)})
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return before, world.samples("chatapp_space_last_success")

    directory.mkdir()
    before, restored = run(main())

    assert restored == before
    assert all(float(line.rsplit(" ", 1)[1]) > START + 600 for line in before)


def test_a_start_does_not_write_unchanged_records(file: Path) -> None:
    async def main() -> int:
        world = World(scenario(3, poll_interval="1h"), state_file=str(file))
        await poll_for(world, 30)
        world.exporter = world.fresh_exporter()
        written = wal_bytes(file)
        await world.exporter.stop()
        return written

    assert run(main()) == 0


@pytest.mark.parametrize("has_disk_space", [True, False])
def test_stored_values_of_another_endpoint_are_not_shown(file: Path, has_disk_space: bool) -> None:
    async def main() -> tuple[list[str], int]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await poll_for(world, 30)
        (account,) = world.settings.accounts
        elsewhere = account.model_copy(update={"endpoint": "https://cams.ap-southeast-1.aliyuncs.com"})
        world.settings = world.settings.model_copy(update={"accounts": [elsewhere]})
        if not has_disk_space:
            block_wal_index(file)
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return world.samples("chatapp_phone_number"), world.exporter.view.unpolled()

    assert run(main()) == ([], 3)


def test_a_reload_with_another_endpoint_removes_the_values_of_the_old_endpoint(file: Path) -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(30)
        (account,) = world.settings.accounts
        changed = account.model_copy(update={"endpoint": "https://other.example", "access_key_id": "wrong"})
        world.settings = world.settings.model_copy(update={"accounts": [changed]})
        await world.exporter.reconfigure(world.settings)
        results = [world.samples("chatapp_phone_number")]
        await asyncio.sleep(30)
        results += [world.samples("chatapp_phone_number"), world.samples("chatapp_space_up")]
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return [*results, world.samples("chatapp_phone_number")]

    assert run(main()) == [[], [], ["chatapp_space_up{} 0"] * 3, []]


def set_key_digest(world: World, key: str) -> None:
    """Set the digest of the account's access key in the world's settings."""
    world.settings = world.settings.with_key_digests({"acme": key}, ())


@pytest.mark.parametrize("key", ["same", "another"])
def test_a_restart_with_another_access_key_shows_no_stored_values(file: Path, key: str) -> None:
    async def main() -> tuple[int, int]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        set_key_digest(world, "same")
        world.exporter = world.fresh_exporter()
        await poll_for(world, 30)
        set_key_digest(world, key)
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return len(world.samples("chatapp_phone_number_info")), world.exporter.view.unpolled()

    assert run(main()) == ((9, 0) if key == "same" else (0, 3))


def test_a_reload_with_another_access_key_removes_the_old_values(file: Path) -> None:
    async def main() -> list[int]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(30)
        set_key_digest(world, "another")
        await world.exporter.reconfigure(world.settings)
        results = [len(world.samples("chatapp_phone_number_info"))]
        await asyncio.sleep(5)
        results.append(len(world.samples("chatapp_phone_number_info")))
        await world.exporter.stop()
        return results

    assert run(main()) == [0, 9]


def test_only_the_owner_can_read_the_state_file(file: Path) -> None:
    """The file contains phone numbers."""
    before = os.umask(0)
    try:
        with closing(opened_state_file(file)) as state_file:
            state_file.save({("a", "s"): SpaceRecord()})
            modes = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
    finally:
        os.umask(before)

    assert modes == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm"), 0o600)


def test_if_a_link_points_to_a_damaged_file_the_target_is_renamed(file: Path) -> None:
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()

    def damage_link_target(path: Path) -> None:
        path.rename(elsewhere / "target.db")
        path.symlink_to(elsewhere / "target.db")
        overwrite(0, b"\xff" * 100)(path)

    after = restart_after(damage_link_target, file)

    assert file.readlink() == elsewhere / "target.db"
    assert len(list(elsewhere.glob("target.db.damaged-*"))) == 1
    assert after.up == {"chatapp_space_up{} 1"}
    assert len(stored_spaces(file)) == 40


def test_the_file_is_up_again_after_the_space_with_the_failed_write_was_removed(file: Path) -> None:
    failed, retained = ("a", "s1"), ("a", "s2")

    with closing(opened_state_file(file)) as state_file:
        up = [state_file.up]
        with closing(sqlite3.connect(file)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            state_file.save({failed: SpaceRecord()})
            up.append(state_file.up)
        state_file.retain({retained}, IDENTITIES)
        state_file.save({retained: SpaceRecord()})
        up.append(state_file.up)

    assert up == [True, False, True]
    assert stored_spaces(file) == ["s2"]


def test_a_record_whose_write_failed_is_not_saved_for_another_endpoint(file: Path) -> None:
    identities = {"a": "https://elsewhere.example"}

    with closing(opened_state_file(file)) as state_file:
        with closing(sqlite3.connect(file)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            state_file.save({("a", "s1"): SpaceRecord(up=True)})
        state_file.retain({("a", "s1"), ("a", "s2")}, identities)
        state_file.save({("a", "s2"): SpaceRecord()})
        state_file.close()
        records = state_file.open(identities)

    assert records == {("a", "s2"): SpaceRecord()}


def lock_exclusively(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")
    return database


@pytest.mark.parametrize("failure", ["removed", "locked at the start"])
def test_a_file_is_used_again_within_30_seconds_after_a_failure(file: Path, failure: str) -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await poll_for(world, 30)
        lock = lock_exclusively(file) if failure == "locked at the start" else None
        world.exporter = world.fresh_exporter()
        reloader = world.exporter.reloader(StaticLoader(world.settings))
        reloader_task = asyncio.create_task(reloader.run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(15)
        results = [state_file_samples(world)[:1]]
        if lock:
            lock.close()
        else:
            for path in file.parent.glob("state.db*"):
                path.unlink()
        await asyncio.sleep(15)
        results.append(state_file_samples(world)[:1])
        reloader_task.cancel()
        await world.exporter.stop()
        return results

    with capture_logs() as logs:
        before, after = run(main())

    up = "chatapp_exporter_state_file_up{} "
    assert (before, after) == ([up + ("0.0" if failure == "locked at the start" else "1.0")], [up + "1.0"])
    assert len(stored_spaces(file)) == 3
    events = [line["event"] for line in logs if line["event"].startswith("state file")]
    failure_events = {
        "locked at the start": "state file cannot be used, continuing without it",
        "removed": "state file removed or replaced, opening it again",
    }
    assert events == [failure_events[failure], "state file available again"]


def test_a_lock_of_another_program_does_not_delay_saves(file: Path) -> None:
    def seconds_for_100_saves(state_file: StateFile) -> float:
        started = time.perf_counter()
        for _ in range(100):
            state_file.save({("a", "s"): SpaceRecord()})
        return time.perf_counter() - started

    with (
        closing(opened_state_file(file)) as state_file,
        closing(sqlite3.connect(file)) as lock,
    ):
        unlocked = seconds_for_100_saves(state_file)
        lock.execute("BEGIN IMMEDIATE")
        locked = seconds_for_100_saves(state_file)

    assert locked < 50 * unlocked  # with a wait of 0.1 s for the lock, saves would take at least 500 times as long


class CountingChanges(UserDict[tuple[str, str], Change]):
    """Changes that record each encoding."""

    def __init__(self, encoded: list[str]) -> None:
        super().__init__()
        self._encoded = encoded

    def items(self) -> ItemsView[tuple[str, str], Change]:
        self._encoded.append("encoded")
        return super().items()


def test_on_a_full_disk_each_save_encodes_only_new_records(file: Path) -> None:
    """Otherwise each poll would take longer than the previous poll."""
    encoded: list[str] = []
    keys = [("a", f"s{number}") for number in range(20)]
    with closing(opened_state_file(file)) as state_file:
        state_file.save({keys[0]: SpaceRecord()})
        with full_disk(1), capture_logs():
            for key in keys:
                state_file.save({key: SpaceRecord(changes=CountingChanges(encoded))})
        encoded_on_full_disk = len(encoded)
        assert stored_spaces(file) == ["s0"]
        state_file.save({keys[0]: SpaceRecord()})

    assert encoded_on_full_disk == 20
    assert len(stored_spaces(file)) == 20


def test_an_unwritable_file_is_read_only_at_the_first_attempt(file: Path) -> None:
    with closing(opened_state_file(file)) as state_file:
        state_file.save({("a", "s"): SpaceRecord()})
    block_wal_index(file)

    with closing(StateFile(file, SystemClock())) as state_file:
        first_attempt = state_file.open(IDENTITIES)
        second_attempt = state_file.open(IDENTITIES)

    assert (first_attempt, second_attempt) == ({("a", "s"): SpaceRecord()}, {})


def test_an_empty_file_with_a_wal_is_renamed_together_with_the_wal(file: Path) -> None:
    def truncate_with_wal(path: Path) -> None:
        path.write_bytes(b"")
        Path(f"{path}-wal").write_bytes(b"content of the WAL")

    after = restart_after(truncate_with_wal, file)

    assert after.logged == ["state file damaged, renamed and replaced with a new file"]
    assert [path.read_bytes() for path in file.parent.glob("state.db.damaged-*-wal")] == [b"content of the WAL"]


def test_without_a_state_file_there_are_no_state_file_metrics() -> None:
    async def main() -> list[str]:
        world = World(scenario(1))
        await world.exporter.stop()
        return world.samples("chatapp_exporter_state_file")

    assert run(main()) == []


def test_a_removed_space_is_not_written_to_the_file(file: Path) -> None:
    async def main() -> None:
        world = World(scenario(2), state_file=str(file))
        await poll_for(world, 10)
        world.exporter = world.fresh_exporter()
        world.exporter.service.recorder.sync_state_file([("acme", "removed"), ("acme", world.space_id(1))])
        await world.exporter.stop()

    run(main())

    assert len(stored_spaces(file)) == 2
