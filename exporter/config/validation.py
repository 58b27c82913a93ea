"""Validates documents with pydantic. Errors have the file, the line, the place and the value."""

import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from exporter.config.document import Lines, read_document
from exporter.config.problems import ConfigError, Place, Problem

Schema = TypeVar("Schema")
_KEYS_WITH_SHOWN_VALUE = frozenset(
    "name id source isv_code qps poll_interval discover max_age client_auth_type"
    " seed limit_qps latency at for account space number move_to remove answer action".split()
)
"""Keys whose value is shown in errors. Values of other keys can be secret."""
_MAX_VALUE_LENGTH = 60
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument", "invalid_key")
_EXPECTED_TEXTS = {
    "model_type": "a mapping",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "too_short": "at least one entry",
}
"""Texts for the error types of pydantic."""
_NUMBER_ERRORS = ("float_", "int_", "finite_number", "less_than", "greater_than")


def load_document(path: Path, schema: type[Schema]) -> Schema:
    """Read a YAML file with this schema.

    Raises:
        ConfigError: the file has errors.
    """
    loaded, problems = validate(schema, read_document(path), Lines(path))
    if loaded is None:
        raise ConfigError(problems)
    return loaded


def add_file_and_lines(path: Path, error: ConfigError) -> ConfigError:
    """Return the error with the file and line of each problem."""
    lines = Lines(path)
    return ConfigError(lines.problem(problem.place, problem.text) for problem in error.problems)


def validate(
    schema: type[Schema], document: Any, lines: Lines, directory: Path | None = None
) -> tuple[Schema | None, list[Problem]]:
    """Return the validated document without problems, or None and all problems.

    File names in the document are relative to the directory.
    """
    try:
        return TypeAdapter(schema).validate_python(document, context={"directory": directory or ""}), []
    except ValidationError as error:
        return None, [_problem(details, schema, document, lines) for details in error.errors(include_url=False)]


def _problem(details: Any, schema: Any, document: Any, lines: Lines) -> Problem:
    place = tuple(_place_in_document(details["loc"], document))
    if details["type"] in _UNKNOWN_KEY:
        return lines.problem(place, f"unknown key{_hint(schema, str(place[-1]))}")
    if details["type"] == "missing":
        return lines.problem(place, "required key is missing")
    found = "" if "[key]" in details["loc"] else f", found {_found_text(place, details, lines)}"
    return lines.problem(place, f"expected {expected_text(details, schema)}{found}")


def _place_in_document(loc: Place, document: Any) -> Iterator[str | int]:
    """Yield the steps of pydantic's location that exist in the document: no union tags and no `[key]` marks."""
    for position, step in enumerate(loc, 1):
        in_list = isinstance(document, list) and isinstance(step, int)
        if in_list or (isinstance(document, dict) and step in document):
            yield step
            document = document[step]
        elif isinstance(document, dict) and position == len(loc) and step != "[key]":
            yield step  # a missing key


def expected_text(details: Any, schema: Any) -> str:
    """Return the expected value, for an error of pydantic."""
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "string_too_long":
        return f"at most {details['ctx']['max_length']} characters"
    if details["type"].startswith(_NUMBER_ERRORS):
        properties = [node for _, node in _definitions(schema).get(str(details["loc"][-1]), ())]
        numbers = (node for node in properties if node.get("type") in ("number", "integer"))
        # a key has the same range in all sections; only the values of messaging_limits have no named key
        return _number_text(next(numbers, {"exclusiveMinimum": details.get("ctx", {}).get("gt")}))
    message: str = _EXPECTED_TEXTS.get(details["type"], details["msg"])
    return message.removeprefix("Input should be ")


def _number_text(node: Mapping[str, Any]) -> str:
    """Return the type and the range of a number, for its JSON schema."""
    low, above, high = (node.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    limits = [f"from {low:g} to {high:g}"] if low is not None and high is not None else []
    limits += [f"of at least {low:g}"] if low is not None and high is None else []
    limits += [f"greater than {above:g}"] if above is not None else []
    return " ".join(["an integer" if node.get("type") == "integer" else "a number", *limits])


def _found_text(place: Place, details: Any, lines: Lines) -> str:
    value = details["input"]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if not isinstance(value, str) or not value.strip():
        return "nothing"
    keys = [step for step in place if isinstance(step, str)]
    if not keys or keys[-1] not in _KEYS_WITH_SHOWN_VALUE:
        return "text (not shown)"
    return lines.quoted(place, value if len(value) <= _MAX_VALUE_LENGTH else value[:_MAX_VALUE_LENGTH] + "…")


def _hint(schema: Any, key: str) -> str:
    if ":" in key:
        return "; is a space missing after the colon?"
    definitions = _definitions(schema)
    if key in definitions:
        sections = dict.fromkeys(f"in {section}" if section else "at the top level" for section, _ in definitions[key])
        return f"; this key is only allowed {' and '.join(sections)}"
    close = difflib.get_close_matches(key, sorted(definitions), n=1)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _definitions(schema: Any) -> Mapping[str, list[tuple[str, Mapping[str, Any]]]]:
    """Map each key of the schema to its definitions: the section, such as `accounts[].spaces[]`, and the JSON schema of
    the key in this section."""
    json_schema = TypeAdapter(schema).json_schema()
    definitions: dict[str, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    nodes = [("", "", json_schema)]
    for section, key, node in nodes:  # the loop also visits the nodes that it adds
        path = f"{section}.{key}".strip(".")
        if "$ref" in node:
            nodes.append((section, key, json_schema["$defs"][node["$ref"].rpartition("/")[2]]))
        if name := key.removesuffix("[]"):
            definitions[name].append((section, node))
        nodes += [(section, key, option) for union in ("anyOf", "oneOf") for option in node.get(union, ())]
        nodes += [(path, child_key, child) for child_key, child in node.get("properties", {}).items()]
        if "items" in node:
            nodes.append((section, f"{key}[]", node["items"]))
    return definitions
