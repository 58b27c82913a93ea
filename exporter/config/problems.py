"""Configuration errors: file, line, place, expected and found value."""

from collections.abc import Iterable
from dataclasses import dataclass

Place = tuple[str | int, ...]
"""The path of a value in a document, as keys and indices."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. `text` must not contain secrets."""

    file: str
    place: Place
    text: str
    line: int | None = None

    @property
    def where(self) -> str:
        """The file and the line, for example `exporter.yml:12`."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.where, _format_place(self.place), self.text)))


def merge_problems(first: Iterable[Problem], others: Iterable[Problem]) -> list[Problem]:
    """Return the first problems and those others that are at a different place."""
    first = list(first)
    places = {(problem.file, problem.place) for problem in first}
    return first + [problem for problem in others if (problem.file, problem.place) not in places]


class ConfigError(Exception):
    """The configuration has errors. The text has one line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def read_timeout_error(seconds: float) -> ConfigError:
    """Return the error for files that were not read within the time limit."""
    text = f"reading the files timed out after {seconds:g} s; check the disk or network mount"
    return ConfigError([Problem("configuration", (), text)])


def _format_place(place: Place) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".")
