"""No message or repr shows a secret: no value of a key that is not listed, and no text after the colon of a key."""

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

MARK = "Zq7pW3vXk9RtB2mLs8DfH4nJc6GyTa"
"""As long and as mixed as a real access key secret."""

WRONG = {
    "the secret is a list": f"access_key_secret: [{MARK}]",
    "the secret is a mapping": f"access_key_secret: {{value: {MARK}}}",
    "the secret is the key of a mapping": f"access_key_secret: {{{MARK}: x}}",
    "the secret is not ASCII": f'access_key_secret: "{MARK}é"',
    "the secret has a line break": f'access_key_secret: "{MARK}\\n{MARK}"',
    "the secret has a NUL": f'access_key_secret: "{MARK}\\0"',
    "the id is not ASCII": f'access_key_id: "{MARK}é"',
    "the id is a list": f"access_key_id: [{MARK}]",
    "the key is misspelt": f"access_key_secrt: {MARK}",
    "the key is spelt as elsewhere": f"accessKeySecret: {MARK}",
    "the token has no key of its own": f"security_token: {MARK}",
    "the secret stands for its file": f"access_key_secret_file: {MARK}",
    "the id stands for its file": f"access_key_id_file: {MARK}",
    "the token stands for its file": f"security_token_file: {MARK}",
    "a token with slashes stands for its file": f"security_token_file: CAIS/{MARK}/{MARK}==",
    "the file is a list": f"access_key_secret_file: [{MARK}]",
    "the secret is in the endpoint": f"endpoint: https://user:{MARK}@cams.ap-southeast-1.aliyuncs.com",
    "the secret stands twice": f"access_key_secret: a\n    access_key_secret: {MARK}",
    "the secret is given twice": f"access_key_secret: {MARK}\n    access_key_secret_file: x",
    "the secret begins with an asterisk": f"access_key_secret: *{MARK}",
    "the secret begins with an ampersand": f"access_key_secret: &{MARK} [x]",
    "the secret begins with an exclamation mark": f"access_key_secret: !{MARK}!x y",
    "the secret begins with a percent sign": f"access_key_secret: %{MARK}",
    "the secret has a quote that never ends": f'access_key_secret: "{MARK}',
    "the secret holds a colon and a space": f"access_key_secret: {MARK}: {MARK}",
    "the colon has no space after it": f"access_key_secret:{MARK}",
    "the colon is an equals sign": f"access_key_secret={MARK}: x",
    "the secret is among the spaces": f"spaces: [{MARK}]",
    "the secret is the spaces": f"spaces: {MARK}",
    "the secret is in a space": f"spaces: [{{id: 1, access_key_secret: {MARK}}}]",
    "the secret stands for the chain": f"credentials: {MARK}",
    "an id and the secret stand for the chain": f"credentials: LTAI5t:{MARK}",
    "the secret is a long text with an address": f"endpoint: https://cams.example/{'x/' * 18}{MARK}",
    "the secret is the name of a file's kind": f"access_key_id_file: x.{MARK}",
    "the secret has one case": f"access_key_secret_file: {MARK.lower()}",
    "the secret is a label's name": f"spaces: [{{id: 1, labels: {{{MARK}: x}}}}]",
    "a label's colon has no space after it": f"spaces: [{{id: 1, labels: {{access_key_secret:{MARK}: x}}}}]",
    "the secret is in a list in a space": f"spaces: [{{id: 1, name: [{MARK}]}}]",
}

ELSEWHERE = {
    "an account is the secret": f"accounts: [{MARK}]",
    "an account has a colon without a space": f"accounts:\n  - access_key_secret:{MARK}",
    "an account in braces has a colon without a space": f"accounts: [{{name: acme, access_key_secret:{MARK}}}]",
    "the same stands there twice": f"accounts: [{{access_key_secret:{MARK}, access_key_secret:{MARK}}}]",
    "the accounts are the secret": f"accounts: {MARK}",
    "the accounts are a mapping": f"accounts: {{acme: {{access_key_secret: {MARK}}}}}",
    "the file is the secret": MARK,
    "the file is a list of it": f"- {MARK}",
    "the secret stands at the top": f"access_key_secret: {MARK}",
    "a tier's colon has no space after it": f"accounts: []\nmessaging_limits: {{access_key_secret:{MARK}: x}}",
}


def pieces_of(secret: str, shown: str) -> list[str]:
    """What is shown of the secret: pieces long enough to be no chance."""
    pieces = (secret[start : start + 8].lower() for start in range(len(secret) - 7))
    return [piece for piece in pieces if piece in shown.lower()]


def refusal(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load(path, {})
    return str(refused.value) + repr(refused.value) + repr(refused.value.problems)


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG.keys())
def test_no_message_shows_a_secret_that_stands_wrongly_in_an_account(tmp_path: Path, line: str) -> None:
    refused = refusal(tmp_path / "config.yml", f"accounts:\n  - name: acme\n    {line}\n")

    assert pieces_of(MARK, refused) == []
    assert "config.yml" in refused


