"""Access keys: their sources, changes of their files, and values that cannot be used."""

import os
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from virtual_time import run

from exporter.source import DeniedError, SourceError
from exporter.sources.cams.settings import CamsAccount
from exporter.sources.cams.signing import Credentials

ENVIRON = {
    "ALIBABA_CLOUD_ACCESS_KEY_ID": "id-from-environment",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "secret-from-environment",
    "ALIBABA_CLOUD_SECURITY_TOKEN": "token-from-environment",
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("first\n")
    return path


@pytest.fixture
def read_secret(secret: Path) -> Callable[[], str]:
    account = CamsAccount(name="acme", access_key_id="LTAIexample", access_key_secret_file=str(secret))
    key = account.access_key({})
    return lambda: run(key.current()).access_key_secret


ID_PARTS, SECRET_PARTS = ("access_key_id", "access_key_id_file"), ("access_key_secret", "access_key_secret_file")
PARTS_OF_KEY = (*ID_PARTS, *SECRET_PARTS, "security_token_file")
PART_COMBINATIONS = [parts for count in range(1, len(PARTS_OF_KEY) + 1) for parts in combinations(PARTS_OF_KEY, count)]


def account_with(parts: Sequence[str], file: Path) -> CamsAccount:
    """Return an account that sets these parts of a key, with this file."""
    values = {part: str(file) if part.endswith("_file") else f"literal-{part}" for part in parts}
    return CamsAccount.model_validate({"name": "acme", **values})


def test_an_account_without_a_key_uses_the_environment_variables() -> None:
    key = CamsAccount(name="acme").access_key(ENVIRON)

    assert key.read() == Credentials("id-from-environment", "secret-from-environment", "token-from-environment")


@pytest.mark.parametrize("parts", PART_COMBINATIONS, ids=" ".join)
@pytest.mark.parametrize("environ", [ENVIRON, {}], ids=["with variables", "without variables"])
def test_an_account_that_sets_a_part_of_a_key_ignores_the_environment_variables(
    secret: Path, parts: Sequence[str], environ: Mapping[str, str]
) -> None:
    key = account_with(parts, secret).access_key(environ)

    invalid = {problem.key for problem in key.problems()}

    assert invalid == {names[0] for names in (ID_PARTS, SECRET_PARTS) if len(set(names) & set(parts)) != 1}
    if not invalid:
        key_id, secret_text = (
            "first" if {*names} & {*parts} == {names[1]} else f"literal-{names[0]}"
            for names in (ID_PARTS, SECRET_PARTS)
        )
        token = "first" if "security_token_file" in parts else ""
        assert key.read() == Credentials(key_id, secret_text, token)


@pytest.mark.parametrize(
    ("parts", "problems"),
    [
        (["access_key_id"], ["expected access_key_secret or access_key_secret_file, found only access_key_id"]),
        (
            ["access_key_secret_file"],
            ["expected access_key_id or access_key_id_file, found only access_key_secret_file"],
        ),
        (
            ["security_token_file"],
            [
                "expected access_key_id or access_key_id_file, found only security_token_file",
                "expected access_key_secret or access_key_secret_file, found only security_token_file",
            ],
        ),
        (
            ["access_key_id_file", "security_token_file"],
            [
                "expected access_key_secret or access_key_secret_file, found only access_key_id_file,"
                " security_token_file"
            ],
        ),
    ],
)
def test_the_error_for_an_incomplete_key_names_the_missing_and_the_found_keys(
    secret: Path, parts: Sequence[str], problems: list[str]
) -> None:
    found = [str(problem) for problem in account_with(parts, secret).access_key(ENVIRON).problems()]

    assert found == [
        f"{problem}; environment variables are used only if the account sets none of these keys" for problem in problems
    ]


@pytest.mark.parametrize(
    ("variables", "problems"),
    [
        (
            ["ID"],
            ["set the environment variable ALIBABA_CLOUD_ACCESS_KEY_SECRET, found only ALIBABA_CLOUD_ACCESS_KEY_ID"],
        ),
        (
            ["SECRET"],
            ["set the environment variable ALIBABA_CLOUD_ACCESS_KEY_ID, found only ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
        ),
        (
            ["TOKEN"],
            [
                "set the environment variable ALIBABA_CLOUD_ACCESS_KEY_ID, found only ALIBABA_CLOUD_SECURITY_TOKEN",
                "set the environment variable ALIBABA_CLOUD_ACCESS_KEY_SECRET, found only ALIBABA_CLOUD_SECURITY_TOKEN",
            ],
        ),
    ],
)
def test_the_error_for_an_incomplete_key_names_the_missing_variables(variables: list[str], problems: list[str]) -> None:
    environ = {name: text for name, text in ENVIRON.items() if name.rpartition("_")[2] in variables}

    assert [str(problem) for problem in CamsAccount(name="acme").access_key(environ).problems()] == problems


def test_a_key_without_a_security_token_has_an_empty_token() -> None:
    environ = {name: text for name, text in ENVIRON.items() if "TOKEN" not in name}

    assert CamsAccount(name="acme").access_key(environ).read().security_token == ""


def test_a_changed_secret_file_is_read_again(secret: Path, read_secret: Callable[[], str]) -> None:
    assert read_secret() == "first"

    secret.write_text("the second\n")

    assert read_secret() == "the second"


def test_a_replaced_secret_file_with_the_same_size_and_mtime_is_read_again(
    secret: Path, read_secret: Callable[[], str]
) -> None:
    assert read_secret() == "first"

    renewed = secret.with_name("renewed")
    renewed.write_text("newer\n")
    os.utime(renewed, ns=(0, secret.stat().st_mtime_ns))
    renewed.rename(secret)

    assert read_secret() == "newer"


def test_a_secret_file_is_read_again_after_a_link_in_its_path_changes(tmp_path: Path) -> None:
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


def test_if_a_secret_file_is_deleted_the_last_value_is_used_and_one_error_is_logged(
    secret: Path, read_secret: Callable[[], str]
) -> None:
    assert read_secret() == "first"

    secret.unlink()
    with capture_logs() as logs:
        assert [read_secret(), read_secret(), read_secret()] == ["first", "first", "first"]

    assert logs == [
        {
            "event": "access key cannot be read, using the last key",
            "log_level": "error",
            "account": "acme",
            "key": "access_key_secret_file",
            "problem": "cannot read the file: No such file or directory",
        }
    ]


def test_a_secret_file_that_is_deleted_before_its_first_read_denies_the_account(
    secret: Path,
) -> None:
    key = CamsAccount(name="acme", access_key_id="x", access_key_secret_file=str(secret)).access_key({})
    secret.unlink()

    with pytest.raises(DeniedError) as denied:
        run(key.current())

    missing = "cannot read the file: No such file or directory"
    assert str(denied.value) == f"credentials: access_key_secret_file: {missing}"
    assert not key.changed()


def test_a_key_is_changed_if_its_file_changes_after_the_last_request(secret: Path) -> None:
    key = CamsAccount(name="acme", access_key_id="x", access_key_secret_file=str(secret)).access_key({})
    assert not key.changed()

    run(key.current())
    assert not key.changed()
    secret.write_text("the second\n")

    assert key.changed()


def test_a_restored_secret_file_is_read_again_and_logged(secret: Path, read_secret: Callable[[], str]) -> None:
    assert read_secret() == "first"
    secret.unlink()
    assert read_secret() == "first"

    secret.write_text("back again")

    with capture_logs() as logs:
        assert [read_secret(), read_secret()] == ["back again", "back again"]
    assert logs == [{"event": "access key readable again", "log_level": "info", "account": "acme"}]


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "tab\tinside", "sécret", "nul\0"])
def test_if_a_secret_file_becomes_unusable_the_last_value_is_used(
    secret: Path, read_secret: Callable[[], str], text: str
) -> None:
    assert read_secret() == "first"

    secret.write_text(text, encoding="utf-8")

    assert read_secret() == "first"


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
def test_an_unusable_secret_file_is_an_error(secret: Path, content: bytes, found: str) -> None:
    secret.write_bytes(content)
    key = CamsAccount(name="acme", access_key_id="x", access_key_secret_file=str(secret)).access_key({})

    with pytest.raises(SourceError) as raised:
        key.read()

    assert raised.value.key == "access_key_secret_file"
    assert str(raised.value) == f"expected a secret in this file, found {found}"


