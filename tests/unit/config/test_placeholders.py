"""Placeholders in a configuration: their replacement, their errors, and that no error shows a value."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from configured import load

from exporter.config.document import Lines, read_document
from exporter.config.placeholders import expand
from exporter.config.problems import ConfigError
from exporter.config.settings import Settings
from exporter.sources.cams.settings import CamsSpace

SECRET_VALUE = "Zq7pW3vXk9RtB2mLs8DfH4nJc6GyTa"
KEY = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIexample", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}
FLAG = "--config.expand-environment-variables"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yml"


def error_text(path: Path, text: str, environ: Mapping[str, str], *, expand: bool = True) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path, {**KEY, **environ}, expand=expand)
    return str(raised.value).replace(f"{path}:", "")


def load_text(path: Path, text: str, environ: Mapping[str, str], *, expand: bool = True) -> Settings:
    path.write_text(text)
    return load(path, {**KEY, **environ}, expand=expand)


def read_expanded(path: Path, text: str, environ: Mapping[str, str]) -> object:
    """Return the document in a file with this text, with the placeholders replaced."""
    path.write_text(text)
    document = read_document(path)
    assert expand(document, Lines(path), environ) == []
    return document


def test_placeholders_in_values_of_every_type_are_replaced(path: Path) -> None:
    settings = load_text(
        path,
        "accounts:\n"
        "  - name: ${NAME}\n"
        "    qps: ${QPS}\n"
        "    poll_interval: ${MINUTES}m\n"
        "    spaces:\n"
        "      - {id: '${ID}', name: 'Contoso ${NAME}', labels: {team: '${NAME}-${ID}'}}\n"
        "    discover: ${DISCOVER}\n"
        "messaging_limits: {TIER_5M: '${LIMIT}'}\n"
        "state_file: ${NAME}.db\n",
        {"NAME": "acme", "QPS": "7.5", "MINUTES": "10", "ID": "0042", "DISCOVER": "true", "LIMIT": "5000000"},
    )

    (account,) = settings.accounts
    assert (account.name, account.qps, account.poll_interval, account.discover) == ("acme", 7.5, 600, True)
    assert account.polled_spaces == [CamsSpace(id="0042", name="Contoso acme", labels={"team": "acme-0042"})]
    assert settings.messaging_limits == {"TIER_5M": 5_000_000}
    assert settings.state_file == str(path.with_name("acme.db"))


def test_placeholders_in_space_files_are_replaced(path: Path) -> None:
    path.with_name("spaces.json").write_text('[{"id": "${ID}", "name": "${NAME}"}]')

    settings = load_text(path, "accounts: [{name: acme, space_files: [spaces.json]}]", {"ID": "1", "NAME": "Contoso"})

    assert settings.accounts[0].polled_spaces == [CamsSpace(id="1", name="Contoso")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "one"),
        ("x${A}y${B}z", "xoneytwoz"),
        ("${A}${A}", "oneone"),
        ("${EMPTY}", ""),
        ("$${A}", "${A}"),
        ("$${A}${A}", "${A}one"),
        ("$${", "${"),
        ("$$${A}", "$${A}"),
        ("$A $ {A} $", "$A $ {A} $"),
        ("${NESTED}", "${A} $${A}"),
        ("${NULL}", "null"),
        ("${LINES}", "a: 1\nb: 2"),
    ],
)
def test_a_placeholder_is_replaced_once_and_an_escape_is_removed(path: Path, text: str, expected: str) -> None:
    environ = {"A": "one", "B": "two", "EMPTY": "", "NESTED": "${A} $${A}", "NULL": "null", "LINES": "a: 1\nb: 2"}

    assert read_expanded(path, f"value: '{text}'\nlist: ['{text}']", environ) == {"value": expected, "list": [expected]}


def test_placeholders_in_keys_are_not_replaced(path: Path) -> None:
    assert read_expanded(path, "'${A}': {'${A}': 1}", {"A": "one"}) == {"${A}": {"${A}": "1"}}


def test_a_value_with_a_yaml_alias_is_replaced_once(path: Path) -> None:
    text = "a: &a ['${NESTED}']\nb: *a\nc: {list: *a}"

    document = read_expanded(path, text, {"NESTED": "${NESTED}"})

    assert isinstance(document, dict)
    assert (document["a"], document["b"], document["c"]["list"]) == (["${NESTED}"],) * 3


def test_nested_yaml_aliases_are_visited_once(path: Path) -> None:
    levels = "\n".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 60))

    assert isinstance(read_expanded(path, f"l0: &l0 ['${{A}}']\n{levels}", {"A": "one"}), dict)


def test_every_variable_that_is_not_set_is_reported_with_its_line_and_key(path: Path) -> None:
    path.with_name("spaces.yml").write_text("- id: 1\n  name: ${IN_SPACE_FILE}\n")

    errors = error_text(
        path,
        "accounts:\n"
        "  - name: acme\n"
        "    qps: ${QPS}\n"
        "    access_key_id_file: /run/${FILE}\n"
        "    access_key_secret: ${A}${SET}${B}\n"
        "    space_files: [spaces.yml, '${PATTERN}/*.yml']\n"
        "max_age: soon\n",
        {"SET": SECRET_VALUE},
    )

    assert errors.replace(f"{path.parent}/", "") == (
        "3: accounts[0].qps: environment variable QPS is not set\n"
        "4: accounts[0].access_key_id_file: environment variable FILE is not set\n"
        "5: accounts[0].access_key_secret: environment variable A is not set\n"
        "5: accounts[0].access_key_secret: environment variable B is not set\n"
        "6: accounts[0].space_files[1]: environment variable PATTERN is not set\n"
        "7: max_age: expected a duration such as 30s, 5m or 1h30m, found 'soon'"
    )


def test_a_variable_that_is_not_set_in_a_space_file_is_an_error_of_this_file(path: Path) -> None:
    path.with_name("spaces.yml").write_text("- id: 1\n  name: ${IN_SPACE_FILE}\n")

    errors = error_text(path, "accounts: [{name: acme, space_files: [spaces.yml]}]", {})

    assert errors == f"{path.parent}/spaces.yml:2: [0].name: environment variable IN_SPACE_FILE is not set"


@pytest.mark.parametrize("value", ["${}", "${1A}", "${A-B}", "${A:-default}", "${ A }", "${A", "x${", "${Ä}"])
def test_a_placeholder_without_a_valid_variable_name_is_an_error(path: Path, value: str) -> None:
    text = "expected ${NAME} with the name of a variable, found ${ without a name; write $${ for a literal ${"

    assert error_text(path, f"accounts:\n- name: '{value}'\n", {"A": "one"}) == f"2: accounts[0].name: {text}"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", "name: ${SET}"),
        ("access_key_secret", "access_key_secret: ' ${UNSET} '"),
        ("access_key_secret_file", "access_key_secret_file: ${SET}"),
        ("qps", "qps: ${SET}"),
        ("spaces[0].id", "spaces: [{id: '${SET}'}]"),
        ("spaces[0].labels.team", "spaces: [{id: 1, labels: {team: '${SET}'}}]"),
        ("space_files[0]", "space_files: ['${SET}']"),
    ],
)
def test_without_the_flag_a_value_that_is_only_a_placeholder_is_an_error(path: Path, key: str, line: str) -> None:
    name_line = "name: acme\n    " if key != "name" else ""

    errors = error_text(path, f"accounts:\n  - {name_line}{line}\n", {"SET": "5"}, expand=False)

    text = f"expected a value, found a placeholder; set the flag {FLAG} to replace it"
    assert f": accounts[0].{key}: {text}" in errors
    assert "found none" not in errors.replace("found only", "")
    assert "not shown" not in errors


@pytest.mark.parametrize("value", ["a ${SET}", "${SET}${SET}", "$${SET}", "${}", "${SET", "$SET", "${A-B}"])
def test_without_the_flag_all_other_values_are_unchanged(path: Path, value: str) -> None:
    assert load_text(path, f"accounts: [{{name: '{value}'}}]", {"SET": "5"}, expand=False).accounts[0].name == value


INVALID_VALUES = {
    "a duplicate space id": "spaces: [{id: '${SECRET}'}, {id: '${SECRET}'}]",
    "a number": "qps: ${SECRET}",
    "part of a number": "qps: 5${SECRET}",
    "a duration": "poll_interval: ${SECRET}",
    "a boolean": "discover: ${SECRET}",
    "a source": "source: ${SECRET}",
    "a pattern without a match": "space_files: ['${SECRET}/*.yml']",
    "a secret file": "access_key_secret_file: ${SECRET}",
    "an endpoint": "endpoint: https://user:${SECRET}@cams.example",
    "credentials": "credentials: ${SECRET}",
    "a space": "spaces: ['${SECRET}']",
    "the list of spaces": "spaces: ${SECRET}",
}


@pytest.mark.parametrize("line", INVALID_VALUES.values(), ids=INVALID_VALUES.keys())
def test_no_error_shows_the_value_of_a_placeholder(path: Path, line: str) -> None:
    errors = error_text(path, f"accounts:\n  - name: acme\n    {line}\n", {"SECRET": SECRET_VALUE})

    assert SECRET_VALUE not in errors
    assert ": accounts[0]." in errors


def test_no_error_about_several_accounts_shows_the_value_of_a_placeholder(path: Path) -> None:
    text = "accounts:\n  - {name: '${SECRET}', qps: 6}\n  - {name: '${SECRET}', qps: 6}\n"

    assert error_text(path, text, {"SECRET": SECRET_VALUE}) == (
        "3: accounts[1].name: duplicate account name '${SECRET}' (first defined at 2)\n"
        "3: accounts[1].qps: expected a total of at most 10 for all accounts with the same access key,"
        " found 12 ('${SECRET}' 6, '${SECRET}' 6)"
    )


def test_an_error_shows_the_placeholder_instead_of_its_value(path: Path) -> None:
    assert error_text(path, "accounts: [{name: acme}]\nmax_age: ${AGE} days", {"AGE": SECRET_VALUE}) == (
        "2: max_age: expected a duration such as 30s, 5m or 1h30m, found '${AGE} days'"
    )


@pytest.mark.parametrize("line", ["name: ${X}", "qps: ${X}", "poll_interval: ${X}", "access_key_secret: ${X}"])
def test_a_variable_that_is_not_utf_8_is_an_error(path: Path, line: str) -> None:
    name_line = "" if line.startswith("name") else "name: acme\n    "

    errors = error_text(path, f"accounts:\n  - {name_line}{line}\n", {"X": "a\udcff"})

    assert errors.endswith(f"{line.split(':')[0]}: environment variable X is not UTF-8 text")


def test_repr_and_json_dump_do_not_show_a_secret_from_the_environment(path: Path) -> None:
    text = "accounts: [{name: acme, access_key_id: 'id-${SECRET}', access_key_secret: '${SECRET}'}]"

    settings = load_text(path, text, {"SECRET": SECRET_VALUE})

    assert SECRET_VALUE not in repr(settings) + settings.model_dump_json()
    assert settings.accounts[0].rate_limit_id({}) == f"id-{SECRET_VALUE}"


def test_each_load_uses_the_current_values_of_the_variables(path: Path) -> None:
    environ = {**KEY, "NAME": "acme"}
    path.write_text("accounts: [{name: '${NAME}'}]")
    assert load(path, environ, expand=True).accounts[0].name == "acme"

    environ["NAME"] = "globex"

    assert load(path, environ, expand=True).accounts[0].name == "globex"
