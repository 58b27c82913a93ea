"""Runs every command of the documents in a copy of the checkout, in the order of each page.

Commands are the lines of ```sh blocks. `INSTEAD` lists the commands that cannot run here, each with its replacement and
the reason. The test of a page fails if one of its commands fails and is not listed.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from processes import free_port, program, running, serving_probe, wait_until
from programs import require_program

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SERVE = r"chatapp-exporter(?: serve)?"
INSTEAD: dict[str, tuple[str, str]] = {
    # pattern of a command: its replacement ("" to skip the command), and the reason
    r"git clone \S+": ("", "requires the network; the copy of the checkout replaces the clone"),
    r"cd chatapp-exporter": ("", "all commands run in the copy"),
    r"python3 -m venv env": ("", "slow; .ci/run creates a new environment and installs the wheel from the lock file"),
    r"\. env/bin/activate": ("", "the environment of this test is already active"),
    r"python3 -m venv /opt/chatapp-exporter": ("", "slow; see above"),
    r"(?:install|printf) .* >?/etc/\S+": (
        "",
        "changes system directories; tests/installation/test_systemd.py checks the unit",
    ),
    r"(?:/opt/chatapp-exporter/bin/)?pip install .*": (
        "",
        "slow and requires the network; .ci/run installs from the same lock file",
    ),
    r"export (ALIBABA_CLOUD_\w+)=\.\.\.": (r"export \1=example", "requires a real access key"),
    r"make test": (
        "make test PYTEST_ARGS='--collect-only -q tests/unit/test_addresses.py'",
        "would run this test",
    ),
    rf"({SERVE}|chatapp-exporter poll)(?: --config.file exporter.yml)?( --(?:shard=|output |fail-on )\S+)?": (
        r"\1 --config.file simulated.yml\2",
        "requires a real access key; the simulated API is polled",
    ),
    r"docker build .*": ("hadolint Dockerfile", "requires Docker; .ci/run builds the image"),
    r"docker run .* chatapp-exporter (demo)": (
        r"chatapp-exporter \1",
        "requires Docker; .ci/run runs the image",
    ),
    r"docker run -d .* chatapp-exporter --config.file \S+": ("", "requires Docker; .ci/run runs the image"),
    r"docker volume create \S+": ("", "requires Docker"),
    r"docker compose --file (\S+) .*": (r"check-jsonschema --builtin-schema vendor.compose-spec \1", "requires Docker"),
    r"kubectl apply -k (\S+)(?: --namespace monitoring)?": (r"kubectl kustomize \1", "requires a cluster"),
    r"(kubectl create secret generic \S+) .*": (
        r"\1 --from-file=access_key_id=LICENSE --dry-run=client --output=yaml",
        "requires a cluster and an access key",
    ),
    r"(?:sudo )?systemctl .*": ("", "requires a running systemd; tests/installation/test_systemd.py checks the unit"),
}
SERVING = re.compile(rf"make demo|{SERVE}(?: --(?!version).*)?|chatapp-exporter (?:demo|simulate)(?: .*)?")
PACKAGES = {
    "amtool": "prometheus-alertmanager",
    "curl": "curl",
    "kubectl": "kubernetes-client",
    "promtool": "prometheus",
    "sqlite3": "sqlite3",
    "systemd-analyze": "systemd",
}
SCENARIO = "accounts: [{name: acme, access_key_id: LTAIexample, access_key_secret: example-secret, spaces: 3}]\n"


def commands(page: str) -> list[str]:
    """Return the commands in the `sh` blocks of a page, without comments."""
    lines = [line for block in BLOCK.findall(page) for line in block.replace("\\\n", " ").splitlines()]
    without_comments = [re.sub(r"(^|\s+)# .*$", "", line).strip() for line in lines]
    return [re.sub(r"\s+", " ", line) for line in without_comments if line]


def replace_command(command: str) -> str:
    """Return the replacement in `INSTEAD`, or the command itself."""
    for pattern, (replacement, _) in INSTEAD.items():
        if match := re.fullmatch(pattern, command):
            return match.expand(replacement)
    return command


@dataclass(slots=True)
class Shell:
    """Runs the commands of a page. Exported variables apply to the commands after them."""

    directory: Path
    port: int
    environ: dict[str, str]

    def run(self, command: str) -> None:
        command = replace_command(command).replace("localhost:10144", f"127.0.0.1:{self.port}")
        if not command:
            return
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environ[name] = value
        elif SERVING.fullmatch(command):
            self._serve(command)
        else:
            self._run(command)

    def _run(self, command: str) -> None:
        program = shlex.split(command)[0]
        if program in PACKAGES:
            require_program(program, package=PACKAGES[program])
        result = self._bash(command)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"

    def _serve(self, command: str) -> None:
        """Run the command until it responds, on a free port because the default port may be in use."""
        if command.startswith("make "):  # run only the last command of the target, without the installation
            dry_run = command.replace("make", "make --no-print-directory --dry-run", 1)
            command = self._bash(dry_run).stdout.splitlines()[-1]
        port, log = free_port(), self.directory / "served.log"
        with_address = f"{command} --web.listen-address 127.0.0.1:{port}".removeprefix("exec ")
        with running("bash", "-c", f"cd {self.directory} && exec {with_address}", log=log, **self.environ) as process:
            responds = serving_probe(f"http://127.0.0.1:{port}/-/healthy")
            wait_until(lambda: process.poll() is not None or responds(), command)
            assert process.poll() is None, f"{command}\n{log.read_text()}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0, f"{command}\n{log.read_text()}"

    def _bash(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ("bash", "-c", command), cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=60
        )


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell in a copy of the checkout with the installed programs, and an exporter that polls the simulated API."""
    directory = tmp_path_factory.mktemp("documents") / "chatapp-exporter"
    ignored = shutil.ignore_patterns(".git", ".venv", "env", ".*_cache", "__pycache__", "*.db*")
    shutil.copytree(ROOT, directory, ignore=ignored)
    programs = directory / ".venv" / "bin"
    programs.mkdir(parents=True)
    _script(programs / "python", sys.executable)
    _script(programs / "chatapp-exporter", sys.executable, "-m", "exporter")
    for make_target in ("created", "runtime", "dev"):
        (directory / ".venv" / make_target).touch()
    shutil.copy(directory / "config" / "exporter.example.yml", directory / "exporter.yml")  # as in the README
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    key = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "example", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example"}
    environ = {**os.environ, **key, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with _exporter(directory) as port:
        yield Shell(directory, port, environ)


def _script(path: Path, *command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


@contextmanager
def _exporter(directory: Path) -> Iterator[int]:
    """Start an exporter that polls the simulated API, and yield its port. The commands of pages use simulated.yml."""
    api, port, log = f"127.0.0.1:{free_port()}", free_port(), directory / "simulated.yml"
    (directory / "scenario.yml").write_text(SCENARIO)
    with program(
        "simulate", "--scenario", str(directory / "scenario.yml"), "--web.listen-address", api, log=log
    ) as process:
        wait_until(
            lambda: process.poll() is not None or "spaces" in log.read_text(), "simulate prints its configuration"
        )
        config = directory / "with-state.yml"
        config.write_text(f"{log.read_text()}\nstate_file: state.db\n")
        flags = ("--config.file", str(config), "--web.listen-address", f"127.0.0.1:{port}", "--web.enable-lifecycle")
        with program("serve", *flags, log=directory / "serve.log"):
            wait_until(serving_probe(f"http://127.0.0.1:{port}/-/ready"), "the exporter is ready")
            yield port


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_succeeds(page: Path, shell: Shell) -> None:
    shell = replace(shell, environ=dict(shell.environ))
    for command in commands(page.read_text("utf-8")):
        shell.run(command)


@pytest.mark.parametrize(
    "command", ["chatapp-exporter chekc", "chatapp-exporter --nope", "make dmeo", "cp config/missing.yml copy.yml"]
)
def test_a_command_that_does_not_exist_fails(command: str, shell: Shell) -> None:
    with pytest.raises(AssertionError, match=command):
        shell.run(command)
