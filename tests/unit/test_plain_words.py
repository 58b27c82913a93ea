"""No text of the repository has a phrase that docs/glossary.md lists under "Words to avoid"."""

import re
from fnmatch import fnmatch
from pathlib import Path
from subprocess import check_output

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = "docs/glossary.md"
NOT_CHECKED = {
    GLOSSARY: "lists the phrases",
    "tests/unit/test_plain_words.py": "has examples",
    "LICENSE": "the text of the license",
    "*.lock": "package names and hashes",
    "*.png": "not text",
    "tests/data/*.json": "recorded by other projects",
}
"""Tracked files without texts of this project, with the reason."""
EXCEPTIONS = {
    ("folder", "config/grafana/provisioning/dashboards/chatapp.yml"): "a key of Grafana's provisioning files",
    ("folder", "dashboards/kustomization.yaml"): "an annotation of Grafana's sidecar",
    ("folder", "tests/installation/test_kubernetes.py"): "an annotation of Grafana's sidecar",
    ("login", ".github/workflows/release.yml"): "the name of an action",
    ("login", "config/compose*.yaml"): "a variable of Grafana",
    ("nobody", "config/compose*.yaml"): "the user of the container",
    ("nobody", "tests/installation/test_compose.py"): "the user of the container",
    ("begin", "exporter/state/state_file.py"): "an SQL statement",
    ("begin", "tests/integration/test_state_file.py"): "an SQL statement",
}
"""Allowed phrases by phrase and files, with the reason."""


def avoided_phrases() -> list[str]:
    table = (ROOT / GLOSSARY).read_text("utf-8").partition("## Words to avoid")[2]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return [phrase for cell in cells for phrase in re.findall(r"`(.+?)`", cell)]


def checked_files() -> list[str]:
    tracked = check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    return [file for file in tracked if not any(fnmatch(file, pattern) for pattern in NOT_CHECKED)]


def phrases_in(file: str, text: str) -> list[str]:
    """Return the avoided phrases in the name and the text of a file, as `file:line: phrase`.

    Finds phrases in prose, also across line breaks and comment signs, and in snake_case and CamelCase names.
    """
    allowed = {phrase for phrase, pattern in EXCEPTIONS if fnmatch(file, pattern)}
    phrases = [phrase for phrase in avoided_phrases() if phrase not in allowed]
    spellings = "|".join(r"[\s_#*>-]+".join(map(re.escape, phrase.split())) for phrase in phrases)
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", f"{file}\n{text}")
    found = re.compile(rf"(?<![a-z])({spellings})(?![a-z])", re.IGNORECASE).finditer(words)
    return [f"{file}:{words.count(chr(10), 0, match.start())}: {match[0]}" for match in found]


def test_no_text_has_a_phrase_that_the_glossary_avoids() -> None:
    found = [hit for file in checked_files() for hit in phrases_in(file, (ROOT / file).read_text("utf-8"))]

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text", ["Nobody polls it.", "test_nobody_polls", "NobodyPolls", "it is put\n    # right again"]
)
def test_a_phrase_is_found_in_prose_in_names_and_across_lines(text: str) -> None:
    assert len(phrases_in("README.md", text)) == 1


def test_a_phrase_inside_another_word_is_not_found() -> None:
    assert phrases_in("README.md", "task, mask, wholesale, untold, beginner") == []


def test_a_phrase_is_found_in_the_name_of_a_file() -> None:
    assert phrases_in("docs/nobody.md", "") == ["docs/nobody.md:0: nobody"]


@pytest.mark.parametrize(("phrase", "pattern"), EXCEPTIONS)
def test_every_file_of_an_exception_has_its_phrase(phrase: str, pattern: str) -> None:
    files = [file for file in checked_files() if fnmatch(file, pattern)]

    assert files
    assert all(re.search(phrase, (ROOT / file).read_text("utf-8"), re.IGNORECASE) for file in files)
