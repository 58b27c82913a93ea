"""Mutation tests of the shipped rules: plant single faults, and print those that no incident and no other test detects.

First, the form of the faulty rules is checked (rule_form.py), each faulty rule is tested alone (single_rules.py), and
the tests of the rules run. For the other faults, the series of each incident are recorded once, and each incident runs
in promtool in two steps:

1. One run evaluates all faulty expressions next to the originals, with the same input. An incident in which the results
   are always the same cannot detect the fault.
2. For each other fault, one run evaluates the faulty rule and the rules that depend on it, and compares the alerts.

Exits with status 1 if more than 5 % of the faults are not detected. `rules/equivalent_faults.yml` lists faults that
change no alert, and are not counted.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from incident import INCIDENTS, RULES, evaluated_at_intervals, load_incident, promtool_test, record_series
from programs import require_program
from rule_faults import Fault, Rule, find_faults, rewritten, rule_name
from rule_form import problems_of_form
from single_rules import failures, load_cases

from exporter.logs import configure_logs

EQUIVALENT_FAULTS = INCIDENTS.parent / "equivalent_faults.yml"
MAX_SURVIVORS = 0.05
_FIRST_INCIDENTS = 4
Document = dict[str, Any]

_ROOT = Path(__file__).parents[1]
_OTHER_TESTS = ("test_incidents.py", "test_mutants.py", "test_rule_faults.py", "test_single_rules.py")
_TESTS = [
    path.relative_to(_ROOT)
    for path in [_ROOT / "tests" / "unit" / "test_alerting_files.py", *sorted(_ROOT.glob("tests/rules/test_*.py"))]
    if path.name not in _OTHER_TESTS and "RULES" in path.read_text()
]
"""Tests of the rules. A test runs if it names the faulty rule or a rule that depends on it."""
_COPY_TEST = "test_the_prometheus_rule_has_the_same_groups"
"""Fails with each fault, because it compares two files."""
_NAME = re.compile(r"[a-zA-Z_][\w:]*")
_FAULT = re.compile(r'(?:fault="|rule: )fault:(\d+)')


@dataclass(frozen=True)
class RecordedIncident:
    """An incident as a document for promtool, with the alerts that must fire."""

    name: str
    document: Document
    alerts: frozenset[str]

    @property
    def cost(self) -> int:
        """The number of samples: approximately proportional to the time of a run."""
        test = self.document["tests"][0]
        return len(test["promql_expr_test"]) * (100 + len(test["input_series"]))

    @property
    def end(self) -> str:
        time: str = self.document["tests"][0]["promql_expr_test"][-1]["eval_time"]
        return time


def record(path: Path) -> RecordedIncident:
    """Run the incident and keep the series that the rules use."""
    configure_logs("critical", "logfmt")  # the incidents cause many warnings and errors
    incident = load_incident(path)
    document = promtool_test(incident, *record_series(incident))
    names = set(_NAME.findall(RULES.read_text()))
    test = document["tests"][0]
    test["input_series"] = [row for row in test["input_series"] if row["series"].partition("{")[0] in names]
    return RecordedIncident(path.stem, document, frozenset(firing.alert for firing in incident.firing))


class FaultyRules:
    """The shipped rules and their faults."""

    def __init__(self, rules: Path = RULES) -> None:
        self.groups: list[Document] = yaml.safe_load(rules.read_text())["groups"]
        self.rules: list[Rule] = [rule for group in self.groups for rule in group["rules"]]
        self.by_name = {rule_name(rule): rule for rule in self.rules}
        self.faults = find_faults(self.rules)
        names = {rule_name(rule): set(_NAME.findall(json.dumps(rule))) for rule in self.rules}
        self._inputs = {name: (used & names.keys()) - {name} for name, used in names.items()}

    def dependents(self, name: str) -> set[str]:
        """Return the rule and all rules that directly or indirectly depend on it."""
        return self._closure({name}, lambda name: {other for other, inputs in self._inputs.items() if name in inputs})

    def rewritten(self) -> list[Document]:
        """Return all rules, without a fault."""
        return self._map(lambda rule: [rewritten(rule)])

    def planted(self, fault: Fault) -> list[Document]:
        """Return all rules, with the fault."""
        return self._map(lambda rule: [fault.plant(rule) if rule_name(rule) == fault.rule else rule])

    def faulty(self, fault: Fault) -> list[Document]:
        """Return the faulty rule, the rules that depend on it, and the rules that these rules depend on."""
        dependents = self._closure(
            {fault.rule}, lambda name: {n for n, inputs in self._inputs.items() if name in inputs}
        )
        needed = self._closure(dependents, self._inputs.__getitem__)
        return self._map(
            lambda rule: [fault.plant(rule) if rule_name(rule) == fault.rule else rule] * (rule_name(rule) in needed)
        )

    def compared(self, faults: Mapping[int, Fault]) -> list[Document]:
        """Return the rules that these faults need, and the comparison of each faulty result with the original result.

        The faulty expressions are before the original, because a rule may read its own previous result. The series
        `fault:differs` has one series per fault whose result is different.
        """
        by_rule: dict[str, dict[int, Fault]] = {}
        for number, fault in faults.items():
            by_rule.setdefault(fault.rule, {})[number] = fault
        needed = self._closure(by_rule, self._inputs.__getitem__)

        def with_copies(rule: Rule) -> list[Rule]:
            name = rule_name(rule)
            faulty = {f"fault:{number}": fault.plant(rule) for number, fault in by_rule.get(name, {}).items()}
            copies = [
                {"record": series, "expr": _compared_expression(rule, copy), "labels": {"fault": series, "of": name}}
                for series, copy in faulty.items()
            ]
            original = [{"record": "fault:original", "expr": rule["expr"], "labels": {"of": name}}] if faulty else []
            return [*copies, *original, {k: v for k, v in rule.items() if k != "annotations"}] if name in needed else []

        comparison = {"name": "fault.comparison", "rules": [_comparison(name) for name in by_rule]}
        return [*self._map(with_copies), comparison]

    def _map(self, function: Any) -> list[Document]:
        return [{**group, "rules": [new for rule in group["rules"] for new in function(rule)]} for group in self.groups]

    @staticmethod
    def _closure(names: Iterable[str], neighbors: Any) -> set[str]:
        found, new = set(), set(names)
        while new:
            found |= new
            new = {neighbor for name in new for neighbor in neighbors(name)} - found
        return found


def _compared_expression(rule: Rule, faulty: Rule) -> str:
    """Return the faulty expression. Faults of other fields change something if the expression has a result."""
    expression: str = faulty["expr"]
    return expression if expression != rule["expr"] else f"0 * ({expression}) - 1"


def _comparison(name: str) -> Rule:
    """Return a rule with the faults of the rule `name` whose result now differs from the original."""
    none = f'0 * fault:listed{{of="{name}"}}'
    faulty = f'{{of="{name}",fault=~".+",__name__!="fault:listed"}}'
    original = f'fault:original{{of="{name}"}}'
    size = f"scalar(count({original}) or vector(0))"
    found = f"(count by (fault) ({faulty}) or max by (fault) ({none}))"
    same = f"(count by (fault) ({faulty} == ignoring (fault) group_left () {original}) or max by (fault) ({none}))"
    return {"record": "fault:differs", "labels": {"rule": name}, "expr": f"{found} != {size} or {same} != {size}"}


def run_promtool(directory: Path, groups: Sequence[Document], document: Document) -> subprocess.CompletedProcess[str]:
    """Run `promtool test rules` with these rules. JSON is YAML, and is written in less time."""
    (directory / "rules.json").write_text(json.dumps({"groups": evaluated_at_intervals(list(groups))}))
    document = {**document, "rule_files": ["rules.json"], "group_eval_order": [group["name"] for group in groups]}
    (directory / "test.json").write_text(json.dumps(document))
    promtool = require_program("promtool", package="prometheus")
    command = [promtool, "test", "rules", str(directory / "test.json")]
    environment = {**os.environ, "GOMAXPROCS": "1", "GOGC": "400"}  # a fifth less CPU time
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def different(rules: FaultyRules, incident: RecordedIncident, faults: Mapping[int, Fault]) -> tuple[set[int], set[int]]:
    """Return the faults that change the result of their rule in this incident, and those that cannot be evaluated."""
    remaining, failed = dict(faults), set[int]()
    test = {
        **incident.document["tests"][0],
        "alert_rule_test": [],
        "promql_expr_test": [
            {"expr": "group by (fault) (last_over_time(fault:differs[30d]))", "eval_time": incident.end}
        ],
    }
    with TemporaryDirectory() as directory:
        while remaining:
            listed = [
                {"series": f'fault:listed{{fault="fault:{number}",of="{fault.rule}"}}', "values": "1+0x100000"}
                for number, fault in remaining.items()
            ]
            document = {**incident.document, "tests": [{**test, "input_series": test["input_series"] + listed}]}
            result = run_promtool(Path(directory), rules.compared(remaining), document)
            found = {int(number) for number in _FAULT.findall(result.stderr)}
            if "err: " not in result.stderr:
                return found, failed
            failed |= found  # promtool stops at the first minute with errors
            remaining = {number: fault for number, fault in remaining.items() if number not in found}
    return set(), failed


def detects(rules: FaultyRules, incident: RecordedIncident, fault: Fault) -> bool:
    """Whether the alerts of the incident are not as expected with this fault."""
    return not passes(rules.faulty(fault), incident)


def passes(groups: Sequence[Document], incident: RecordedIncident) -> bool:
    """Whether the alerts in these groups of rules fire as expected in the incident."""
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    test = dict(incident.document["tests"][0])
    test["alert_rule_test"] = [row for row in test["alert_rule_test"] if row["alertname"] in alerts]
    test["promql_expr_test"] = [
        {**row, "exp_samples": [s for s in row["exp_samples"] if _alert_of(s) in alerts]}
        for row in test["promql_expr_test"]
    ]
    with TemporaryDirectory() as directory:
        result = run_promtool(Path(directory), groups, {**incident.document, "tests": [test]})
    return result.returncode == 0


def _alert_of(sample: Mapping[str, str]) -> str:
    return sample["labels"].partition('alertname="')[2].partition('"')[0]


def tests_detect(rules: FaultyRules, fault: Fault) -> bool:
    """Whether a test of the rules fails with this fault, in a copy of the files that the tests read."""
    dependents = rules.dependents(fault.rule)
    selected = [path for path in _TESTS if any(name in (_ROOT / path).read_text() for name in dependents)]
    return tests_fail(rules.planted(fault), selected)


def tests_fail(groups: Sequence[Document], paths: Sequence[Path]) -> bool:
    """Whether one of these tests fails with these rules."""
    with TemporaryDirectory() as directory:
        copy = Path(directory)
        for name in ("config", "tests"):
            shutil.copytree(_ROOT / name, copy / name)
        for name in ("dashboards", "docs"):
            (copy / name).symlink_to(_ROOT / name)
        shutil.copy(_ROOT / "pyproject.toml", copy)
        (copy / "config" / "prometheus" / RULES.name).write_text(yaml.safe_dump({"groups": groups}, sort_keys=False))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", f"not {_COPY_TEST}"]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        result = subprocess.run([*command, *paths], capture_output=True, check=False, env=environment, cwd=copy)
    assert result.returncode in (0, 1), result.stdout.decode()
    return result.returncode == 1


class Search:
    """Plants the faults and removes each detected fault from `alive`."""

    def __init__(self, rules: FaultyRules, faults: Mapping[int, Fault], incidents: Sequence[RecordedIncident]) -> None:
        self._rules = rules
        self._single_rules = load_cases()
        self._incidents = sorted(incidents, key=lambda incident: incident.cost)
        self._finished: set[tuple[int, str]] = set()
        self.alive = dict(faults)
        self.detected_by: Counter[tuple[str, str]] = Counter()
        """The number of detected faults by rule and incident."""
        self._start = time.monotonic()

    def run_tests(self) -> None:
        """Run the tests that need no incident, the fastest first."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for test in (self.run_form, self.run_single_rule, self.run_tests_of_rules):
                list(threads.map(test, list(self.alive)))
                self.print_progress(test.__name__)

    def run_incidents(self) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(self.run_fault, list(self.alive)))
            self.print_progress(f"{_FIRST_INCIDENTS} incidents per fault")
            list(threads.map(self.run_incident, self._incidents))

    def run_form(self, number: int) -> None:
        if problems_of_form(self._rules.planted(self.alive[number])):
            self._remove(number, "form")

    def run_single_rule(self, number: int) -> None:
        fault = self.alive[number]
        cases = self._single_rules.get(fault.rule, [])
        if fault.field == "expr" and failures(fault.plant(self._rules.by_name[fault.rule]), cases):
            self._remove(number, "single rule")

    def run_tests_of_rules(self, number: int) -> None:
        if tests_detect(self._rules, self.alive[number]):
            self._remove(number, "tests")

    def run_fault(self, number: int) -> None:
        """Run the incidents that most probably detect the fault: those that detected other faults of its rule."""
        fault = self.alive[number]
        related = [i for i in self._incidents if i.alerts & self._rules.dependents(fault.rule)]
        related.sort(key=lambda incident: -self.detected_by[fault.rule, incident.name])
        for incident in related[:_FIRST_INCIDENTS]:
            if self._run(number, incident):
                return

    def run_incident(self, incident: RecordedIncident) -> None:
        """Run the incident with each fault that changes a result."""
        changed, failed = different(self._rules, incident, dict(self.alive))
        for number in failed:
            self._remove(number, incident.name)
        for number in sorted(changed):
            self._run(number, incident)
        self.print_progress(incident.name)

    def print_progress(self, finished: str) -> None:
        minutes = (time.monotonic() - self._start) / 60
        print(f"{minutes:5.1f} min  {len(self.alive):4} faults not detected  after {finished}", flush=True)

    def _run(self, number: int, incident: RecordedIncident) -> bool:
        """Whether the fault is detected: by this incident, or by another incident at the same time."""
        fault = self.alive.get(number)
        if fault and (number, incident.name) not in self._finished:
            self._finished.add((number, incident.name))
            if detects(self._rules, incident, fault):
                self._remove(number, incident.name)
        return number not in self.alive

    def _remove(self, number: int, name: str) -> None:
        if fault := self.alive.pop(number, None):
            self.detected_by[fault.rule, name] += 1


