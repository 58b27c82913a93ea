"""What the workflows rely on: their pins, and the notes of the version that a tag names."""

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
def test_a_workflow_uses_a_commit_of_an_action_and_says_which_version_it_is(line: str) -> None:
    of_this_repository = r"uses: \$/\.github/workflows/[\w-]+\.yml"
    pinned = r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"

    assert re.fullmatch(f"{of_this_repository}|{pinned}", line)


def test_there_are_workflows_to_look_at() -> None:
    assert len(USES) > 10


def notes(directory: Path, tag: str, version: str) -> tuple[int, str, str]:
    (directory / "exporter").mkdir()
    (directory / "exporter/__init__.py").write_text(f'"""An exporter."""\n\n__version__ = "{version}"\n')
    (directory / "CHANGELOG.md").write_text(CHANGELOG)
    told = subprocess.run([sys.executable, ROOT / ".ci/notes", tag], cwd=directory, capture_output=True, text=True)
    return told.returncode, told.stdout, told.stderr


def test_the_notes_of_a_release_are_its_section_of_the_changelog(tmp_path: Path) -> None:
    assert notes(tmp_path, "v1.2.3", version="1.2.3") == (0, "### Added\n\n- A thing.\n", "")


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
def test_a_tag_that_version_and_changelog_do_not_bear_out_is_refused(
    tmp_path: Path, tag: str, version: str, error: str
) -> None:
    assert notes(tmp_path, tag, version) == (1, "", f"error: {error}\n")
