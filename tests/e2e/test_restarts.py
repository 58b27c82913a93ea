"""The real program killed at any moment, and a disk that is full: nothing that a scrape has shown is lost."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import yaml
from hostile import Exchange, HostileApi, serving
from processes import answers, free_port, program, until

from exporter.simulator.scenario import Scenario

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "20"))
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


def written(folder: Path, of: list[HostileApi]) -> Path:
    file = folder / "exporter.yml"
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
    chance, started = random.Random(time.time_ns()), 0
    before: Shown = {}
    with serving(*(of := apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file = written(tmp_path, of)
        for kill in range(KILLS + 1):
            url = f"http://127.0.0.1:{free_port()}"
            arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
            with program(*arguments, log=tmp_path / "log") as process:
                until(answers(f"{url}/-/healthy"), "the exporter answers")
                page = http.get(f"{url}/metrics").text
                now = shown(page)
                assert {key: (value, now.get(key)) for key, value in before.items() if now.get(key, 0) < value} == {}
                assert state_file(page) == ["1.0"], (tmp_path / "log").read_text()
                if kill:
                    assert http.get(f"{url}/-/ready").status_code == 200
                    started += 1
                else:
                    until(answers(f"{url}/-/ready"), "all are polled")
                before = until_killed(process, http, url, time.monotonic() + chance.uniform(0, 0.7))
    print(f"\n{KILLS} kills, {started} starts from what they left, {len(before)} values each, none lost")


def until_killed(process: subprocess.Popen[bytes], http: httpx.Client, url: str, moment: float) -> Shown:
    """What the last scrape showed before the process was killed at that moment, whatever it was doing."""
    last = shown(http.get(f"{url}/metrics").text)
    while time.monotonic() < moment:
        last = shown(http.get(f"{url}/metrics").text)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return last


def test_on_a_full_disk_polling_goes_on_and_what_could_not_be_kept_is_kept_later(tmp_path: Path) -> None:
    with serving(*(of := apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file, url = written(tmp_path, of), f"http://127.0.0.1:{free_port()}"
        arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
        with program(*arguments, log=tmp_path / "log") as process:
            until(answers(f"{url}/-/ready"), "all are polled")
            allow_files_of(process, (tmp_path / "state.db-wal").stat().st_size)

            def page() -> str:
                return http.get(f"{url}/metrics").text

            until(lambda: state_file(page())[0] == "0.0", "the trouble is told")
            successes = shown(page())
            until(lambda: all(shown(page())[key] > value for key, value in successes.items()), "all are polled again")
            assert state_file(page())[0] == "0.0"
            assert float(state_file(page())[1]) > 1
            log = (tmp_path / "log").read_text()
            assert log.count("state file not written, polling goes on without it") == 1

            allow_files_of(process, resource.RLIM_INFINITY)
            until(lambda: state_file(page())[0] == "1.0", "the state is kept again")
            before = until_killed(process, http, url, 0)
        with program(*arguments, log=tmp_path / "log"):
            until(answers(f"{url}/-/ready"), "the exporter is ready")
            now = shown(page())
            assert {key: value for key, value in before.items() if now[key] < value} == {}


def allow_files_of(process: subprocess.Popen[bytes], size: int) -> None:
    """No file may grow beyond so many bytes: what SQLite then sees is what a full disk shows it."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