@pytest.mark.parametrize("text", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_no_message_shows_a_secret_that_stands_for_more_than_itself(tmp_path: Path, text: str) -> None:
    assert pieces_of(MARK, refusal(tmp_path / "config.yml", text)) == []


PASSWORD = "hunter2secret"
WRONG_LOGINS = {
    "no space after the colon": f"basic_auth_users: {{prometheus:{PASSWORD}}}",
    "no hash": f"basic_auth_users: {{prometheus: {PASSWORD}}}",
    "beside its place": f"basic_auth_users: {{a: b}}\nprometheus:{PASSWORD}: x",
    "as a version": f"tls_server_config: {{cert_file: c, key_file: k, min_version: {PASSWORD}}}",
}


@pytest.mark.parametrize("text", WRONG_LOGINS.values(), ids=WRONG_LOGINS.keys())
def test_no_message_shows_a_password_and_each_has_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "web.yml"
    path.write_text(text)

    with pytest.raises(ConfigError) as refused:
        load_document(path, WebConfig)

    assert pieces_of(PASSWORD, str(refused.value)) == []
    assert f"{path}:1: " in str(refused.value)


def test_a_key_is_shown_up_to_its_colon_and_no_value_of_it(tmp_path: Path) -> None:
    lines = (
        "accounts: [{name: a, access_key_id: b, access_key_secret: c}]\nmessaging_limits:\n  TIER_10K: x\n  a:b: x\n"
    )

    shown = refusal(tmp_path / "config.yml", lines)

    assert ":3: messaging_limits.TIER_10K: expected a valid number, found text (not shown)" in shown
    assert ":4: messaging_limits.a: expected a valid number, found text (not shown)" in shown


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
LOGINS: dict[str, Any] = {
    "tls_server_config": {"cert_file": "c", "key_file": "k", "client_ca_file": "a", "min_version": "TLS12"},
    "basic_auth_users": {"prometheus": "x"},
}
DOCUMENTS: list[tuple[Callable[[Path], object], Any]] = [
    (lambda path: load(path, {}), {"accounts": [ACCOUNT, ACCOUNT], "messaging_limits": {"TIER_10K": "1"}}),
    (lambda path: load_document(path, WebConfig), LOGINS),
    (
        lambda path: load_document(path, Scenario),
        {"accounts": [{"name": "a", "spaces": "3"}], "events": [{"at": "0s", "set": {"Status": "x"}}]},
    ),
]


SHOWN = {"name", "id", "isv_code", "qps", "poll_interval", "space_files", "at"}
"""Keys whose values a message shows."""


@st.composite
def planted(draw: st.DrawFn, document: Any, secret: str) -> Any:
    """The document with the secret somewhere: instead of a value or after a key, or in it."""
    if isinstance(document, dict | list) and document and draw(st.integers(0, 5)):
        steps = sorted(document.keys() - SHOWN) if isinstance(document, dict) else list(range(len(document)))
        step = draw(st.sampled_from(steps))
        inner = draw(planted(document[step], secret))
        if isinstance(document, list):
            return [*document[:step], inner, *document[step + 1 :]]
        names = st.sampled_from([step, step, step, step, f"{step}:{secret}", f"{step}={secret}"])
        return {draw(names) if key == step else key: inner if key == step else document[key] for key in document}
    text = document if isinstance(document, str) else ""
    places = [secret, [secret], {"x": secret}, {f"x:{secret}": None}, f"{text}{secret}", f"{text} {secret}"]
    return draw(st.sampled_from([*places, f"{text}/{secret}/{secret}", f"{'. ' * 20}{secret}"]))


@pytest.mark.parametrize(("read", "document"), DOCUMENTS, ids=["configuration", "logins", "scenario"])
@given(drawn=st.data(), secret=secrets)
def test_no_message_shows_a_secret_wherever_it_stands(
    read: Callable[[Path], object], document: Any, drawn: st.DataObject, secret: str
) -> None:
    wrong = drawn.draw(planted(document, secret))
    with TemporaryDirectory() as directory:
        path = Path(directory) / "config.yml"
        path.write_text(json.dumps(wrong))
        shown = reported(read, path)

    event("refused" if shown else "applied")
    assert pieces_of(secret, shown) == []


def reported(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except ConfigError as error:
        return str(error) + repr(error.problems)
    return ""


def test_no_message_shows_what_is_in_a_secret_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{MARK}\nand more")

    refused = refusal(
        tmp_path / "config.yml", "accounts: [{name: a, access_key_id: b, access_key_secret_file: secret}]"
    )

    assert MARK not in refused


def test_no_message_shows_what_is_in_a_variable() -> None:
    environ = {"ALIBABA_CLOUD_ACCESS_KEY_ID": f"{MARK}é", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": f"{MARK}\n{MARK}"}
    with pytest.raises(ConfigError) as refused:
        load(None, environ)

    assert MARK not in str(refused.value)


def test_settings_show_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"accounts: [{{name: acme, access_key_id: id-{MARK}, access_key_secret: {MARK}}}]")

    settings = load(path, {})

    assert MARK not in repr(settings)
    assert MARK not in str(settings)
