"""The systemd unit and the configuration that stands beside it."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from programs import require_program

from exporter import sources
from exporter.cli import main
from exporter.sources.cams.settings import CamsAccount

FOLDER = Path(__file__).parents[2] / "config" / "systemd"
UNIT = FOLDER / "chatapp-exporter.service"
CONFIG = FOLDER / "exporter.yml"
MOST_EXPOSURE = 12
"""Of 100. What is left is the host's network, which the exporter is there for, and its own root directory."""


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)


def analyzed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    analyze = require_program("systemd-analyze", package="systemd")
    return subprocess.run([analyze, *arguments], capture_output=True, text=True)


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    there = tmp_path / UNIT.name  # with a program that there is on any machine
    there.write_text(UNIT.read_text("utf-8").replace("/opt/chatapp-exporter/bin/chatapp-exporter", sys.executable))

    verified = analyzed("verify", "--man=no", there)

    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_may_do_little() -> None:
    judged = analyzed("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", "--no-pager", UNIT)

    assert judged.returncode == 0, judged.stdout


def test_the_unit_starts_the_exporter_with_the_configuration() -> None:
    (command,) = values("ExecStart")
    program, *arguments = command.split()

    assert program == "/opt/chatapp-exporter/bin/chatapp-exporter"
    assert main.commands["serve"].make_context("serve", arguments).params["config_file"] == Path(
        "/etc/chatapp-exporter/exporter.yml"
    )


def test_a_reload_is_the_signal_that_reloads() -> None:
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_the_configuration_names_the_credentials_and_the_state_of_the_unit() -> None:
    settings = sources.Settings.model_validate(yaml.safe_load(CONFIG.read_text("utf-8")))
    (account,) = settings.accounts
    assert isinstance(account, CamsAccount)
    credentials = f"/run/credentials/{UNIT.name}"

    assert values("LoadCredential") == [
        "access_key_id:/etc/chatapp-exporter/access_key_id",
        "access_key_secret:/etc/chatapp-exporter/access_key_secret",
    ]
    assert account.access_key_id_file == f"{credentials}/access_key_id"
    assert account.access_key_secret_file == f"{credentials}/access_key_secret"
    assert values("StateDirectory") == ["chatapp-exporter"]
    assert settings.state_file == "/var/lib/chatapp-exporter/state.db"
