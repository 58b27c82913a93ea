"""A restart with a state file shows what was known, with its true age; no trouble with the file stops a poll."""

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


def test_a_restart_shows_the_known_values_with_their_ages_at_once_and_is_ready(file: Path) -> None:
    async def main() -> tuple[list[str], list[str], int]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(file))
        await poll_for(world, 120)
        shown = values(world)
        await asyncio.sleep(100)
        world.exporter = world.fresh_exporter()
        again = values(world), world.exporter.view.unpolled()
        await world.exporter.stop()
        return shown, *again

    shown, again, missing = run(main())

    assert any('quality_rating="RED"} 1' in line for line in shown)
    assert any(line.startswith("chatapp_phone_number_last_change_timestamp_seconds") for line in shown)
    assert (again, missing) == (shown, 0)


def test_a_restart_goes_on_with_the_schedule_where_it_stood(file: Path) -> None:
    async def main() -> World:
        world = World(scenario(10, poll_interval="5m", qps=10), state_file=str(file))
        for seconds in (600, 30, 100, 900):
            await poll_for(world, seconds)
            world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return world

    world = run(main())
    for number in range(1, 11):
        first, *regular = world.polls_of(world.space_id(number))
        gaps = [later - earlier for earlier, later in itertools.pairwise(regular)]
        assert gaps == [pytest.approx(300, abs=0.1)] * len(gaps)
        assert (first < 2, len(gaps) >= 4) == (True, True)


def test_after_an_hour_away_the_spaces_that_wait_longest_go_first(file: Path) -> None:
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

    assert len(set(run(main()))) == 10  # the budget holds


def test_a_slot_of_a_clock_that_was_wrong_does_not_postpone_a_poll(file: Path) -> None:
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


def test_after_a_restart_nothing_is_shown_that_a_clock_dated_which_was_far_ahead(file: Path) -> None:
    """For as long as that clock was ahead, it would count as fresh."""
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
        soon = world.samples("chatapp_phone_number")
        await asyncio.sleep(3700)
        await world.exporter.stop()
        return before, soon, world.samples("chatapp_phone_number")

    before, soon, an_hour_later = run(main())

    assert before > 0
    assert (soon, an_hour_later) == ([], [])


def test_what_a_clock_that_was_set_back_dated_is_not_young_again_after_a_restart(file: Path) -> None:
    """A refused account's spaces are not polled, so that nothing else dates them anew."""
    revoked = ({"at": "100s", "answer": "InvalidAccessKeyId.NotFound"},)

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(50, poll_interval="5m", events=revoked), state_file=str(file))
        world.clock.offset = 86_400.0  # type: ignore[attr-defined]  # a virtual clock
        following = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(160)
        world.clock.offset = 0.0  # type: ignore[attr-defined]
        await asyncio.sleep(2 * 3600)
        following.cancel()
        seen = []
        for _ in range(2):
            await world.exporter.stop()
            world.exporter = world.fresh_exporter()
            seen.append(world.samples("chatapp_phone_number"))
            await asyncio.sleep(60)
        await world.exporter.stop()
        return seen[0], seen[1]

    assert run(main()) == ([], [])


@pytest.mark.parametrize("jump", [7200.0, -7200.0, -1.7e9])
def test_a_step_of_the_wall_clock_hides_no_value_that_this_process_polled(jump: float) -> None:
    async def main() -> tuple[list[str], ...]:
        world = World(scenario(3, poll_interval="5m", events=RED))
        following = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(330)
        seen = []
        for offset in (0.0, jump, 0.0):
            world.clock.offset = offset  # type: ignore[attr-defined]  # a virtual clock
            await asyncio.sleep(12)
            seen.append(values(world))
        following.cancel()
        await world.exporter.stop()
        return tuple(seen)

    before, meanwhile, after = run(main())

    assert any(line.startswith("chatapp_phone_number") for line in before)
    assert before == meanwhile == after


def test_a_space_that_never_succeeded_is_not_waiting_again_after_a_restart(file: Path) -> None:
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
    """Whether the first space is."""
    snapshot = world.exporter.view.snapshot()
    (account,), space = snapshot.accounts, snapshot.spaces[0]
    return account.is_blind(space)


