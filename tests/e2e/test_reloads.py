"""Reloads of a real process: by SIGHUP, by POST /-/reload, by a changed space file, and 1,000 consecutive reloads."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import program, wait_until
from real_world import SPACES, real_world

SUCCESSFUL = "chatapp_exporter_config_last_reload_successful"


def test_a_post_reloads_the_configuration_or_returns_its_errors(tmp_path: Path) -> None:
    with real_world(tmp_path, "--web.enable-lifecycle") as world:
        world.write(world.with_spaces(7))
        response = world.reload()
        assert (response.status_code, response.text) == (200, "config reloaded\n")
        assert world.metric("chatapp_account_spaces") == "7"

        world.file.write_text("accounts:\n  - {nam: acme}\nmax_age: soon\n")
        failed = world.reload()
        assert failed.status_code == 500
        assert failed.text == (
            "config reload failed, keeping the current configuration:\n"
            f"{world.file}:2: accounts[0].name: required key is missing\n"
            f"{world.file}:2: accounts[0].nam: unknown key; did you mean name?\n"
            f"{world.file}:3: max_age: expected a duration such as 30s, 5m or 1h30m, found 'soon'\n"
        )
        assert (world.metric(SUCCESSFUL), world.metric("chatapp_account_spaces")) == ("0.0", "7")
        assert world.http.get("/-/reload").status_code == 405

        world.write()
        assert world.reload().status_code == 200
        assert (world.metric(SUCCESSFUL), world.metric("chatapp_account_spaces")) == ("1.0", str(SPACES))


def test_a_reload_that_requires_an_invalid_proxy_fails_and_changes_nothing(tmp_path: Path) -> None:
    """Requests to loopback endpoints do not use a proxy. Requests to other endpoints do."""
    environ = {"HTTPS_PROXY": "http://ops:S3cr3tPw#9@proxy"}
    with real_world(tmp_path, "--web.enable-lifecycle", environ=environ) as world:
        before, config_page = world.file.read_text(), world.http.get("/-/config").text
        account = {"name": "new", "access_key_id": "k", "access_key_secret": "s"}
        world.write(account)
        failed = world.reload()
        assert (failed.status_code, failed.text) == (
            500,
            "config reload failed, keeping the current configuration:\n"
            "environment: HTTPS_PROXY: expected percent-encoded reserved characters in user and password, such as %23"
            " for #, found text (not shown)\n",
        )
        assert world.http.get("/-/config").text == config_page
        assert (world.metric(SUCCESSFUL), world.metric("chatapp_account_spaces")) == ("0.0", str(SPACES))
        polls = float(world.metric("chatapp_space_polls_total"))
        wait_until(lambda: float(world.metric("chatapp_space_polls_total")) > polls, "polling continues")
        world.file.write_text(before)
        assert world.reload().status_code == 200


def test_without_the_lifecycle_flag_a_post_returns_403_and_sighup_reloads(tmp_path: Path) -> None:
    with real_world(tmp_path) as world:
        world.write(world.with_spaces(3))
        assert world.reload().status_code == 403
        assert world.metric("chatapp_account_spaces") == str(SPACES)

        os.kill(world.process.pid, signal.SIGHUP)
        wait_until(lambda: world.metric("chatapp_account_spaces") == "3", "SIGHUP reloads the configuration")

        world.file.write_text("accounts: 7")
        os.kill(world.process.pid, signal.SIGHUP)
        wait_until(lambda: world.metric(SUCCESSFUL) == "0.0", "the failed reload is exported")
        assert "config reload failed, keeping the current configuration" in world.log.read_text()
        assert world.metric("chatapp_account_spaces") == "3"


def test_a_sighup_during_the_start_causes_a_reload_after_the_start(tmp_path: Path) -> None:
    file, log = tmp_path / "exporter.yml", tmp_path / "log"
    account = {"name": "acme", "access_key_id": "k", "access_key_secret": "s", "endpoint": "http://127.0.0.1:1"}
    file.write_text(yaml.safe_dump({"accounts": [account]}))
    with program("--config.file", str(file), "--web.listen-address", "127.0.0.1:0", log=log) as process:
        status = Path(f"/proc/{process.pid}/status")
        wait_until(lambda: is_blocked(signal.SIGHUP, status), "the process blocks SIGHUP", poll_seconds=0.001)
        os.kill(process.pid, signal.SIGHUP)
        assert "event=listening" not in log.read_text()
        wait_until(lambda: 'event="config reloaded"' in log.read_text(), "SIGHUP reloads the configuration")


def is_blocked(number: signal.Signals, status: Path) -> bool:
    """Whether a process blocks this signal, according to its status file in /proc."""
    mask = re.search(r"SigBlk:\s+([0-9a-f]+)", status.read_text())
    return bool(mask and int(mask[1], 16) >> (number - 1) & 1)


def test_a_changed_space_file_is_applied_within_30_seconds(tmp_path: Path) -> None:
    with real_world(tmp_path, "--web.enable-lifecycle") as world:
        account = world.api.account(space_files=["spaces.yml"])
        spaces = account.pop("spaces")
        (tmp_path / "spaces.yml").write_text(yaml.safe_dump(spaces[:5]))
        world.write(account)
        assert world.reload().status_code == 200

        (tmp_path / "spaces.yml").write_text(yaml.safe_dump(spaces[:9]))
        wait_until(lambda: world.metric("chatapp_account_spaces") == "9", "the changed space file is applied", 30)


def resource_usage(pid: int) -> tuple[int, int, int]:
    """Open files, threads and resident memory in bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    threads = re.search(r"Threads:\s+(\d+)", status)
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert threads
    assert resident
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(threads[1]), int(resident[1]) * 1024


