"""Every command of the documents, run for real in a copy of the checkout, in the order in which a reader meets them.

Commands are what stands in blocks of ```sh. What cannot run here is named in `INSTEAD`, with what stands in for it and
why; a command that can neither run nor is named there turns its page red.
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
from processes import free_port, is_serving, program, running, wait_until
from programs import require_program

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SERVE = r"chatapp-exporter(?: serve)?"
INSTEAD: dict[str, tuple[str, str]] = {
    # the command as a pattern: what is run instead ("" for nothing), and why
    r"git clone \S+": ("", "the network; the copy of the checkout is the clone"),
    r"cd chatapp-exporter": ("", "the copy is where all commands run"),
    r"python3 -m venv env": ("", "slow; .ci/run makes a fresh environment and installs the wheel from the lock"),
    r"\. env/bin/activate": ("", "this test's own environment is the active one"),
    r"python3 -m venv /opt/chatapp-exporter": ("", "as above"),
    r"(?:install|printf) .* >?/etc/\S+": (
        "",
        "this machine's own directories; the test of the unit runs what it names",
    ),
    r"(?:/opt/chatapp-exporter/bin/)?pip install .*": (
        "",
        "slow and from the network; .ci/run installs from the same lock",
    ),
    r"export (ALIBABA_CLOUD_\w+)=\.\.\.": (r"export \1=made-up", "a real access key"),
    r"make test": ("make test PYTEST_ARGS='--collect-only -q tests/unit/test_addresses.py'", "these are the tests"),
    rf"({SERVE}|chatapp-exporter poll)(?: --config.file exporter.yml)?( --(?:shard=|output |fail-on )\S+)?": (
        r"\1 --config.file simulated.yml\2",
        "a real access key; the simulated API is polled",
    ),
    r"docker build .*": ("hadolint Dockerfile", "no Docker; .ci/run builds the image in its own way"),
    r"docker run .* chatapp-exporter (demo)": (r"chatapp-exporter \1", "no Docker; .ci/run runs the image"),
    r"docker run -d .* chatapp-exporter --config.file \S+": ("", "no Docker; .ci/run runs the image"),
    r"docker volume create \S+": ("", "no Docker"),
    r"docker compose --file (\S+) .*": (r"check-jsonschema --builtin-schema vendor.compose-spec \1", "no Docker"),
    r"kubectl apply -k (\S+)(?: --namespace monitoring)?": (r"kubectl kustomize \1", "no cluster"),
    r"(kubectl create secret generic \S+) .*": (
        r"\1 --from-file=access_key_id=LICENSE --dry-run=client --output=yaml",
        "no cluster, and no key",
    ),
    r"(?:sudo )?systemctl .*": ("", "no systemd here; tests/installation/test_systemd.py verifies the unit"),
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
    """Those of its blocks, without comments."""
    lines = [line for block in BLOCK.findall(page) for line in block.replace("\\\n", " ").splitlines()]
    without = [re.sub(r"(^|\s+)# .*$", "", line).strip() for line in lines]
    return [re.sub(r"\s+", " ", line) for line in without if line]


def stand_in(command: str) -> str:
    """What is run for a command: itself, where nothing stands in for it."""
    for pattern, (instead, _) in INSTEAD.items():
        if found := re.fullmatch(pattern, command):
            return found.expand(instead)
    return command


@dataclass(slots=True)
class Reader:
    """Someone who types what a page says into one shell."""

    directory: Path
    port: int
    environ: dict[str, str]

    def type(self, command: str) -> None:
        command = stand_in(command).replace("localhost:10144", f"127.0.0.1:{self.port}")
        if not command:
            return
        if command.startswith("export "):
            name, _, text = command.removeprefix("export ").partition("=")
            self.environ[name] = text
        elif SERVING.fullmatch(command):
            self._serve(command)
        else:
            self._run(command)

    def _run(self, command: str) -> None:
        program = shlex.split(command)[0]
        if program in PACKAGES:
            require_program(program, package=PACKAGES[program])
        done = self._bash(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def _serve(self, command: str) -> None:
        """Until it answers, at an address of its own, for the port may be taken."""
        if command.startswith("make "):  # what it runs once it has installed
            dry_run = command.replace("make", "make --no-print-directory --dry-run", 1)
            command = self._bash(dry_run).stdout.splitlines()[-1]
        port, log = free_port(), self.directory / "served.log"
        listening = f"{command} --web.listen-address 127.0.0.1:{port}".removeprefix("exec ")
        with running("bash", "-c", f"cd {self.directory} && exec {listening}", log=log, **self.environ) as process:
            answering = is_serving(f"http://127.0.0.1:{port}/-/healthy")
            wait_until(lambda: process.poll() is not None or answering(), command)
            assert process.poll() is None, f"{command}\n{log.read_text()}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0, f"{command}\n{log.read_text()}"

    def _bash(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ("bash", "-c", command), cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=60
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One in a copy of the checkout, who has what make installs, and an exporter that polls the simulated API."""
    directory = tmp_path_factory.mktemp("documents") / "chatapp-exporter"
    away = shutil.ignore_patterns(".git", ".venv", "env", ".*_cache", "__pycache__", "*.db*")
    shutil.copytree(ROOT, directory, ignore=away)
    programs = directory / ".venv" / "bin"
    programs.mkdir(parents=True)
    _script(programs / "python", sys.executable)
    _script(programs / "chatapp-exporter", sys.executable, "-m", "exporter")
    for made in ("created", "runtime", "dev"):
        (directory / ".venv" / made).touch()
    shutil.copy(directory / "config" / "exporter.example.yml", directory / "exporter.yml")  # as the README has it
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    key = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "made-up", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "made-up"}
    environ = {**os.environ, **key, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with _exporter(directory) as port:
        yield Reader(directory, port, environ)


def _script(path: Path, *command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


@contextmanager
def _exporter(directory: Path) -> Iterator[int]:
    """The port of one that polls the simulated API; simulated.yml is for others that are to poll it."""
    api, port, log = f"127.0.0.1:{free_port()}", free_port(), directory / "simulated.yml"
    (directory / "scenario.yml").write_text(SCENARIO)
    with program(
        "simulate", "--scenario", str(directory / "scenario.yml"), "--web.listen-address", api, log=log
    ) as process:
        wait_until(
            lambda: process.poll() is not None or "spaces" in log.read_text(), "the simulated API says how to poll it"
        )
        config = directory / "beside.yml"
        config.write_text(f"{log.read_text()}\nstate_file: state.db\n")
        flags = ("--config.file", str(config), "--web.listen-address", f"127.0.0.1:{port}", "--web.enable-lifecycle")
        with program("serve", *flags, log=directory / "serve.log"):
            wait_until(is_serving(f"http://127.0.0.1:{port}/-/ready"), "the exporter is ready")
            yield port


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_does_what_it_says(page: Path, reader: Reader) -> None:
    reader = replace(reader, environ=dict(reader.environ))
    for command in commands(page.read_text("utf-8")):
        reader.type(command)


@pytest.mark.parametrize(
    "command", ["chatapp-exporter chekc", "chatapp-exporter --nope", "make dmeo", "cp config/nothing.yml here.yml"]
)
def test_a_command_that_does_not_exist_would_be_found(command: str, reader: Reader) -> None:
    with pytest.raises(AssertionError, match=command):
        reader.type(command)
