"""Errors in a file: where, what was expected and what was found."""

from collections.abc import Iterable
from dataclasses import dataclass

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value in a document."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. The writer of `text` leaves out whatever may be secret."""

    file: str
    place: Place
    text: str
    line: int | None = None

    @property
    def where(self) -> str:
        """The file and the line."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.where, _spelled(self.place), self.text)))


def at_one_place(first: Iterable[Problem], others: Iterable[Problem]) -> list[Problem]:
    """The first problems, and those of the others that are at other places."""
    first = list(first)
    places = {(problem.file, problem.place) for problem in first}
    return first + [problem for problem in others if (problem.file, problem.place) not in places]


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are all that were found, one per line in the text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def read_timeout_error(seconds: float) -> ConfigError:
    """The error for files that could not be read in time."""
    text = f"reading the files timed out after {seconds:g} s; check the disk or network mount"
    return ConfigError([Problem("configuration", (), text)])


def _spelled(place: Place) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".")
