"""Print a table of all incidents, with the expected and the actual time of each alert."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from incident import (
    FIRING,
    INCIDENTS,
    JOB,
    MINUTE,
    Span,
    expected_spans,
    load_incident,
    promtool_test,
    record_series,
    run_promtool,
)

from exporter.config.fields import format_duration
from exporter.logs import configure_logs

_FAILED_TEST = re.compile(r"time: (?P<time>\S+),\n\s+exp: .*\n\s+got: (?P<got>.*)")
_LABEL_SET = re.compile(r"\{[^}]*\}")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield the incident, the alert, and the expected and actual time, for each expected or actual alert."""
    incident = load_incident(path)
    world, series = record_series(incident)
    spans = {_alert_text(span.labels): span for span in expected_spans(incident, world)}
    document = promtool_test(incident, world, series)
    for test in document["tests"]:
        # promtool prints the actual alerts only if a test fails, so each test expects no alert
        test["promql_expr_test"] = [
            {"expr": FIRING, "eval_time": f"{minute}m", "exp_samples": []} for minute in incident.minutes
        ]
        test["alert_rule_test"] = []
    with tempfile.TemporaryDirectory() as directory:
        result = run_promtool(document, Path(directory))
    actual = _firing_minutes(result.stdout + result.stderr)
    for alert in dict.fromkeys((*spans, *actual)):
        yield incident.incident, alert, _span_text(spans.get(alert)), _minutes_text(actual.get(alert, []))
    if not spans and not actual:
        yield incident.incident, "", "not firing", "not firing"


def _alert_text(labels: Mapping[str, str]) -> str:
    """Return the name of an alert and its space and number, or its account, field and value. Other jobs than the
    default are shown too."""
    names = ("space", "phone_number") if "space" in labels else ("account", "field", "value")
    job = () if labels["job"] == JOB else ("job",)
    return " ".join(labels[name] for name in ("alertname", *job, *names) if name in labels)


def _firing_minutes(output: str) -> dict[str, list[int]]:
    """Return the minutes in which each alert fired, from the output of promtool."""
    minutes: dict[str, list[int]] = {}
    for failed in _FAILED_TEST.finditer(output):
        for label_set in _LABEL_SET.findall(failed["got"]):
            labels = dict(_LABEL.findall(label_set))
            minutes.setdefault(_alert_text(labels), []).append(_parse_minutes(failed["time"]))
    return minutes


def _parse_minutes(text: str) -> int:
    amounts = {unit: int(number) for number, unit in re.findall(r"(\d+)([wdhm])", text)}
    return ((amounts.get("w", 0) * 7 + amounts.get("d", 0)) * 24 + amounts.get("h", 0)) * 60 + amounts.get("m", 0)


def _span_text(span: Span | None) -> str:
    if not span:
        return "not firing"
    since, until, slack = (format_duration(seconds) for seconds in (span.since, span.until, span.slack))
    return f"{since} to {until}, each up to {slack} later"


def _minutes_text(minutes: list[int]) -> str:
    """Return each range of minutes as "start to end". The alert no longer fires in the minute `end`."""
    if not minutes:
        return "not firing"
    starts = [m for m in minutes if m - 1 not in minutes]
    ends = [m + 1 for m in minutes if m + 1 not in minutes]
    spans = zip(starts, ends, strict=True)
    return ", ".join(f"{format_duration(start * MINUTE)} to {format_duration(end * MINUTE)}" for start, end in spans)


if __name__ == "__main__":
    configure_logs("critical", "logfmt")  # the incidents cause many warnings and errors
    print("| incident | alert | expected | actual |\n|---|---|---|---|")
    for path in sorted(INCIDENTS.glob("*.yml")):
        for row in rows(path):
            print(f"| {' | '.join(row)} |", flush=True)