ASSIGNMENTS = [
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET=abc",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET = abc",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET='abc'",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET=",
    "export ALIBABA_CLOUD_ACCESS_KEY_SECRET=abc",
    "export secret=abc",
    "SECRET=abc",
    "access_key_secret=abc",
    "access_key_secret = abc",
    "S3_KEY=abc==",
    "secret=abcdef123",
    "AccessKeySecret=abc123",
    "access-key-secret=abc",
    "AKID1=abc",
    "access_key_secret: abc",
]
SEVERAL_LINES = [
    "ALIBABA_CLOUD_ACCESS_KEY_ID=abc\nALIBABA_CLOUD_ACCESS_KEY_SECRET=def",
    "# the key\nexport SECRET=abc",
    "[default]\naccess_key_secret = abc",
]
QUOTED = ['"abc"', "'abc'", '"', '"a=b"', "''", '"abc', "abc'"]
FILE_KEYS = ["access_key_id_file", "access_key_secret_file", "security_token_file"]
USABLE = [
    "CAISabc+/==",
    "CAISabc=",
    "CAISabc==",
    "CAIS_abc-==",
    "ABCDEFGH==",
    "AB_CD==",
    "aB/c+d=e=",
    "=abc",
    "abc'def",
    "it's",
    "exported",
    "${NAME}",
]


