"""Reads YAML and JSON documents and finds the line of each value. Does not know the schema.

Each scalar except null is read as text, and the schema converts it later. An unquoted id of digits keeps its leading
zeros, and `no` is not read as false.
"""

import json
import re
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from exporter.config.problems import ConfigError, Place, Problem
from exporter.files import read_error_text, read_text

_SURROGATE_PAIR = re.compile(r"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")

PLACEHOLDER_PREFIX = "${"
_NULL = ("null", "Null", "NULL", "~")
"""The spellings of null in YAML's core schema."""
_MAX_DEPTH = 500
"""Maximum nesting. At several thousand levels, PyYAML's C parser crashes the process in threads with a small stack."""


def read_document(path: Path) -> Any:
    """Return the document in a file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has a duplicate key.
    """
    try:
        return yaml.load(_read_text(path), _TextLoader)  # noqa: S506  # the loader creates only text
    except OSError as error:
        raise ConfigError([Problem(str(path), (), read_error_text(error))]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), (), "expected UTF-8 text, found invalid bytes")]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(path, error)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), (), "too many levels of nesting")]) from error


def _read_text(path: Path) -> str:
    """Return the text of a file for PyYAML. Raises RecursionError, like PyYAML, if the nesting is too deep."""
    text = read_text(path)
    brackets = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[{\]}]", text))
    if max(accumulate(brackets), default=0) > _MAX_DEPTH or any(mark * _MAX_DEPTH in text for mark in ("- ", "? ")):
        raise RecursionError
    # JSON can write one character as two escapes (a surrogate pair). YAML does not support this.
    return _SURROGATE_PAIR.sub(lambda pair: json.loads(f'"{pair[0]}"'), text)


class _TextLoader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]  # in C if available
    """Reads each scalar except null as text and resolves merge keys. A duplicate key is an error."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        # programs write null for a key that is not set. A quoted null is text. A key without a value is empty text,
        # because its value was probably forgotten.
        return None if node.value in _NULL and not node.style else super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        _check_and_merge_keys(node)
        return super().construct_mapping(node, deep=deep)


def _check_and_merge_keys(node: yaml.MappingNode) -> None:
    """Check that no key is duplicate, then replace a merge key (`<<: *anchor`) with the pairs of its mappings. Existing
    keys of the node have precedence.

    Raises:
        YAMLError: a key is duplicate, or the merge key has a value that is not a mapping.
    """
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if str(key.value) in pairs:
            raise _DuplicateKeyError(pairs[str(key.value)][0], key)
        pairs[str(key.value)] = key, value
    key, merged = pairs.get("<<", (None, None))
    if not isinstance(key, yaml.ScalarNode) or key.style:  # a quoted << is a normal key
        return
    del pairs["<<"]
    node.value = list(pairs.values())  # removed first, because a mapping can merge itself
    for mapping in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
        if not isinstance(mapping, yaml.MappingNode):
            raise _yaml_error(key, "expected a mapping for the merge key <<")
        _check_and_merge_keys(mapping)
        for pair in mapping.value:
            pairs.setdefault(str(pair[0].value), pair)
    node.value = list(pairs.values())


class _DuplicateKeyError(yaml.YAMLError):
    """A key is defined twice in a mapping."""

    def __init__(self, first: yaml.Node, second: yaml.Node) -> None:
        self.name = _key_without_value(str(second.value))
        self.first_line = first.start_mark.line + 1
        self.problem_mark = second.start_mark


def _yaml_error(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _key_without_value(key: str) -> str:
    """Return the key up to a colon or equals sign. If the space after a colon is missing, YAML reads `key:value` as the
    key, and the value can be a secret."""
    return re.split("[:=]", key)[0]


def _yaml_problem(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, _DuplicateKeyError):
        text = f"duplicate key {error.name} (first defined at {path}:{error.first_line})"
        return Problem(str(path), (), text, error.problem_mark.line + 1)
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or "syntax error"
    if isinstance(error, yaml.reader.ReaderError):
        text += f" (U+{error.character:04X})"
    # PyYAML quotes the invalid text, for example an undefined alias. It can be a secret that starts with an asterisk.
    text = re.sub(r" '\w[^']+'", "", text.removeprefix("but "))
    language = "YAML or JSON" if path.suffix == ".json" else "YAML"
    return Problem(str(path), (), f"invalid {language}: {text}", mark.line + 1 if mark else None)


class Lines:
    """Finds line numbers and creates errors. Parses the file again when the first line number is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def problem(self, place: Place, text: str) -> Problem:
        """Return an error at this place, with its line."""
        # repr, because a key can contain control characters of a terminal
        shown = tuple(repr(_key_without_value(step))[1:-1] if isinstance(step, str) else step for step in place)
        return Problem(str(self._path), shown, text, self.line(place))

    def line(self, place: Place) -> int | None:
        """Return the line of the value, or of the nearest parent that exists in the file."""
        return self._locate(place)[1]

    def quoted(self, place: Place, value: str) -> str:
        """Return the value in quotes. A placeholder is shown as in the file, because its value can be secret."""
        node, _ = self._locate(place)
        if not isinstance(node, yaml.ScalarNode):
            return "text (not shown)"  # the file changed after it was read
        return repr(node.value if PLACEHOLDER_PREFIX in node.value else value)

    def _locate(self, place: Place) -> tuple[yaml.Node | None, int | None]:
        node, line = self._root, None
        for step in place:
            node, line = _child(node, step, line)
        return node, line

    @cached_property
    def _root(self) -> yaml.Node | None:
        try:
            return yaml.compose(_read_text(self._path), _TextLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return None  # the file changed after it was read


def _child(node: yaml.Node | None, step: str | int, line: int | None) -> tuple[yaml.Node | None, int | None]:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step].start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        _check_and_merge_keys(node)
        for key, value in node.value:
            if key.value == step:
                return value, key.start_mark.line + 1
    return None, line
