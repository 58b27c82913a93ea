"""The real program killed at any moment, and a disk that is full: nothing that a scrape has shown is lost."""

import json
import os
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import yaml
from hostile import Exchange, HostileApi, never_finishes, serving
from processes import free_port, is_serving, program, running, wait_until

from exporter.simulator.scenario import Scenario

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "20"))
START_SECONDS = 1.5
ACCOUNTS, SPACES = 5, 10
Shown = Mapping[tuple[str, str], float]
"""The newest that was shown: the times of successes, and what the API counted into the numbers' names."""


class Counting:
    """Answers in which every number's verified name is a count that grows from one answer to the next."""

    def __init__(self) -> None:
        self._count = 0

    async def __call__(self, exchange: Exchange) -> None:
        self._count += 1
        document = json.loads(bytes(exchange.answer().body))
        for entry in document.get("PhoneNumbers", ()):
            entry["VerifiedName"] = str(self._count)
        await exchange.send(200, json.dumps(document).encode())


def apis() -> list[HostileApi]:
    """Accounts that together are polled fifty times a second."""
    made = []
    for number in range(ACCOUNTS):
        name = f"account-{number}"
        account = {"name": name, "access_key_id": name, "access_key_secret": name, "spaces": SPACES}
        document = {"seed": number, "accounts": [{**account, "poll_interval": "1s"}]}
        made.append(HostileApi(Scenario.model_validate(document), latency=0.001, fault=Counting()))
    return made


def written(directory: Path, of: list[HostileApi]) -> Path:
    file = directory / "exporter.yml"
    file.write_text(yaml.safe_dump({"accounts": [api.account() for api in of], "state_file": "state.db"}))
    return file


def shown(page: str) -> Shown:
    found = {}
    for line in page.splitlines():
        if line.startswith("chatapp_space_last_success_timestamp_seconds"):
            series, _, value = line.rpartition(" ")
            found[series, ""] = float(value)
        elif line.startswith("chatapp_phone_number_info"):
            name = re.search(r'verified_name="(\d+)"', line)
            number = re.search(r'space="[^"]*",phone_number="[^"]*"', line)
            assert name
            assert number
            found[number[0], "name"] = float(name[1])
    return found


def state_file(page: str) -> list[str]:
    return [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith("chatapp_exporter_state_file")]


