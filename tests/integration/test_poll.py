"""`poll` as a person, cron and CI use it: one sweep of a simulated fleet, by the real program."""

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import free_port, program, wait_until
from virtual_time import START, run
from world import World, scenario

from exporter.clock import SystemClock
from exporter.config.loading import Configuration
from exporter.config.settings import Settings
from exporter.model import WATCHED_FIELDS, PhoneNumber
from exporter.polling.plan import Progress
from exporter.report import print_json, print_numbers
from exporter.runtime.sweep import SweepResult, sweep
from exporter.simulator.demo import demo_document
from exporter.simulator.scenario import Scenario
from exporter.sources import Settings as CamsSettings
from exporter.state.state_file import StateFile, read_state_file
from exporter.state.store import SpaceRecord

USAGE = Path(__file__).parents[2] / "docs" / "usage.md"

EVENTS: dict[str, dict[str, Any]] = {
    "green": {},
    "down": {"number": 1, "set": {"Status": "BANNED", "QualityRating": "RED"}},
    "red": {"number": 1, "set": {"QualityRating": "RED", "VerifiedName": "Größe 漢"}},
    "restricted": {"number": 1, "set": {"Status": "FLAGGED"}},
    "yellow": {"number": 1, "set": {"QualityRating": "YELLOW"}},
    "unknown": {"number": 1, "set": {"Status": "PENDING"}},
    "failing": {"answer": "InternalError"},
}
"""What is true of the first number of each account's only space, by the account's name."""
OF_ACCOUNTS = {
    "denied": "InvalidAccessKeyId.NotFound",
    "unreachable": "ServiceUnavailable",
    "throttled": "Throttling.User",
}
"""What all requests of these accounts, which have three spaces, are answered with."""
NAMES = ("acme", "globex")
NOT_POLLED = {
    "reason": "denied",
    "code": "not_polled",
    "detail": "the account was denied before this space was polled",
}
NOT_REPORTED = {"number": 1, "set": {"QualityRating": "", "Status": "", "MessagingLimitTier": ""}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The configuration that polls the accounts of EVENTS, those of OF_ACCOUNTS, one whose spaces are rejected, one
    with a revoked key and one whose first number has no fields."""
    key = {"access_key_id": "key", "access_key_secret": "secret"}
    one_space = {**EVENTS, "not-reported": NOT_REPORTED}
    happening = [{"at": "0s", "account": name, "space": 1, **event} for name, event in one_space.items() if event]
    happening += [{"at": "0s", "account": name, "answer": code} for name, code in OF_ACCOUNTS.items()]
    rejected = {"at": "0s", "account": "rejected", "answer": "Unknown.ResourceOwnerId"}
    happening += [{**rejected, "space": number} for number in range(1, 9)]
    happening += [{"at": "0s", "account": "revoked", "answer": "InvalidAccessKeyId.NotFound"}]
    spaces = {**dict.fromkeys(one_space, 1), **dict.fromkeys(OF_ACCOUNTS, 3), "rejected": 8, "revoked": 40}
    document = {
        "latency": "0s",
        "accounts": [{"name": n, **key, "access_key_id": f"key-{n}", "spaces": count} for n, count in spaces.items()],
        "events": happening,
    }
    directory, address = tmp_path_factory.mktemp("fleet"), f"127.0.0.1:{free_port()}"
    (directory / "scenario.yml").write_text(yaml.safe_dump(document))
    arguments = ("simulate", "--scenario", str(directory / "scenario.yml"), "--web.listen-address", address)
    with program(*arguments, log=directory / "log"):
        wait_until(lambda: "accounts:" in (directory / "log").read_text(), "the simulated API listens")
        yield demo_document(Scenario.model_validate(document), f"http://{address}")


def written(fleet: dict[str, Any], directory: Path, *names: str) -> Path:
    """A configuration of these accounts only."""
    file = directory / "exporter.yml"
    file.write_text(yaml.safe_dump({"accounts": [one for one in fleet["accounts"] if one["name"] in names]}))
    return file


def poll(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exporter", "poll", *map(str, arguments)]
    environment = {**os.environ, **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)


def test_a_name_in_letters_that_the_terminal_has_not_hides_nothing(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = written(fleet, tmp_path, "red")
    table, document = (
        poll("--config.file", file, "--output", output, PYTHONIOENCODING="ascii") for output in ("table", "json")
    )

    assert (table.returncode, document.returncode) == (3, 3)
    assert "Gr\\xf6\\xdfe \\u6f22" in table.stdout
    assert json.loads(document.stdout)[0]["phone_numbers"][0]["verified_name"] == "Größe 漢"


@pytest.mark.parametrize(
    ("accounts", "flags", "status"),
    [
        ("green", [], 0),
        ("green", ["--fail-on", "unknown"], 0),
        ("green yellow restricted unknown", [], 0),
        ("green red", [], 3),
        ("green down", [], 3),
        ("green red", ["--fail-on", "down"], 0),
        ("green down", ["--fail-on", "down"], 3),
        ("green restricted", ["--fail-on", "restricted"], 3),
        ("green yellow", ["--fail-on", "restricted"], 0),
        ("green red", ["--fail-on", "yellow"], 3),
        ("green yellow", ["--fail-on", "yellow"], 3),
        ("green unknown", ["--fail-on", "unknown"], 3),
        ("red down", ["--fail-on", "never"], 0),
        ("green failing", [], 1),
        ("green failing", ["--fail-on", "never"], 1),
        ("red failing", [], 3),
        ("yellow failing", [], 1),
    ],
)
def test_the_exit_status_tells_of_the_worst_number_and_then_of_failures(
    fleet: dict[str, Any], tmp_path: Path, accounts: str, flags: list[str], status: int
) -> None:
    done = poll("--config.file", written(fleet, tmp_path, *accounts.split()), "--output", "json", *flags)

    assert done.returncode == status


def test_the_worst_numbers_come_first_and_a_line_sums_up(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", written(fleet, tmp_path, *EVENTS))

    heading, *rows, summary = done.stdout.splitlines()
    cells = [re.split(r" {2,}", row) for row in rows]
    assert re.split(r" {2,}", heading.rstrip())[:6] == [
        "state",
        "phone number",
        "verified name",
        "rating",
        "status",
        "tier",
    ]
    assert [(cell[0], cell[3], cell[4], cell[6]) for cell in cells[:5]] == [
        ("down", "RED", "BANNED", "down"),
        ("red", "RED", "CONNECTED", "red"),
        ("restricted", "GREEN", "FLAGGED", "restricted"),
        ("yellow", "YELLOW", "CONNECTED", "yellow"),
        ("unknown", "GREEN", "PENDING", "unknown"),
    ]
    assert {cell[0] for cell in cells[5:]} == {"green"}
    assert summary == (
        f"phone numbers: {len(rows)} (1 down, 1 red, 1 restricted, 1 yellow, 1 unknown, {len(rows) - 5} green);"
        " spaces: 7 (1 failed)"
    )
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("account", "text", "check"),
    [
        ("denied", "InvalidAccessKeyId.NotFound: Specified access key is not found", "the access key, its permissions"),
        (
            "unreachable",
            "ServiceUnavailable: The request has failed due to a temporary failure of the server",
            "the network, DNS, the proxy",
        ),
        ("throttled", "Throttling.User: Request was denied due to user flow control", "which other programs use this"),
    ],
)
def test_an_account_that_is_not_ok_is_one_line_with_its_state_code_message_and_next_step(
    fleet: dict[str, Any], tmp_path: Path, account: str, text: str, check: str
) -> None:
    file = written(fleet, tmp_path, "green", account)
    done = poll("--config.file", file)
    listed = json.loads(poll("--config.file", file, "--output", "json").stdout)

    (line,) = done.stderr.splitlines()
    where = rf"error: {account}: {account} \(3 of 3 spaces failed\)"
    assert re.fullmatch(rf"{where}: {re.escape(text)} \(request [0-9A-F]{{32}}\); check {check}.*", line)
    assert done.stdout.splitlines()[-1].endswith("; spaces: 4 (3 failed)")
    assert [(one["account"], one["account_state"]) for one in listed] == [("green", "ok"), *[(account, account)] * 3]
    assert done.returncode == 1


def test_json_has_the_state_of_each_number(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", written(fleet, tmp_path, "down", "failing"), "--output", "json")

    down, failing = json.loads(done.stdout)
    assert (down["phone_numbers"][0]["state"], down["error"]) == ("down", None)
    assert (failing["phone_numbers"], failing["error"]["reason"]) == ([], "server")


def test_an_account_with_one_space_that_the_api_cannot_answer_is_unreachable(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    done = poll("--config.file", written(fleet, tmp_path, "green", "failing"))

    assert re.fullmatch(
        r"error: failing: unreachable \(1 of 1 spaces failed\): InternalError: [^\n]+; check [^\n]+\n", done.stderr
    )
    assert done.stdout.splitlines()[-1].endswith("; spaces: 2 (1 failed)")


def test_spaces_that_fail_alike_for_a_reason_of_their_own_are_one_line(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", written(fleet, tmp_path, "rejected"))

    (line,) = done.stderr.splitlines()
    (account,) = (one for one in fleet["accounts"] if one["name"] == "rejected")
    ids = [space["id"] for space in account["spaces"]]
    assert line == (
        f"error: rejected/{', '.join(ids[:5])} and 3 more: rejected: Unknown.ResourceOwnerId: The resource does not"
        " belong to the current user; check the space id and isv_code"
    )
    assert done.stdout == (
        "phone numbers: 0 (0 down, 0 red, 0 restricted, 0 yellow, 0 unknown, 0 green); spaces: 8 (8 failed)\n"
    )
    assert done.returncode == 1


def test_an_api_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    spaces = ", ".join(f"{{id: s{number}}}" for number in range(8))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    key = "access_key_id: a, access_key_secret: b"
    file.write_text(
        f"accounts: [{{name: acme, {key}, endpoint: 'http://127.0.0.1:{port}', qps: 10, spaces: [{spaces}]}}]"
    )

    done = poll("--config.file", file)

    (line,) = done.stderr.splitlines()
    assert line.startswith("error: acme: unreachable (8 of 8 spaces failed): transport: ConnectError: ")
    assert "; check the network, DNS, the proxy (HTTPS_PROXY), certificates (SSL_CERT_FILE) and the endpoint" in line
    assert done.returncode == 1


def settings_of(file: Path) -> Settings:
    return Configuration(file, {}, CamsSettings).load()


@contextmanager
def known(file: Path, *, endpoint: str = "", **values: str) -> Iterator[StateFile]:
    """The state file of a configuration whose spaces have a number each of which these values were seen a minute ago,
    at another `endpoint` if there is one, as an exporter has it open."""
    state_file, settings = file.with_name("state.db"), settings_of(file)
    file.write_text(f"{file.read_text()}state_file: {state_file}\n")
    opened, seen = StateFile(state_file, SystemClock()), time.time() - 60
    opened.open({name: f"cams {endpoint}" if endpoint else same for name, same in settings.identities.items()})
    listed = {one["space"]: one["phone_numbers"] for one in json.loads(poll("--config.file", file, *JSON).stdout)}
    before = {"verified_name": "Before", "quality_rating": "GREEN", "status": "CONNECTED", **values}
    for key in settings.spaces:
        phone_number = (listed[key[1]] or [{"phone_number": "1"}])[0]["phone_number"]
        opened.save({key: SpaceRecord(True, seen, (PhoneNumber(phone_number, **before),))})  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        opened.close()


JSON = ("--output", "json")


@pytest.mark.parametrize(
    ("before", "state", "status"),
    [
        ({"quality_rating": "RED", "status": "BANNED", "messaging_limit_tier": "TIER_1K"}, "down", 3),
        ({"quality_rating": "RED"}, "red", 3),
        ({"status": "FLAGGED"}, "restricted", 0),
        ({"messaging_limit_tier": "TIER_1K"}, "unknown", 0),
    ],
)
def test_a_number_without_its_fields_is_as_bad_as_the_state_file_knows_it(
    fleet: dict[str, Any], tmp_path: Path, before: dict[str, str], state: str, status: int
) -> None:
    """While an exporter has the file open: the values are in its log."""
    file = written(fleet, tmp_path, "not-reported")
    with known(file, **before):
        table, document = poll("--config.file", file), poll("--config.file", file, *JSON)

    cells = re.split(r" {2,}", table.stdout.splitlines()[1])
    rating, tier = before.get("quality_rating", "GREEN"), before.get("messaging_limit_tier")
    assert (cells[0], cells[3]) == (state, f"not reported (was {rating})")
    assert cells[4] == f"not reported (was {before.get('status', 'CONNECTED')})"
    assert cells[5] == (f"not reported (was {tier})" if tier else "not reported")
    number = json.loads(document.stdout)[0]["phone_numbers"][0]
    assert number["state"] == state
    assert [number[field] for field in WATCHED_FIELDS] == [None] * 3
    assert {field: lost["before"] for field, lost in number["not_reported"].items()} == {
        "quality_rating": "GREEN",
        "status": "CONNECTED",
        **before,
    }
    assert all(re.fullmatch(r"[-\d]+T[:\d]+Z", lost["since"]) for lost in number["not_reported"].values())
    assert {table.returncode, document.returncode} == {status}


def test_without_a_state_file_a_number_without_its_fields_is_unknown(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = written(fleet, tmp_path, "not-reported")
    table, document = poll("--config.file", file), poll("--config.file", file, *JSON, "--fail-on", "unknown")

    (cells,) = (re.split(r" {2,}", row) for row in table.stdout.splitlines() if row.startswith("unknown"))
    assert cells[3:6] == ["not reported"] * 3
    number = json.loads(document.stdout)[0]["phone_numbers"][0]
    assert ([number[field] for field in WATCHED_FIELDS], number["not_reported"]) == ([None] * 3, {})
    assert (table.returncode, document.returncode) == (0, 3)


def test_a_space_that_could_not_be_polled_shows_no_number_of_the_state_file(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    file = written(fleet, tmp_path, "failing")
    with known(file, quality_rating="RED"):
        table, document = poll("--config.file", file), poll("--config.file", file, *JSON)

    assert "Before" not in table.stdout + document.stdout
    assert json.loads(document.stdout)[0]["phone_numbers"] == []
    assert (table.returncode, document.returncode) == (1, 1)


def test_a_value_that_is_reported_is_not_replaced_by_that_of_the_state_file(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    file = written(fleet, tmp_path, "green")
    with known(file, quality_rating="RED", status="BANNED"):
        done = poll("--config.file", file, "--fail-on", "unknown")

    assert (done.stderr, done.returncode) == ("", 0)


def contents(directory: Path) -> dict[str, bytes]:
    """Of all files but the index of SQLite's log, in which every reader marks what it reads."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}


@pytest.mark.parametrize("running", [True, False], ids=["of a running exporter", "of one that has ended"])
def test_the_state_file_is_only_read(fleet: dict[str, Any], tmp_path: Path, running: bool) -> None:
    file = written(fleet, tmp_path, "not-reported")
    with known(file, quality_rating="RED") as state_file:
        if not running:
            state_file.close()
        names, before = sorted(path.name for path in tmp_path.iterdir()), contents(tmp_path)

        done = poll("--config.file", file)

        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert contents(tmp_path) == before
        assert done.returncode == 3
        state_file.save({("not-reported", "new"): SpaceRecord(True, 1.0)})
        assert state_file.up == running


@pytest.mark.parametrize("content", [b"", b"text", b"\0\1\2" * 1000, None], ids=["empty", "text", "bytes", "none"])
def test_a_state_file_that_cannot_be_read_is_no_error_and_stays_as_it_is(
    fleet: dict[str, Any], tmp_path: Path, content: bytes | None
) -> None:
    file = written(fleet, tmp_path, "green")
    file.write_text(f"{file.read_text()}state_file: state.db\n")
    if content is not None:
        (tmp_path / "state.db").write_bytes(content)
    before = contents(tmp_path)

    done = poll("--config.file", file)

    assert (done.stderr, done.returncode, contents(tmp_path)) == ("", 0, before)


def test_values_of_another_endpoint_are_not_used(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = written(fleet, tmp_path, "not-reported")
    with known(file, endpoint="https://other.example", quality_rating="RED"):
        done = poll("--config.file", file)

    assert ("(was " in done.stdout, done.returncode) == (False, 0)


def test_the_history_of_a_discovered_space_is_known_too(tmp_path: Path) -> None:
    event = {"at": "30s", "space": 1, **NOT_REPORTED}
    red = {"at": "0s", "space": 1, "number": 1, "set": {"QualityRating": "RED"}}

    async def main() -> list[tuple[str, str]]:
        world = World(scenario(2, qps=10, events=(red, event)), state_file=str(tmp_path / "state.db"))
        account = world.settings.accounts[0].model_copy(update={"spaces": None, "discover": True})
        world.settings = world.settings.model_copy(update={"accounts": [account]})
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(20)
        await world.exporter.stop()
        await asyncio.sleep(20)
        known = read_state_file(tmp_path / "state.db", world.settings.identities)
        world.settings = world.settings.model_copy(update={"state_file": None})
        swept = await sweep(world.fresh_exporter().service, stored_records=known)
        states = [(number, polled.view.record) for polled in swept.spaces for number in polled.phone_numbers]
        return [(number.quality_rating, known.state_of(number).value) for number, known in states]

    assert ("", "red") in run(main())


def test_the_numbers_of_a_sweep_that_takes_longer_than_max_age_are_all_shown() -> None:
    async def main() -> int:
        world = World(scenario(20, qps=1), max_age=5.0)
        swept = await world.exporter.sweep()
        await world.exporter.stop()
        return sum(bool(polled.phone_numbers) for polled in swept.spaces)

    assert run(main()) == 20


def test_the_document_lists_the_fields_of_the_json_of_poll(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", written(fleet, tmp_path, "green", "failing"), *JSON)
    green, failing = json.loads(done.stdout)

    (row,) = re.findall(r"(?m)^\| `poll --output json` \| (.*) \|$", USAGE.read_text("utf-8"))
    inner = [f"phone_numbers[].{name}" for name in green["phone_numbers"][0]]
    outer = {"error": [f"error.{name}" for name in failing["error"]], "phone_numbers": inner}
    assert re.findall("`(.+?)`", row) == [name for key in green for name in outer.get(key, [key])]


def test_what_others_wrote_does_nothing_to_the_table(tmp_path: Path) -> None:
    """Neither markup nor emoji codes nor what a terminal would obey."""
    hostile = "[red]A[/] :bomb:\x1b[2J\nB"
    api, directory = f"127.0.0.1:{free_port()}", tmp_path
    key = {"access_key_id": "key", "access_key_secret": "secret"}
    document = {
        "accounts": [{"name": "acme", "spaces": 1, **key}],
        "events": [{"at": "0s", "account": "acme", "space": 1, "number": 1, "set": {"VerifiedName": hostile}}],
    }
    (directory / "scenario.yml").write_text(yaml.safe_dump(document))
    arguments = ("simulate", "--scenario", str(directory / "scenario.yml"), "--web.listen-address", api)
    file = directory / "exporter.yml"
    file.write_text(yaml.safe_dump({"accounts": [{"name": "acme", "endpoint": f"http://{api}", **key}]}))
    with program(*arguments, log=directory / "log"):
        wait_until(lambda: "accounts:" in (directory / "log").read_text(), "the simulated API listens")

        done = poll("--config.file", file)

    assert "  [red]A[/] :bomb:?[2J?B  " in done.stdout


def on_a_terminal(*arguments: str | Path, both: bool = False, term: str = "xterm") -> tuple[str, str]:
    """What `poll` writes to standard error, a terminal, and to standard output, a pipe unless `both` are terminals."""
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "exporter", "poll", *map(str, arguments)]
    environ = {**os.environ, "TERM": term, "COLUMNS": "100"}
    stdout = theirs if both else subprocess.PIPE
    with subprocess.Popen(command, stdout=stdout, stderr=theirs, env=environ) as process:
        os.close(theirs)
        written = b""
        try:
            while chunk := os.read(terminal, 65536):
                written += chunk
        except OSError:  # how Linux tells that nobody has it open any more
            pass
        printed = process.stdout.read().decode() if process.stdout else ""
    os.close(terminal)
    return written.decode(), printed


def test_a_terminal_is_shown_how_far_the_sweep_is(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = written(fleet, tmp_path, "green", "failing")

    shown, printed = on_a_terminal("--config.file", file, "--output", "json")

    assert "2 of 2 spaces, 1 failed, 0s left" in shown
    assert len(json.loads(printed)) == 2


@pytest.mark.parametrize(("term", "red"), [("xterm", "\x1b[31mred"), ("dumb", "red")])
def test_a_terminal_gets_colours_if_it_has_them_and_whole_rows_however_narrow_it_is(
    fleet: dict[str, Any], tmp_path: Path, term: str, red: str
) -> None:
    shown, _ = on_a_terminal("--config.file", written(fleet, tmp_path, "red"), both=True, term=term)

    space = next(one["spaces"][0] for one in fleet["accounts"] if one["name"] == "red")
    row = next(line for line in shown.splitlines() if line.startswith(red))
    assert re.search(rf"  15\d{{9}}  .*  RED  .*  CONNECTED  TIER_\w+ +red +{space['id']}  {space['name']}", row)


def test_without_a_terminal_nothing_tells_how_far_the_sweep_is(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", written(fleet, tmp_path, "green"))

    assert (done.stderr, done.returncode) == ("", 0)


def test_a_sweep_tells_after_each_poll_how_far_it_is() -> None:
    async def main() -> list[Progress]:
        told: list[Progress] = []
        world = World(scenario(4, qps=2, events=({"at": "0s", "space": 3, "answer": "InternalError"},)))
        await world.exporter.sweep(told.append)
        await world.exporter.stop()
        return told

    assert [(one.done, one.total, one.failed, round(one.seconds_left, 6)) for one in run(main())] == [
        (0, 4, 0, 2.4),
        (1, 4, 0, 1.8),
        (2, 4, 0, 1.2),
        (3, 4, 1, 0.6),
        (4, 4, 1, 0.0),
    ]


DENIALS = ["InvalidAccessKeyId.NotFound", "NoPermission", "InvalidTimeStamp.Expired"]


@pytest.mark.parametrize("code", DENIALS)
def test_a_denied_account_ends_its_sweep_and_no_other(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> tuple[SweepResult, list[Progress], int]:
        told: list[Progress] = []
        denied = {"at": "0s", "account": "acme", "answer": code}
        fleet = scenario(60, accounts=("acme", "globex"), qps=5, latency="1s", events=(denied,))
        known = {
            ("acme", space.id): SpaceRecord(up=True, last_success=START, phone_numbers=(PhoneNumber("1555"),))
            for space in World(fleet).settings.accounts[0].polled_spaces
        }
        world = World(fleet)
        swept = await sweep(world.exporter.service, told.append, known)
        await world.exporter.stop()
        spaces = {space.id for space in world.settings.accounts[0].polled_spaces}
        return swept, told, len([space for _, space in world.polls if space in spaces])

    swept, told, requests = run(main())
    print_numbers(swept)
    table = capsys.readouterr()
    print_json(swept)
    listed = json.loads(capsys.readouterr().out)
    acme, globex = ([one for one in listed if one["account"] == name] for name in NAMES)

    failed = len([one for one in acme if one["error"]["code"] == code])
    assert 3 <= failed <= 5  # two more can be in flight
    if code == "InvalidTimeStamp.Expired":  # which has a second attempt
        assert requests <= 10
    else:
        assert requests == failed
    assert [one["error"] for one in acme if one["error"]["code"] != code] == [NOT_POLLED] * (60 - failed)
    assert {len(one["phone_numbers"]) for one in acme} == {0}
    assert {one["account_state"] for one in acme} == {"denied"}
    assert [one["error"] for one in globex] == [None] * 60
    (line,) = table.err.splitlines()
    assert line.startswith(f"error: acme: denied ({failed} of 60 spaces failed, {60 - failed} not polled): {code}: ")
    assert table.out.splitlines()[-1].endswith(f"; spaces: 120 ({failed} failed, {60 - failed} not polled)")
    assert (told[-1].done, told[-1].failed, told[-1].not_polled) == (60 + failed, failed, 60 - failed)
    assert (told[-1].total, told[-1].seconds_left) == (120, 0.0)


def test_a_key_that_was_revoked_gives_exit_status_1_and_no_number_of_the_state_file(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    file = written(fleet, tmp_path, "revoked")
    with known(file):
        done = poll("--config.file", file)

    assert done.returncode == 1
    assert re.fullmatch(r"error: revoked: denied \(\d of 40 spaces failed, 3\d not polled\): [^\n]+\n", done.stderr)
    assert re.fullmatch(r"phone numbers: 0 \([^)]+\); spaces: 40 \(\d failed, 3\d not polled\)\n", done.stdout)


def test_denials_of_single_spaces_end_no_sweep() -> None:
    async def main() -> list[str]:
        codes = ("NoPermission", "NoPermission", None) * 4
        events = [{"at": "0s", "space": n, "answer": code} for n, code in enumerate(codes, 1) if code]
        swept = await World(scenario(12, qps=1, events=tuple(events))).exporter.sweep()
        return [polled.error.code if polled.error else "polled" for polled in swept.spaces]

    assert run(main()) == ["NoPermission", "NoPermission", "polled"] * 4


def test_an_interrupt_ends_it_in_one_line(tmp_path: Path) -> None:
    file, log = tmp_path / "exporter.yml", tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        file.write_text(f"accounts: [{{name: acme, access_key_id: a, access_key_secret: b, endpoint: '{endpoint}'}}]")
        with program("poll", "--config.file", str(file), log=log) as process:
            asked, _ = silent.accept()
            process.send_signal(signal.SIGINT)

            assert process.wait(timeout=10) == 130
        asked.close()

    assert log.read_text() == "interrupted: the command did not complete\n"


def test_a_reader_that_has_seen_enough_changes_no_exit_status(fleet: dict[str, Any], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "exporter", "poll", "--config.file", str(written(fleet, tmp_path, "red"))]

    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False)

    os.close(writer)
    assert (done.stderr, done.returncode) == (b"", 3)
