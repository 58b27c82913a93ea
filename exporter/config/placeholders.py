"""Placeholders: replaces `${NAME}` in the values of a document with environment variables."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from exporter.config.document import PLACEHOLDER_PREFIX, Lines
from exporter.config.problems import Place, Problem

FLAG = "--config.expand-environment-variables"
_PLACEHOLDER = re.compile(r"\$(\$?)\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_NON_UTF8 = re.compile("[\ud800-\udfff]")
"""Python decodes bytes of a variable that are not UTF-8 into these characters."""
_MISSING_NAME = "expected ${NAME} with the name of a variable, found ${ without a name; write $${ for a literal ${"


def expand(document: Any, lines: Lines, variables: Mapping[str, str] | None) -> list[Problem]:
    """Replace the placeholders in the values of a document with these variables. Modifies the document.

    Returns an error for each placeholder that cannot be replaced. If `variables` is None, nothing is replaced, and each
    value that is only a placeholder is an error.
    """
    problems = []
    for values, step, place in _values_with_prefix(document):
        if variables is None:
            errors = _placeholder_errors(values[step])
        else:
            values[step], errors = _expand_value(values[step], variables)
        problems += [lines.problem(place, text) for text in errors]
    return problems


def _values_with_prefix(document: Any) -> Iterator[tuple[Any, Any, Place]]:
    """Yield each text that contains `${`, as its mapping or list, its key or index there, and its place.

    With a YAML alias, one mapping or list has two places. It is visited only once, so that no text is expanded twice.
    """
    seen = set()
    stack: list[tuple[Any, Place]] = [(document, ())]
    while stack:
        values, place = stack.pop()
        if id(values) in seen:
            continue
        seen.add(id(values))
        for step, value in _items(values):
            if isinstance(value, str):
                if PLACEHOLDER_PREFIX in value:
                    yield values, step, (*place, step)
            elif value:
                stack.append((value, (*place, step)))


def _items(values: Any) -> Iterable[tuple[Any, Any]]:
    return values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()


def _expand_value(text: str, variables: Mapping[str, str]) -> tuple[str, list[str]]:
    errors = []

    def replacement(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped:
            return match[0][1:]
        value = variables.get(name) if name else None
        if value is not None and not _NON_UTF8.search(value):
            return value
        variable_error = f"environment variable {name} is {'not UTF-8 text' if value else 'not set'}"
        errors.append(variable_error if name else _MISSING_NAME)
        return match[0]

    return _PLACEHOLDER.sub(replacement, text), errors


def _placeholder_errors(text: str) -> list[str]:
    match = _PLACEHOLDER.fullmatch(text.strip())
    if not match or match[1] or not match[2]:
        return []
    return [f"expected a value, found a placeholder; set the flag {FLAG} to replace it"]
