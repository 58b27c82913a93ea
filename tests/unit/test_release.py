"""Releases: pinned actions in the workflows, and the release notes for a version tag."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USES = [
    pytest.param(line.strip().removeprefix("- "), id=f"{file.name}-{number}")
    for file in sorted((ROOT / ".github/workflows").glob("*.yml"))
    for number, line in enumerate(file.read_text().splitlines(), start=1)
    if line.strip().removeprefix("- ").startswith("uses:")
]

CHANGELOG = """\
# Changelog

## [1.3.0] - Unreleased

- Not yet.

## [1.2.3] - 2026-12-01

### Added

- A thing.

## [1.2.2] - 2026-11-01

- An older thing.
"""


@pytest.mark.parametrize("line", USES)
def test_a_workflow_pins_an_action_to_a_commit_and_names_the_version(line: str) -> None:
    local = r"uses: \$/\.github/workflows/[\w-]+\.yml"
    pinned = r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"

    assert re.fullmatch(f"{local}|{pinned}", line)


def test_the_workflows_use_more_than_10_actions() -> None:
    assert len(USES) > 10


def run_notes(directory: Path, tag: str, version: str) -> tuple[int, str, str]:
    """Return the exit status, the standard output and the standard error of `.ci/notes`."""
    (directory / "exporter").mkdir()
    (directory / "exporter/__init__.py").write_text(f'"""An exporter."""\n\n__version__ = "{version}"\n')
    (directory / "CHANGELOG.md").write_text(CHANGELOG)
    process = subprocess.run([sys.executable, ROOT / ".ci/notes", tag], cwd=directory, capture_output=True, text=True)
    return process.returncode, process.stdout, process.stderr


def test_the_release_notes_are_the_changelog_section_of_the_version(tmp_path: Path) -> None:
    assert run_notes(tmp_path, "v1.2.3", version="1.2.3") == (0, "### Added\n\n- A thing.\n", "")


@pytest.mark.parametrize(
    ("tag", "version", "error"),
    [
        ("v1.2.2", "1.2.3", "tag v1.2.2 does not match version 1.2.3 in exporter/__init__.py, expected tag v1.2.3"),
        ("1.2.3", "1.2.3", "tag 1.2.3 does not match version 1.2.3 in exporter/__init__.py, expected tag v1.2.3"),
        (
            "v1.3.0",
            "1.3.0",
            "CHANGELOG.md section [1.3.0] has the date 'Unreleased', expected a date such as 2026-11-25",
        ),
        ("v2.0.0", "2.0.0", "CHANGELOG.md has no section [2.0.0], found: 1.3.0, 1.2.3, 1.2.2"),
    ],
)
def test_a_tag_without_a_matching_version_and_dated_changelog_section_is_an_error(
    tmp_path: Path, tag: str, version: str, error: str
) -> None:
    assert run_notes(tmp_path, tag, version) == (1, "", f"error: {error}\n")
