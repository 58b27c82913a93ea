"""`${NAME}` in the values of a document: replaced by environment variables, or an error where nothing replaces it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from exporter.config.document import PLACEHOLDER_MARK, Lines
from exporter.config.problems import Place, Problem

FLAG = "--config.expand-environment-variables"
_PLACEHOLDER = re.compile(r"\$(\$?)\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_OTHER_BYTES = re.compile("[\ud800-\udfff]")
"""How Python has the bytes of a variable that are not UTF-8."""
_NO_NAME = "expected ${NAME} with a variable's name, found ${ without one; a literal ${ is written $${"


def expand(document: Any, lines: Lines, variables: Mapping[str, str] | None) -> list[Problem]:
    """Replace the placeholders in the document's values, in place, by these variables.

    The problems are the placeholders that cannot be replaced; without variables, the values that are a placeholder and
    nothing else.
    """
    problems = []
    for values, step, place in _marked(document):
        if variables is None:
            wrong = _unexpanded(values[step])
        else:
            values[step], wrong = _expanded(values[step], variables)
        problems += [lines.problem(place, text) for text in wrong]
    return problems


def _marked(document: Any) -> Iterator[tuple[Any, Any, Place]]:
    """The mapping or list, the key or index, and the place of each text with the mark. An alias makes two places of one
    value, which is given once, for it would be replaced twice."""
    seen = set()
    waiting: list[tuple[Any, Place]] = [(document, ())]
    while waiting:
        values, place = waiting.pop()
        if id(values) in seen:
            continue
        seen.add(id(values))
        for step, value in _items(values):
            if isinstance(value, str):
                if PLACEHOLDER_MARK in value:
                    yield values, step, (*place, step)
            elif value:
                waiting.append((value, (*place, step)))


def _items(values: Any) -> Iterable[tuple[Any, Any]]:
    return values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()


def _expanded(text: str, variables: Mapping[str, str]) -> tuple[str, list[str]]:
    wrong = []

    def replacement(found: re.Match[str]) -> str:
        escaped, name = found.groups()
        if escaped:
            return found[0][1:]
        value = variables.get(name) if name else None
        if value is not None and not _OTHER_BYTES.search(value):
            return value
        of_variable = f"environment variable {name} is {'not UTF-8 text' if value else 'not set'}"
        wrong.append(of_variable if name else _NO_NAME)
        return found[0]

    return _PLACEHOLDER.sub(replacement, text), wrong


def _unexpanded(text: str) -> list[str]:
    found = _PLACEHOLDER.fullmatch(text.strip())
    if not found or found[1] or not found[2]:
        return []
    return [f"expected a value, found a placeholder; the flag {FLAG} replaces it"]
