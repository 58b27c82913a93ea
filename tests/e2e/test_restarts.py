"""A real process with a state file: kills at random moments, damaged state files and a full disk."""

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
from processes import free_port, program, running, serving_probe, wait_until

from exporter.simulator.scenario import Scenario

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "20"))
START_SECONDS = 1.5
ACCOUNTS, SPACES = 5, 10
Values = Mapping[tuple[str, str], float]
"""The exported times of the last success, and the counts in the verified names."""


class CountingFault:
    """Responses in which each verified name is a count. The count increases with each response."""

    def __init__(self) -> None:
        self._count = 0

    async def __call__(self, exchange: Exchange) -> None:
        self._count += 1
        document = json.loads(bytes(exchange.api_response().body))
        for entry in document.get("PhoneNumbers", ()):
            entry["VerifiedName"] = str(self._count)
        await exchange.send(200, json.dumps(document).encode())


def create_apis() -> list[HostileApi]:
    """Return one API per account. The accounts together are polled 50 times per second."""
    apis = []
    for number in range(ACCOUNTS):
        name = f"account-{number}"
        account = {"name": name, "access_key_id": name, "access_key_secret": name, "spaces": SPACES}
        document = {"seed": number, "accounts": [{**account, "poll_interval": "1s"}]}
        apis.append(HostileApi(Scenario.model_validate(document), latency=0.001, fault=CountingFault()))
    return apis


def write_config(directory: Path, apis: list[HostileApi]) -> Path:
    file = directory / "exporter.yml"
    file.write_text(yaml.safe_dump({"accounts": [api.account() for api in apis], "state_file": "state.db"}))
    return file


def exported_values(page: str) -> Values:
    values = {}
    for line in page.splitlines():
        if line.startswith("chatapp_space_last_success_timestamp_seconds"):
            series, _, value = line.rpartition(" ")
            values[series, ""] = float(value)
        elif line.startswith("chatapp_phone_number_info"):
            name = re.search(r'verified_name="(\d+)"', line)
            number = re.search(r'space="[^"]*",phone_number="[^"]*"', line)
            assert name
            assert number
            values[number[0], "name"] = float(name[1])
    return values


def state_file_samples(page: str) -> list[str]:
    return [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith("chatapp_exporter_state_file")]


