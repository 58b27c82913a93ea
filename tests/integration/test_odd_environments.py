"""Unusual environments of a process: none of them causes a traceback, and `check` finds the errors that would stop
`serve`."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from processes import free_port, program, serving_probe, wait_until

KEY = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIexample", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}
CONNECTION_VARIABLES = re.compile(r"(?i)\w+_proxy|SSL\w+|ALIBABA_CLOUD\w+")


def run(
    *arguments: str | bytes | Path,
    environ: Mapping[str, str] | None = None,
    shell: str = 'exec "$@"',
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends. The script `shell` starts it and can change its streams, limits and directory."""
    inherited = {name: value for name, value in os.environ.items() if not CONNECTION_VARIABLES.fullmatch(name)}
    inherited.pop("PYTHONUNBUFFERED", None)  # with it, write errors occur at another place
    return subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-m", "exporter", *arguments],
        env={**inherited, "PYTHONPATH": os.getcwd(), **(environ or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def remote_config(tmp_path: Path) -> Path:
    path = tmp_path / "remote.yml"
    path.write_text("accounts: [{name: acme, access_key_id: LTAIexample, access_key_secret: example-secret}]")
    return path


@pytest.fixture
def unreachable_config(tmp_path: Path) -> Path:
    """A configuration whose endpoint does not accept connections."""
    path = tmp_path / "unreachable.yml"
    endpoint = f"http://127.0.0.1:{free_port()}"
    path.write_text(f"accounts: [{{name: acme, endpoint: '{endpoint}', access_key_id: k, access_key_secret: s}}]")
    return path


@pytest.mark.parametrize("command", ["serve", "check", "poll"])
def test_invalid_environment_variables_are_errors_and_nothing_is_started(remote_config: Path, command: str) -> None:
    proxies = {"HTTPS_PROXY": "http://ops:S3cr3tPw#9@proxy:8080", "all_proxy": "socks5://127.0.0.1:1"}
    environ = {**proxies, "SSL_CERT_FILE": "/nope", "SSLKEYLOGFILE": "/nope/keys"}

    done = run(command, "--config.file", remote_config, environ=environ)

    missing = "found: No such file or directory"
    assert done.stderr == (
        f"environment: SSLKEYLOGFILE: expected a writable file for TLS keys, {missing}\n"
        f"environment: SSL_CERT_FILE: expected a readable file with PEM certificates, {missing}\n"
        "environment: HTTPS_PROXY: expected percent-encoded reserved characters in user and password, such as %23 for"
        " #, found text (not shown)\n"
        "environment: all_proxy: expected a proxy with http:// or https://, found socks5://, which is not supported\n"
        "4 problems found, nothing was started; fix them and run the command again\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)


def test_without_a_file_only_the_invalid_variable_is_reported_if_the_key_is_set() -> None:
    done = run("check", environ={**KEY, "HTTPS_PROXY": "socks5://x"})

    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.startswith("environment: HTTPS_PROXY: ")
    assert done.returncode == 2


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_the_multiprocess_directory_of_prometheus_client_is_ignored(
    tmp_path: Path, unreachable_config: Path, name: str
) -> None:
    (tmp_path / "values").mkdir()

    for directory in ("/nope", str(tmp_path / "values")):
        done = run("poll", "--config.file", unreachable_config, environ={name: directory})

        assert "Traceback" not in done.stderr
        assert "unreachable, 1 of 1 spaces failed" in done.stderr
        assert done.returncode == 1
    assert list((tmp_path / "values").iterdir()) == []


@pytest.mark.parametrize(
    "environ",
    [
        {"HOME": "/nope", "TMPDIR": "/nope", "TZ": "nonsense/zone", "COLUMNS": "x", "LINES": "x", "TERM": "nonsense"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "0", "NO_COLOR": "1"},
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "-5", "WEB_CONCURRENCY": "x", "FORWARDED_ALLOW_IPS": "::1/128,x"},
        {"SSL_CERT_FILE": "/nope", "SSLKEYLOGFILE": "/nope/keys", "HTTPS_PROXY": "socks5://x"},  # the demo has no TLS
        {"NO_PROXY": "::1/128,fd00::/8,[::1]", "PROMETHEUS_MULTIPROC_DIR": "/nope"},
    ],
    ids=lambda environ: ",".join(environ),
)
def test_the_demo_starts_with_unusual_environment_variables(tmp_path: Path, environ: Mapping[str, str]) -> None:
    port, log = free_port(), tmp_path / "log"
    is_healthy = serving_probe(f"http://127.0.0.1:{port}/-/healthy")
    with program("demo", "--web.listen-address", f"127.0.0.1:{port}", log=log, **environ) as process:
        wait_until(lambda: process.poll() is not None or is_healthy(), "the demo responds")
        process.send_signal(signal.SIGTERM)

        assert process.wait(10) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("command", ["check", "poll", "simulate"])
def test_a_closed_standard_output_is_reported_in_one_line(unreachable_config: Path, command: str) -> None:
    flags = ("--config.file", unreachable_config) if command in ("check", "poll") else ()

    done = run(*command.split(), *flags, shell='exec "$@" >&-')

    assert [line for line in done.stderr.splitlines() if "unreachable" not in line] == [
        "error: standard output is closed; redirect the output to a file"
    ]
    assert done.returncode == 1


@pytest.mark.parametrize("command", ["--help", "serve --help"])
def test_help_reports_a_full_disk_in_one_line(command: str) -> None:
    done = run(*command.split(), shell='exec "$@" >/dev/full')

    assert done.stderr == "error: cannot write to standard output: No space left on device; redirect the output\n"
    assert done.returncode == 1


def test_help_with_a_closed_pipe_succeeds_and_starts_nothing(unreachable_config: Path) -> None:
    serve = shlex.join([sys.executable, "-m", "exporter", "serve", "--config.file", str(unreachable_config), "--help"])

    done = run(shell=f'{{ {serve}; echo "status $?" >&2; }} | true')

    assert done.stderr == "status 0\n"


@pytest.mark.parametrize(
    "shell",
    ['exec "$@" <&-', 'exec "$@" 2>&-', 'ulimit -n 20; exec "$@"', 'rmdir "$PWD"; exec "$@"'],
    ids=["closed stdin", "closed stderr", "20 file descriptors", "deleted directory"],
)
def test_check_succeeds_with_closed_streams_few_descriptors_or_a_deleted_directory(
    tmp_path: Path, unreachable_config: Path, shell: str
) -> None:
    (tmp_path / "here").mkdir()

    done = run("check", "--config.file", unreachable_config, shell=shell, cwd=tmp_path / "here")

    assert "acme" in done.stdout
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("check --config.file", "/"),
        ("check --config.file", ""),
        ("check --config.file", "x" * 300),
        ("check --config.file", "y/" * 3000),
        ("check --config.file", b"\xff\xfe"),
        ("check --config.file", "socket"),
        ("check --config.file", "loop"),
        ("simulate --scenario", "/"),
        ("serve --web.config.file", "/"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_path_without_a_readable_file_is_an_error_in_one_line(
    tmp_path: Path, command: str, file: str | bytes
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))

        done = run(*command.split(), file, environ=KEY, cwd=tmp_path)

    first, last = done.stderr.splitlines()
    assert re.search(": (expected a regular file, found|cannot read the file:) ", first)
    assert last == "1 problem found, nothing was started; fix it and run the command again"
    assert (done.stdout, done.returncode) == ("", 2)


def test_a_listen_address_that_is_not_utf8_is_an_error_in_one_line() -> None:
    done = run("simulate", "--web.listen-address", b"\xff:0")

    assert "expected an address such as :10144 or 127.0.0.1:10144, found" in done.stderr.splitlines()[-1]
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.mark.parametrize(
    ("account", "problem"),
    [
        ('name: "", access_key_id: k, access_key_secret: s', "2: accounts[0].name: expected text, found nothing"),
        (
            "name: a, access_key_id: '', access_key_secret: s",
            "2: accounts[0].access_key_id: expected text, found nothing",
        ),
        (
            "name: a, access_key_id: k, access_key_secret: s, qps: 0.0001",
            "2: accounts[0].qps: expected a number from 0.001 to 10, found '0.0001'",
        ),
        ("name: acme, access_key_id: k, access_key_secret: s", "3: accounts[1].name: duplicate account name"),
    ],
)
def test_a_scenario_with_invalid_account_settings_is_an_error(tmp_path: Path, account: str, problem: str) -> None:
    path = tmp_path / "scenario.yml"
    path.write_text(
        f"accounts:\n  - {{spaces: 1, {account}}}\n"
        "  - {spaces: 1, name: acme, access_key_id: k, access_key_secret: s}\n"
    )

    done = run("demo", "--scenario", path)

    assert done.stderr.splitlines()[0] == f"{path}:{problem}"
    assert (done.stdout, done.returncode) == ("", 2)
