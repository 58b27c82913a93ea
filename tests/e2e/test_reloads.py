"""Reloads of the real program: by signal, by request, by files that are followed, and a thousand in a row."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from hostile import HostileApi, serving
from processes import answers, free_port, program, until

from exporter.simulator.demo import demo_settings
from exporter.simulator.scenario import Scenario
from exporter.web.server import PATIENCE_SECONDS

SPACES = 20
SUCCESSFUL = "chatapp_exporter_config_last_reload_successful"


@dataclass
class Running:
    """The program, its configuration file, and how it is reached."""

    http: httpx.Client
    pid: int
    file: Path
    log: Path
    api: HostileApi

    def metric(self, name: str) -> str:
        lines = self.http.get("/metrics").text.splitlines()
        return next((line.rsplit(" ", 1)[1] for line in lines if re.match(rf"{name}[{{ ]", line)), "absent")

    def connection(self) -> socket.socket:
        return socket.create_connection((self.http.base_url.host, self.http.base_url.port or 0), timeout=10)

    def reload(self) -> httpx.Response:
        return self.http.post("/-/reload")


def document(api: HostileApi, *, first: int = SPACES, and_account: str | None = None) -> str:
    (settings,) = demo_settings(api.scenario, api.endpoint).accounts
    written = settings.model_dump(mode="json", exclude_defaults=True)
    written |= {"access_key_secret": "secret", "spaces": written["spaces"][:first]}
    others = [{**written, "name": and_account}] if and_account else []
    return yaml.safe_dump({"accounts": [written, *others]})


@contextmanager
def exporter(folder: Path, *flags: str) -> Iterator[Running]:
    key = {"access_key_id": "key", "access_key_secret": "secret"}
    account = {"name": "acme", "spaces": SPACES, "poll_interval": "2s", **key}
    api = HostileApi(Scenario.model_validate({"accounts": [account]}))
    with serving(api):
        file, log, url = folder / "exporter.yml", folder / "log", f"http://127.0.0.1:{free_port()}"
        file.write_text(document(api))
        arguments = ("--config.file", str(file), "--web.listen-address", url.removeprefix("http://"), *flags)
        with (
            program(*arguments, log=log) as process,
            httpx.Client(base_url=url, trust_env=False, timeout=30) as http,
        ):
            until(answers(f"{url}/-/ready"), "the exporter is ready")
            yield Running(http, process.pid, file, log, api)


def test_a_post_reloads_and_a_bad_file_is_told_with_its_reasons(tmp_path: Path) -> None:
    with exporter(tmp_path, "--web.enable-lifecycle") as it:
        it.file.write_text(document(it.api, first=7))
        done = it.reload()
        assert (done.status_code, done.text) == (200, "configuration taken over\n")
        assert it.metric("chatapp_account_spaces") == "7"

        it.file.write_text("accounts:\n  - {nam: acme}\nmax_age: soon\n")
        refused = it.reload()
        assert refused.status_code == 500
        assert refused.text == (
            "configuration refused, the old one goes on:\n"
            f"{it.file}:2: accounts[0].name: expected text, found nothing\n"
            f"{it.file}:2: accounts[0].nam: unknown key; did you mean name?\n"
            f"{it.file}:3: max_age: expected a duration such as 30s, 5m or 1h30m, found 'soon'\n"
        )
        assert (it.metric(SUCCESSFUL), it.metric("chatapp_account_spaces")) == ("0.0", "7")
        assert it.http.get("/-/reload").status_code == 405

        it.file.write_text(document(it.api))
        assert it.reload().status_code == 200
        assert (it.metric(SUCCESSFUL), it.metric("chatapp_account_spaces")) == ("1.0", str(SPACES))


def test_without_the_flag_a_post_is_refused_and_a_signal_reloads(tmp_path: Path) -> None:
    with exporter(tmp_path) as it:
        it.file.write_text(document(it.api, first=3))
        assert it.reload().status_code == 403
        assert it.metric("chatapp_account_spaces") == str(SPACES)

        os.kill(it.pid, signal.SIGHUP)
        until(lambda: it.metric("chatapp_account_spaces") == "3", "the signal reloads")

        it.file.write_text("accounts: 7")
        os.kill(it.pid, signal.SIGHUP)
        until(lambda: it.metric(SUCCESSFUL) == "0.0", "the refusal is told")
        assert "configuration refused, the old one goes on" in it.log.read_text()
        assert it.metric("chatapp_account_spaces") == "3"


def test_space_files_are_followed_within_thirty_seconds(tmp_path: Path) -> None:
    with exporter(tmp_path, "--web.enable-lifecycle") as it:
        written = yaml.safe_load(document(it.api))
        spaces = written["accounts"][0].pop("spaces")
        written["accounts"][0]["space_files"] = ["spaces.yml"]
        (tmp_path / "spaces.yml").write_text(yaml.safe_dump(spaces[:5]))
        it.file.write_text(yaml.safe_dump(written))
        assert it.reload().status_code == 200

        (tmp_path / "spaces.yml").write_text(yaml.safe_dump(spaces[:9]))
        until(lambda: it.metric("chatapp_account_spaces") == "9", "the space file is followed", 30)


def held(pid: int) -> tuple[int, int, int]:
    """Open files, threads and resident bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    threads = re.search(r"Threads:\s+(\d+)", status)
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert threads
    assert resident
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(threads[1]), int(resident[1]) * 1024


