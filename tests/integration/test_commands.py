"""The commands as processes: standard output, standard error and exit status."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from exporter import __version__
from exporter.config.settings import Settings
from exporter.model import DOWN_STATUSES, PHONE_NUMBER_STATES, RESTRICTED_STATUSES
from exporter.sources.cams.settings import CamsAccount, CamsSpace

KEY = "access_key_id: LTAIexample, access_key_secret: example-secret"
COMMANDS = ["serve", "demo", "check", "poll", "simulate", "schema", "completion"]


def run(*arguments: str | Path, stdout: int = subprocess.PIPE, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("ALIBABA_CLOUD_")}
    return subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        env={**environ, **variables},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts:\n  - {{name: acme, {KEY}, spaces: [{{id: 0042}}, {{id: 0043}}]}}\n")
    return path


@pytest.fixture
def bad_config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts:\n  - {{name: acme, {KEY}, qps: 11, colour: blue}}\nmax_aeg: 1h\n")
    return path


def test_check_prints_the_poll_schedule(config: Path) -> None:
    done = run("check", "--config.file", config)

    endpoint = "https://cams.ap-southeast-1.aliyuncs.com"
    assert schedule_cells(done) == ["acme", "2", "0.00667", "5", "5m", "5m", "5m10s", endpoint]
    assert (done.stderr, done.returncode) == ("", 0)


def schedule_cells(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the cells of account acme in the poll schedule."""
    row = next(line for line in done.stdout.splitlines() if "acme" in line)
    return re.split(r" {2,}", row.rstrip())


