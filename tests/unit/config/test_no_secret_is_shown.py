"""Wherever a person puts a secret by mistake, no message and no repr repeats it."""

from pathlib import Path

import pytest

from exporter.config.loading import load
from exporter.config.problems import ConfigError

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
    "the secret is a key": f"{MARK}: access_key_secret",
    "the secret is among the spaces": f"spaces: [{MARK}]",
    "the secret is the spaces": f"spaces: {MARK}",
    "the secret is in a space": f"spaces: [{{id: 1, access_key_secret: {MARK}}}]",
    "the secret is in a list in a space": f"spaces: [{{id: 1, name: [{MARK}]}}]",
}

WHOLE = {
    "an account is the secret": f"accounts: [{MARK}]",
    "an account has a colon without a space": f"accounts:\n  - access_key_secret:{MARK}",
    "an account in braces has a colon without a space": f"accounts: [{{name: acme, access_key_secret:{MARK}}}]",
    "the same stands there twice": f"accounts: [{{access_key_secret:{MARK}, access_key_secret:{MARK}}}]",
    "the accounts are the secret": f"accounts: {MARK}",
    "the accounts are a mapping": f"accounts: {{acme: {{access_key_secret: {MARK}}}}}",
    "the file is the secret": MARK,
    "the file is a list of it": f"- {MARK}",
    "the secret stands at the top": f"access_key_secret: {MARK}",
    "the secret stands at the top of a file without accounts": f"{MARK}: {MARK}",
}


def refusal(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load(path, {})
    return str(refused.value) + repr(refused.value) + repr(refused.value.problems)


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG.keys())
def test_no_message_shows_a_secret_that_stands_wrongly_in_an_account(tmp_path: Path, line: str) -> None:
    refused = refusal(tmp_path / "config.yml", f"accounts:\n  - name: acme\n    {line}\n")

    assert MARK not in refused
    assert "config.yml" in refused


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE.keys())
def test_no_message_shows_a_secret_that_stands_for_more_than_itself(tmp_path: Path, text: str) -> None:
    assert MARK not in refusal(tmp_path / "config.yml", text)


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


def test_a_file_that_is_none_is_named_where_its_name_is_no_secret(tmp_path: Path) -> None:
    refused = refusal(
        tmp_path / "config.yml", "accounts: [{name: a, access_key_id: b, access_key_secret_file: run/secrets/acme}]"
    )

    assert f"{tmp_path}/run/secrets/acme" in refused