@pytest.mark.slow
def test_a_thousand_reloads_under_load_leave_no_file_thread_or_memory_behind(tmp_path: Path) -> None:
    with exporter(tmp_path, "--web.enable-lifecycle") as it:
        forms = [
            document(it.api),
            document(it.api, first=9),
            document(it.api, and_account="globex"),
            "accounts: [",
            document(it.api, first=15),
        ]

        def reload(times: int) -> None:
            for number in range(times):
                it.file.write_text(forms[number % len(forms)])
                assert it.reload().status_code == (500 if forms[number % len(forms)] == "accounts: [" else 200)
                it.http.get("/metrics")

        reload(200)
        before, polls = held(it.pid), len(it.api.arrivals)
        reload(1000)
        after = held(it.pid)
        polled = len(it.api.arrivals) - polls
        print(f"\n1,000 reloads, {polled} polls: files, threads, bytes {before} before, {after} after")

        assert polled > 100
        assert after[0] <= before[0] + 5
        assert after[1] <= before[1] + 2
        assert after[2] <= before[2] * 1.05
        it.file.write_text(forms[0])
        it.reload()
        until(lambda: it.http.get("/-/ready").status_code == 200, "all are polled")
        assert "level=error" not in it.log.read_text().replace(
            "configuration refused, the old one goes on", ""
        ).replace("level=error event=", "")
        assert "Traceback" not in it.log.read_text()


@pytest.mark.slow
def test_clients_that_dawdle_are_cut_and_scrapes_go_on(tmp_path: Path) -> None:
    with exporter(tmp_path) as it, ExitStack() as sockets:
        half, deaf = (sockets.enter_context(it.connection()) for _ in range(2))
        half.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n")
        for _ in range(400):
            deaf.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        started = time.monotonic()

        def both_are_cut() -> bool:
            it.http.get("/metrics").raise_for_status()
            return is_cut(half, 0.5) and not is_established(it.pid, deaf)

        until(both_are_cut, "both are cut", PATIENCE_SECONDS + 15)
        print(f"\ncut after {time.monotonic() - started:.0f} s")


def test_a_crowd_of_connections_leaves_room_for_the_polls(tmp_path: Path) -> None:
    with exporter(tmp_path) as it, ExitStack() as sockets:
        crowd = [sockets.enter_context(it.connection()) for _ in range(300)]

        assert sum(is_cut(one, 0.1) for one in crowd) >= 100
        assert len(list(Path(f"/proc/{it.pid}/fd").iterdir())) < 300


def is_cut(one: socket.socket, seconds: float) -> bool:
    one.settimeout(seconds)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def is_established(pid: int, one: socket.socket) -> bool:
    """Whether the program's end of a connection is still open, as the system has it."""
    port = f":{one.getsockname()[1]:04X}"
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return any(remote.endswith(port) and state == "01" for _, _, remote, state, *_ in lines)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\0\1\2\3" * 100,
        b"POST /-/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n",
    ],
    ids=["header", "path", "no HTTP", "body"],
)
def test_requests_beyond_the_limits_are_answered_and_cost_nothing(tmp_path: Path, request_bytes: bytes) -> None:
    with exporter(tmp_path) as it, it.connection() as one:
        try:
            one.sendall(request_bytes)
            status = one.recv(12)
        except OSError:
            status = b""  # cut before we had sent all
        assert status in (b"", b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 431")
        assert it.http.get("/-/healthy").status_code == 200
        assert "Traceback" not in it.log.read_text()
