"""What is wrong with a file: where, and what was expected and found there. Never shows what may be secret."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Place = tuple[str | int, ...]
"""The keys and indices that lead to something in a document."""
SECRET_KEYS = frozenset({"access_key_secret", "access_key_id", "security_token", "credentials", "basic_auth_users"})
"""Keys whose values are never shown, nor what is below them: of a login that is wrong, the name may be the password."""
_LIKE_A_KEY = re.compile(r"[A-Za-z_.-]{1,40}([0-9]{1,4}[A-Za-z]?)?")
_LIKE_A_SECRET = re.compile(
    r"(?<![A-Za-z0-9+=])(?=[A-Za-z+=]*[0-9])(?=[0-9+=]*[A-Za-z][0-9+=]*[A-Za-z])[A-Za-z0-9+=]{12,}"
    r"|(?<![A-Za-z0-9+=_-])(?=[A-Za-z+=_-]*[0-9])(?=[A-Z0-9+=_-]*[a-z])(?=[a-z0-9+=_-]*[A-Z])[A-Za-z0-9+=_-]{20,}"
)
"""Letters and digits mixed, longer than people write; in names of several words, both cases as well. No address or
number is like that: a dot and a slash end it, and one letter may be a unit."""

_NOT_SHOWN = "<not shown, for it may be secret>"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what was expected and found there.

    Nothing that looks like a secret is shown of either, wherever a person put it by mistake.
    """

    file: str
    place: Place
    text: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(filter(None, (where, _spell(self.place), _without_secrets(self.text))))

    def __repr__(self) -> str:
        return f"<{self}>"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are all that was found, one a line in the text."""

    mends_itself = False
    """Whether only files are wrong that are followed, so that it takes no reload once they are mended."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def is_like_a_key(key: object) -> bool:
    """Whether it is a key's name, and not a secret that a missing space after a colon made a part of it."""
    return bool(_LIKE_A_KEY.fullmatch(str(key))) and not is_like_a_secret(str(key))


def is_like_a_secret(text: str) -> bool:
    """Whether an access key, a token or a good password may be in it."""
    return bool(_LIKE_A_SECRET.search(text))


def _without_secrets(text: str) -> str:
    """The text without each word, or what stands in quotes, that may be one."""
    return re.sub(r"[^\s'\"]+", lambda word: _NOT_SHOWN if is_like_a_secret(word[0]) else word[0], text)


def _spell(place: Place) -> str:
    """The place as far as its keys can be shown; the line tells the rest."""
    text = ""
    for step in place:
        if not isinstance(step, int) and not is_like_a_key(step):
            break
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
        if step in SECRET_KEYS:
            break
    return text
