"""A document against a pydantic model: pydantic's messages, with the file, the line, the place and the value found."""

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from exporter.config.document import Lines, read_document
from exporter.config.problems import ConfigError, Place, Problem

Shape = TypeVar("Shape")
_SHOWN = frozenset(
    "name id source isv_code qps poll_interval discover max_age client_auth_type"
    " seed limit_qps latency at for account space number move_to remove answer action".split()
)
"""Keys whose values an error shows. Of all others only the place is shown, for a value may be a secret."""
_MAX_FOUND = 60
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument", "invalid_key")
_EXPECTED = {
    "missing": "this required key",
    "model_type": "a mapping",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "too_short": "at least one entry",
}
"""Instead of messages of pydantic that name Python types."""


def load_document(path: Path, shape: type[Shape]) -> Shape:
    """A YAML file in this shape.

    Raises:
        ConfigError: it has errors.
    """
    loaded, problems = validate(shape, read_document(path), Lines(path))
    if loaded is None:
        raise ConfigError(problems)
    return loaded


def located(path: Path, error: ConfigError) -> ConfigError:
    """An error about a document's meaning, with the file and the lines of its places."""
    lines = Lines(path)
    return ConfigError(lines.problem(problem.place, problem.text) for problem in error.problems)


def validate(
    shape: type[Shape], document: Any, lines: Lines, directory: Path | None = None
) -> tuple[Shape | None, list[Problem]]:
    """The document in this shape and no problem, or None and all its problems. Files that it names are relative to the
    directory."""
    try:
        return TypeAdapter(shape).validate_python(document, context={"directory": directory or ""}), []
    except ValidationError as error:
        return None, [_problem(details, shape, document, lines) for details in error.errors(include_url=False)]


def _problem(details: Any, shape: Any, document: Any, lines: Lines) -> Problem:
    place = tuple(_in_document(details["loc"], document))
    if details["type"] in _UNKNOWN_KEY:
        return lines.problem(place, f"unknown key{_hint(shape, str(place[-1]))}")
    found = "" if "[key]" in details["loc"] else f", found {_found(place, details, lines)}"
    return lines.problem(place, f"expected {_expected(details)}{found}")


def _in_document(loc: Place, document: Any) -> Iterator[str | int]:
    """pydantic's location without the steps that are not the file's: the tag of a union, and the mark of a key."""
    for position, step in enumerate(loc, 1):
        in_list = isinstance(document, list) and isinstance(step, int)
        if in_list or (isinstance(document, dict) and step in document):
            yield step
            document = document[step]
        elif isinstance(document, dict) and position == len(loc) and step != "[key]":
            yield step  # a key that is missing


def _expected(details: Any) -> str:
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    message: str = _EXPECTED.get(details["type"], details["msg"])
    return message.removeprefix("Input should be ").partition(", unable to ")[0]


def _found(place: Place, details: Any, lines: Lines) -> str:
    value = details["input"]
    if isinstance(value, dict) and details["type"] != "missing":
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if not isinstance(value, str) or not value.strip():
        return "nothing"
    keys = [step for step in place if isinstance(step, str)]
    if not keys or keys[-1] not in _SHOWN:
        return "text (not shown)"
    return lines.shown(place, value if len(value) <= _MAX_FOUND else value[:_MAX_FOUND] + "…")


def _hint(shape: Any, key: str) -> str:
    if ":" in key:
        return "; is a space missing after the colon?"
    known = _known_keys(shape)
    if key in known:
        return "; it belongs in another place"
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _known_keys(shape: Any) -> list[str]:
    """All keys that the file can have."""
    schema = TypeAdapter(shape).json_schema()
    models = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for model in models for key in model.get("properties", {})})
