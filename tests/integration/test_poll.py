"""The command `poll` in a process of its own, and sweeps of a simulated fleet."""

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
"""Maps each account to the event of its only space."""
ACCOUNT_ERRORS = {
    "denied": "InvalidAccessKeyId.NotFound",
    "unreachable": "ServiceUnavailable",
    "throttled": "Throttling.User",
}
"""Maps each account to the error code of all its responses. These accounts have three spaces."""
NAMES = ("acme", "globex")
NOT_POLLED = {
    "reason": "denied",
    "code": "not_polled",
    "detail": "the account was denied before this space was polled",
}
NOT_REPORTED = {"number": 1, "set": {"QualityRating": "", "Status": "", "MessagingLimitTier": ""}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Start a simulated API and return its configuration. It has the accounts of EVENTS and ACCOUNT_ERRORS, an account
    whose spaces are rejected, an account with a revoked key and an account whose first number has no fields."""
    key = {"access_key_id": "key", "access_key_secret": "secret"}
    space_events = {**EVENTS, "not-reported": NOT_REPORTED}
    events = [{"at": "0s", "account": name, "space": 1, **event} for name, event in space_events.items() if event]
    events += [{"at": "0s", "account": name, "answer": code} for name, code in ACCOUNT_ERRORS.items()]
    rejected = {"at": "0s", "account": "rejected", "answer": "Unknown.ResourceOwnerId"}
    events += [{**rejected, "space": number} for number in range(1, 9)]
    events += [{"at": "0s", "account": "revoked", "answer": "InvalidAccessKeyId.NotFound"}]
    spaces = {**dict.fromkeys(space_events, 1), **dict.fromkeys(ACCOUNT_ERRORS, 3), "rejected": 8, "revoked": 40}
    document = {
        "latency": "0s",
        "accounts": [{"name": n, **key, "access_key_id": f"key-{n}", "spaces": count} for n, count in spaces.items()],
        "events": events,
    }
    directory, address = tmp_path_factory.mktemp("fleet"), f"127.0.0.1:{free_port()}"
    (directory / "scenario.yml").write_text(yaml.safe_dump(document))
    arguments = ("simulate", "--scenario", str(directory / "scenario.yml"), "--web.listen-address", address)
    with program(*arguments, log=directory / "log"):
        wait_until(lambda: "accounts:" in (directory / "log").read_text(), "the simulated API listens")
        yield demo_document(Scenario.model_validate(document), f"http://{address}")


def write_configuration(fleet: dict[str, Any], directory: Path, *names: str) -> Path:
    """Write a configuration file with only these accounts."""
    file = directory / "exporter.yml"
    accounts = [account for account in fleet["accounts"] if account["name"] in names]
    file.write_text(yaml.safe_dump({"accounts": accounts}))
    return file


def poll(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exporter", "poll", *map(str, arguments)]
    environment = {**os.environ, **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)


def test_a_name_that_the_output_encoding_does_not_support_is_escaped(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = write_configuration(fleet, tmp_path, "red")
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
def test_the_exit_status_is_3_for_a_severe_state_else_1_for_a_failed_poll(
    fleet: dict[str, Any], tmp_path: Path, accounts: str, flags: list[str], status: int
) -> None:
    done = poll("--config.file", write_configuration(fleet, tmp_path, *accounts.split()), "--output", "json", *flags)

    assert done.returncode == status


def test_the_table_is_sorted_by_severity_and_ends_with_a_summary(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", write_configuration(fleet, tmp_path, *EVENTS))

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
    ("account", "cause", "next_step"),
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
def test_an_account_that_is_not_ok_is_reported_in_one_line_with_cause_and_next_step(
    fleet: dict[str, Any], tmp_path: Path, account: str, cause: str, next_step: str
) -> None:
    file = write_configuration(fleet, tmp_path, "green", account)
    done = poll("--config.file", file)
    entries = json.loads(poll("--config.file", file, "--output", "json").stdout)

    error, advice = done.stderr.splitlines()
    prefix = rf"error: {account}: {account}, 3 of 3 spaces failed"
    assert re.fullmatch(rf"{prefix}: {re.escape(cause)} \(request [0-9A-F]{{32}}\)", error)
    assert advice.startswith(f"  check {next_step}")
    assert done.stdout.splitlines()[-1].endswith("; spaces: 4 (3 failed)")
    states = [(entry["account"], entry["account_state"]) for entry in entries]
    assert states == [("green", "ok"), *[(account, account)] * 3]
    assert done.returncode == 1


def test_the_json_output_has_the_state_of_each_number(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", write_configuration(fleet, tmp_path, "down", "failing"), "--output", "json")

    down, failing = json.loads(done.stdout)
    assert (down["phone_numbers"][0]["state"], down["error"]) == ("down", None)
    assert (failing["phone_numbers"], failing["error"]["reason"]) == ([], "server")


def test_an_account_is_unreachable_if_its_only_space_fails_with_a_server_error(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    done = poll("--config.file", write_configuration(fleet, tmp_path, "green", "failing"))

    assert re.fullmatch(
        r"error: failing: unreachable, 1 of 1 spaces failed: InternalError: [^\n]+\n  check [^\n]+\n", done.stderr
    )
    assert done.stdout.splitlines()[-1].endswith("; spaces: 2 (1 failed)")


def test_rejected_spaces_with_the_same_error_are_reported_in_one_line(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", write_configuration(fleet, tmp_path, "rejected"))

    (account,) = (account for account in fleet["accounts"] if account["name"] == "rejected")
    ids = [space["id"] for space in account["spaces"]]
    assert done.stderr == (
        f"error: rejected: rejected, spaces {', '.join(ids[:5])} and 3 more failed: Unknown.ResourceOwnerId:"
        " The resource does not belong to the current user\n"
        "  check the space id and isv_code\n"
    )
    assert done.stdout == (
        "phone numbers: 0 (0 down, 0 red, 0 restricted, 0 yellow, 0 unknown, 0 green); spaces: 8 (8 failed)\n"
    )
    assert done.returncode == 1


def test_an_unreachable_api_is_reported_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    spaces = ", ".join(f"{{id: s{number}}}" for number in range(8))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    key = "access_key_id: a, access_key_secret: b"
    file.write_text(
        f"accounts: [{{name: acme, {key}, endpoint: 'http://127.0.0.1:{port}', qps: 10, spaces: [{spaces}]}}]"
    )

    done = poll("--config.file", file)

    error, advice = done.stderr.splitlines()
    assert error.startswith("error: acme: unreachable, 8 of 8 spaces failed: transport: ConnectError: ")
    assert advice.startswith("  check the network, DNS, the proxy (HTTPS_PROXY), certificates (SSL_CERT_FILE)")
    assert done.returncode == 1


def settings_of(file: Path) -> Settings:
    return Configuration(file, {}, CamsSettings).load()


@contextmanager
def open_state_file(file: Path, *, endpoint: str = "", **values: str) -> Iterator[StateFile]:
    """Add a state file to the configuration and keep it open, as a running exporter does. Each space has a stored
    number with these values, polled a minute ago from `endpoint` or, by default, from the configured endpoint."""
    path, settings = file.with_name("state.db"), settings_of(file)
    file.write_text(f"{file.read_text()}state_file: {path}\n")
    state_file, last_success = StateFile(path, SystemClock()), time.time() - 60
    identities = settings.identities
    state_file.open(dict.fromkeys(identities, f"cams {endpoint}") if endpoint else identities)
    entries = json.loads(poll("--config.file", file, *JSON).stdout)
    numbers = {entry["space"]: entry["phone_numbers"] for entry in entries}
    stored = {"verified_name": "Stored", "quality_rating": "GREEN", "status": "CONNECTED", **values}
    for key in settings.spaces:
        phone_number = (numbers[key[1]] or [{"phone_number": "1"}])[0]["phone_number"]
        record = SpaceRecord(True, last_success, (PhoneNumber(phone_number, **stored),))  # type: ignore[arg-type]
        state_file.save({key: record})
    try:
        yield state_file
    finally:
        state_file.close()


JSON = ("--output", "json")


@pytest.mark.parametrize(
    ("stored", "state", "status"),
    [
        ({"quality_rating": "RED", "status": "BANNED", "messaging_limit_tier": "TIER_1K"}, "down", 3),
        ({"quality_rating": "RED"}, "red", 3),
        ({"status": "FLAGGED"}, "restricted", 0),
        ({"messaging_limit_tier": "TIER_1K"}, "unknown", 0),
    ],
)
def test_a_number_without_reported_fields_has_the_state_of_its_stored_values(
    fleet: dict[str, Any], tmp_path: Path, stored: dict[str, str], state: str, status: int
) -> None:
    """The state file is open in another process, so its values are in the write-ahead log (WAL)."""
    file = write_configuration(fleet, tmp_path, "not-reported")
    with open_state_file(file, **stored):
        table, document = poll("--config.file", file), poll("--config.file", file, *JSON)

    cells = re.split(r" {2,}", table.stdout.splitlines()[1])
    rating, tier = stored.get("quality_rating", "GREEN"), stored.get("messaging_limit_tier")
    assert (cells[0], cells[3]) == (state, f"not reported (was {rating})")
    assert cells[4] == f"not reported (was {stored.get('status', 'CONNECTED')})"
    assert cells[5] == (f"not reported (was {tier})" if tier else "not reported")
    number = json.loads(document.stdout)[0]["phone_numbers"][0]
    assert number["state"] == state
    assert [number[field] for field in WATCHED_FIELDS] == [None] * 3
    assert {field: missing["before"] for field, missing in number["not_reported"].items()} == {
        "quality_rating": "GREEN",
        "status": "CONNECTED",
        **stored,
    }
    assert all(re.fullmatch(r"[-\d]+T[:\d]+Z", missing["since"]) for missing in number["not_reported"].values())
    assert {table.returncode, document.returncode} == {status}


def test_without_a_state_file_a_number_without_reported_fields_is_unknown(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    file = write_configuration(fleet, tmp_path, "not-reported")
    table, document = poll("--config.file", file), poll("--config.file", file, *JSON, "--fail-on", "unknown")

    (cells,) = (re.split(r" {2,}", row) for row in table.stdout.splitlines() if row.startswith("unknown"))
    assert cells[3:6] == ["not reported"] * 3
    number = json.loads(document.stdout)[0]["phone_numbers"][0]
    assert ([number[field] for field in WATCHED_FIELDS], number["not_reported"]) == ([None] * 3, {})
    assert (table.returncode, document.returncode) == (0, 3)


def test_stored_numbers_are_not_shown_for_a_space_whose_poll_failed(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = write_configuration(fleet, tmp_path, "failing")
    with open_state_file(file, quality_rating="RED"):
        table, document = poll("--config.file", file), poll("--config.file", file, *JSON)

    assert "Stored" not in table.stdout + document.stdout
    assert json.loads(document.stdout)[0]["phone_numbers"] == []
    assert (table.returncode, document.returncode) == (1, 1)


def test_a_reported_value_is_not_replaced_with_the_stored_value(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = write_configuration(fleet, tmp_path, "green")
    with open_state_file(file, quality_rating="RED", status="BANNED"):
        done = poll("--config.file", file, "--fail-on", "unknown")

    assert (done.stderr, done.returncode) == ("", 0)


def file_contents(directory: Path) -> dict[str, bytes]:
    """Map each file to its contents, except the index of the write-ahead log (-shm): each reader changes the index."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}


@pytest.mark.parametrize("is_open", [True, False], ids=["open in an exporter", "closed"])
def test_poll_does_not_change_the_state_file(fleet: dict[str, Any], tmp_path: Path, is_open: bool) -> None:
    file = write_configuration(fleet, tmp_path, "not-reported")
    with open_state_file(file, quality_rating="RED") as state_file:
        if not is_open:
            state_file.close()
        names, before = sorted(path.name for path in tmp_path.iterdir()), file_contents(tmp_path)

        done = poll("--config.file", file)

        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert file_contents(tmp_path) == before
        assert done.returncode == 3
        state_file.save({("not-reported", "new"): SpaceRecord(True, 1.0)})
        assert state_file.up == is_open


@pytest.mark.parametrize("content", [b"", b"text", b"\0\1\2" * 1000, None], ids=["empty", "text", "bytes", "missing"])
def test_an_unreadable_state_file_is_not_an_error_and_is_not_changed(
    fleet: dict[str, Any], tmp_path: Path, content: bytes | None
) -> None:
    file = write_configuration(fleet, tmp_path, "green")
    file.write_text(f"{file.read_text()}state_file: state.db\n")
    if content is not None:
        (tmp_path / "state.db").write_bytes(content)
    before = file_contents(tmp_path)

    done = poll("--config.file", file)

    assert (done.stderr, done.returncode, file_contents(tmp_path)) == ("", 0, before)


def test_stored_values_of_another_endpoint_are_not_used(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = write_configuration(fleet, tmp_path, "not-reported")
    with open_state_file(file, endpoint="https://other.example", quality_rating="RED"):
        done = poll("--config.file", file)

    assert ("(was " in done.stdout, done.returncode) == (False, 0)


def test_stored_values_of_a_discovered_space_are_used(tmp_path: Path) -> None:
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
        stored = read_state_file(tmp_path / "state.db", world.settings.identities)
        world.settings = world.settings.model_copy(update={"state_file": None})
        swept = await sweep(world.fresh_exporter().service, stored_records=stored)
        numbers = [(number, space.view.record) for space in swept.spaces for number in space.phone_numbers]
        return [(number.quality_rating, record.state_of(number).value) for number, record in numbers]

    assert ("", "red") in run(main())


def test_all_numbers_are_shown_if_a_sweep_takes_longer_than_max_age() -> None:
    async def main() -> int:
        world = World(scenario(20, qps=1), max_age=5.0)
        swept = await world.exporter.sweep()
        await world.exporter.stop()
        return sum(bool(space.phone_numbers) for space in swept.spaces)

    assert run(main()) == 20


def test_the_fields_of_the_json_output_are_documented(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", write_configuration(fleet, tmp_path, "green", "failing"), *JSON)
    green, failing = json.loads(done.stdout)

    (row,) = re.findall(r"(?m)^\| `poll --output json` \| (.*) \|$", USAGE.read_text("utf-8"))
    inner = [f"phone_numbers[].{name}" for name in green["phone_numbers"][0]]
    outer = {"error": [f"error.{name}" for name in failing["error"]], "phone_numbers": inner}
    assert re.findall("`(.+?)`", row) == [name for key in green for name in outer.get(key, [key])]


def test_markup_emoji_codes_and_control_characters_in_a_name_are_not_interpreted(tmp_path: Path) -> None:
    name = "[red]A[/] :bomb:\x1b[2J\nB"
    api, directory = f"127.0.0.1:{free_port()}", tmp_path
    key = {"access_key_id": "key", "access_key_secret": "secret"}
    document = {
        "accounts": [{"name": "acme", "spaces": 1, **key}],
        "events": [{"at": "0s", "account": "acme", "space": 1, "number": 1, "set": {"VerifiedName": name}}],
    }
    (directory / "scenario.yml").write_text(yaml.safe_dump(document))
    arguments = ("simulate", "--scenario", str(directory / "scenario.yml"), "--web.listen-address", api)
    file = directory / "exporter.yml"
    file.write_text(yaml.safe_dump({"accounts": [{"name": "acme", "endpoint": f"http://{api}", **key}]}))
    with program(*arguments, log=directory / "log"):
        wait_until(lambda: "accounts:" in (directory / "log").read_text(), "the simulated API listens")

        done = poll("--config.file", file)

    assert "  [red]A[/] :bomb:?[2J?B  " in done.stdout


def run_on_terminal(*arguments: str | Path, both: bool = False, term: str = "xterm") -> tuple[str, str]:
    """Run `poll` with a terminal as standard error. Return the output to the terminal and to standard output, which is
    a pipe, or the same terminal if `both` is set."""
    terminal, process_end = pty.openpty()
    command = [sys.executable, "-m", "exporter", "poll", *map(str, arguments)]
    environ = {**os.environ, "TERM": term, "COLUMNS": "100"}
    stdout = process_end if both else subprocess.PIPE
    with subprocess.Popen(command, stdout=stdout, stderr=process_end, env=environ) as process:
        os.close(process_end)
        shown = b""
        try:
            while chunk := os.read(terminal, 65536):
                shown += chunk
        except OSError:  # Linux: the process has closed the terminal
            pass
        printed = process.stdout.read().decode() if process.stdout else ""
    os.close(terminal)
    return shown.decode(), printed


def test_a_terminal_shows_the_progress_of_the_sweep(fleet: dict[str, Any], tmp_path: Path) -> None:
    file = write_configuration(fleet, tmp_path, "green", "failing")

    shown, printed = run_on_terminal("--config.file", file, "--output", "json")

    assert "2 of 2 spaces, 1 failed, 0s left" in shown
    assert len(json.loads(printed)) == 2


@pytest.mark.parametrize(("term", "red"), [("xterm", "\x1b[31mred"), ("dumb", "red")])
def test_a_narrow_terminal_shows_complete_rows_and_colours_only_if_it_supports_them(
    fleet: dict[str, Any], tmp_path: Path, term: str, red: str
) -> None:
    shown, _ = run_on_terminal("--config.file", write_configuration(fleet, tmp_path, "red"), both=True, term=term)

    space = next(account["spaces"][0] for account in fleet["accounts"] if account["name"] == "red")
    row = next(line for line in shown.splitlines() if line.startswith(red))
    assert re.search(rf"  15\d{{9}}  .*  RED  .*  CONNECTED  TIER_\w+ +red +{space['id']}  {space['name']}", row)


def test_without_a_terminal_no_progress_is_shown(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", write_configuration(fleet, tmp_path, "green"))

    assert (done.stderr, done.returncode) == ("", 0)


def test_a_sweep_reports_its_progress_after_each_poll() -> None:
    async def main() -> list[Progress]:
        reported: list[Progress] = []
        world = World(scenario(4, qps=2, events=({"at": "0s", "space": 3, "answer": "InternalError"},)))
        await world.exporter.sweep(reported.append)
        await world.exporter.stop()
        return reported

    assert [(step.done, step.total, step.failed, round(step.seconds_left, 6)) for step in run(main())] == [
        (0, 4, 0, 2.4),
        (1, 4, 0, 1.8),
        (2, 4, 0, 1.2),
        (3, 4, 1, 0.6),
        (4, 4, 1, 0.0),
    ]


DENIALS = ["InvalidAccessKeyId.NotFound", "NoPermission", "InvalidTimeStamp.Expired"]


@pytest.mark.parametrize("code", DENIALS)
def test_a_denied_account_stops_only_its_own_sweep(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> tuple[SweepResult, list[Progress], int]:
        reported: list[Progress] = []
        denied = {"at": "0s", "account": "acme", "answer": code}
        fleet = scenario(60, accounts=("acme", "globex"), qps=5, latency="1s", events=(denied,))
        stored = {
            ("acme", space.id): SpaceRecord(up=True, last_success=START, phone_numbers=(PhoneNumber("1555"),))
            for space in World(fleet).settings.accounts[0].polled_spaces
        }
        world = World(fleet)
        swept = await sweep(world.exporter.service, reported.append, stored)
        await world.exporter.stop()
        spaces = {space.id for space in world.settings.accounts[0].polled_spaces}
        return swept, reported, len([space for _, space in world.polls if space in spaces])

    swept, reported, requests = run(main())
    print_numbers(swept)
    table = capsys.readouterr()
    print_json(swept)
    entries = json.loads(capsys.readouterr().out)
    acme, globex = ([entry for entry in entries if entry["account"] == name] for name in NAMES)

    failed = len([entry for entry in acme if entry["error"]["code"] == code])
    assert 3 <= failed <= 5  # two more requests can be in flight
    if code == "InvalidTimeStamp.Expired":  # requests with this code are retried once
        assert requests <= 10
    else:
        assert requests == failed
    assert [entry["error"] for entry in acme if entry["error"]["code"] != code] == [NOT_POLLED] * (60 - failed)
    assert {len(entry["phone_numbers"]) for entry in acme} == {0}
    assert {entry["account_state"] for entry in acme} == {"denied"}
    assert [entry["error"] for entry in globex] == [None] * 60
    error, _ = table.err.splitlines()
    assert error.startswith(f"error: acme: denied, {failed} of 60 spaces failed, {60 - failed} not polled: {code}: ")
    assert table.out.splitlines()[-1].endswith(f"; spaces: 120 ({failed} failed, {60 - failed} not polled)")
    assert (reported[-1].done, reported[-1].failed, reported[-1].not_polled) == (60 + failed, failed, 60 - failed)
    assert (reported[-1].total, reported[-1].seconds_left) == (120, 0.0)


def test_a_revoked_key_causes_exit_status_1_and_stored_numbers_are_not_shown(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    file = write_configuration(fleet, tmp_path, "revoked")
    with open_state_file(file):
        done = poll("--config.file", file)

    assert done.returncode == 1
    assert re.fullmatch(
        r"error: revoked: denied, \d of 40 spaces failed, 3\d not polled: [^\n]+\n  [^\n]+\n", done.stderr
    )
    assert re.fullmatch(r"phone numbers: 0 \([^)]+\); spaces: 40 \(\d failed, 3\d not polled\)\n", done.stdout)


def test_denials_of_single_spaces_do_not_stop_the_sweep() -> None:
    async def main() -> list[str]:
        codes = ("NoPermission", "NoPermission", None) * 4
        events = [{"at": "0s", "space": n, "answer": code} for n, code in enumerate(codes, 1) if code]
        swept = await World(scenario(12, qps=1, events=tuple(events))).exporter.sweep()
        return [space.error.code if space.error else "polled" for space in swept.spaces]

    assert run(main()) == ["NoPermission", "NoPermission", "polled"] * 4


def test_an_interrupted_poll_prints_one_line(tmp_path: Path) -> None:
    file, log = tmp_path / "exporter.yml", tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        file.write_text(f"accounts: [{{name: acme, access_key_id: a, access_key_secret: b, endpoint: '{endpoint}'}}]")
        with program("poll", "--config.file", str(file), log=log) as process:
            connection, _ = listener.accept()
            process.send_signal(signal.SIGINT)

            assert process.wait(timeout=10) == 130
        connection.close()

    assert log.read_text() == "interrupted: the command did not complete\n"


def test_a_closed_pipe_on_standard_output_does_not_change_the_exit_status(
    fleet: dict[str, Any], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    file = write_configuration(fleet, tmp_path, "red")
    command = [sys.executable, "-m", "exporter", "poll", "--config.file", str(file)]

    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False)

    os.close(writer)
    assert (done.stderr, done.returncode) == (b"", 3)
