"""The schema that editors check a configuration against: it is the program's, and of one mind with it."""

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


def checked(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(SCHEMA), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_file_is_what_the_program_prints() -> None:
    assert json.loads(SCHEMA.read_text()) == sources.Settings.model_json_schema(), "run: make generate"


def test_the_example_names_the_schema_for_editors_and_is_good_by_it() -> None:
    first = EXAMPLE.read_text(encoding="utf-8").splitlines()[0]

    assert first == f"# yaml-language-server: $schema={SCHEMA.name}"
    assert checked(EXAMPLE).returncode == 0, checked(EXAMPLE).stdout


def test_what_the_program_reads_no_editor_marks() -> None:
    done = checked(*FIXTURES.glob("*.ok.*"))

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("wrong", "marked"),
    [
        ("accounts: [{name: acme, colour: blue}]", "'colour' was unexpected"),
        ("accounts: [{name: acme, qps: 11}]", "11 is greater than the maximum of 10"),
        ("accounts: [{name: acme, poll_interval: soon}]", "'soon' does not match"),
        ("accounts: [{name: acme}]\nmax_aeg: 1h", "'max_aeg' was unexpected"),
        ("accounts: []", "[] should be non-empty"),
        ("max_age: 1h", "'accounts' is a required property"),
    ],
)
def test_what_the_program_refuses_an_editor_marks(tmp_path: Path, wrong: str, marked: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(wrong)

    done = checked(path)

    assert marked in done.stdout
    assert done.returncode == 1


def test_an_editor_can_show_what_each_key_means() -> None:
    schema = json.loads(SCHEMA.read_text())
    shapes = [schema, schema["$defs"]["CamsAccount"], schema["$defs"]["CamsSpace"]]

    assert [key for shape in shapes for key, told in shape["properties"].items() if not told.get("description")] == []
    account = schema["$defs"]["CamsAccount"]["properties"]
    assert (account["qps"]["default"], account["poll_interval"]["default"]) == (5.0, "5m")
