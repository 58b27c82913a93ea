"""The rules of grafana/dashboard-linter. Each exception has a reason, and an exception that is not needed is an error.

The rules for LogQL do not apply. `target-promql-rule` is checked by promtool.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import require_program

from dashboards.__main__ import DASHBOARDS, DIRECTORY

Document = dict[str, Any]
Rule = Callable[[Document], list[str]]

DOCUMENTS: dict[str, Document] = {name: json.loads((DIRECTORY / name).read_text()) for name in DASHBOARDS}
EXCEPTIONS = {
    "template-instance-rule": "values belong to accounts and spaces; a new pod that polls them has a new instance",
    "target-instance-rule": "recorded series have no label instance, so that they continue in a new pod",
    "target-counter-agg-rule exporter.json": "the lists have all values and failures since the exporter started",
    "target-counter-agg-rule fleet.json": "a first failure creates a series with the value 1",
    "uneditable-dashboard": "users adapt an imported dashboard; provisioned dashboards have allowUiUpdates: false",
}
UNITS = {"none", "short", "locale", "string", "percent", "percentunit", "bytes", "s", "dtdurations", "reqps", "cps"}
UNITS |= {"dateTimeFromNow", "dateTimeAsIso", "dateTimeAsLocal", "ops", "bool_yes_no"}
VARIABLES = {"__rate_interval": "4m", "__range": "6h", "__interval": "1m"}
METRIC = re.compile(r"(?<![\w:\"$])(?:(?:\w+:)?chatapp_\w+(?::\w+)?|up|ALERTS\w*|(?:process|scrape|python)_\w+)\b")


def panels(document: Document) -> list[Document]:
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def variables(document: Document, kind: str) -> list[Document]:
    return [variable for variable in document["templating"]["list"] if variable["type"] == kind]


def expressions(document: Document) -> Iterator[str]:
    for panel in panels(document):
        yield from (target["expr"] for target in panel["targets"])


def datasource(document: Document) -> list[str]:
    found = [(variable["name"], variable["label"]) for variable in variables(document, "datasource")]
    return [] if found == [("datasource", "Data source")] else [f"variables for the data source: {found}"]


def variable_rule(name: str) -> Rule:
    wanted = {"type": "query", "label": name.title(), "multi": True, "allValue": ".+"}

    def problems(document: Document) -> list[str]:
        found = [variable for variable in document["templating"]["list"] if variable["name"] == name]
        if not found:
            return [f"no variable {name}"]
        problems = [f"{name}: {key}" for key, value in wanted.items() if found[0][key] != value]
        return problems + ([] if found[0]["datasource"]["uid"] == "${datasource}" else [f"{name}: datasource"])

    return problems


def variable_queries(document: Document) -> list[str]:
    known = re.compile(r"(label_values|query_result|label_names|metrics)\(.+\)")
    return [query for variable in variables(document, "query") if not known.fullmatch(query := variable["query"])]


def reload_on_time_change(document: Document) -> list[str]:
    return [variable["name"] for variable in variables(document, "query") if variable["refresh"] != 2]


def panel_datasource(document: Document) -> list[str]:
    used = [(panel["title"], query["datasource"]["uid"]) for panel in panels(document) for query in panel["targets"]]
    used += [(panel["title"], panel["datasource"]["uid"]) for panel in panels(document)]
    return [title for title, uid in used if uid != "${datasource}"]


def title_and_description(document: Document) -> list[str]:
    return [str(panel["id"]) for panel in panels(document) if not (panel["title"] and panel["description"])]


def units(document: Document) -> list[str]:
    return [panel["title"] for panel in panels(document) if panel["fieldConfig"]["defaults"].get("unit") not in UNITS]


def no_targets(document: Document) -> list[str]:
    return [panel["title"] for panel in panels(document) if not panel["targets"]]


def rate_interval(document: Document) -> list[str]:
    ranges = re.compile(r"\bi?rate\(\s*[\w:]+(?:{[^}]*})?\[([^\]]+)\]")
    return [query for query in expressions(document) if set(ranges.findall(query)) - {"$__rate_interval"}]


def matcher_rule(label: str) -> Rule:
    def problems(document: Document) -> list[str]:
        selectors = re.compile(METRIC.pattern + r"({[^}]*})?")
        return [
            selector[0]
            for query in expressions(document)
            for selector in selectors.finditer(query)
            if f'{label}=~"${label}"' not in (selector[1] or "")
        ]

    return problems


def counters(document: Document) -> list[str]:
    aggregated = re.compile(r"\b(?:i?rate|increase)\(\s*\w+_total(?:{[^}]*})?\[")
    return [
        query
        for query in expressions(document)
        if len(aggregated.findall(query)) != len(re.findall(r"\w_total\b", query))
    ]


def editable(document: Document) -> list[str]:
    return ["editable"] if document["editable"] else []


LINTER: dict[str, Rule] = {
    "template-datasource-rule": datasource,
    "template-job-rule": variable_rule("job"),
    "template-instance-rule": variable_rule("instance"),
    "template-label-promql-rule": variable_queries,
    "template-on-time-change-reload-rule": reload_on_time_change,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": title_and_description,
    "panel-units-rule": units,
    "panel-no-targets-rule": no_targets,
    "target-rate-interval-rule": rate_interval,
    "target-job-rule": matcher_rule("job"),
    "target-instance-rule": matcher_rule("instance"),
    "target-counter-agg-rule": counters,
    "uneditable-dashboard": editable,
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("rule", LINTER)
def test_a_dashboard_follows_the_rules_of_the_linter(name: str, rule: str) -> None:
    problems = LINTER[rule](DOCUMENTS[name])

    if reason := EXCEPTIONS.get(rule) or EXCEPTIONS.get(f"{rule} {name}"):
        assert problems, f"not needed: {reason}"
    else:
        assert not problems


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=list(DOCUMENTS))
def test_promtool_accepts_every_query(document: Document, tmp_path: Path) -> None:
    queries = [
        re.sub(r"\$(\w+)", lambda name: VARIABLES.get(name[1], ".+"), query) for query in set(expressions(document))
    ]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [require_program("promtool", package="prometheus"), "check", "rules", str(file)]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert f"{len(queries)} rules found" in result.stdout, result.stderr
