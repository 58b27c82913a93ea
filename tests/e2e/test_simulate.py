"""The commands `simulate` and `demo`, run from a shell and stopped by signals."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from processes import free_port, program, running, wait_until

SCENARIO = """
accounts:
  - {name: acme, access_key_id: example-id, access_key_secret: example-secret, spaces: 3}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the exporter in `bin`. There, `simulate` has a scenario and a free port."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "scenario.yml").write_text(SCENARIO)
    flags = f"--scenario {tmp_path}/scenario.yml --web.listen-address 127.0.0.1:{free_port()}"
    script = tmp_path / "bin" / "chatapp-exporter"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = simulate ] && [ "$2" != --help ] && set -- "$@" {flags}\n'
        f'exec {shlex.join([sys.executable, "-m", "exporter"])} "$@"\n'
    )
    script.chmod(0o755)
    return tmp_path


def run_shell(directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{directory}/bin:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        ["bash", "-c", script], cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def help_example(directory: Path) -> str:
    """Return the example commands of `simulate --help`."""
    text = run_shell(directory, "chatapp-exporter simulate --help").stdout
    return text.partition("Examples:\n")[2].replace("sleep 1", "sleep 0.1")


def test_the_example_in_the_help_polls_the_simulated_api(directory: Path) -> None:
    for _ in range(2):  # `simulate` removes its file at the end, so that the example can run again
        result = run_shell(directory, f"{help_example(directory)}\nstatus=$?\nkill %1\nwait\nexit $status")

        assert "spaces: 3 (0 failed)" in result.stdout
        assert (result.stderr, result.returncode) == ("", 0)
        assert not (directory / "simulated.yml").exists()


def test_simulate_overwrites_no_file_and_leaves_no_partial_file(directory: Path) -> None:
    (directory / "simulated.yml").write_text("accounts: existing")

    for name, found in (
        ("simulated.yml", "File exists"),
        ("missing/a.yml", "No such file or directory"),
        ("", "File exists"),
    ):
        result = run_shell(directory, f"chatapp-exporter simulate --write '{name}'")

        assert result.stderr.splitlines()[0] == f"{name or '.'}: cannot create the file: {found}"
        assert (result.stdout, result.returncode) == ("", 2)
    assert (directory / "simulated.yml").read_text() == "accounts: existing"
    assert not list(directory.glob("*.yml.*"))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_a_signal_stops_the_process_with_exit_status_0(directory: Path, command: str, number: signal.Signals) -> None:
    port, log = free_port(), directory / "log"
    with program(command, "--web.listen-address", f"127.0.0.1:{port}", log=log) as process:
        wait_until(lambda: b"config" in log.read_bytes() or b"listening" in log.read_bytes(), "the process listens")
        process.send_signal(number)

        assert process.wait(10) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_process_started_with_nohup_ignores_sighup(directory: Path) -> None:
    port, log = free_port(), directory / "log"
    command = ("nohup", sys.executable, "-m", "exporter", "demo", "--web.listen-address", f"127.0.0.1:{port}")
    with running(*command, log=log) as process:
        wait_until(lambda: "listening" in log.read_text(), "the demo listens")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)

        assert process.wait(10) == 0
    assert "event=stopping" in log.read_text()


@pytest.mark.parametrize("command", ["demo", "simulate", "serve"])
def test_the_process_listens_on_every_given_address(directory: Path, command: str) -> None:
    ports, log, file = [free_port(), free_port()], directory / "log", directory / "exporter.yml"
    file.write_text(
        f"accounts: [{{name: a, access_key_id: i, access_key_secret: s, endpoint: 'http://127.0.0.1:{free_port()}'}}]"
    )
    flags = [part for port in ports for part in ("--web.listen-address", f"127.0.0.1:{port}")]
    with program(command, *flags, *(["--config.file", str(file)] if command == "serve" else []), log=log):
        wait_until(
            lambda: all(f"http://127.0.0.1:{port}" in log.read_text() for port in ports), "the log has both addresses"
        )

        assert {httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code for port in ports} <= {200, 400}
        if command == "simulate":
            assert yaml.safe_load(log.read_text())["accounts"][0]["endpoint"] == f"http://127.0.0.1:{ports[0]}"


def test_the_demo_fails_to_start_if_one_of_its_addresses_is_in_use(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        result = run_shell(
            directory, f"chatapp-exporter demo --web.listen-address 127.0.0.1:0 --web.listen-address {address}"
        )

    assert result.stderr.startswith(f"error: cannot listen on {address}: Address already in use")
    assert (result.stdout, result.returncode) == ("", 1)