def load_equivalent_faults() -> dict[tuple[str, str], str]:
    """Return the reason of each fault that changes no alert, by rule and description."""
    entries = yaml.safe_load(EQUIVALENT_FAULTS.read_text()) or []
    return {
        (rule, description): entry["reason"]
        for entry in entries
        for rule, descriptions in entry["faults"].items()
        for description in descriptions
    }


def main(patterns: Sequence[str]) -> int:
    rules = FaultyRules()
    equivalent = load_equivalent_faults()
    counted = [fault for fault in rules.faults if (fault.rule, fault.description) not in equivalent]
    print(f"{len(rules.faults)} faults, {len(rules.faults) - len(counted)} of them listed as equivalent")
    selected = {n: f for n, f in enumerate(counted) if not patterns or any(re.search(p, f.rule) for p in patterns)}
    if problems_of_form(rules.rewritten()) or tests_fail(rules.rewritten(), _TESTS):
        print("error: a test fails without a fault")
        return 1
    search = Search(rules, selected, [])
    search.run_tests()
    if search.alive:
        search = Search(rules, search.alive, record_incidents(rules))
        search.run_incidents()
    return report(selected.values(), search.alive.values())


def record_incidents(rules: FaultyRules) -> list[RecordedIncident]:
    """Return the incidents in which the expected alerts fire without a fault."""
    with ProcessPoolExecutor() as processes:
        recorded = list(processes.map(record, sorted(INCIDENTS.glob("*.yml"))))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        passed = list(threads.map(lambda incident: passes(rules.groups, incident), recorded))
    for incident in (incident for incident, ok in zip(recorded, passed, strict=True) if not ok):
        print(f"warning: {incident.name} is not used, because it fails without a fault", flush=True)
    return [incident for incident, ok in zip(recorded, passed, strict=True) if ok]


def report(faults: Iterable[Fault], survivors: Iterable[Fault]) -> int:
    """Print the survivors and their number by kind and by rule, and return the exit status."""
    faults, survivors = list(faults), list(survivors)
    for fault in survivors:
        print(f"not detected: {fault.rule}: {fault.description}")
    for title, key in (("kind", lambda fault: fault.kind), ("rule", lambda fault: fault.rule)):
        found, missed = Counter(map(key, faults)), Counter(map(key, survivors))
        print(f"\n| {title} | faults | not detected |\n|---|---|---|")
        for name, number in sorted(found.items(), key=lambda item: -missed[item[0]]):
            print(f"| {name} | {number} | {missed[name]} |")
    share = len(survivors) / len(faults)
    print(
        f"\n{len(survivors)} of {len(faults)} faults are not detected: {share:.1%}, at most {MAX_SURVIVORS:.0%} allowed"
    )
    return int(share > MAX_SURVIVORS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
