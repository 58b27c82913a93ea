"""What is wrong with a file: where, and what was expected and found there. Never shows what may be secret."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Place = tuple[str | int, ...]
"""The keys and indices that lead to something in a document."""
_LIKE_A_KEY = re.compile(r"[A-Za-z_.-]{1,40}[0-9]{0,2}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what was expected and found there."""

    file: str
    place: Place
    text: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {_spell(self.place)}: {self.text}" if self.place else f"{where}: {self.text}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are all that was found, one a line in the text."""

    mends_itself = False
    """Whether only files are wrong that are followed, so that it takes no reload once they are mended."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def is_like_a_key(key: object) -> bool:
    """Whether it is a key's name, and not a secret that a missing space after a colon made a part of it."""
    return bool(_LIKE_A_KEY.fullmatch(str(key)))


def _spell(place: Place) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