def test_check_marks_accounts_with_discovered_spaces(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts: [{{name: acme, {KEY}, discover: true}}]")

    done = run("check", "--config.file", path)

    assert "0 + discovered" in done.stdout
    assert (done.stderr, done.returncode) == ("", 0)


def test_check_warns_about_a_schedule_that_does_not_fit_and_a_max_age_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    spaces = ", ".join(f"{{id: {number}}}" for number in range(60))
    path.write_text(f"accounts: [{{name: acme, {KEY}, qps: 0.5, poll_interval: 30s, spaces: [{spaces}]}}]\nmax_age: 1m")

    done = run("check", "--config.file", path)

    assert done.stderr == (
        "warning: account acme: 60 spaces at 0.5 queries per second and 200ms latency are polled every 2m12s, not"
        " every 30s; set qps: 3 or poll_interval: 2m30s\n"
        "warning: account acme: spaces are polled every 2m12s, but values are removed after max_age 1m,"
        " so series will have gaps; set max_age: 7m10s\n"
    )
    assert done.returncode == 0


def test_check_prints_the_poll_schedule_of_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    accounts = ", ".join(
        f"{{name: account-{number}, access_key_id: id-{number}, access_key_secret: secret, qps: {number}}}"
        for number in (1, 2, 3)
    )
    path.write_text(f"accounts: [{accounts}]\n")

    results = [run("check", "--config.file", path, "--shard", f"{index}/5") for index in range(1, 6)]

    rows = [line for done in results for line in done.stdout.splitlines() if "account-" in line]
    cells = [re.split(r" {2,}", row) for row in rows]
    assert sorted((name, qps) for name, _, _, qps, *_ in cells) == [
        ("account-1", "1"),
        ("account-2", "2"),
        ("account-3", "3"),
    ]
    idle = "warning: no account is assigned to this shard, so nothing is polled\n"
    assert all((done.stderr, done.returncode) == ("" if "account-" in done.stdout else idle, 0) for done in results)


@pytest.mark.parametrize("command", [["serve"], [], ["check"]], ids=["serve", "no command", "check"])
def test_an_invalid_shard_is_an_error_and_nothing_is_started(config: Path, command: Sequence[str]) -> None:
    done = run(*command, "--config.file", config, "--shard", "6/5")

    problem = "expected INDEX/COUNT with INDEX from 1 to COUNT, such as 2/5, found '6/5'"
    assert f"Invalid value for '--shard': {problem}" in done.stderr
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.mark.parametrize("command", [["serve"], [], ["check"], ["poll"]], ids=["serve", "no command", "check", "poll"])
def test_an_invalid_configuration_is_an_error_and_nothing_is_started(bad_config: Path, command: Sequence[str]) -> None:
    done = run(*command, "--config.file", bad_config)

    assert done.stderr == (
        f"{bad_config}:2: accounts[0].qps: expected a number from 0.001 to 10, found '11'\n"
        f"{bad_config}:2: accounts[0].colour: unknown key\n"
        f"{bad_config}:3: max_aeg: unknown key; did you mean max_age?\n"
        "3 problems found, nothing was started; fix them and run the command again\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.mark.parametrize("command", [["serve"], [], ["check"], ["poll"]], ids=["serve", "no command", "check", "poll"])
def test_more_than_10_qps_for_one_access_key_is_an_error_and_nothing_is_started(
    tmp_path: Path, command: Sequence[str]
) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts:\n  - {{name: acme, {KEY}, qps: 10}}\n  - {{name: globex, {KEY}, qps: 10}}\n")

    done = run(*command, "--config.file", path)

    assert done.stderr == (
        f"{path}:3: accounts[1].qps: expected a total of at most 10 for all accounts with the same access key,"
        " found 20 ('acme' 10, 'globex' 10)\n"
        "1 problem found, nothing was started; fix it and run the command again\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)


def test_check_warns_about_spaces_polled_by_two_accounts_with_the_same_access_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    listed = "spaces: [{id: 0042}, {id: 0043}]"
    path.write_text(f"accounts:\n  - {{name: acme, {KEY}, {listed}}}\n  - {{name: globex, {KEY}, {listed}}}\n")

    done = run("check", "--config.file", path)

    assert done.stderr == (
        "warning: accounts acme, globex have the same access key and poll the same spaces 0042, 0043;"
        " configure each space in one account only\n"
    )
    assert done.returncode == 0


EXPAND = "--config.expand-environment-variables"


@pytest.mark.parametrize("command", [["serve"], [], ["check"], ["poll"]], ids=["serve", "no command", "check", "poll"])
def test_an_unset_variable_in_the_configuration_is_an_error_and_nothing_is_started(
    tmp_path: Path, command: Sequence[str]
) -> None:
    path = tmp_path / "config.yml"
    path.write_text("accounts:\n  - name: ${NAME}\n    access_key_id: ${ID}\n    access_key_secret: ${SECRET}\n")

    done = run(*command, "--config.file", path, EXPAND, SECRET="marked-secret")

    assert done.stderr == (
        f"{path}:2: accounts[0].name: environment variable NAME is not set\n"
        f"{path}:3: accounts[0].access_key_id: environment variable ID is not set\n"
        "2 problems found, nothing was started; fix them and run the command again\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)


def test_check_and_poll_replace_placeholders_with_environment_variables(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path.write_text(
        "accounts:\n  - name: ${NAME}\n    endpoint: http://127.0.0.1:${PORT}\n    qps: ${QPS}\n"
        "    access_key_id: ${ID}\n    access_key_secret: ${SECRET}\n"
    )
    variables = {"NAME": "acme", "PORT": str(port), "QPS": "2.5", "ID": "marked-id", "SECRET": "marked-secret"}

    checked = run("check", "--config.file", path, EXPAND, stdout=subprocess.PIPE, **variables)
    polled = run("poll", "--config.file", path, EXPAND, "--output", "json", stdout=subprocess.PIPE, **variables)

    assert schedule_cells(checked)[3] == "2.5"
    assert schedule_cells(checked)[-1] == f"http://127.0.0.1:{port}"
    assert (checked.stderr, checked.returncode) == ("", 0)
    assert [(space["account"], space["error"]["reason"]) for space in json.loads(polled.stdout)] == [
        ("acme", "transport")
    ]
    assert "marked" not in polled.stdout + polled.stderr


@pytest.mark.parametrize("command", [["serve"], [], ["check"], ["poll"]], ids=["serve", "no command", "check", "poll"])
def test_without_a_file_and_an_access_key_the_error_shows_the_next_steps(command: Sequence[str]) -> None:
    done = run(*command)

    assert done.stderr == (
        "environment: set the environment variable ALIBABA_CLOUD_ACCESS_KEY_ID\n"
        "environment: set the environment variable ALIBABA_CLOUD_ACCESS_KEY_SECRET\n"
        "2 problems found, nothing was started; fix them and run the command again\n"
        "\n"
        "To poll the account's own phone numbers, set the access key of a RAM user:\n"
        "  export ALIBABA_CLOUD_ACCESS_KEY_ID=LTAI... ALIBABA_CLOUD_ACCESS_KEY_SECRET=...\n"
        "To poll customer spaces, use a configuration file:  chatapp-exporter --config.file exporter.yml\n"
        "To try the exporter without an account:             chatapp-exporter demo\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)


def test_the_schema_contains_every_configuration_key() -> None:
    done = run("schema")

    schema = json.loads(done.stdout)
    assert schema["properties"].keys() == Settings.model_fields.keys()
    assert schema["$defs"]["CamsAccount"]["properties"].keys() == CamsAccount.model_fields.keys()
    assert schema["$defs"]["CamsSpace"]["properties"].keys() == {field.name for field in fields(CamsSpace)}
    assert (done.stderr, done.returncode) == ("", 0)


def test_the_version_flag_prints_the_version_of_the_package() -> None:
    done = run("--version")

    assert (done.stdout, done.stderr, done.returncode) == (f"chatapp-exporter, version {__version__}\n", "", 0)


def test_help_lists_all_commands_in_order_and_with_complete_descriptions() -> None:
    done = run("--help", COLUMNS="80")

    listed = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].split("\n\n")[0].splitlines()]
    assert listed == COMMANDS
    assert "..." not in done.stdout.replace("[ARGS]...", "")  # the descriptions of the commands are not truncated
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_ends_with_examples_of_the_command(command: str) -> None:
    done = run(*command.split(), "--help", COLUMNS="80")

    text, _, examples = done.stdout.partition("  Examples:\n")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert text.startswith("Usage: ")
    assert f"chatapp-exporter {command.replace('serve', '--config.file')}" in examples
    assert done.returncode == 0


def test_help_of_poll_describes_all_phone_number_states() -> None:
    done = run("poll", "--help", COLUMNS="80")

    descriptions = dict(re.findall(r"^    (\w+) {2,}(.+)$", done.stdout.partition("\n\n  Exit")[0], re.MULTILINE))
    assert list(descriptions) == list(PHONE_NUMBER_STATES)
    assert set(re.findall(r"[A-Z_]{2,}", descriptions["down"])) == DOWN_STATUSES
    assert set(re.findall(r"[A-Z_]{2,}", descriptions["restricted"])) == RESTRICTED_STATUSES
    assert f"--fail-on [{'|'.join(PHONE_NUMBER_STATES[:-1])}|never]" in done.stdout


@pytest.mark.parametrize("command", [["schema"], ["check", "--config.file"]], ids=lambda command: command[0])
def test_a_closed_pipe_on_standard_output_is_not_an_error(config: Path, command: Sequence[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    done = run(*command, *([config] if len(command) > 1 else []), stdout=writer)

    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("command", [["schema"], ["check", "--config.file"]], ids=lambda command: command[0])
def test_a_full_disk_is_reported_in_one_line(config: Path, command: Sequence[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(*command, *([config] if len(command) > 1 else []), stdout=full.fileno())

    assert done.stderr == "error: cannot write to standard output: No space left on device; redirect the output\n"
    assert done.returncode == 1


def test_the_error_for_an_unknown_command_contains_its_name() -> None:
    done = run("chekc")

    assert "No such command 'chekc'" in done.stderr
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.mark.parametrize("command", [["serve"], [], ["check"], ["poll"], ["demo"], ["simulate"]])
def test_the_error_for_an_unknown_flag_contains_its_name(command: Sequence[str]) -> None:
    done = run(*command, "--nope")

    assert "--nope" in done.stderr
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("serve --shard 1/1 --config.file a --shard 1/1", "--shard"),
        ("--config.file a --config.file b", "--config.file"),
        ("--web.enable-lifecycle --web.enable-lifecycle", "--web.enable-lifecycle"),
        ("demo --log.level info --log.level=info", "--log.level"),
        ("poll --output json --output table", "--output"),
        ("simulate --scenario a --scenario a", "--scenario"),
    ],
)
def test_the_error_for_a_repeated_flag_contains_its_name(command: str, flag: str) -> None:
    done = run(*command.split())

    assert done.stderr.splitlines()[-1] == f"Error: Option '{flag}' is given 2 times."
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.mark.parametrize("command", ["", "poll"])
def test_the_short_help_flag_prints_the_same_help(command: str) -> None:
    short, long = run(*command.split(), "-h"), run(*command.split(), "--help")

    assert (short.stdout, short.stderr, short.returncode) == (long.stdout, "", 0)
    assert "-h, --help" in short.stdout


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_an_invalid_scenario_is_an_error_and_nothing_is_started(tmp_path: Path, command: str) -> None:
    path = tmp_path / "scenario.yml"
    path.write_text(
        f"accounts:\n  - {{name: acme, {KEY}, spaces: many}}\n"
        "events:\n  - {account: acme, answer: X}\n  - {at: 0s, account: acme, answer: X, remove: true}\n"
    )

    done = run(command, "--scenario", path)

    assert done.stderr == (
        f"{path}:2: accounts[0].spaces: expected an integer from 1 to 20000, found text (not shown)\n"
        f"{path}:4: events[0].at: required key is missing\n"
        f"{path}:5: events[1]: expected one of answer (of an account or space), remove (one or all numbers of a space),"
        " set (of a number) or move_to (of a number), found a mapping\n"
        "3 problems found, nothing was started; fix them and run the command again\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_an_event_for_an_unknown_account_is_an_error_and_nothing_is_started(tmp_path: Path, command: str) -> None:
    path = tmp_path / "scenario.yml"
    path.write_text(
        f"accounts:\n  - {{name: acme, {KEY}, spaces: 2}}\nevents:\n  - {{at: 0s, account: b, answer: X}}\n"
    )

    done = run(command, "--scenario", path)

    assert done.stderr == (
        f"{path}:4: events[0].account: expected one of acme, found b\n"
        "1 problem found, nothing was started; fix it and run the command again\n"
    )
    assert (done.stdout, done.returncode) == ("", 2)


def test_the_error_for_a_listen_address_in_use_contains_the_address(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts: [{{name: acme, {KEY}, endpoint: 'http://127.0.0.1:1'}}]")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        done = run("serve", "--config.file", path, "--web.listen-address", address)

    assert done.stderr == (
        f"error: cannot listen on {address}: Address already in use; choose another address with --web.listen-address\n"
    )
    assert (done.stdout, done.returncode) == ("", 1)


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_an_invalid_listen_address_is_a_command_line_error(command: str) -> None:
    done = run(command, "--web.listen-address", "localhost")

    message = "Invalid value for '--web.listen-address': expected an address such as :10144 or 127.0.0.1:10144, found"
    assert f"{message} 'localhost'\n" in done.stderr
    assert (done.stdout, done.returncode) == ("", 2)


def test_check_warns_about_a_state_file_whose_directory_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts: [{{name: acme, {KEY}}}]\nstate_file: missing/state.db\n")

    done = run("check", "--config.file", path)

    assert done.stderr == (
        f"warning: state_file: directory {tmp_path}/missing does not exist, so values are not saved;"
        " create the directory\n"
    )
    assert done.returncode == 0


def test_poll_reports_a_failed_space_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path.write_text(f"accounts: [{{name: acme, {KEY}, endpoint: 'http://127.0.0.1:{port}'}}]")

    done = run("poll", "--config.file", path, "--output", "json")

    assert [(space["account"], space["space"], space["error"]["reason"]) for space in json.loads(done.stdout)] == [
        ("acme", "own", "transport")
    ]
    assert done.returncode == 1


@pytest.mark.parametrize("output", ["table", "json"])
def test_poll_reports_an_account_with_failed_space_discovery_and_the_reason(tmp_path: Path, output: str) -> None:
    path = tmp_path / "config.yml"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path.write_text(f"accounts: [{{name: acme, {KEY}, endpoint: 'http://127.0.0.1:{port}', discover: true}}]")

    done = run("poll", "--config.file", path, "--output", output)

    if output == "json":
        (entry,) = json.loads(done.stdout)
        assert entry["account"] == "acme"
        assert (entry["account_state"], entry["space"], entry["error"]["reason"]) == ("unreachable", None, "transport")
    else:
        assert done.stderr.startswith("error: acme: unreachable, space discovery failed: transport: ")
        assert len(done.stderr.splitlines()) == 2
        assert done.stdout.endswith("; spaces: 0 (0 failed); accounts with failed space discovery: 1\n")
    assert done.returncode == 1
