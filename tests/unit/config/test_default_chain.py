"""The configuration key `credentials: default`."""

from pathlib import Path

import pytest
from configured import load

from exporter.config.problems import ConfigError
from exporter.sources.cams.settings import CamsAccount


def test_credentials_default_needs_no_access_key(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("accounts: [{name: acme, credentials: default}]")

    (account,) = load(file, {}).accounts
    assert isinstance(account, CamsAccount)
    assert account.credentials == "default"


def test_credentials_default_together_with_an_access_key_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("accounts: [{name: acme, credentials: default, access_key_id: x}]")

    with pytest.raises(ConfigError, match="expected either credentials or an access key, found both"):
        load(file, {})


def test_any_other_value_of_credentials_is_an_error_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("accounts: [{name: acme, credentials: ecs}]")

    with pytest.raises(ConfigError) as raised:
        load(file, {})

    # the value is not shown, because it can be an access key
    assert str(raised.value) == f"{file}:1: accounts[0].credentials: expected 'default', found text (not shown)"
