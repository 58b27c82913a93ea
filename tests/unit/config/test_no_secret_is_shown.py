"""Errors and reprs show no secrets. Errors show values only of the listed keys, and a key only up to a colon."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from configured import load
from hypothesis import event, given
from hypothesis import strategies as st

from exporter.config.problems import ConfigError
from exporter.config.validation import load_document
from exporter.simulator.scenario import Scenario
from exporter.web.web_config import WebConfig

SECRET = "Zq7pW3vXk9RtB2mLs8DfH4nJc6GyTa"
"""Has the length and the character set of a real access key secret."""

MISPLACED_IN_ACCOUNT = {
    "the secret is a list": f"access_key_secret: [{SECRET}]",
    "the secret is a mapping": f"access_key_secret: {{value: {SECRET}}}",
    "the secret is the key of a mapping": f"access_key_secret: {{{SECRET}: x}}",
    "the secret is not ASCII": f'access_key_secret: "{SECRET}é"',
    "the secret has a line break": f'access_key_secret: "{SECRET}\\n{SECRET}"',
    "the secret has a NUL": f'access_key_secret: "{SECRET}\\0"',
    "the id is not ASCII": f'access_key_id: "{SECRET}é"',
    "the id is a list": f"access_key_id: [{SECRET}]",
    "the key is misspelt": f"access_key_secrt: {SECRET}",
    "the key is in camel case": f"accessKeySecret: {SECRET}",
    "the key of the token is unknown": f"security_token: {SECRET}",
    "the secret instead of its file": f"access_key_secret_file: {SECRET}",
    "the id instead of its file": f"access_key_id_file: {SECRET}",
    "the token instead of its file": f"security_token_file: {SECRET}",
    "a token with slashes instead of its file": f"security_token_file: CAIS/{SECRET}/{SECRET}==",
    "the file is a list": f"access_key_secret_file: [{SECRET}]",
    "the secret is in the endpoint": f"endpoint: https://user:{SECRET}@cams.ap-southeast-1.aliyuncs.com",
    "the key of the secret is duplicate": f"access_key_secret: a\n    access_key_secret: {SECRET}",
    "both the secret and its file": f"access_key_secret: {SECRET}\n    access_key_secret_file: x",
    "the secret starts with an asterisk": f"access_key_secret: *{SECRET}",
    "the secret starts with an ampersand": f"access_key_secret: &{SECRET} [x]",
    "the secret starts with an exclamation mark": f"access_key_secret: !{SECRET}!x y",
    "the secret starts with a percent sign": f"access_key_secret: %{SECRET}",
    "the closing quote is missing": f'access_key_secret: "{SECRET}',
    "the secret contains a colon and a space": f"access_key_secret: {SECRET}: {SECRET}",
    "no space after the colon": f"access_key_secret:{SECRET}",
    "an equals sign instead of the colon": f"access_key_secret={SECRET}: x",
    "the secret in the list of spaces": f"spaces: [{SECRET}]",
    "the secret instead of the list of spaces": f"spaces: {SECRET}",
    "the secret in a space": f"spaces: [{{id: 1, access_key_secret: {SECRET}}}]",
    "the secret as the value of credentials": f"credentials: {SECRET}",
    "id and secret as the value of credentials": f"credentials: LTAI5t:{SECRET}",
    "the secret at the end of a long endpoint": f"endpoint: https://cams.example/{'x/' * 18}{SECRET}",
    "the secret as a file extension": f"access_key_id_file: x.{SECRET}",
    "the secret in lower case": f"access_key_secret_file: {SECRET.lower()}",
    "the secret as a label name": f"spaces: [{{id: 1, labels: {{{SECRET}: x}}}}]",
    "no space after the colon of a label": f"spaces: [{{id: 1, labels: {{access_key_secret:{SECRET}: x}}}}]",
    "the secret in a list in a space": f"spaces: [{{id: 1, name: [{SECRET}]}}]",
}

MISPLACED_ELSEWHERE = {
    "the secret instead of an account": f"accounts: [{SECRET}]",
    "no space after the colon in an account": f"accounts:\n  - access_key_secret:{SECRET}",
    "no space after the colon in braces": f"accounts: [{{name: acme, access_key_secret:{SECRET}}}]",
    "a duplicate key in braces": f"accounts: [{{access_key_secret:{SECRET}, access_key_secret:{SECRET}}}]",
    "the secret instead of the accounts": f"accounts: {SECRET}",
    "the accounts are a mapping": f"accounts: {{acme: {{access_key_secret: {SECRET}}}}}",
    "only the secret": SECRET,
    "only a list with the secret": f"- {SECRET}",
    "the secret at the top level": f"access_key_secret: {SECRET}",
    "no space after the colon of a tier": f"accounts: []\nmessaging_limits: {{access_key_secret:{SECRET}: x}}",
}


def shown_pieces(secret: str, shown: str) -> list[str]:
    """Return the shown pieces of the secret. Pieces of 8 characters do not match by chance."""
    pieces = (secret[start : start + 8].lower() for start in range(len(secret) - 7))
    return [piece for piece in pieces if piece in shown.lower()]


def invalid_config_error(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    return str(raised.value) + repr(raised.value) + repr(raised.value.problems)


@pytest.mark.parametrize("line", MISPLACED_IN_ACCOUNT.values(), ids=MISPLACED_IN_ACCOUNT.keys())
def test_no_error_shows_a_misplaced_secret_in_an_account(tmp_path: Path, line: str) -> None:
    error = invalid_config_error(tmp_path / "config.yml", f"accounts:\n  - name: acme\n    {line}\n")

    assert shown_pieces(SECRET, error) == []
    assert "config.yml" in error


@pytest.mark.parametrize("text", MISPLACED_ELSEWHERE.values(), ids=MISPLACED_ELSEWHERE.keys())
def test_no_error_shows_a_misplaced_secret_in_other_places(tmp_path: Path, text: str) -> None:
    assert shown_pieces(SECRET, invalid_config_error(tmp_path / "config.yml", text)) == []


PASSWORD = "hunter2secret"
INVALID_WEB_CONFIGS = {
    "no space after the colon": f"basic_auth_users: {{prometheus:{PASSWORD}}}",
    "no hash": f"basic_auth_users: {{prometheus: {PASSWORD}}}",
    "the password as a top-level key": f"basic_auth_users: {{a: b}}\nprometheus:{PASSWORD}: x",
    "the password as the TLS version": f"tls_server_config: {{cert_file: c, key_file: k, min_version: {PASSWORD}}}",
}


@pytest.mark.parametrize("text", INVALID_WEB_CONFIGS.values(), ids=INVALID_WEB_CONFIGS.keys())
def test_web_config_errors_have_a_line_and_do_not_show_the_password(tmp_path: Path, text: str) -> None:
    path = tmp_path / "web.yml"
    path.write_text(text)

    with pytest.raises(ConfigError) as raised:
        load_document(path, WebConfig)

    assert shown_pieces(PASSWORD, str(raised.value)) == []
    assert f"{path}:1: " in str(raised.value)


def test_errors_show_a_key_only_up_to_a_colon_and_not_its_value(tmp_path: Path) -> None:
    lines = (
        "accounts: [{name: a, access_key_id: b, access_key_secret: c}]\nmessaging_limits:\n  TIER_10K: x\n  a:b: x\n"
    )

    shown = invalid_config_error(tmp_path / "config.yml", lines)

    assert ":3: messaging_limits.TIER_10K: expected a number, found text (not shown)" in shown
    assert ":4: messaging_limits.a: expected a number, found text (not shown)" in shown


LETTERS, DIGITS = string.ascii_letters, string.digits
secrets = st.text(LETTERS + DIGITS, min_size=16, max_size=70).filter(
    lambda text: len(set(text) & set(DIGITS)) > 0 and sum(map(LETTERS.count, text)) > 1
)
ACCOUNT = {
    "name": "acme",
    "endpoint": "https://cams.ap-southeast-1.aliyuncs.com",
    "access_key_id": "LTAIexample",
    "access_key_id_file": "id",
    "access_key_secret": "example-secret",
    "access_key_secret_file": "secret",
    "security_token_file": "token",
    "credentials": "default",
    "isv_code": "1",
    "qps": "5",
    "poll_interval": "5m",
    "spaces": [{"id": "1", "name": "Contoso", "labels": {"team": "emea"}, "isv_code": "2"}],
    "space_files": ["spaces.yml"],
}
WEB_CONFIG: dict[str, Any] = {
    "tls_server_config": {"cert_file": "c", "key_file": "k", "client_ca_file": "a", "min_version": "TLS12"},
    "basic_auth_users": {"prometheus": "x"},
}
DOCUMENTS: list[tuple[Callable[[Path], object], Any]] = [
    (lambda path: load(path, {}), {"accounts": [ACCOUNT, ACCOUNT], "messaging_limits": {"TIER_10K": "1"}}),
    (lambda path: load_document(path, WebConfig), WEB_CONFIG),
    (
        lambda path: load_document(path, Scenario),
        {"accounts": [{"name": "a", "spaces": "3"}], "events": [{"at": "0s", "set": {"Status": "x"}}]},
    ),
]


SHOWN_KEYS = {"name", "id", "isv_code", "qps", "poll_interval", "space_files", "at"}
"""Keys whose values are shown in errors."""


@st.composite
def with_secret(draw: st.DrawFn, document: Any, secret: str) -> Any:
    """Return the document with the secret at a random place: instead of a value, in a value or in a key."""
    if isinstance(document, dict | list) and document and draw(st.integers(0, 5)):
        steps = sorted(document.keys() - SHOWN_KEYS) if isinstance(document, dict) else list(range(len(document)))
        step = draw(st.sampled_from(steps))
        inner = draw(with_secret(document[step], secret))
        if isinstance(document, list):
            return [*document[:step], inner, *document[step + 1 :]]
        names = st.sampled_from([step, step, step, step, f"{step}:{secret}", f"{step}={secret}"])
        return {draw(names) if key == step else key: inner if key == step else document[key] for key in document}
    text = document if isinstance(document, str) else ""
    values = [secret, [secret], {"x": secret}, {f"x:{secret}": None}, f"{text}{secret}", f"{text} {secret}"]
    return draw(st.sampled_from([*values, f"{text}/{secret}/{secret}", f"{'. ' * 20}{secret}"]))


@pytest.mark.parametrize(("read", "document"), DOCUMENTS, ids=["configuration", "web config", "scenario"])
@given(drawn=st.data(), secret=secrets)
def test_no_error_shows_a_secret_at_a_random_place(
    read: Callable[[Path], object], document: Any, drawn: st.DataObject, secret: str
) -> None:
    invalid = drawn.draw(with_secret(document, secret))
    with TemporaryDirectory() as directory:
        path = Path(directory) / "config.yml"
        path.write_text(json.dumps(invalid))
        shown = error_text(read, path)

    event("invalid" if shown else "valid")
    assert shown_pieces(secret, shown) == []


def error_text(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except ConfigError as error:
        return str(error) + repr(error.problems)
    return ""


def test_no_error_shows_the_content_of_a_secret_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\nand more")

    error = invalid_config_error(
        tmp_path / "config.yml", "accounts: [{name: a, access_key_id: b, access_key_secret_file: secret}]"
    )

    assert SECRET not in error


def test_no_error_shows_the_value_of_a_variable() -> None:
    environ = {"ALIBABA_CLOUD_ACCESS_KEY_ID": f"{SECRET}é", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": f"{SECRET}\n{SECRET}"}
    with pytest.raises(ConfigError) as raised:
        load(None, environ)

    assert SECRET not in str(raised.value)


def test_str_and_repr_of_settings_do_not_show_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts: [{{name: acme, access_key_id: id-{SECRET}, access_key_secret: {SECRET}}}]")

    settings = load(path, {})

    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
