"""The systemd unit and its configuration file."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from programs import require_program

from exporter import sources
from exporter.cli import main
from exporter.sources.cams.settings import CamsAccount

DIRECTORY = Path(__file__).parents[2] / "config" / "systemd"
UNIT = DIRECTORY / "chatapp-exporter.service"
CONFIG = DIRECTORY / "exporter.yml"
MAX_EXPOSURE = 12
"""Exposure level of `systemd-analyze security`, in tenths. The exporter needs the host's network and root directory."""


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    analyze = require_program("systemd-analyze", package="systemd")
    return subprocess.run([analyze, *arguments], capture_output=True, text=True)


def test_systemd_analyze_verify_reports_no_problems(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name  # with a program that exists on this machine
    unit.write_text(UNIT.read_text("utf-8").replace("/opt/chatapp-exporter/bin/chatapp-exporter", sys.executable))

    result = systemd_analyze("verify", "--man=no", unit)

    assert (result.returncode, result.stderr) == (0, "")


def test_the_exposure_level_of_the_unit_is_within_the_limit() -> None:
    result = systemd_analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", UNIT)

    assert result.returncode == 0, result.stdout


def test_the_unit_starts_the_exporter_with_the_configuration_file() -> None:
    (command,) = values("ExecStart")
    program, *arguments = command.split()

    assert program == "/opt/chatapp-exporter/bin/chatapp-exporter"
    assert main.commands["serve"].make_context("serve", arguments).params["config_file"] == Path(
        "/etc/chatapp-exporter/exporter.yml"
    )


def test_a_reload_of_the_unit_sends_sighup() -> None:
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_the_configuration_uses_the_credentials_and_the_state_directory_of_the_unit() -> None:
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