def problems_of(account: CamsAccount, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(problem.key, str(problem)) for problem in account.access_key(environ).problems()]


@pytest.mark.parametrize("key", FILE_KEYS)
@pytest.mark.parametrize("content", [*ASSIGNMENTS, *SEVERAL_LINES, *QUOTED])
def test_an_assignment_or_quotes_in_a_secret_file_is_an_error(tmp_path: Path, key: str, content: str) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("secret")
    bad.write_text(f"{content}\n")
    files = {name: str(bad if name == key else good) for name in FILE_KEYS}

    found = "a value in quotes; remove the quotes" if content in QUOTED else "NAME=value; remove the name"
    assert problems_of(CamsAccount.model_validate({"name": "acme", **files}), {}) == [
        (key, f"expected a secret in this file, found {found}")
    ]


@pytest.mark.parametrize("text", [*ASSIGNMENTS, *QUOTED])
def test_an_assignment_or_quotes_in_a_literal_or_a_variable_is_an_error(text: str) -> None:
    found = "a value in quotes; remove the quotes" if text in QUOTED else "NAME=value; remove the name"
    literal = CamsAccount.model_validate({"name": "acme", "access_key_id": "id", "access_key_secret": text})

    assert problems_of(literal, {}) == [("access_key_secret", f"expected an access key secret, found {found}")]
    assert problems_of(CamsAccount(name="acme"), {**ENVIRON, "ALIBABA_CLOUD_SECURITY_TOKEN": text}) == [
        (
            "security_token",
            f"expected a security token in the environment variable ALIBABA_CLOUD_SECURITY_TOKEN, found {found}",
        )
    ]


@pytest.mark.parametrize("text", USABLE)
def test_a_secret_that_is_not_an_assignment_and_not_quoted_is_accepted(secret: Path, text: str) -> None:
    secret.write_text(f"{text}\n")

    assert account_with(("access_key_id_file", "access_key_secret_file", "security_token_file"), secret).access_key(
        {}
    ).read() == Credentials(text, text, text)


@given(
    st.text(string.ascii_letters + string.digits + "+/", min_size=30, max_size=800).filter(
        lambda text: text.upper() != text
    ),
    st.sampled_from(["", "=", "=="]),
)
def test_a_base64_token_is_accepted(text: str, padding: str) -> None:
    token = text + padding

    key = CamsAccount(name="acme").access_key({**ENVIRON, "ALIBABA_CLOUD_SECURITY_TOKEN": token})

    assert key.read().security_token == token


def test_if_a_secret_file_becomes_an_assignment_the_last_value_is_used(
    secret: Path, read_secret: Callable[[], str]
) -> None:
    assert read_secret() == "first"

    secret.write_text("ALIBABA_CLOUD_ACCESS_KEY_SECRET=second")

    assert read_secret() == "first"


def test_every_invalid_part_of_a_key_is_reported() -> None:
    account = CamsAccount(
        name="acme", access_key_id="x\ty", access_key_id_file="x", security_token_file="/nowhere/token"
    )

    problems = [(problem.key, str(problem)) for problem in account.access_key({}).problems()]

    assert problems == [
        ("access_key_id", "expected either access_key_id or access_key_id_file, found both"),
        (
            "access_key_secret",
            "expected access_key_secret or access_key_secret_file, found only access_key_id, access_key_id_file,"
            " security_token_file; environment variables are used only if the account sets none of these keys",
        ),
        (
            "security_token_file",
            "cannot read the file: No such file or directory",
        ),
    ]
