"""The simulated API alone and the demo, as people start and end them."""

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
  - {name: acme, access_key_id: made-up-id, access_key_secret: made-up-secret, spaces: 3}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the program in its `bin`, listening at a port that is free."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "scenario.yml").write_text(SCENARIO)
    here = f"--scenario {tmp_path}/scenario.yml --web.listen-address 127.0.0.1:{free_port()}"
    script = tmp_path / "bin" / "chatapp-exporter"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = simulate ] && [ "$2" != --help ] && set -- "$@" {here}\n'
        f'exec {shlex.join([sys.executable, "-m", "exporter"])} "$@"\n'
    )
    script.chmod(0o755)
    return tmp_path


def shell(directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{directory}/bin:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        ["bash", "-c", script], cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def example(directory: Path) -> str:
    """The commands that the help shows."""
    text = shell(directory, "chatapp-exporter simulate --help").stdout
    return text.partition("Examples:\n")[2].replace("sleep 1", "sleep 0.1")


def test_the_example_of_the_help_polls_the_simulated_api(directory: Path) -> None:
    for _ in range(2):  # the file of the first run is not in the way of the second
        done = shell(directory, f"{example(directory)}\nstatus=$?\nkill %1\nwait\nexit $status")

        assert "spaces: 3 (0 failed)" in done.stdout
        assert (done.stderr, done.returncode) == ("", 0)
        assert not (directory / "simulated.yml").exists()


def test_the_configuration_is_written_completely_or_not_at_all(directory: Path) -> None:
    (directory / "simulated.yml").write_text("accounts: needed")

    for name, found in (
        ("simulated.yml", "File exists"),
        ("nope/a.yml", "No such file or directory"),
        ("", "File exists"),
    ):
        done = shell(directory, f"chatapp-exporter simulate --write '{name}'")

        assert done.stderr.splitlines()[0] == f"{name or '.'}: expected a path for a new file, found: {found}"
        assert (done.stdout, done.returncode) == ("", 2)
    assert (directory / "simulated.yml").read_text() == "accounts: needed"
    assert not list(directory.glob("*.yml.*"))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_a_signal_ends_it(directory: Path, command: str, number: signal.Signals) -> None:
    port, log = free_port(), directory / "log"
    with program(command, "--web.listen-address", f"127.0.0.1:{port}", log=log) as process:
        wait_until(lambda: b"config" in log.read_bytes() or b"listening" in log.read_bytes(), "it listens")
        process.send_signal(number)

        assert process.wait(10) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_program_that_nohup_started_goes_on_after_a_hangup(directory: Path) -> None:
    port, log = free_port(), directory / "log"
    command = ("nohup", sys.executable, "-m", "exporter", "demo", "--web.listen-address", f"127.0.0.1:{port}")
    with running(*command, log=log) as process:
        wait_until(lambda: "listening" in log.read_text(), "the demo listens")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)

        assert process.wait(10) == 0
    assert "event=stopping" in log.read_text()


@pytest.mark.parametrize("command", ["demo", "simulate", "serve"])
def test_an_address_that_is_given_twice_is_listened_on_twice(directory: Path, command: str) -> None:
    ports, log, file = [free_port(), free_port()], directory / "log", directory / "exporter.yml"
    file.write_text(
        f"accounts: [{{name: a, access_key_id: i, access_key_secret: s, endpoint: 'http://127.0.0.1:{free_port()}'}}]"
    )
    flags = [part for port in ports for part in ("--web.listen-address", f"127.0.0.1:{port}")]
    with program(command, *flags, *(["--config.file", str(file)] if command == "serve" else []), log=log):
        wait_until(
            lambda: all(f"http://127.0.0.1:{port}" in log.read_text() for port in ports), "it names both addresses"
        )

        assert {httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code for port in ports} <= {200, 400}
        if command == "simulate":
            assert yaml.safe_load(log.read_text())["accounts"][0]["endpoint"] == f"http://127.0.0.1:{ports[0]}"


def test_an_address_of_several_that_is_taken_starts_nothing(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        done = shell(
            directory, f"chatapp-exporter demo --web.listen-address 127.0.0.1:0 --web.listen-address {address}"
        )

    assert done.stderr.startswith(f"error: cannot listen on {address}: Address already in use")
    assert (done.stdout, done.returncode) == ("", 1)