def test_a_kill_at_any_moment_loses_nothing_that_was_shown(tmp_path: Path) -> None:
    seed, started = time.time_ns(), 0
    chance = random.Random(seed)
    before: Shown = {}
    with serving(*(of := apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file = written(tmp_path, of)
        for kill in range(KILLS + 1):
            url = f"http://127.0.0.1:{free_port()}"
            arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
            with program(*arguments, log=tmp_path / "log"):
                time.sleep(chance.uniform(0, START_SECONDS))  # then it is killed, mostly while it is still starting
            with program(*arguments, log=tmp_path / "log") as process:
                wait_until(is_serving(f"{url}/-/healthy"), "the exporter answers")
                page = http.get(f"{url}/metrics").text
                now = shown(page)
                assert {key: (value, now.get(key)) for key, value in before.items() if now.get(key, 0) < value} == {}, (
                    seed
                )
                assert state_file(page) == ["1.0"], (tmp_path / "log").read_text()
                assert list(tmp_path.glob("state.db.damaged*")) == []
                if kill:
                    assert http.get(f"{url}/-/ready").status_code == 200
                    started += 1
                else:
                    wait_until(is_serving(f"{url}/-/ready"), "all are polled")
                before = until_killed(process, http, url, time.monotonic() + chance.uniform(0, 0.7))
    print(
        f"\n{KILLS} kills while it ran and as many while it started, {started} starts from what they left (seed {seed})"
    )
    print(f"{len(before)} values each, none lost")


def until_killed(process: subprocess.Popen[bytes], http: httpx.Client, url: str, moment: float) -> Shown:
    """What the last scrape showed before the process was killed at that moment, whatever it was doing."""
    last = shown(http.get(f"{url}/metrics").text)
    while time.monotonic() < moment:
        last = shown(http.get(f"{url}/metrics").text)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return last


def another_program_s(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE theirs (what)")


def of_a_newer_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version=99")


def in_no_directory(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere/state.db")


RENAMED = "state file damaged, renamed it and started a new one"
UNUSABLE = "state file cannot be used, continuing without it"


@pytest.mark.parametrize(
    ("harm", "reason", "up", "known", "logged"),
    [
        pytest.param(lambda file: os.truncate(file, 50), "damaged", "1.0", 0, RENAMED, id="cut off"),
        pytest.param(another_program_s, "foreign", "0.0", 0, UNUSABLE, id="foreign"),
        pytest.param(of_a_newer_version, "newer", "0.0", 0, UNUSABLE, id="newer"),
        pytest.param(in_no_directory, "unwritable", "0.0", 0, UNUSABLE, id="unwritable"),
        pytest.param(signal.SIGTERM, "unwritable", "0.0", ACCOUNTS * SPACES, UNUSABLE, id="full disk"),
        pytest.param(signal.SIGKILL, "unwritable", "0.0", ACCOUNTS * SPACES, UNUSABLE, id="full disk after a kill"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_polls_go_on(
    tmp_path: Path, harm: Callable[[Path], None] | signal.Signals, reason: str, up: str, known: int, logged: str
) -> None:
    with serving(*(of := apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file, state, log = written(tmp_path, of), tmp_path / "state.db", tmp_path / "log"
        url = f"http://127.0.0.1:{free_port()}"
        arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
        with program(*arguments, log=log) as process:
            wait_until(is_serving(f"{url}/-/ready"), "all are polled")
            process.send_signal(harm if isinstance(harm, signal.Signals) else signal.SIGTERM)
            assert process.wait(15) == (-signal.SIGKILL if harm == signal.SIGKILL else 0)
        if not isinstance(harm, signal.Signals):
            harm(state)
        left = state.read_bytes() if state.is_file() else b""
        for api in of:
            api.fault = never_finishes  # so that all that is known comes from the file
        bounded = ("prlimit", "--fsize=16384") if isinstance(harm, signal.Signals) else ()
        with running(*bounded, sys.executable, "-m", "exporter", *arguments, log=log):
            wait_until(is_serving(f"{url}/-/healthy"), "the exporter answers")
            page = http.get(f"{url}/metrics").text
            assert len([key for key in shown(page) if key[1] == ""]) == known
            assert state_file(page) == [up, "1.0"]
            assert f'reason="{reason}"' in page
            assert log.read_text().count(f'event="{logged}"') == 1
            for api in of:
                api.fault = Counting()
            wait_until(is_serving(f"{url}/-/ready"), "all are polled")
        aside = list(tmp_path.glob("state.db.damaged*"))
        assert [path.read_bytes() for path in aside] == ([left] if logged == RENAMED else [])
        if logged == UNUSABLE and harm != signal.SIGKILL:  # after which SQLite moves the log into the file
            assert left == (state.read_bytes() if state.is_file() else b"")


def test_on_a_full_disk_polling_goes_on_and_what_could_not_be_kept_is_kept_later(tmp_path: Path) -> None:
    with serving(*(of := apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file, url = written(tmp_path, of), f"http://127.0.0.1:{free_port()}"
        arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
        with program(*arguments, log=tmp_path / "log") as process:
            wait_until(is_serving(f"{url}/-/ready"), "all are polled")
            allow_files_of(process, 8192)  # enough for the program's log

            def page() -> str:
                return http.get(f"{url}/metrics").text

            wait_until(lambda: state_file(page())[0] == "0.0", "the trouble is told")
            successes = shown(page())
            wait_until(
                lambda: all(shown(page())[key] > value for key, value in successes.items()), "all are polled again"
            )
            assert state_file(page())[0] == "0.0"
            assert float(state_file(page())[1]) > 1
            log = (tmp_path / "log").read_text()
            assert log.count("state file cannot be written, continuing without it") == 1

            allow_files_of(process, resource.RLIM_INFINITY)
            wait_until(lambda: state_file(page())[0] == "1.0", "the state is kept again")
            before = until_killed(process, http, url, 0)
        with program(*arguments, log=tmp_path / "log"):
            wait_until(is_serving(f"{url}/-/ready"), "the exporter is ready")
            now = shown(page())
            assert {key: value for key, value in before.items() if now[key] < value} == {}


def allow_files_of(process: subprocess.Popen[bytes], size: int) -> None:
    """No file may grow beyond so many bytes: what SQLite then sees is what a full disk shows it."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