@pytest.mark.parametrize("jump", [7200.0, -7200.0])
def test_a_step_of_the_wall_clock_keeps_no_old_value(jump: float) -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="5m", events=({"at": "310s", "answer": "InternalError"},)))
        await world.exporter.start()
        await asyncio.sleep(330)
        world.clock.offset = jump  # type: ignore[attr-defined]  # a virtual clock
        seen = []
        for seconds in (3200, 400):
            await asyncio.sleep(seconds)
            seen.append(world.samples("chatapp_phone_number_info"))
        await world.exporter.stop()
        return seen

    shown, an_hour_later = run(main())

    assert shown
    assert an_hour_later == []


def test_after_a_restart_a_refused_account_is_soon_known_to_be_one(file: Path) -> None:
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


def test_a_start_rests_until_nothing_counts_that_another_process_sent(file: Path) -> None:
    async def main(qps: float) -> float:
        world = World(scenario(3, poll_interval="30s", qps=qps))
        await world.exporter.start(may_follow_another=True)
        await asyncio.sleep(300)
        await world.exporter.stop()
        return world.polls[0][0]

    assert [run(main(qps)) for qps in (10, 0.5, 0.01)] == [1.0, 2.0, 100.0]


def test_after_a_stop_longer_than_max_age_the_spaces_count_as_unknown_and_go_first(file: Path) -> None:
    async def main() -> tuple[int, int]:
        world = World(scenario(20, poll_interval="5m"), state_file=str(file))
        await poll_for(world, 10)
        await asyncio.sleep(3 * 3600)
        world.exporter = world.fresh_exporter()
        at_first = world.exporter.view.unpolled()
        await poll_for(world, 3)
        return at_first, world.exporter.view.unpolled()

    assert run(main()) == (20, 0)


def test_what_left_the_configuration_leaves_the_file(file: Path) -> None:
    async def main() -> list[str]:
        world = World(scenario(5), state_file=str(file))
        await poll_for(world, 10)
        world.exporter = world.fresh_exporter(spaces=2)
        await world.exporter.stop()
        left = stored_spaces(file)
        assert left == sorted(world.space_id(number) for number in (1, 2))
        return left

    assert len(run(main())) == 2


@dataclass(frozen=True)
class Restarted:
    """What an exporter showed at its start, what it shows after a sweep, and what was logged at its start."""

    at_first: list[str]
    state_file_samples: list[str]
    up: set[str]
    logged: list[str]


def restarted_after(damage: Callable[[Path], object], file: Path) -> Restarted:
    """An exporter on a file that was damaged after a minute's polls."""

    async def main() -> Restarted:
        world = World(scenario(40, poll_interval="5s"), state_file=str(file))
        await poll_for(world, 60)
        damage(file)
        with capture_logs() as logs:
            world.exporter = world.fresh_exporter()
        at_first = values(world)
        await world.exporter.start()
        await asyncio.sleep(5)
        seen = state_file_samples(world), set(world.samples("chatapp_space_up"))
        await world.exporter.stop()
        return Restarted(at_first, *seen, [line["event"] for line in logs])

    return run(main())


def overwrite(at: int, content: bytes) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        with file.open("r+b") as opened_state_file:
            opened_state_file.seek(at)
            opened_state_file.write(content)

    return damage


def spoil_a_row(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"last_success":', b'"last_success"?', 1))


def kept_aside(file: Path) -> list[Path]:
    return [path for path in file.parent.glob("state.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(overwrite(0, b"\xff" * 100), id="header"),
        pytest.param(overwrite(0, b"\0" * 4096), id="first page"),
        pytest.param(overwrite(4096, b"\xff" * 4096), id="second page"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:5000]), id="truncated"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:50]), id="truncated header"),
        pytest.param(lambda file: file.write_bytes(b"\x93" * 9000), id="other bytes"),
        pytest.param(spoil_a_row, id="row"),
    ],
)
def test_a_damaged_file_is_renamed_and_a_new_one_started(file: Path, damage: Callable[[Path], object]) -> None:
    damaged = b""

    def harm(path: Path) -> None:
        nonlocal damaged
        damage(path)
        damaged = path.read_bytes()

    after = restarted_after(harm, file)

    assert [path.read_bytes() for path in kept_aside(file)] == [damaged]
    assert after.logged == ["state file damaged, renamed it and started a new one"]
    assert after.state_file_samples == [
        "chatapp_exporter_state_file_up{} 1.0",
        'chatapp_exporter_state_file_failures_total{reason="damaged"} 1.0',
    ]
    assert after.up == {"chatapp_space_up{} 1"}
    assert len(stored_spaces(file)) == 40


