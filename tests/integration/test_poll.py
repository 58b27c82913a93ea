"""`poll` as a person, cron and CI use it: one sweep of a simulated fleet, by the real program."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import free_port, program, until
from virtual_time import run
from world import World, scenario

from exporter.polling.plan import Progress
from exporter.simulator.demo import demo_document
from exporter.simulator.scenario import Scenario

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


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The configuration that polls the accounts of EVENTS."""
    key = {"access_key_id": "key", "access_key_secret": "secret", "spaces": 1}
    happening = [{"at": "0s", "account": name, "space": 1, **event} for name, event in EVENTS.items() if event]
    document = {
        "latency": "0s",
        "accounts": [{"name": name, **key, "access_key_id": f"key-{name}"} for name in EVENTS],
        "events": happening,
    }
    folder, address = tmp_path_factory.mktemp("fleet"), f"127.0.0.1:{free_port()}"
    (folder / "scenario.yml").write_text(yaml.safe_dump(document))
    arguments = ("simulate", "--scenario", str(folder / "scenario.yml"), "--web.listen-address", address)
    with program(*arguments, log=folder / "log"):
        until(lambda: "accounts:" in (folder / "log").read_text(), "the simulated API listens")
        yield demo_document(Scenario.model_validate(document), f"http://{address}")


def written(fleet: dict[str, Any], folder: Path, *names: str) -> Path:
    """A configuration of these accounts only."""
    file = folder / "exporter.yml"
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
        f"numbers: {len(rows)} (1 down, 1 red, 1 restricted, 1 yellow, 1 unknown, {len(rows) - 5} green);"
        " spaces: 7 (1 failed)"
    )
    assert "\x1b" not in done.stdout


def test_a_failure_is_one_line_that_ends_with_the_next_step(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", written(fleet, tmp_path, "green", "failing"))

    space = next(one["spaces"][0]["id"] for one in fleet["accounts"] if one["name"] == "failing")
    assert re.fullmatch(
        rf"error: failing/{space}: server: InternalError: [^\n]+; try again later; if it[^\n]+\n", done.stderr
    )
    assert done.stdout.splitlines()[-1].endswith("; spaces: 2 (1 failed)")


def test_json_has_the_state_of_each_number(fleet: dict[str, Any], tmp_path: Path) -> None:
    done = poll("--config.file", written(fleet, tmp_path, "down", "failing"), "--output", "json")

    down, failing = json.loads(done.stdout)
    assert (down["phone_numbers"][0]["state"], down["error"]) == ("down", None)
    assert (failing["phone_numbers"], failing["error"]["reason"]) == ([], "server")


def test_spaces_that_fail_alike_are_one_line(tmp_path: Path) -> None:
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
    assert line.startswith("error: acme/s0, s1, s2, s3, s4 and 3 more: transport: ConnectError: ")
    assert line.endswith("; check the endpoint's name, DNS, proxy (HTTPS_PROXY) and certificates (SSL_CERT_FILE)")
    assert done.stdout == (
        "numbers: 0 (0 down, 0 red, 0 restricted, 0 yellow, 0 unknown, 0 green); spaces: 8 (8 failed)\n"
    )
    assert done.returncode == 1


def test_what_others_wrote_does_nothing_to_the_table(tmp_path: Path) -> None:
    """Neither markup nor emoji codes nor what a terminal would obey."""
    hostile = "[red]A[/] :bomb:\x1b[2J\nB"
    api, folder = f"127.0.0.1:{free_port()}", tmp_path
    key = {"access_key_id": "key", "access_key_secret": "secret"}
    document = {
        "accounts": [{"name": "acme", "spaces": 1, **key}],
        "events": [{"at": "0s", "account": "acme", "space": 1, "number": 1, "set": {"VerifiedName": hostile}}],
    }
    (folder / "scenario.yml").write_text(yaml.safe_dump(document))
    arguments = ("simulate", "--scenario", str(folder / "scenario.yml"), "--web.listen-address", api)
    file = folder / "exporter.yml"
    file.write_text(yaml.safe_dump({"accounts": [{"name": "acme", "endpoint": f"http://{api}", **key}]}))
    with program(*arguments, log=folder / "log"):
        until(lambda: "accounts:" in (folder / "log").read_text(), "the simulated API listens")

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

    assert log.read_text() == "interrupted, nothing more is shown\n"


def test_a_reader_that_has_seen_enough_changes_no_exit_status(fleet: dict[str, Any], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "exporter", "poll", "--config.file", str(written(fleet, tmp_path, "red"))]

    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False)

    os.close(writer)
    assert (done.stderr, done.returncode) == (b"", 3)
