"""The form of the rules: which labels they join by, and how they read their previous result.

The checks need milliseconds, therefore `make mutants` runs them first for each fault.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rule_faults import Rule, rule_name

_RESUMED = "rules:chatapp_evaluation_timestamp_seconds:resumed"
_LEVELS = [
    {"job"},
    {"job", "account"},
    {"job", "account", "space"},
    {"job", "account", "space", "phone_number"},
    {"job", "instance"},
    {"job", "instance", "account"},
    {"job", "instance", "account", "space"},
]
"""A rule joins and aggregates by one of these. Without `job` or `account`, it mixes the series of jobs or accounts."""
_VALUES = {"state", "status", "field", "quality_rating", "verified_name", "name", "team"}
"""Other labels of results."""
_LABELS_OF_A_NAME = {
    "account": {"job", "account"},
    "account_instance": {"job", "instance", "account"},
    "account_quality_rating": {"job", "account", "quality_rating"},
    "account_state": {"job", "account", "state"},
    "space": {"job", "account", "space"},
    "space_instance": {"job", "instance", "account", "space"},
    "phone_number": {"job", "account", "space", "phone_number"},
}
"""The name of a recorded series starts with its level: results have at least these labels."""
_LABELS_OF_A_PREFIX = {
    "chatapp_account_": {"job", "account"},
    "chatapp_exporter_account_": {"job", "account"},
    "chatapp_space_": {"job", "account", "space"},
    "chatapp_phone_number_": {"job", "account", "space", "phone_number"},
}
_EXCEPTIONS = {
    ("account_instance:chatapp_exporter_account_info:last", "on(job,instance)"),
    ("account_instance:chatapp_space_blind:count", "on(job,account,space)"),
    ("phone_number:chatapp_phone_number_info:last", "on(job,phone_number)"),
    ("phone_number:chatapp_phone_number_messaging_limit:max", "on(job,phone_number)"),
    ("phone_number:chatapp_phone_number_messaging_limit:max", "by(job,phone_number)"),
    ("phone_number:chatapp_phone_number_vanished:group", "on(job)"),
    ("phone_number:chatapp_phone_number_vanished_timestamp_seconds:max", "on(phone_number)"),
    ("phone_number:chatapp_phone_number_vanished:group", "by(job)"),
    ("ChatAppUnknownValue", "by(job,field,value)"),
}
"""A number moves to another space; an account of an exporter means all of its accounts; another exporter polls a space;
all spaces of a job."""
_OTHER_MEMORY = {
    "rules:chatapp_evaluation_timestamp_seconds:resumed",
    "rules:chatapp_evaluation_timestamp_seconds:last",
    "phone_number:chatapp_phone_number_status_rank:last",
    "phone_number:chatapp_phone_number_low_quality_start_timestamp_seconds:last",
}
"""These rules read no previous result, or results of the last hour also without a gap. Rules of `:flapping` series read
a previous result only without a gap."""


def problems_of_form(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the problems of the form of these rules."""
    return [
        *(f"{name}: {problem}" for name, problem in _problems_of_rules(groups)),
        *_problems_of_flapping([rule for group in groups for rule in group["rules"]]),
    ]


def _problems_of_rules(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for group in groups:
        names = [rule_name(rule) for rule in group["rules"]]
        for position, rule in enumerate(group["rules"]):
            name, expression = names[position], _compact(rule["expr"])
            previous = [later for later in names[position:] if later in expression and ":" in later]
            for problem in _label_problems(name, expression):
                yield name, problem
            for problem in _problems_of_previous_results(name, expression, previous):
                yield name, problem


def _compact(expression: str) -> str:
    """Return the expression without comments, and without white space next to brackets and commas."""
    without_comments = re.sub(r"#.*", "", expression)
    return re.sub(r"\s*([()\[\]{},])\s*", r"\1", " ".join(without_comments.split()))


def _label_problems(name: str, expression: str) -> Iterator[str]:
    for match in re.finditer(r"(\w+ )?\b((on|by|ignoring|without)\(([^()]*)\))", expression):
        before, found, keyword, labels = match[1], match[2], match[3], set(match[4].split(",")) - {""}
        after = expression[match.end() :]
        if (name, found) in _EXCEPTIONS:
            continue
        if keyword == "on":
            problem = _problem_of_join(labels, after)
        else:
            problem = _problem_of_aggregation(labels, set() if before == "topk " else _labels_of(name) or set())
        if problem:
            yield f"{found} {problem}"


def _problem_of_join(labels: set[str], after: str) -> str | None:
    """Return the problem of `on (labels)`, with the expression after it."""
    if not labels:
        return None if re.match(rf"{_RESUMED}|group_left\(\)\(time\(\)", after) else "without labels"
    series = re.match(r"(?:group_left\([a-z,]*\))?(?:[(\d. *]|max_over_time\()*([a-z_]+:?)", after)
    expected = _labels_of(series[1]) if series else None
    instance = set[str]() if series and ":" in series[1] else {"instance"}
    if expected and labels - instance != expected - _VALUES:
        return f"does not have the labels of {series and series[1]}"
    return None if labels in _LEVELS else "is not a level"


def _problem_of_aggregation(labels: set[str], level: set[str]) -> str | None:
    if labels - _VALUES not in _LEVELS[1:]:
        return "is not a level"
    return None if level <= labels else "does not have the labels of the level"


def _labels_of(name: str) -> set[str] | None:
    """Return the labels of a recorded series, or of a scraped series without `instance`."""
    recorded = _LABELS_OF_A_NAME.get(name.partition(":")[0]) if ":" in name else None
    scraped = (labels for prefix, labels in _LABELS_OF_A_PREFIX.items() if name.startswith(prefix))
    return recorded or next(scraped, None)


def _problems_of_previous_results(name: str, expression: str, previous: Sequence[str]) -> Iterator[str]:
    """A rule reads a previous result as `X or last_over_time(X[1h]) and on () <resumed>`, also after a gap.

    `previous` are the series in the expression that the rule itself or a later rule records. The previous result is
    restricted, for example to spaces that still exist, or only excludes series (`unless`).
    """
    if name in _OTHER_MEMORY or name.endswith(":flapping"):
        return
    if re.search(r":last$|_timestamp_seconds:m(in|ax)$", name) and name not in previous:
        yield "keeps no value"
    for series in previous:
        form = f"{series} or last_over_time({series}[1h])and on(){_RESUMED}"
        found = len(re.findall(rf"(?<![\w:]){series}(?![\w:])", expression))
        restricted = len(re.findall(rf"{re.escape(form)}(?: or |\)(?:and|\+) on\()", expression))
        excluding = len(re.findall(rf"unless on\([\w,]*\)\({re.escape(form)}\)", expression))
        if found != 2 * (restricted + excluding) and not series.startswith("rules:"):
            yield f"not each {series} has the form {form}) and on ..."


def _problems_of_flapping(rules: Sequence[Rule]) -> Iterator[str]:
    """The rules of `:flapping` series are the same, apart from the series that they read."""
    forms = {
        re.sub(r"phone_number:\w+:\w+", "X", _compact(rule["expr"]))
        for rule in rules
        if rule_name(rule).endswith(":flapping")
    }
    if len(forms) > 1:
        yield f"the rules of :flapping series differ: {forms}"