def test_a_kill_at_a_random_moment_loses_no_exported_value(tmp_path: Path) -> None:
    seed, starts = time.time_ns(), 0
    rng = random.Random(seed)
    before: Values = {}
    with serving(*(apis := create_apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file = write_config(tmp_path, apis)
        for kill in range(KILLS + 1):
            url = f"http://127.0.0.1:{free_port()}"
            arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
            with program(*arguments, log=tmp_path / "log"):
                time.sleep(rng.uniform(0, START_SECONDS))  # then it is killed, usually during the start
            with program(*arguments, log=tmp_path / "log") as process:
                wait_until(serving_probe(f"{url}/-/healthy"), "the exporter responds")
                page = http.get(f"{url}/metrics").text
                after = exported_values(page)
                lost = {key: (value, after.get(key)) for key, value in before.items() if after.get(key, 0) < value}
                assert lost == {}, seed
                assert state_file_samples(page) == ["1.0"], (tmp_path / "log").read_text()
                assert list(tmp_path.glob("state.db.damaged*")) == []
                if kill:
                    assert http.get(f"{url}/-/ready").status_code == 200
                    starts += 1
                else:
                    wait_until(serving_probe(f"{url}/-/ready"), "all spaces are polled")
                before = scrape_and_kill(process, http, url, time.monotonic() + rng.uniform(0, 0.7))
    print(f"\n{KILLS} kills while polling and {KILLS} during a start; {starts} starts with saved state (seed {seed})")
    print(f"{len(before)} values compared at each start, none lost")


def scrape_and_kill(process: subprocess.Popen[bytes], http: httpx.Client, url: str, kill_at: float) -> Values:
    """Scrape until this time, in monotonic seconds, then kill the process. Return the values of the last scrape."""
    last = exported_values(http.get(f"{url}/metrics").text)
    while time.monotonic() < kill_at:
        last = exported_values(http.get(f"{url}/metrics").text)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return last


def replace_with_foreign_database(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE foreign_table (value)")


def set_newer_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version=99")


def link_to_missing_directory(file: Path) -> None:
    file.unlink()
    file.symlink_to("missing/state.db")


RENAMED = "state file damaged, renamed and replaced with a new file"
UNUSABLE = "state file cannot be used, continuing without it"


@pytest.mark.parametrize(
    ("fault", "reason", "up", "restored", "event"),
    [
        pytest.param(lambda file: os.truncate(file, 50), "damaged", "1.0", 0, RENAMED, id="truncated"),
        pytest.param(replace_with_foreign_database, "foreign", "0.0", 0, UNUSABLE, id="foreign"),
        pytest.param(set_newer_version, "newer", "0.0", 0, UNUSABLE, id="newer"),
        pytest.param(link_to_missing_directory, "unwritable", "0.0", 0, UNUSABLE, id="unwritable"),
        pytest.param(signal.SIGTERM, "unwritable", "0.0", ACCOUNTS * SPACES, UNUSABLE, id="full disk"),
        pytest.param(signal.SIGKILL, "unwritable", "0.0", ACCOUNTS * SPACES, UNUSABLE, id="full disk after a kill"),
    ],
)
def test_an_unusable_state_file_is_logged_once_and_polling_continues(
    tmp_path: Path, fault: Callable[[Path], None] | signal.Signals, reason: str, up: str, restored: int, event: str
) -> None:
    with serving(*(apis := create_apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file, state, log = write_config(tmp_path, apis), tmp_path / "state.db", tmp_path / "log"
        url = f"http://127.0.0.1:{free_port()}"
        arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
        with program(*arguments, log=log) as process:
            wait_until(serving_probe(f"{url}/-/ready"), "all spaces are polled")
            process.send_signal(fault if isinstance(fault, signal.Signals) else signal.SIGTERM)
            assert process.wait(15) == (-signal.SIGKILL if fault == signal.SIGKILL else 0)
        if not isinstance(fault, signal.Signals):
            fault(state)
        content_before = state.read_bytes() if state.is_file() else b""
        for api in apis:
            api.fault = never_finishes  # every value must come from the state file
        full_disk = ("prlimit", "--fsize=16384") if isinstance(fault, signal.Signals) else ()
        with running(*full_disk, sys.executable, "-m", "exporter", *arguments, log=log):
            wait_until(serving_probe(f"{url}/-/healthy"), "the exporter responds")
            page = http.get(f"{url}/metrics").text
            assert len([key for key in exported_values(page) if key[1] == ""]) == restored
            assert state_file_samples(page) == [up, "1.0"]
            assert f'reason="{reason}"' in page
            assert log.read_text().count(f'event="{event}"') == 1
            for api in apis:
                api.fault = CountingFault()
            wait_until(serving_probe(f"{url}/-/ready"), "all spaces are polled")
        renamed = list(tmp_path.glob("state.db.damaged*"))
        assert [path.read_bytes() for path in renamed] == ([content_before] if event == RENAMED else [])
        if event == UNUSABLE and fault != signal.SIGKILL:  # after a kill, SQLite checkpoints the write-ahead log (WAL)
            assert content_before == (state.read_bytes() if state.is_file() else b"")


def test_polling_continues_on_a_full_disk_and_the_state_is_saved_later(tmp_path: Path) -> None:
    with serving(*(apis := create_apis())), httpx.Client(trust_env=False, timeout=30) as http:
        file, url = write_config(tmp_path, apis), f"http://127.0.0.1:{free_port()}"
        arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"))
        with program(*arguments, log=tmp_path / "log") as process:
            wait_until(serving_probe(f"{url}/-/ready"), "all spaces are polled")
            limit_file_size(process, 8192)  # enough for the log

            def page() -> str:
                return http.get(f"{url}/metrics").text

            wait_until(lambda: state_file_samples(page())[0] == "0.0", "the state file metrics report the failure")
            before = exported_values(page())
            wait_until(
                lambda: all(exported_values(page())[key] > value for key, value in before.items()),
                "all spaces are polled again",
            )
            assert state_file_samples(page())[0] == "0.0"
            assert float(state_file_samples(page())[1]) > 1
            log = (tmp_path / "log").read_text()
            assert log.count("state file cannot be written, continuing without it") == 1

            limit_file_size(process, resource.RLIM_INFINITY)
            wait_until(lambda: state_file_samples(page())[0] == "1.0", "the state is saved again")
            before = scrape_and_kill(process, http, url, 0)
        with program(*arguments, log=tmp_path / "log"):
            wait_until(serving_probe(f"{url}/-/ready"), "the exporter is ready")
            after = exported_values(page())
            assert {key: value for key, value in before.items() if after[key] < value} == {}


def limit_file_size(process: subprocess.Popen[bytes], size: int) -> None:
    """Limit the size of each file of the process to `size` bytes. SQLite then fails to write, as on a full disk."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
