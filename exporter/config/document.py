"""Reads YAML, and JSON as a part of it. Knows the line of each value, and no schema.

Every scalar but null is text, as it is written, and the schema decides its type: an id of digits stays an id, and `no`
stays `no`.
"""

import json
import re
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from exporter.config.problems import ConfigError, Place, Problem
from exporter.files import read_text

_SURROGATES = re.compile(r"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")

PLACEHOLDER_MARK = "${"
_NULL = ("null", "Null", "NULL", "~")
"""As YAML's core schema has it."""
_MAX_LEVELS = 500
"""PyYAML's parser in C ends the process at some thousands, if a thread has a small stack."""


def read_document(path: Path) -> Any:
    """The document in a file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has a duplicate key.
    """
    try:
        return yaml.load(_read_text(path), _TextLoader)  # noqa: S506  # safer than safe_load: it makes text only
    except OSError as error:
        raise ConfigError([Problem(str(path), (), f"expected a readable file, found: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), (), "expected UTF-8 text, found other bytes")]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(path, error)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), (), "expected a few levels, found hundreds")]) from error


def _read_text(path: Path) -> str:
    text = read_text(path)
    brackets = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[{\]}]", text))
    if max(accumulate(brackets), default=0) > _MAX_LEVELS or any(mark * _MAX_LEVELS in text for mark in ("- ", "? ")):
        raise RecursionError
    # JSON may write one character as two escapes, which YAML does not know
    return _SURROGATES.sub(lambda pair: json.loads(f'"{pair[0]}"'), text)


class _TextLoader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]  # the C one where it is built
    """Every scalar but null is text. A merge key is replaced. A duplicate key is an error, for the first value would be
    lost."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        # a file written by a program has null for what is left out; in quotes it is text, and a key without a value is
        # empty text, because the value was probably forgotten
        return None if node.value in _NULL and not node.style else super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        _merge(node)
        return super().construct_mapping(node, deep=deep)


def _merge(node: yaml.MappingNode) -> None:
    """Replace a merge key (`<<: *anchor`) by the pairs of its mapping or mappings whose keys the node does not have."""
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if str(key.value) in pairs:
            raise _problem_at(key, f"duplicate key {_cut(str(key.value))}")
        pairs[str(key.value)] = key, value
    key, merged = pairs.get("<<", (None, None))
    if not isinstance(key, yaml.ScalarNode) or key.style:  # in quotes it is a key like others
        return
    del pairs["<<"]
    node.value = list(pairs.values())  # a mapping that merges itself ends here
    for other in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
        if not isinstance(other, yaml.MappingNode):
            raise _problem_at(key, "the merge key << has no mapping")
        _merge(other)
        for pair in other.value:
            pairs.setdefault(str(pair[0].value), pair)
    node.value = list(pairs.values())


def _problem_at(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _cut(key: str) -> str:
    """The key without what may be a secret: a missing space after a colon makes the value a part of the key."""
    return re.split("[:=]", key)[0]


def _yaml_problem(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    if isinstance(error, yaml.reader.ReaderError):
        text += f" (U+{error.character:04X})"
    # PyYAML quotes the text at fault, such as an unknown alias, which may be a secret that starts with an asterisk
    text = re.sub(r" '\w[^']+'", "", text.removeprefix("but "))
    expected = text if text.startswith("duplicate key") else f"expected YAML, but {text}"
    return Problem(str(path), (), expected, mark.line + 1 if mark else None)


class Lines:
    """The lines of a file that was read; it is parsed again only when there is an error to report."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def problem(self, place: Place, text: str) -> Problem:
        """An error at this place, with its line."""
        # repr: a key can have characters that a terminal acts on
        shown = tuple(repr(_cut(step))[1:-1] if isinstance(step, str) else step for step in place)
        return Problem(str(self._path), shown, text, self.line(place))

    def line(self, place: Place) -> int | None:
        """The line of the last part of the place that the file has."""
        return self._found(place)[1]

    def shown(self, place: Place, value: str) -> str:
        """The value at this place as an error shows it: a placeholder as written, for it can stand for a secret."""
        node, _ = self._found(place)
        if not isinstance(node, yaml.ScalarNode):
            return "text (not shown)"  # the file changed after it was read
        return repr(node.value if PLACEHOLDER_MARK in node.value else value)

    def _found(self, place: Place) -> tuple[yaml.Node | None, int | None]:
        node, line = self._root, None
        for step in place:
            node, line = _child(node, step, line)
        return node, line

    @cached_property
    def _root(self) -> yaml.Node | None:
        try:
            return yaml.compose(_read_text(self._path), _TextLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return None  # it changed after it was read


def _child(node: yaml.Node | None, step: str | int, line: int | None) -> tuple[yaml.Node | None, int | None]:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step].start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        _merge(node)
        for key, value in node.value:
            if key.value == step:
                return value, key.start_mark.line + 1
    return None, line