@pytest.mark.slow
def test_1000_reloads_under_load_leak_no_open_file_thread_or_memory(tmp_path: Path) -> None:
    with real_world(tmp_path, "--web.enable-lifecycle") as world:
        account = world.api.account()
        same_key = [{**account, "name": name, "qps": 5} for name in ("acme", "globex")]
        few, more = world.with_spaces(9), world.with_spaces(15)
        configurations: list[list[dict[str, Any]]] = [[account], [few], same_key, [{}], [more]]

        def reload(count: int) -> None:
            for number in range(count):
                accounts = configurations[number % len(configurations)]
                world.write(*accounts)
                assert world.reload().status_code == (500 if accounts == [{}] else 200)
                world.http.get("/metrics")

        reload(200)
        before, polls = resource_usage(world.process.pid), len(world.api.arrivals)
        reload(1000)
        for _ in range(20):
            if len(world.api.arrivals) - polls <= 100:  # on a fast machine, 1,000 reloads end before 100 polls
                reload(100)
        after = resource_usage(world.process.pid)
        polled = len(world.api.arrivals) - polls
        print(f"\nat least 1,000 reloads, {polled} polls: files, threads, bytes {before} before, {after} after")

        assert polled > 100
        assert after[0] <= before[0] + 5
        assert after[1] <= before[1] + 2
        assert after[2] <= before[2] * 1.05
        world.write()
        world.reload()
        wait_until(lambda: world.http.get("/-/ready").status_code == 200, "all spaces are polled")
        errors = [line for line in world.log.read_text().splitlines() if "level=error" in line]
        assert all("config reload failed, keeping the current configuration" in line for line in errors)
        assert "Traceback" not in world.log.read_text()


def test_a_shard_polls_only_its_accounts_after_a_reload(tmp_path: Path) -> None:
    """Shard 1 of 2 polls acme. Shard 2 polls globex."""
    with real_world(tmp_path, "--shard=1/2", "--web.enable-lifecycle") as world:
        assert world.metric('chatapp_account_spaces{account="acme"}') == str(SPACES)
        assert "shard=1/2" in world.log.read_text()

        # accounts with the same access key belong to the same shard
        globex = world.api.account(name="globex", access_key_id="another-key")
        world.write(world.with_spaces(7), globex)
        assert world.reload().status_code == 200
        assert world.metric('chatapp_account_spaces{account="acme"}') == "7"
        assert world.metric('chatapp_account_spaces{account="globex"}') == "absent"
