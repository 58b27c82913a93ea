"""Reloads of the real program: by signal, by request, by files that are followed, and a thousand in a row."""

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


def test_a_post_reloads_and_a_bad_file_is_told_with_its_reasons(tmp_path: Path) -> None:
    with real_world(tmp_path, "--web.enable-lifecycle") as it:
        it.write(it.with_spaces(7))
        done = it.reload()
        assert (done.status_code, done.text) == (200, "config reloaded\n")
        assert it.metric("chatapp_account_spaces") == "7"

        it.file.write_text("accounts:\n  - {nam: acme}\nmax_age: soon\n")
        refused = it.reload()
        assert refused.status_code == 500
        assert refused.text == (
            "config reload failed, keeping the current configuration:\n"
            f"{it.file}:2: accounts[0].name: required key is missing\n"
            f"{it.file}:2: accounts[0].nam: unknown key; did you mean name?\n"
            f"{it.file}:3: max_age: expected a duration such as 30s, 5m or 1h30m, found 'soon'\n"
        )
        assert (it.metric(SUCCESSFUL), it.metric("chatapp_account_spaces")) == ("0.0", "7")
        assert it.http.get("/-/reload").status_code == 405

        it.write()
        assert it.reload().status_code == 200
        assert (it.metric(SUCCESSFUL), it.metric("chatapp_account_spaces")) == ("1.0", str(SPACES))


def test_a_proxy_that_the_new_configuration_cannot_use_changes_nothing(tmp_path: Path) -> None:
    """A loopback endpoint has no proxy, every other one has."""
    with real_world(tmp_path, "--web.enable-lifecycle", environ={"HTTPS_PROXY": "http://ops:S3cr3tPw#9@proxy"}) as it:
        before, shown = it.file.read_text(), it.http.get("/-/config").text
        account = {"name": "new", "access_key_id": "k", "access_key_secret": "s"}
        it.write(account)
        failed = it.reload()
        assert (failed.status_code, failed.text) == (
            500,
            "config reload failed, keeping the current configuration:\n"
            "environment: HTTPS_PROXY: expected percent-encoded reserved characters in user and password, such as %23"
            " for #, found text (not shown)\n",
        )
        assert it.http.get("/-/config").text == shown
        assert (it.metric(SUCCESSFUL), it.metric("chatapp_account_spaces")) == ("0.0", str(SPACES))
        polls = float(it.metric("chatapp_space_polls_total"))
        wait_until(lambda: float(it.metric("chatapp_space_polls_total")) > polls, "the polls go on")
        it.file.write_text(before)
        assert it.reload().status_code == 200


def test_without_the_flag_a_post_is_refused_and_a_signal_reloads(tmp_path: Path) -> None:
    with real_world(tmp_path) as it:
        it.write(it.with_spaces(3))
        assert it.reload().status_code == 403
        assert it.metric("chatapp_account_spaces") == str(SPACES)

        os.kill(it.process.pid, signal.SIGHUP)
        wait_until(lambda: it.metric("chatapp_account_spaces") == "3", "the signal reloads")

        it.file.write_text("accounts: 7")
        os.kill(it.process.pid, signal.SIGHUP)
        wait_until(lambda: it.metric(SUCCESSFUL) == "0.0", "the refusal is told")
        assert "config reload failed, keeping the current configuration" in it.log.read_text()
        assert it.metric("chatapp_account_spaces") == "3"


def test_a_signal_that_comes_during_the_start_is_not_lost(tmp_path: Path) -> None:
    file, log = tmp_path / "exporter.yml", tmp_path / "log"
    account = {"name": "acme", "access_key_id": "k", "access_key_secret": "s", "endpoint": "http://127.0.0.1:1"}
    file.write_text(yaml.safe_dump({"accounts": [account]}))
    with program("--config.file", str(file), "--web.listen-address", "127.0.0.1:0", log=log) as process:
        status = Path(f"/proc/{process.pid}/status")
        wait_until(lambda: holds_back(signal.SIGHUP, status), "it holds the signal back", poll_seconds=0.001)
        os.kill(process.pid, signal.SIGHUP)
        assert "event=listening" not in log.read_text()
        wait_until(lambda: 'event="config reloaded"' in log.read_text(), "the signal reloads")


def holds_back(number: signal.Signals, status: Path) -> bool:
    """Whether a process lets this signal wait, as the system has it."""
    found = re.search(r"SigBlk:\s+([0-9a-f]+)", status.read_text())
    return bool(found and int(found[1], 16) >> (number - 1) & 1)


def test_space_files_are_followed_within_thirty_seconds(tmp_path: Path) -> None:
    with real_world(tmp_path, "--web.enable-lifecycle") as it:
        account = it.api.account(space_files=["spaces.yml"])
        spaces = account.pop("spaces")
        (tmp_path / "spaces.yml").write_text(yaml.safe_dump(spaces[:5]))
        it.write(account)
        assert it.reload().status_code == 200

        (tmp_path / "spaces.yml").write_text(yaml.safe_dump(spaces[:9]))
        wait_until(lambda: it.metric("chatapp_account_spaces") == "9", "the space file is followed", 30)


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
    with real_world(tmp_path, "--web.enable-lifecycle") as it:
        whole = it.api.account()
        both = [{**whole, "name": name, "qps": 5} for name in ("acme", "globex")]  # they have one access key
        forms: list[list[dict[str, Any]]] = [[whole], [it.with_spaces(9)], both, [{}], [it.with_spaces(15)]]

        def reload(times: int) -> None:
            for number in range(times):
                accounts = forms[number % len(forms)]
                it.write(*accounts)
                assert it.reload().status_code == (500 if accounts == [{}] else 200)
                it.http.get("/metrics")

        reload(200)
        before, polls = held(it.process.pid), len(it.api.arrivals)
        reload(1000)
        after = held(it.process.pid)
        polled = len(it.api.arrivals) - polls
        print(f"\n1,000 reloads, {polled} polls: files, threads, bytes {before} before, {after} after")

        assert polled > 100
        assert after[0] <= before[0] + 5
        assert after[1] <= before[1] + 2
        assert after[2] <= before[2] * 1.05
        it.write()
        it.reload()
        wait_until(lambda: it.http.get("/-/ready").status_code == 200, "all are polled")
        assert "level=error" not in it.log.read_text().replace(
            "config reload failed, keeping the current configuration", ""
        ).replace("level=error event=", "")
        assert "Traceback" not in it.log.read_text()


def test_a_shard_polls_its_accounts_also_after_a_reload(tmp_path: Path) -> None:
    """Of two shards, the first polls acme, and the second polls globex."""
    with real_world(tmp_path, "--shard=1/2", "--web.enable-lifecycle") as it:
        assert it.metric('chatapp_account_spaces{account="acme"}') == str(SPACES)
        assert "shard=1/2" in it.log.read_text()

        globex = it.api.account(name="globex", access_key_id="another-key")  # accounts of one key share a shard
        it.write(it.with_spaces(7), globex)
        assert it.reload().status_code == 200
        assert it.metric('chatapp_account_spaces{account="acme"}') == "7"
        assert it.metric('chatapp_account_spaces{account="globex"}') == "absent"
