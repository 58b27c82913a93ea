"""YAML and JSON files as documents, and the lines on which their parts stand. Knows no schema.

All scalars but null are read as text, as they are written, and the schema decides their type: an id of digits stays an
id, and `no` stays `no`.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from exporter.config.problems import ConfigError, Place, Problem, is_like_a_key

_SURROGATES = re.compile(r"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


def read_document(path: Path) -> Any:
    """The document in a JSON file, by the suffix .json, or a YAML file; every scalar as text.

    Raises:
        ConfigError: it cannot be read, is no JSON or YAML, or says one key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _from_json(text) if path.suffix == ".json" else _from_yaml(text)
    except OSError as error:
        raise ConfigError([Problem(str(path), (), f"expected a readable file, found: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), (), "expected UTF-8 text, found other bytes")]) from error
    except json.JSONDecodeError as error:
        found = f"something else (column {error.colno}: {error.msg})"
        raise ConfigError([Problem(str(path), (), f"expected JSON, found {found}", error.lineno)]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(path, error)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), (), "expected a few levels, found hundreds")]) from error


def _from_yaml(text: str) -> Any:
    return yaml.load(_joined(text), _TextLoader)  # noqa: S506  # safer than safe_load: it makes text only


def _joined(text: str) -> str:
    # JSON may spell one character as two escapes, which YAML does not know
    return _SURROGATES.sub(lambda pair: json.loads(f'"{pair[0]}"'), text)


def _from_json(text: str) -> Any:
    try:
        read = json.loads(text, object_pairs_hook=_mapping, parse_int=str, parse_float=str, parse_constant=str)
        json.dumps(read, ensure_ascii=False).encode()
    except (_KeyTwiceError, UnicodeEncodeError):  # half a character is no text
        return _from_yaml(text)  # refuses both too, and knows the line
    return _as_text(read)


class _KeyTwiceError(Exception):
    pass


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = {key: _as_text(value) for key, value in pairs}
    if len(mapping) < len(pairs):
        raise _KeyTwiceError
    return mapping


def _as_text(read: Any) -> Any:
    """The booleans, which no hook of the reader sees, as they are written."""
    if isinstance(read, list):
        return [_as_text(entry) for entry in read]
    return str(read).lower() if isinstance(read, bool) else read


class _TextLoader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]  # the C one where it is built
    """Every scalar but null is text, and a key that stands twice is an error: the first would be lost in silence."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        # a file written by a program says `null` for what is left out; `""` and `"null"` are text
        return None if node.value == "null" and not node.style else super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value.__hash__ and key.value in seen:
                problem = f"every key once, found {_shown(key.value)} twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _yaml_problem(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is none"
    # what YAML's author quotes, such as an unknown alias, may be a secret that starts with an asterisk
    text = re.sub(r" '\w[^']+'", "", text.removeprefix("but "))
    expected = text if text.startswith("every key once") else f"YAML, but {text}"
    return Problem(str(path), (), f"expected {expected}", mark.line + 1 if mark else None)


class Lines:
    """A file that was read, to say on which line something stands; looked at only when something is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def problem(self, place: Place, text: str) -> Problem:
        return Problem(str(self._path), place, text, self.line(place))

    def line(self, place: Place) -> int | None:
        node, line = self._root, None
        for step in place:
            node, line = _child(node, step, line)
        return line

    @cached_property
    def _root(self) -> yaml.Node | None:
        try:
            return yaml.compose(_joined(self._path.read_text(encoding="utf-8-sig")), _TextLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return None  # it changed after it was read, or is JSON that is no YAML


def _child(node: yaml.Node | None, step: str | int, line: int | None) -> tuple[yaml.Node | None, int | None]:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step].start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return value, key.start_mark.line + 1
    return None, line


def _shown(key: object) -> str:
    """A key by its name, unless a colon without a space after it made a secret a part of the key."""
    return str(key) if is_like_a_key(key) else "one (not shown, for it may hold a secret)"
