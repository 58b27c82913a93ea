"""Single faults in the recording and alerting rules, for example another comparison or a missing label.

A fault changes one token, one label of a list, or one operand of `and`, `or` or `unless`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from exporter.config.fields import format_duration, parse_duration

Rule = dict[str, Any]
Change = tuple[int, int, str, str]
"""The index of the first token to replace, the index after the last one, the new text, and the kind of the fault."""

_TOKEN = re.compile(
    r"""\s+ | \#.* | "[^"]*"              # white space, comment, string
    | (?:\d+(?:ms|[smhdwy]))+             # duration
    | \d+(?:\.\d+)? | [a-zA-Z_][\w:]*    # number, name
    | [=!]~ | [=!<>]= | [][(){},=<>+*/:-]
    """,
    re.VERBOSE,
)
_COMPARISONS = {
    "==": ["!=", ">=", "<="],
    "!=": ["=="],
    ">": [">=", "<"],
    ">=": [">", "<"],
    "<": ["<=", ">"],
    "<=": ["<", ">"],
}
_SET_OPERATORS = (("or",), ("and", "unless"))
"""Lowest precedence first: `a or b and c` has the operands `a` and `b and c`."""
_LABEL_LISTS = ("on", "ignoring", "by", "without", "group_left", "group_right")
_SEVERITIES = {"critical": "warning", "warning": "critical", "info": "warning"}
_CONTEXT = 30
"""The number of characters of the expression before and after a fault in its description."""


@dataclass(frozen=True)
class Fault:
    """A fault of one rule: the new value of one of its fields. The description is unique among the faults of a rule."""

    rule: str
    kind: str
    description: str
    field: str
    value: str

    def plant(self, rule: Rule) -> Rule:
        """Return a copy of the rule with this fault."""
        if self.field == "severity":
            return {**rule, "labels": {**rule["labels"], "severity": self.value}}
        return {**rule, self.field: self.value}


def rule_name(rule: Rule) -> str:
    """Return the name of the recorded series or of the alert."""
    name: str = rule.get("record") or rule["alert"]
    return name


def find_faults(rules: Sequence[Rule]) -> list[Fault]:
    """Return all single faults of these rules."""
    return [fault for rule in rules for fault in _distinct(_faults_of(rule))]


def rewritten(rule: Rule) -> Rule:
    """Return the rule without a fault, with its expression written as that of a faulty rule."""
    return {**rule, "expr": _text(_Expression(rule["expr"]).tokens)}


def _distinct(faults: Iterator[Fault]) -> Iterator[Fault]:
    """Number the faults that have the same description."""
    seen: dict[str, int] = {}
    for fault in faults:
        number = seen[fault.description] = seen.get(fault.description, 0) + 1
        yield fault if number == 1 else replace(fault, description=f"{fault.description} ({number})")


def _faults_of(rule: Rule) -> Iterator[Fault]:
    name = rule_name(rule)
    for field in ("for", "keep_firing_for"):
        for value in _other_durations(rule[field]) if field in rule else ():
            yield Fault(name, field, f"{field}: {rule[field]} → {value}", field, value)
    if severity := rule.get("labels", {}).get("severity"):
        value = _SEVERITIES[severity]
        yield Fault(name, "severity", f"severity: {severity} → {value}", "severity", value)
    expression = _Expression(rule["expr"])
    for change in expression.changes():
        yield Fault(name, change[3], expression.describe(change), "expr", expression.apply(change))


class _Expression:
    """The tokens of a PromQL expression, without comments and white space."""

    def __init__(self, text: str) -> None:
        tokens = [match.group() for match in _TOKEN.finditer(text)]
        assert "".join(tokens) == text, f"unknown token in {text}"
        self.tokens = [token for token in tokens if not token.isspace() and not token.startswith("#")]

    def apply(self, change: Change) -> str:
        start, end, text, _kind = change
        return _text([*self.tokens[:start], text, *self.tokens[end:]])

    def describe(self, change: Change) -> str:
        start, end, text, _kind = change
        before, replaced, after = (
            _text(part) for part in (self.tokens[:start], self.tokens[start:end], self.tokens[end:])
        )
        before = before if len(before) <= _CONTEXT else f"…{before[-_CONTEXT:]}"
        replaced = replaced if len(replaced) <= 3 * _CONTEXT else f"{replaced[:_CONTEXT]}…{replaced[-_CONTEXT:]}"
        after = after if len(after) <= _CONTEXT else f"{after[:_CONTEXT]}…"
        return f"{before} [{replaced} → {text}] {after}".strip()

    def changes(self) -> Iterator[Change]:
        for index, token in enumerate(self.tokens):
            yield from self._token_changes(index, token)
        for start, end in self._levels():
            yield from self._operand_changes(start, end, _SET_OPERATORS)

    @cached_property
    def _closing(self) -> Mapping[int, int]:
        """The index of the closing bracket for the index of each opening bracket."""
        pairs: dict[int, int] = {}
        opened: list[int] = []
        for index, token in enumerate(self.tokens):
            if token in "([{":
                opened.append(index)
            elif token in ")]}":
                pairs[opened.pop()] = index
        return pairs

    def _token_changes(self, index: int, token: str) -> Iterator[Change]:
        if token == "==" and self.tokens[index + 1] == "0":
            texts, kind = ["!=", ">="], "comparison"  # without <=, because no series is negative
        elif token in _COMPARISONS:
            texts, kind = _COMPARISONS[token], "comparison"
        elif token[0].isdigit() and token[-1].isalpha():
            texts, kind = _other_durations(token), "offset" if self.tokens[index - 1] == "offset" else "window"
        elif token[0].isdigit():
            texts, kind = _other_numbers(token), "number"
        elif token in _LABEL_LISTS:
            yield from self._removed_items(index + 1, "label")
            return
        elif token == "{":
            yield from self._removed_items(index, "matcher")
            return
        elif "|" in token and self.tokens[index - 1] in ("=~", "!~"):
            texts, kind = _without_alternatives(token), "alternative"
        else:
            return
        yield from ((index, index + 1, text, kind) for text in texts)

    def _removed_items(self, opening: int, kind: str) -> Iterator[Change]:
        """Yield the removal of each item of a list in brackets, with the comma before or after the item."""
        if opening not in self._closing:  # group_left without a list
            return
        for start, end in self._split(opening + 1, self._closing[opening], (",",)):
            if start == end:
                continue
            if self.tokens[start - 1] == ",":
                yield start - 1, end, "", kind
            else:
                yield start, end + (self.tokens[end] == ","), "", kind

    def _levels(self) -> Iterator[tuple[int, int]]:
        """Yield the start and the end of the expression, and of each argument and expression in parentheses."""
        yield 0, len(self.tokens)
        for opening, closing in self._closing.items():
            if self.tokens[opening] == "(":
                yield from self._split(opening + 1, closing, (",",))

    def _split(self, start: int, end: int, separators: Sequence[str]) -> list[tuple[int, int]]:
        """Return the start and the end of each part between the separators, not in inner brackets."""
        parts: list[tuple[int, int]] = []
        index = first = start
        while index < end:
            if self.tokens[index] in separators:
                parts.append((first, index))
                first = index + 1
            index = self._closing.get(index, index) + 1
        return [*parts, (first, end)]

    def _operand_changes(self, start: int, end: int, operators: Sequence[Sequence[str]]) -> Iterator[Change]:
        """Yield the removal of each operand of these operators, with the operator before or after the operand."""
        if not operators:
            return
        parts = self._split(start, end, operators[0])
        for position, (first, last) in enumerate(parts):
            yield from self._operand_changes(self._after_modifiers(first), last, operators[1:])
            if len(parts) == 1:
                continue
            if position == 0:
                yield first, self._after_modifiers(parts[1][0]), "", "operand"
            else:
                yield first - 1, last, "", "operand"

    def _after_modifiers(self, index: int) -> int:
        """Return the index after `on (...)`."""
        while index < len(self.tokens) and self.tokens[index] in ("on", "ignoring"):
            index = self._closing[index + 1] + 1
        return index


def _text(tokens: Sequence[str]) -> str:
    text = re.sub(r"\s+", " ", " ".join(tokens)).strip()
    return re.sub(r"(?<=[\w)]) (?=\[)|(?<=\w) (?=\{)|(?<=[(\[{]) | (?=[)\]},])", "", text)


def _other_durations(text: str) -> list[str]:
    seconds = parse_duration(text)
    return [format_duration(seconds * 2), format_duration(seconds / 2)]


def _other_numbers(text: str) -> list[str]:
    number = float(text)
    if number in (0, 1):
        return [f"{number + 1:g}"]
    return [f"{number * 2:.10g}", f"{number / 2:.10g}"]


def _without_alternatives(text: str) -> list[str]:
    alternatives = text.strip('"').split("|")
    return ['"' + "|".join(kept for kept in alternatives if kept != removed) + '"' for removed in alternatives]
