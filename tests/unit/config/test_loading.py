"""Configuration files: accepted values, and the errors of invalid files."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Literal

import pytest
from configured import load

from exporter import sources
from exporter.config.document import read_document
from exporter.config.problems import ConfigError
from exporter.config.settings import Account, Settings, settings_of
from exporter.config.validation import add_file_and_lines, load_document
from exporter.sources.cams.settings import CamsAccount, CamsSpace

FIXTURES = Path(__file__).parent / "fixtures"
VALID = sorted(FIXTURES.glob("*.ok.yml"))
INVALID = sorted(FIXTURES.glob("*.bad.yml"))
ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "config" / "exporter.example.yml"
VARIABLES = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIexample", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}


def error_text(path: Path | None, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path, environ or {})
    return str(raised.value)


def write_config(directory: Path, text: str) -> Path:
    path = directory / "config.yml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.name)
def test_an_invalid_file_has_the_errors_that_its_txt_file_lists(path: Path) -> None:
    assert error_text(path).replace(f"{FIXTURES}/", "") == path.with_suffix(".txt").read_text(encoding="utf-8").rstrip()


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.name)
def test_a_valid_file_is_loaded(path: Path) -> None:
    assert load(path, {}).accounts[0].name == "acme"


def test_every_invalid_file_has_a_txt_file() -> None:
    assert [path.with_suffix(".txt") for path in INVALID] == sorted(FIXTURES.glob("*.txt"))
    assert VALID


def test_every_configuration_key_is_loaded() -> None:
    settings = load(FIXTURES / "every_key.ok.yml", {}).with_key_digests({}, ())

    assert settings == sources.Settings(
        accounts=[
            CamsAccount(
                name="acme",
                endpoint="https://cams.ap-southeast-1.aliyuncs.com",
                access_key_id_file=str(FIXTURES / "secrets" / "id"),
                access_key_secret_file=str(FIXTURES / "secrets" / "secret"),
                security_token_file=str(FIXTURES / "secrets" / "token"),
                isv_code="skdi3kksloslikdkkdk",
                qps=7.5,
                poll_interval="1h30m",
                spaces=[
                    CamsSpace(
                        id="29348393884000",
                        name="Contoso",
                        labels={"team": "emea", "cost_center": "0042"},
                        isv_code="007",
                    ),
                    CamsSpace(id="0029348393884", name="no"),
                    CamsSpace(id="0100", labels={"team": "emea"}),
                    CamsSpace(id="0x1F"),
                    CamsSpace(id="3", name="Café 😀"),
                    CamsSpace(id="4"),
                ],
                space_files=[str(FIXTURES / "spaces" / "emea-*.yml"), str(FIXTURES / "spaces" / "*.ok.json")],
                discover=True,
            )
        ],
        messaging_limits={"TIER_10": 1000, "TIER_5M": 5_000_000},
        max_age="2h",
        state_file=str(FIXTURES / "state.db"),
    )
    assert settings.accounts[0].poll_interval == 5400
    assert settings.limits["TIER_10"] == 1000


def test_the_example_file_is_valid_and_contains_every_key() -> None:
    load(EXAMPLE, VARIABLES)

    keys = {*Settings.model_fields, *CamsAccount.model_fields, *(field.name for field in fields(CamsSpace))}
    assert keys <= set(re.findall(r"\b(\w+):(?=\s)", EXAMPLE.read_text(encoding="utf-8")))


def test_omitted_keys_have_the_documented_defaults() -> None:
    settings = load(FIXTURES / "own_numbers.ok.yml", {})

    (account,) = settings.accounts
    assert isinstance(account, CamsAccount)
    assert account.endpoint == "https://cams.ap-southeast-1.aliyuncs.com"
    assert (account.qps, account.poll_interval, settings.max_age) == (5, 300, 3600)
    assert (account.polls_own_numbers, account.discover) == (True, False)
    assert settings.state_file is None

    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| `?([^|`]+)`? \|", document, re.MULTILINE))
    defaults = {"endpoint": account.endpoint, "qps": "5", "poll_interval": "5m", "max_age": "1h", "discover": "false"}
    assert {key: rows[key] for key in defaults} == defaults
    assert rows["state_file"] == "–"


def test_an_account_with_discovery_and_without_spaces_does_not_poll_its_own_numbers() -> None:
    account = load(FIXTURES / "discovered_only.ok.yml", {}).accounts[0]

    assert (account.discover, account.polls_own_numbers, account.polled_spaces) == (True, False, [])


@pytest.mark.parametrize(("text", "discover"), [("true", True), ("false", False), ('"true"', True), ("False", False)])
def test_discover_is_a_boolean_with_or_without_quotes(tmp_path: Path, text: str, discover: bool) -> None:
    path = write_config(tmp_path, f"accounts: [{{name: acme, discover: {text}}}]")

    assert load(path, VARIABLES).accounts[0].discover == discover


def test_a_loopback_endpoint_can_have_a_poll_interval_below_30_seconds() -> None:
    assert load(FIXTURES / "loopback_with_a_short_poll_interval.ok.yml", {}).accounts[0].poll_interval == 0.5


@pytest.mark.parametrize(
    "written_id", ["29348393884000", "0029348393884", "1e3", "0x1F", "1_000", "12:30:45", "yes", "2026-11-23", ".5"]
)
def test_an_id_without_quotes_is_not_converted(tmp_path: Path, written_id: str) -> None:
    path = write_config(tmp_path, f"accounts: [{{name: acme, spaces: [{{id: {written_id}}}]}}]")

    assert load(path, VARIABLES).accounts[0].polled_spaces == [CamsSpace(id=written_id)]


def test_space_files_are_read_from_a_directory_with_glob_characters_in_its_name(tmp_path: Path) -> None:
    directory = tmp_path / "fleet [1]*"
    directory.mkdir()
    (directory / "spaces.yml").write_text("- {id: 1}")

    path = write_config(directory, "accounts: [{name: acme, space_files: [spaces.yml]}]")

    assert load(path, VARIABLES).accounts[0].polled_spaces == [CamsSpace(id="1")]


def test_a_json_space_file_with_tabs_escapes_and_null_is_read(tmp_path: Path) -> None:
    spaces = [{"id": "0042", "name": "Café 😀 \\ud83d", "labels": {"team": "é"}, "isv_code": None}]
    (tmp_path / "spaces.json").write_text(json.dumps(spaces, indent="\t"))

    path = write_config(tmp_path, "accounts: [{name: acme, space_files: [spaces.json]}]")

    assert load(path, VARIABLES).accounts[0].polled_spaces == [
        CamsSpace(id="0042", name="Café 😀 \\ud83d", labels={"team": "é"})
    ]


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"

    assert error_text(path) == f"{path}: cannot read the file: No such file or directory"


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes("name: Café".encode("latin-1"))

    assert error_text(path) == f"{path}: expected UTF-8 text, found invalid bytes"


def test_a_control_character_is_an_error(tmp_path: Path) -> None:
    path = write_config(tmp_path, "accounts: \x01")

    assert error_text(path) == f"{path}: invalid YAML: control characters are not allowed (U+0001)"


def test_too_many_levels_of_nesting_are_an_error(tmp_path: Path) -> None:
    path = write_config(tmp_path, "[" * 1500 + "]" * 1500)

    assert error_text(path) == f"{path}: too many levels of nesting"


class OtherAccount(Account):
    source: Literal["other"] = "other"


def test_an_account_with_an_unknown_source_is_an_error(tmp_path: Path) -> None:
    path = write_config(tmp_path, "accounts:\n  - {name: acme}\n  - {name: globex, source: camps}\n  - [acme]")

    with pytest.raises(ConfigError) as raised:
        load_document(path, settings_of(CamsAccount, OtherAccount))

    assert str(raised.value) == (
        f"{path}:3: accounts[1]: expected an account with one of the sources cams, other, found a mapping\n"
        f"{path}:4: accounts[2]: expected a mapping, found a list"
    )


def test_add_file_and_lines_adds_the_path_of_the_file_and_the_line_of_the_key(tmp_path: Path) -> None:
    path = write_config(tmp_path, "accounts:\n  - name: acme\n")
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    first_error = ConfigError(raised.value.problems[:1])

    located = add_file_and_lines(path, first_error)

    assert str(located).startswith(f"{path}:2: accounts[0].access_key_id: set access_key_id, access_key_id_file or")


def test_yaml_scalars_are_read_as_text_except_null(tmp_path: Path) -> None:
    path = write_config(tmp_path, 'a: no\nb: null\nc: "null"\nd: 1.50\ne:\n')

    assert read_document(path) == {"a": "no", "b": None, "c": "null", "d": "1.50", "e": ""}


@pytest.mark.parametrize("null", ["~", "null", "Null", "NULL"])
def test_each_yaml_spelling_of_null_is_none_and_a_quoted_null_is_text(tmp_path: Path, null: str) -> None:
    path = write_config(tmp_path, f"a: {null}\nb: '{null}'\nc: [{null}, \"{null}\"]\nd: {{e: {null}}}\nf: nULL\n")

    assert read_document(path) == {"a": None, "b": null, "c": [None, null], "d": {"e": None}, "f": "nULL"}


def test_a_null_isv_code_is_equal_to_a_missing_isv_code(tmp_path: Path) -> None:
    path = write_config(tmp_path, "accounts: [{name: acme, isv_code: ~, spaces: [{id: 1, isv_code: ~}]}]")

    assert load(path, VARIABLES).accounts[0] == CamsAccount(name="acme", spaces=[CamsSpace(id="1")])


ACME = "acme: &acme {name: acme, qps: 1, labels: &labels {team: emea, tier: gold}}\n"
LABELS = {"team": "emea", "tier": "gold"}


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("{<<: *acme, name: globex}", {"name": "globex", "qps": "1", "labels": LABELS}),
        ("{name: globex, <<: *acme}", {"name": "globex", "qps": "1", "labels": LABELS}),
        ("{<<: *labels, tier: silver}", {"team": "emea", "tier": "silver"}),
        ("{<<: {<<: *labels, tier: silver}}", {"team": "emea", "tier": "silver"}),
    ],
    ids=["before", "after", "inner mapping", "merged mapping with a merge key"],
)
def test_a_merge_key_adds_only_missing_keys(tmp_path: Path, mapping: str, expected: object) -> None:
    path = write_config(tmp_path, f"{ACME}merged: {mapping}\n")

    assert read_document(path)["merged"] == expected


def test_the_first_of_several_merged_mappings_has_priority(tmp_path: Path) -> None:
    path = write_config(tmp_path, f"{ACME}merged: {{<<: [{{qps: 2, poll_interval: 1m}}, *acme]}}\n")

    assert read_document(path)["merged"] == {"qps": "2", "poll_interval": "1m", "name": "acme", "labels": LABELS}


def test_a_mapping_that_is_merged_into_itself_is_unchanged(tmp_path: Path) -> None:
    path = write_config(tmp_path, "merged: &merged {<<: *merged, name: acme}\n")

    assert read_document(path)["merged"] == {"name": "acme"}


@pytest.mark.parametrize("key", ["<<", "<<quoted"])
def test_a_quoted_merge_key_is_an_ordinary_key(tmp_path: Path, key: str) -> None:
    path = write_config(tmp_path, f"merged: {{'{key}': text}}\n")

    assert read_document(path)["merged"] == {key: "text"}


def test_merge_keys_work_in_configuration_files_and_space_files(tmp_path: Path) -> None:
    (tmp_path / "spaces.yml").write_text("- &a {id: 1, labels: {team: emea}}\n- {<<: *a, id: 2}\n")
    path = write_config(
        tmp_path, "accounts:\n  - &a {name: acme, space_files: [spaces.yml], qps: 1}\n  - {<<: *a, name: globex}\n"
    )

    settings = load(path, VARIABLES)

    labels = {"team": "emea"}
    assert settings.accounts[1].polled_spaces == [CamsSpace(id="1", labels=labels), CamsSpace(id="2", labels=labels)]
    assert [account.qps for account in settings.accounts] == [1, 1]


INVISIBLE_CHARACTERS = {
    "\u200b": "U+200B",  # zero width space
    "\u200d": "U+200D",  # zero width joiner
    "\u202c": "U+202C",  # pop directional formatting
    "\u202e": "U+202E",  # right-to-left override
    "\ufeff": "U+FEFF",  # byte order mark
    "\u00a0": "U+00A0",  # no-break space
    "\u00ad": "U+00AD",  # soft hyphen
    "\\u2028": "U+2028",  # line separator; YAML reads it as a line break if it is not escaped
    "\u3164": "U+3164",  # Hangul filler
    "\ufe0f": "U+FE0F",  # variation selector
    "\ue000": "U+E000",  # private use
    "\U000e0001": "U+E0001",  # language tag
    "\\u0007": "U+0007",
}


@pytest.mark.parametrize(("character", "name"), INVISIBLE_CHARACTERS.items(), ids=INVISIBLE_CHARACTERS.values())
@pytest.mark.parametrize("text", ["2934{}8", "{}29348", "29348{}"])
def test_an_invisible_character_in_an_id_name_or_isv_code_is_an_error_with_its_code_point(
    tmp_path: Path, text: str, character: str, name: str
) -> None:
    quoted = f'"{text.format(character)}"'
    account = f"{{name: {quoted}, isv_code: {quoted}, spaces: [{{id: {quoted}}}]}}"
    path = write_config(tmp_path, f"accounts: [{account}]")

    problems = error_text(path, VARIABLES).split("\n")

    places = {problem.partition(": expected ")[0].removeprefix(f"{path}:1: accounts[0].") for problem in problems}
    assert places == {"name", "isv_code", "spaces[0].id"}
    assert all(f": expected text without the invisible character {name}, found '" in problem for problem in problems)


def test_invisible_characters_in_space_files_and_environment_variables_are_errors(tmp_path: Path) -> None:
    (tmp_path / "spaces.yml").write_text('- {id: "1\\u200b"}\n- {id: "${SPACE}"}\n')
    path = write_config(tmp_path, "accounts:\n  - {name: acme, space_files: [spaces.yml]}\n  - {name: '${NAME}'}")

    with pytest.raises(ConfigError) as raised:
        load(path, {**VARIABLES, "NAME": "globex\u202c", "SPACE": "2\u00a03"}, expand=True)

    expected = "expected text without the invisible character"
    assert str(raised.value) == (
        f"{path}:3: accounts[1].name: {expected} U+202C, found '${{NAME}}'\n"
        f"{tmp_path}/spaces.yml:1: [0].id: {expected} U+200B, found '1\\u200b'\n"
        f"{tmp_path}/spaces.yml:2: [1].id: {expected} U+00A0, found '${{SPACE}}'"
    )


def test_a_tier_with_an_invisible_character_is_an_error(tmp_path: Path) -> None:
    path = write_config(tmp_path, 'accounts: [{name: acme}]\nmessaging_limits: {"TIER_1\\u200b": 5}')

    assert error_text(path, VARIABLES) == (
        f"{path}:2: messaging_limits.TIER_1\\u200b: expected text without the invisible character U+200B"
    )


@pytest.mark.parametrize("value", ["emea\u200b", "a\u00a0b", "\ufeffemea", "\u202eemea"])
def test_a_label_value_with_an_invisible_character_is_an_error(tmp_path: Path, value: str) -> None:
    path = write_config(tmp_path, f'accounts: [{{name: acme, spaces: [{{id: 1, labels: {{team: "{value}"}}}}]}}]')

    assert "accounts[0].spaces[0].labels.team: expected text without the invisible character U+" in error_text(
        path, VARIABLES
    )


@pytest.mark.parametrize("value", ["Café zwei", "\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f680\ufe0f", "a b"])
def test_blanks_accents_and_joiners_in_names_and_label_values_are_accepted(tmp_path: Path, value: str) -> None:
    path = write_config(
        tmp_path, f'accounts: [{{name: acme, spaces: [{{id: 1, name: "{value}", labels: {{team: "{value}"}}}}]}}]'
    )

    assert load(path, VARIABLES).accounts[0].polled_spaces == [CamsSpace(id="1", name=value, labels={"team": value})]


@pytest.mark.parametrize("link", [False, True])
def test_a_space_file_that_matches_several_patterns_is_read_once(tmp_path: Path, link: bool) -> None:
    directory = tmp_path / "spaces"
    directory.mkdir()
    for number in (1, 2, 3):
        (directory / f"{number}.yml").write_text(f"- {{id: {number}}}")
    if link:
        (tmp_path / "linked").symlink_to(directory)
    patterns = f"[spaces/2.yml, spaces/*.yml, ./spaces/../spaces/1.yml, '{tmp_path}/*/[13].yml', spaces/*.yml]"

    path = write_config(
        tmp_path, f"accounts: [{{name: acme, space_files: {patterns}}}, {{name: b, space_files: {patterns}}}]"
    )

    for account in load(path, VARIABLES).accounts:
        assert account.polled_spaces == [CamsSpace(id="2"), CamsSpace(id="1"), CamsSpace(id="3")]


def test_the_error_of_a_pattern_without_a_match_has_its_index_also_after_a_duplicate_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("- {id: 1}")
    path = write_config(
        tmp_path, "accounts:\n  - name: acme\n    space_files:\n      - a*.yml\n      - a*.yml\n      - missing.yml\n"
    )

    assert error_text(path, VARIABLES) == (
        f"{path}:6: accounts[0].space_files[2]: expected at least one file, found none for '{tmp_path}/missing.yml'"
    )


def test_a_json_document_has_numbers_and_booleans_as_written(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('\ufeff{"a": true, "b": [null, [false]], "c": 1.50, "d": 1e3, "e": -0, "f": "", "g": {}}', "utf-8")

    assert read_document(path) == {
        "a": "true",
        "b": [None, ["false"]],
        "c": "1.50",
        "d": "1e3",
        "e": "-0",
        "f": "",
        "g": {},
    }


def test_too_many_levels_of_nesting_in_json_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000 + "]" * 100_000)

    assert error_text(path) == f"{path}: too many levels of nesting"


def test_a_control_character_in_json_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"accounts": "\x7f"}')

    assert error_text(path) == f"{path}: invalid YAML or JSON: control characters are not allowed (U+007F)"


def test_without_a_file_the_access_key_is_read_from_the_environment() -> None:
    assert load(None, VARIABLES).with_key_digests({}, ()) == sources.Settings(accounts=[CamsAccount(name="default")])
    assert load(None, VARIABLES).accounts[0].polls_own_numbers


def test_without_a_file_the_error_names_every_missing_variable() -> None:
    assert error_text(None, {"ALIBABA_CLOUD_ACCESS_KEY_SECRET": " "}) == (
        "environment: set the environment variable ALIBABA_CLOUD_ACCESS_KEY_ID\n"
        "environment: set the environment variable ALIBABA_CLOUD_ACCESS_KEY_SECRET"
    )


def test_without_a_file_the_error_names_a_variable_with_an_unusable_value() -> None:
    environ = {**VARIABLES, "ALIBABA_CLOUD_SECURITY_TOKEN": "two\nlines"}

    assert error_text(None, environ) == (
        "environment: expected a security token in the environment variable ALIBABA_CLOUD_SECURITY_TOKEN,"
        " found characters other than printable ASCII"
    )
