"""A document against a pydantic model, with errors in words for people: what was expected, and what was found."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from exporter.config.document import Lines, read_document
from exporter.config.problems import SECRET_KEYS, ConfigError, Place, Problem, is_like_a_key, is_like_a_secret
from exporter.config.settings import A_DURATION

Shape = TypeVar("Shape")
_LONGEST_FOUND = 60
_EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than_equal": "a number of at most {le:g}",
    "string_type": "text",
    "list_type": "a list with at least one entry",
    "too_short": "a list with at least one entry",
    "model_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "literal_error": "{expected}",
}
_EXPECTED_OF = {float: "a number", int: "a whole number", bool: "true or false"}
_GROUPS = ("list_type", "model_type", "dataclass_type", "dict_type")
"""Errors of what should have held keys, and so may hold a secret where a `- ` or a space after a colon is missing."""


def load_document(path: Path, shape: type[Shape]) -> Shape:
    """Any other YAML file of ours, such as a scenario, with errors of the same form.

    Raises:
        ConfigError: anything is wrong.
    """
    loaded, problems = validate(shape, read_document(path), Lines(path))
    if loaded is None:
        raise ConfigError(problems)
    return loaded


def located(path: Path, error: ConfigError) -> ConfigError:
    """An error about a document's meaning, with the file and the lines that its places have there."""
    lines = Lines(path)
    return ConfigError(lines.problem(problem.place, problem.text) for problem in error.problems)


def validate(shape: type[Shape], document: Any, lines: Lines) -> tuple[Shape | None, list[Problem]]:
    """The document in this shape, a model or a list of one, and no problem; or None, and all that is wrong with it."""
    try:
        return TypeAdapter(shape).validate_python(document), []
    except ValidationError as error:
        return None, [_problem(details, shape, lines) for details in error.errors(include_url=False)]


def _problem(details: Any, shape: Any, lines: Lines) -> Problem:
    place: Place = details["loc"]
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_key(shape, place, lines)
    if place[-1:] == ("[key]",):  # pydantic's mark for an error of the key itself
        place = place[:-1]
    if details["type"] == "missing":
        return lines.problem(place, f"expected {_expected_of(_annotation(shape, place))}, found nothing")
    found = _found(place, details["input"], group=details["type"] in _GROUPS)
    return lines.problem(place, f"expected {_expected(details, shape, place)}, found {found}")


def _expected(details: Any, shape: Any, place: Place) -> str:
    """What belongs there, from pydantic's error or, where that says no more than the type, from the schema."""
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    if details["type"] in _EXPECTED:
        return _EXPECTED[details["type"]].format(**context)
    return _expected_of(_annotation(shape, place))


def _expected_of(annotation: Any) -> str:
    arguments = get_args(annotation)
    if any(isinstance(argument, BeforeValidator) for argument in arguments):
        return A_DURATION  # the only type of ours that reads text in its own way
    plain = _plain(annotation)
    if get_origin(plain) is list:
        return _EXPECTED["list_type"]
    if get_origin(plain) is dict or _fields(plain):
        return _EXPECTED["dict_type"]
    return _EXPECTED_OF.get(plain, "text")


def _annotation(shape: Any, place: Place) -> Any:
    """The type that the shape gives to a place; of a list's or mapping's entry, that of the entry."""
    annotation = shape
    for step in place:
        plain = _plain(annotation)
        if get_args(plain):
            annotation = get_args(plain)[-1]
        else:
            fields = {field.alias or name: field for name, field in _fields(plain).items()}
            annotation = fields[str(step)].rebuild_annotation()
    return annotation


def _fields(shape: Any) -> Mapping[str, FieldInfo]:
    """Of a model, or of a dataclass that is made like one; none of anything else."""
    return getattr(shape, "__pydantic_fields__", {})


def _plain(annotation: Any) -> Any:
    """The type under Annotated and beside None."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return annotation


def _found(place: Place, value: object, *, group: bool) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None or value == "":
        return "nothing"
    if group:
        return "text"
    text = str(value)
    if not SECRET_KEYS.isdisjoint(place) or "@" in text or is_like_a_secret(text):
        return "something else (not shown, for it may be secret)"
    return repr(text if len(text) <= _LONGEST_FOUND else text[:_LONGEST_FOUND] + "…")


def _unknown_key(shape: Any, place: Place, lines: Lines) -> Problem:
    if not is_like_a_key(place[-1]):
        return lines.problem(place, "unknown key (not shown, for it may hold a secret)")
    return lines.problem(place, f"unknown key{_suggestion(shape, place)}")


def _suggestion(shape: Any, place: Place) -> str:
    fields = _fields(_plain(_annotation(shape, place[:-1])))
    known = [field.alias or name for name, field in fields.items()]
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known)}"