def test_a_second_damaged_file_does_not_replace_the_first(file: Path) -> None:
    async def main() -> None:
        world = World(scenario(1), state_file=str(file))
        for _ in range(3):
            await world.exporter.stop()
            overwrite(0, b"\xff" * 100)(file)
            world.exporter = world.fresh_exporter()
        await world.exporter.stop()

    run(main())

    assert len(kept_aside(file)) == 3


def another_program_s(file: Path) -> None:
    file.unlink()
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE theirs (what)")
    database.close()


def of_a_newer_version(file: Path) -> None:
    database = sqlite3.connect(file)
    database.execute("PRAGMA user_version=99")
    database.close()


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def in_no_directory(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nowhere" / "state.db")


def a_fifo(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def a_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(another_program_s, "foreign", id="database of another program"),
        pytest.param(lambda file: file.write_text("accounts: [] # précis\n" * 20), "foreign", id="text"),
        pytest.param(of_a_newer_version, "newer", id="newer"),
        pytest.param(a_directory, "unwritable", id="directory"),
        pytest.param(in_no_directory, "unwritable", id="no directory"),
        pytest.param(a_fifo, "unwritable", id="FIFO"),
        pytest.param(lambda file: a_fifo(Path(f"{file}-wal")), "unwritable", id="FIFO as its log"),
        pytest.param(a_device, "unwritable", id="device"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_alone(file: Path, damage: Callable[[Path], object], reason: str) -> None:
    before: list[object] = []

    def make(path: Path) -> None:
        damage(path)
        before.append(path.read_bytes() if path.is_file() else path.lstat().st_ino)

    after = restarted_after(make, file)

    assert before == [file.read_bytes() if file.is_file() else file.lstat().st_ino]
    assert kept_aside(file) == []
    assert after.logged == ["state file cannot be used, continuing without it"]
    assert after.state_file_samples == [
        "chatapp_exporter_state_file_up{} 0.0",
        f'chatapp_exporter_state_file_failures_total{{reason="{reason}"}} 1.0',
    ]
    assert after.up == {"chatapp_space_up{} 1"}


def without_room(file: Path) -> None:
    """SQLite finds no room for the index of its log, as on a full disk."""
    Path(f"{file}-shm").symlink_to("nowhere/shm")


def make_room(file: Path) -> None:
    Path(f"{file}-shm").unlink()


def killed(file: Path, directory: Path) -> Path:
    """What a kill at this moment would leave, in another directory."""
    directory.mkdir()
    for path in file.parent.glob(f"{file.name}*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, directory)
    return directory / file.name


@pytest.mark.parametrize("linked", [False, True], ids=["plain", "linked"])
def test_after_a_kill_a_full_disk_shows_what_was_shown_and_keeps_it_once_there_is_room(
    tmp_path: Path, linked: bool
) -> None:
    """The log is beside the file that a link leads to, and the file itself tells of earlier."""

    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(tmp_path / "state.db"))
        await poll_for(world, 40)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(80)
        seen, left = [values(world)], killed(tmp_path / "state.db", tmp_path / "killed")
        await world.exporter.stop()
        without_room(left)
        (tmp_path / "link").symlink_to(left)
        file = tmp_path / "link" if linked else left
        world.settings = world.settings.model_copy(update={"state_file": str(file)})
        world.exporter = world.fresh_exporter()
        seen.append(values(world))
        following = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(5)
        make_room(left)
        await asyncio.sleep(40)
        following.cancel()
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        seen.append(world.samples("chatapp_phone_number_last_change"))
        await world.exporter.stop()
        return seen

    shown, at_first, later = run(main())

    assert any('quality_rating="RED"} 1' in line for line in shown)
    assert at_first == shown
    assert later == [line for line in shown if "last_change" in line]
    assert len(later) == 1


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A directory and its files, for us too."""
    for path in directory.iterdir():
        path.chmod(0o444)
    directory.chmod(0o555)
    if os.getuid() == 0:  # whom no mode keeps from writing
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        directory.chmod(0o755)


@pytest.mark.parametrize("linked", [False, True], ids=["plain", "linked"])
@pytest.mark.parametrize("log_left", [False, True])
def test_a_read_only_disk_shows_what_was_shown_or_nothing(log_left: bool, linked: bool) -> None:
    async def main(directory: Path) -> tuple[list[str], list[str], list[str]]:
        world = World(scenario(3, poll_interval="30s", events=RED), state_file=str(directory / "first" / "state.db"))
        await poll_for(world, 40)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(80)
        if not log_left:
            await world.exporter.stop()
        shown = values(world)
        left = killed(directory / "first" / "state.db", directory / "left")
        await world.exporter.stop()
        (directory / "link").symlink_to(left)
        file = directory / "link" if linked else left
        world.settings = world.settings.model_copy(update={"state_file": str(file)})
        with read_only(left.parent):
            world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return shown, values(world), state_file_samples(world)

    with TemporaryDirectory() as name:  # one that everybody may enter
        (directory := Path(name)).chmod(0o755)
        (directory / "first").mkdir()
        shown, after, told = run(main(directory))

    assert any('quality_rating="RED"} 1' in line for line in shown)
    assert after == (["chatapp_space_up{} 0"] * 3 if log_left else shown)
    assert told[0] == "chatapp_exporter_state_file_up{} 0.0"


def test_a_newer_file_is_left_alone_on_a_full_disk_too(file: Path) -> None:
    def newer_without_room(path: Path) -> None:
        of_a_newer_version(path)
        without_room(path)

    after = restarted_after(newer_without_room, file)

    assert after.at_first == [line for line in after.at_first if not line.startswith("chatapp_phone_number")]
    assert after.state_file_samples[1] == 'chatapp_exporter_state_file_failures_total{reason="newer"} 1.0'


def test_what_a_file_knew_that_is_mounted_late_is_known_then(tmp_path: Path) -> None:
    """A change that was seen by nobody is dated no later than it can have been."""
    directory, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    unseen = {"at": "150s", "space": 2, "number": 1, "set": {"QualityRating": "YELLOW"}}

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(3, poll_interval="30s", events=(*RED, unseen)), state_file=str(directory / "state.db"))
        await poll_for(world, 120)
        before = world.samples("chatapp_phone_number_last_change")
        directory.rename(elsewhere)
        await asyncio.sleep(600)
        world.exporter = world.fresh_exporter()
        following = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(5)
        assert world.samples("chatapp_phone_number_last_change") == []
        elsewhere.rename(directory)
        await asyncio.sleep(60)
        following.cancel()
        await world.exporter.stop()
        return before, world.samples("chatapp_phone_number_last_change")

    directory.mkdir()
    before, after = run(main())

    assert len(before) == 1
    assert before[0] in after
    (other,) = set(after) - set(before)
    assert START + 90 <= float(other.rsplit(" ", 1)[1]) <= START + 120


def test_what_was_polled_before_a_file_is_mounted_is_in_the_file_then(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(3, poll_interval="1h"), state_file=str(directory / "state.db"))
        await poll_for(world, 30)
        directory.rename(elsewhere)
        await asyncio.sleep(600)
        world.exporter = world.fresh_exporter()
        following = asyncio.create_task(world.exporter.reloader(StaticLoader(world.settings)).run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(5)
        elsewhere.rename(directory)
        await asyncio.sleep(15)
        following.cancel()
        shown = world.samples("chatapp_space_last_success")
        left = killed(directory / "state.db", tmp_path / "killed")
        await world.exporter.stop()
        world.settings = world.settings.model_copy(update={"state_file": str(left)})
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return shown, world.samples("chatapp_space_last_success")

    directory.mkdir()
    shown, again = run(main())

    assert again == shown
    assert all(float(line.rsplit(" ", 1)[1]) > START + 600 for line in shown)


def test_a_start_does_not_write_what_it_has_just_read(file: Path) -> None:
    async def main() -> int:
        world = World(scenario(3, poll_interval="1h"), state_file=str(file))
        await poll_for(world, 30)
        world.exporter = world.fresh_exporter()
        written = wal_bytes(file)
        await world.exporter.stop()
        return written

    assert run(main()) == 0


@pytest.mark.parametrize("room", [True, False])
def test_values_of_another_endpoint_are_not_shown(file: Path, room: bool) -> None:
    async def main() -> tuple[list[str], int]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await poll_for(world, 30)
        (account,) = world.settings.accounts
        elsewhere = account.model_copy(update={"endpoint": "https://cams.ap-southeast-1.aliyuncs.com"})
        world.settings = world.settings.model_copy(update={"accounts": [elsewhere]})
        if not room:
            without_room(file)
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return world.samples("chatapp_phone_number"), world.exporter.view.unpolled()

    assert run(main()) == ([], 3)


def test_at_another_endpoint_a_reload_shows_nothing_of_the_one_before(file: Path) -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(30)
        (account,) = world.settings.accounts
        refused = account.model_copy(update={"endpoint": "https://other.example", "access_key_id": "wrong"})
        world.settings = world.settings.model_copy(update={"accounts": [refused]})
        await world.exporter.reconfigure(world.settings)
        seen = [world.samples("chatapp_phone_number")]
        await asyncio.sleep(30)
        seen += [world.samples("chatapp_phone_number"), world.samples("chatapp_space_up")]
        await world.exporter.stop()
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return [*seen, world.samples("chatapp_phone_number")]

    assert run(main()) == [[], [], ["chatapp_space_up{} 0"] * 3, []]


def with_key(world: World, key: str) -> None:
    """The world's settings as if the access key of their account had this digest."""
    world.settings = world.settings.with_key_digests({"acme": key}, ())


@pytest.mark.parametrize("key", ["the same", "another"])
def test_after_a_restart_with_another_access_key_nothing_is_shown_of_the_account_before(file: Path, key: str) -> None:
    async def main() -> tuple[int, int]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        with_key(world, "the same")
        world.exporter = world.fresh_exporter()
        await poll_for(world, 30)
        with_key(world, key)
        world.exporter = world.fresh_exporter()
        await world.exporter.stop()
        return len(world.samples("chatapp_phone_number_info")), world.exporter.view.unpolled()

    assert run(main()) == ((9, 0) if key == "the same" else (0, 3))


def test_a_reload_with_another_access_key_shows_nothing_of_the_account_before(file: Path) -> None:
    async def main() -> list[int]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await world.exporter.start()
        await asyncio.sleep(30)
        with_key(world, "another")
        await world.exporter.reconfigure(world.settings)
        seen = [len(world.samples("chatapp_phone_number_info"))]
        await asyncio.sleep(5)
        seen.append(len(world.samples("chatapp_phone_number_info")))
        await world.exporter.stop()
        return seen

    assert run(main()) == [0, 9]


def test_a_state_file_can_be_read_by_its_owner_alone(file: Path) -> None:
    """It holds phone numbers."""
    before = os.umask(0)
    try:
        with closing(opened_state_file(file)) as state_file:
            state_file.save({("a", "s"): SpaceRecord()})
            modes = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
    finally:
        os.umask(before)

    assert modes == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm"), 0o600)


def test_of_a_link_to_a_damaged_state_file_the_target_is_renamed(file: Path) -> None:
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()

    def damage_behind_a_link(path: Path) -> None:
        path.rename(elsewhere / "kept.db")
        path.symlink_to(elsewhere / "kept.db")
        overwrite(0, b"\xff" * 100)(path)

    after = restarted_after(damage_behind_a_link, file)

    assert file.readlink() == elsewhere / "kept.db"
    assert len(list(elsewhere.glob("kept.db.damaged-*"))) == 1
    assert after.up == {"chatapp_space_up{} 1"}
    assert len(stored_spaces(file)) == 40


def test_trouble_ends_also_when_the_space_that_could_not_be_kept_has_left(file: Path) -> None:
    one, other = ("a", "s1"), ("a", "s2")

    with closing(opened_state_file(file)) as state_file:
        told = [state_file.up]
        with closing(sqlite3.connect(file)) as locking:
            locking.execute("BEGIN IMMEDIATE")
            state_file.save({one: SpaceRecord()})
            told.append(state_file.up)
        state_file.retain({other}, IDENTITIES)
        state_file.save({other: SpaceRecord()})
        told.append(state_file.up)

    assert told == [True, False, True]
    assert stored_spaces(file) == ["s2"]


def test_a_state_that_could_not_be_kept_is_not_kept_for_another_endpoint(file: Path) -> None:
    elsewhere = {"a": "https://elsewhere.example"}

    with closing(opened_state_file(file)) as state_file:
        with closing(sqlite3.connect(file)) as locking:
            locking.execute("BEGIN IMMEDIATE")
            state_file.save({("a", "s1"): SpaceRecord(up=True)})
        state_file.retain({("a", "s1"), ("a", "s2")}, elsewhere)
        state_file.save({("a", "s2"): SpaceRecord()})
        state_file.close()
        known = state_file.open(elsewhere)

    assert known == {("a", "s2"): SpaceRecord()}


def locked(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")
    return database


@pytest.mark.parametrize("change", ["taken away", "locked at the start"])
def test_a_file_that_comes_back_is_used_again_within_thirty_seconds(file: Path, change: str) -> None:
    async def main() -> list[list[str]]:
        world = World(scenario(3, poll_interval="5m"), state_file=str(file))
        await poll_for(world, 30)
        lock = locked(file) if change == "locked at the start" else None
        world.exporter = world.fresh_exporter()
        reloader = world.exporter.reloader(StaticLoader(world.settings))
        following = asyncio.create_task(reloader.run(asyncio.Event()))
        await world.exporter.start()
        await asyncio.sleep(15)
        seen = [state_file_samples(world)[:1]]
        if lock:
            lock.close()
        else:
            for path in file.parent.glob("state.db*"):
                path.unlink()
        await asyncio.sleep(15)
        seen.append(state_file_samples(world)[:1])
        following.cancel()
        await world.exporter.stop()
        return seen

    with capture_logs() as logs:
        before, after = run(main())

    up = "chatapp_exporter_state_file_up{} "
    assert (before, after) == ([up + ("0.0" if change == "locked at the start" else "1.0")], [up + "1.0"])
    assert len(stored_spaces(file)) == 3
    told = [line["event"] for line in logs if line["event"].startswith("state file")]
    trouble_of = {
        "locked at the start": "state file cannot be used, continuing without it",
        "taken away": "state file removed or replaced, opening it again",
    }
    assert told == [trouble_of[change], "state file available again"]


def test_a_lock_of_another_program_holds_up_no_poll(file: Path) -> None:
    def seconds_of_a_hundred_saves(state_file: StateFile) -> float:
        begun = time.perf_counter()
        for _ in range(100):
            state_file.save({("a", "s"): SpaceRecord()})
        return time.perf_counter() - begun

    with (
        closing(opened_state_file(file)) as state_file,
        closing(sqlite3.connect(file)) as other,
    ):
        free = seconds_of_a_hundred_saves(state_file)
        other.execute("BEGIN IMMEDIATE")
        held = seconds_of_a_hundred_saves(state_file)

    assert held < 50 * free  # a wait of a tenth of a second each is five hundred times as long, or more


class Counted(UserDict[tuple[str, str], Change]):
    """Changes that note each time they are encoded."""

    def __init__(self, encoded: list[str]) -> None:
        super().__init__()
        self._encoded = encoded

    def items(self) -> ItemsView[tuple[str, str], Change]:
        self._encoded.append("encoded")
        return super().items()


def test_while_nothing_can_be_written_only_what_is_new_is_encoded(file: Path) -> None:
    """Else each poll would take longer than the one before."""
    encoded: list[str] = []
    keys = [("a", f"s{number}") for number in range(20)]
    with closing(opened_state_file(file)) as state_file:
        state_file.save({keys[0]: SpaceRecord()})
        with full_disk(1), capture_logs():
            for key in keys:
                state_file.save({key: SpaceRecord(changes=Counted(encoded))})
        meanwhile = len(encoded)
        assert stored_spaces(file) == ["s0"]
        state_file.save({keys[0]: SpaceRecord()})

    assert meanwhile == 20
    assert len(stored_spaces(file)) == 20


def test_a_file_that_cannot_be_written_is_not_read_anew_each_time_it_is_tried(file: Path) -> None:
    with closing(opened_state_file(file)) as state_file:
        state_file.save({("a", "s"): SpaceRecord()})
    without_room(file)

    with closing(StateFile(file, SystemClock())) as state_file:
        at_first = state_file.open(IDENTITIES)
        later = state_file.open(IDENTITIES)

    assert (at_first, later) == ({("a", "s"): SpaceRecord()}, {})


def test_an_empty_file_with_a_log_beside_it_is_kept_aside_with_it(file: Path) -> None:
    def cut_to_nothing(path: Path) -> None:
        path.write_bytes(b"")
        Path(f"{path}-wal").write_bytes(b"what is left")

    after = restarted_after(cut_to_nothing, file)

    assert after.logged == ["state file damaged, renamed it and started a new one"]
    assert [path.read_bytes() for path in file.parent.glob("state.db.damaged-*-wal")] == [b"what is left"]


def test_without_a_state_file_nothing_is_said_of_one() -> None:
    async def main() -> list[str]:
        world = World(scenario(1))
        await world.exporter.stop()
        return world.samples("chatapp_exporter_state_file")

    assert run(main()) == []


def test_a_space_that_was_removed_meanwhile_is_not_written(file: Path) -> None:
    async def main() -> None:
        world = World(scenario(2), state_file=str(file))
        await poll_for(world, 10)
        world.exporter = world.fresh_exporter()
        world.exporter.service.recorder.sync_state_file([("acme", "removed"), ("acme", world.space_id(1))])
        await world.exporter.stop()

    run(main())

    assert len(stored_spaces(file)) == 2
