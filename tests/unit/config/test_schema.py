"""The JSON schema for editors: up to date, and consistent with the program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import sources

CONFIG = Path(__file__).parents[3] / "config"
SCHEMA = CONFIG / "schema.json"
EXAMPLE = CONFIG / "exporter.example.yml"
FIXTURES = Path(__file__).parent / "fixtures"


def check_against_schema(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(SCHEMA), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True)


def test_schema_json_is_up_to_date() -> None:
    assert json.loads(SCHEMA.read_text()) == sources.Settings.model_json_schema(), "run: make generate"


def test_the_example_names_the_schema_for_editors_and_is_valid() -> None:
    first = EXAMPLE.read_text(encoding="utf-8").splitlines()[0]

    assert first == f"# yaml-language-server: $schema={SCHEMA.name}"
    assert check_against_schema(EXAMPLE).returncode == 0, check_against_schema(EXAMPLE).stdout


def test_the_schema_accepts_the_valid_configurations() -> None:
    process = check_against_schema(*FIXTURES.glob("*.ok.*"))

    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("accounts: [{name: acme, colour: blue}]", "'colour' was unexpected"),
        ("accounts: [{name: acme, qps: 11}]", "11 is greater than the maximum of 10"),
        ("accounts: [{name: acme, poll_interval: soon}]", "'soon' does not match"),
        ("accounts: [{name: acme}]\nmax_aeg: 1h", "'max_aeg' was unexpected"),
        ("accounts: []", "[] should be non-empty"),
        ("max_age: 1h", "'accounts' is a required property"),
    ],
)
def test_the_schema_rejects_invalid_values_and_keys(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)

    process = check_against_schema(path)

    assert error in process.stdout
    assert process.returncode == 1


def test_every_key_has_a_description_and_defaults_are_included() -> None:
    schema = json.loads(SCHEMA.read_text())
    parts = [schema, schema["$defs"]["CamsAccount"], schema["$defs"]["CamsSpace"]]

    assert [key for part in parts for key, value in part["properties"].items() if not value.get("description")] == []
    account = schema["$defs"]["CamsAccount"]["properties"]
    assert (account["qps"]["default"], account["poll_interval"]["default"]) == (5.0, "5m")
