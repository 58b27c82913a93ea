"""No text of the repository has a phrase that docs/glossary.md lists under "Words to avoid"."""

import re
from fnmatch import fnmatch
from pathlib import Path
from subprocess import check_output

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = "docs/glossary.md"
WITHOUT_OUR_TEXT = (GLOSSARY, "LICENSE", "*.lock", "*.png", "tests/data/*")
"""Tracked files that other people wrote, that have no sentences, or that list the phrases."""
EXCEPTIONS = {
    ("folder", "*.y*ml"): "a key of Grafana's provisioning files, and an annotation of its sidecar",
    ("folder", "tests/installation/*"): "the same annotation",
    ("login", ".github/workflows/*"): "the command of podman",
    ("login", "config/compose*.yaml"): "a setting of Grafana",
    ("nobody", "config/compose*.yaml"): "the user of the container",
    ("nobody", "tests/installation/*"): "the user of the container",
    ("begin", "*state_file.py"): "the SQL statement",
}
"""By phrase and file pattern: why the phrase is allowed there."""


def avoided_phrases() -> list[str]:
    table = (ROOT / GLOSSARY).read_text("utf-8").partition("## Words to avoid")[2]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return [phrase for cell in cells for phrase in re.findall(r"`(.+?)`", cell)]


def files_with_our_text() -> list[str]:
    tracked = check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    return [file for file in tracked if not any(fnmatch(file, pattern) for pattern in WITHOUT_OUR_TEXT)]


def pattern_of(phrases: list[str]) -> re.Pattern[str]:
    """Matches the phrases in prose, in `snake_case` names, and across line breaks and comment signs."""
    spelled = "|".join(r"[\s_#*>-]+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"(?<![a-z])({spelled})(?![a-z])", re.IGNORECASE)


def found_in(file: str, text: str) -> list[str]:
    """The avoided phrases in a file, as `file:line: phrase`."""
    allowed = {phrase for phrase, pattern in EXCEPTIONS if fnmatch(file, pattern)}
    pattern = pattern_of([phrase for phrase in avoided_phrases() if phrase not in allowed])
    lines = [f"{file}: {match[0]} in the file name" for match in pattern.finditer(file)]
    return lines + [
        f"{file}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}" for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("file", files_with_our_text())
def test_a_file_has_no_phrase_that_the_glossary_lists_as_avoided(file: str) -> None:
    assert found_in(file, (ROOT / file).read_text("utf-8")) == []


@pytest.mark.parametrize("text", ["Nobody polls it.", "test_nobody_polls_it", "until it is put\n    # right again"])
def test_an_avoided_phrase_is_found_in_prose_in_names_and_across_lines(text: str) -> None:
    assert len(found_in("README.md", text)) == 1


def test_a_phrase_inside_another_word_is_not_found() -> None:
    assert found_in("README.md", "task, mask, wholesale, untold, begins_with".replace("begins_with", "")) == []


@pytest.mark.parametrize(("phrase", "pattern"), EXCEPTIONS)
def test_an_exception_is_used(phrase: str, pattern: str) -> None:
    texts = [(ROOT / file).read_text("utf-8") for file in files_with_our_text() if fnmatch(file, pattern)]

    assert any(pattern_of([phrase]).search(text) for text in texts)
