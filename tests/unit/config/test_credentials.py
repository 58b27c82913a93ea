"""Where a credential comes from, and what happens while its file changes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from virtual_time import run

from exporter.source import DeniedError, SourceError
from exporter.sources.cams.settings import CamsAccount
from exporter.sources.cams.signing import Credentials

ENVIRON = {
    "ALIBABA_CLOUD_ACCESS_KEY_ID": "id-of-environment",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "secret-of-environment",
    "ALIBABA_CLOUD_SECURITY_TOKEN": "token-of-environment",
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("first\n")
    return path


@pytest.fixture
def read(secret: Path) -> Callable[[], str]:
    account = CamsAccount(name="acme", access_key_id="LTAIexample", access_key_secret_file=str(secret))
    key = account.access_key({})
    return lambda: run(key.current()).access_key_secret


def test_the_environment_gives_what_the_file_leaves_out() -> None:
    key = CamsAccount(name="acme").access_key(ENVIRON)

    assert key.read() == Credentials("id-of-environment", "secret-of-environment", "token-of-environment")


def test_the_file_goes_before_the_environment(secret: Path) -> None:
    account = CamsAccount(name="acme", access_key_id="LTAIexample", access_key_secret_file=str(secret))

    credentials = account.access_key(ENVIRON).read()

    assert (credentials.access_key_id, credentials.access_key_secret) == ("LTAIexample", "first")


def test_a_key_without_a_token_has_none() -> None:
    environ = {name: text for name, text in ENVIRON.items() if "TOKEN" not in name}

    assert CamsAccount(name="acme").access_key(environ).read().security_token == ""


def test_a_secret_file_is_read_again_when_it_changes(secret: Path, read: Callable[[], str]) -> None:
    assert read() == "first"

    secret.write_text("the second\n")

    assert read() == "the second"


def test_a_secret_of_the_same_length_is_seen_when_its_file_is_replaced(secret: Path, read: Callable[[], str]) -> None:
    assert read() == "first"

    renewed = secret.with_name("renewed")
    renewed.write_text("newer\n")
    os.utime(renewed, ns=(0, secret.stat().st_mtime_ns))
    renewed.rename(secret)

    assert read() == "newer"


def test_a_secret_behind_a_link_that_moves_is_seen(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "secret").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("one")
    account = CamsAccount(name="acme", access_key_id="x", access_key_secret_file=str(link / "secret"))
    key = account.access_key({})
    assert key.read().access_key_secret == "one"

    link.unlink()
    link.symlink_to("two")

    assert key.read().access_key_secret == "two"


def test_a_secret_file_that_disappears_keeps_its_last_value_and_is_logged_once(
    secret: Path, read: Callable[[], str]
) -> None:
    assert read() == "first"

    secret.unlink()
    with capture_logs() as logs:
        assert [read(), read(), read()] == ["first", "first", "first"]

    assert logs == [
        {
            "event": "access key not readable, using the last one",
            "log_level": "error",
            "account": "acme",
            "key": "access_key_secret_file",
            "problem": "expected a secret in this file, found No such file or directory",
        }
    ]


def test_a_secret_file_that_disappears_before_it_was_read_denies_the_account_and_counts_as_no_change(
    secret: Path,
) -> None:
    key = CamsAccount(name="acme", access_key_id="x", access_key_secret_file=str(secret)).access_key({})
    secret.unlink()

    with pytest.raises(DeniedError) as denied:
        run(key.current())

    missing = "expected a secret in this file, found No such file or directory"
    assert str(denied.value) == f"credentials: access_key_secret_file: {missing}"
    assert not key.changed()


def test_a_secret_file_that_changes_after_a_request_is_a_change(secret: Path) -> None:
    key = CamsAccount(name="acme", access_key_id="x", access_key_secret_file=str(secret)).access_key({})
    assert not key.changed()

    run(key.current())
    assert not key.changed()
    secret.write_text("the second\n")

    assert key.changed()


def test_a_secret_file_that_comes_back_is_read(secret: Path, read: Callable[[], str]) -> None:
    assert read() == "first"
    secret.unlink()
    assert read() == "first"

    secret.write_text("back again")

    with capture_logs() as logs:
        assert [read(), read()] == ["back again", "back again"]
    assert logs == [{"event": "access key readable again", "log_level": "info", "account": "acme"}]


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "tab\tinside", "sécret", "nul\0"])
def test_a_secret_file_that_turns_unusable_keeps_its_last_value(
    secret: Path, read: Callable[[], str], text: str
) -> None:
    assert read() == "first"

    secret.write_text(text, encoding="utf-8")

    assert read() == "first"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "nothing"),
        (b"two\nlines", "characters other than printable ASCII"),
        (b"\x1b[31mred", "characters other than printable ASCII"),
        ("sécret".encode(), "characters other than printable ASCII"),
        (b"\xff\xfe", "bytes that are not UTF-8"),
    ],
)
def test_a_secret_file_that_was_never_usable_is_refused(secret: Path, content: bytes, found: str) -> None:
    secret.write_bytes(content)
    key = CamsAccount(name="acme", access_key_id="x", access_key_secret_file=str(secret)).access_key({})

    with pytest.raises(SourceError) as refused:
        key.read()

    assert refused.value.key == "access_key_secret_file"
    assert str(refused.value) == f"expected a secret in this file, found {found}"


def test_every_part_that_is_wrong_is_reported() -> None:
    account = CamsAccount(
        name="acme", access_key_id="x\ty", access_key_id_file="x", security_token_file="/nowhere/token"
    )

    problems = [(problem.key, str(problem)) for problem in account.access_key({}).problems()]

    assert problems == [
        ("access_key_id", "expected either access_key_id or access_key_id_file, found both"),
        (
            "access_key_secret",
            "expected access_key_secret, access_key_secret_file or the variable ALIBABA_CLOUD_ACCESS_KEY_SECRET,"
            " found none of them",
        ),
        (
            "security_token_file",
            "expected a secret in this file, found No such file or directory",
        ),
    ]
