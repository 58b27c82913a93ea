"""What the configuration says of `credentials: default`."""

from pathlib import Path

import pytest
from configured import load

from exporter.config.problems import ConfigError
from exporter.sources.cams.settings import CamsAccount


def test_it_needs_no_key(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("accounts: [{name: acme, credentials: default}]")

    (account,) = load(file, {}).accounts
    assert isinstance(account, CamsAccount)
    assert account.credentials == "default"


def test_it_stands_for_a_key_and_not_beside_one(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("accounts: [{name: acme, credentials: default, access_key_id: x}]")

    with pytest.raises(ConfigError, match="expected either credentials or an access key, found both"):
        load(file, {})


def test_another_word_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("accounts: [{name: acme, credentials: ecs}]")

    with pytest.raises(ConfigError) as refused:
        load(file, {})

    # without the word, for a person may put a key there
    assert str(refused.value) == f"{file}:1: accounts[0].credentials: expected 'default', found text (not shown)"
