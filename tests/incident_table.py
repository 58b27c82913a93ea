"""The library of incidents as a table: what must fire from when to when, and when promtool saw it fire."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from incident import FIRING, INCIDENTS, MINUTE, Span, expected, load, promtool_test, record, run_promtool

from exporter.config.fields import format_duration
from exporter.logs import configure_logs

_FAILED = re.compile(r"time: (?P<time>\S+),\n\s+exp: .*\n\s+got: (?P<got>.*)")
_SERIES = re.compile(r"\{[^}]*\}")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Incident, alert, expected and seen, for each alert that is to fire or fired."""
    incident = load(path)
    world, series = record(incident)
    spans = {_words(span.labels): span for span in expected(incident, world)}
    document = promtool_test(incident, world, series)
    for test in document["tests"]:
        # what promtool finds it tells only where it expected something else
        test["promql_expr_test"] = [
            {"expr": FIRING, "eval_time": f"{minute}m", "exp_samples": []} for minute in incident.minutes
        ]
        test["alert_rule_test"] = []
    with tempfile.TemporaryDirectory() as directory:
        verdict = run_promtool(document, Path(directory))
    seen = _seen(verdict.stdout + verdict.stderr)
    for alert in dict.fromkeys((*spans, *seen)):
        yield incident.incident, alert, _span(spans.get(alert)), _minutes(seen.get(alert, []))
    if not spans and not seen:
        yield incident.incident, "", "nothing", "nothing"


def _words(labels: Mapping[str, str]) -> str:
    subject = ("space", "phone_number") if "space" in labels else ("account", "field", "value")
    return " ".join(labels[name] for name in ("alertname", *subject) if name in labels)


def _seen(output: str) -> dict[str, list[int]]:
    """The minutes in which each alert fired."""
    seen: dict[str, list[int]] = {}
    for failed in _FAILED.finditer(output):
        for series in _SERIES.findall(failed["got"]):
            labels = dict(_LABEL.findall(series))
            seen.setdefault(_words(labels), []).append(_minute(failed["time"]))
    return seen


def _minute(text: str) -> int:
    amounts = {unit: int(number) for number, unit in re.findall(r"(\d+)([wdhm])", text)}
    return ((amounts.get("w", 0) * 7 + amounts.get("d", 0)) * 24 + amounts.get("h", 0)) * 60 + amounts.get("m", 0)


def _span(span: Span | None) -> str:
    if not span:
        return "nothing"
    since, until, slack = (format_duration(seconds) for seconds in (span.since, span.until, span.slack))
    return f"{since} to {until}, each up to {slack} later"


def _minutes(minutes: list[int]) -> str:
    """Runs of minutes as "from to until"; the end is the first minute without it."""
    if not minutes:
        return "nothing"
    starts = [m for m in minutes if m - 1 not in minutes]
    ends = [m + 1 for m in minutes if m + 1 not in minutes]
    spans = zip(starts, ends, strict=True)
    return ", ".join(f"{format_duration(start * MINUTE)} to {format_duration(end * MINUTE)}" for start, end in spans)


if __name__ == "__main__":
    configure_logs("critical", "logfmt")  # what goes wrong here is meant to
    print("| incident | alert | expected | seen |\n|---|---|---|---|")
    for path in sorted(INCIDENTS.glob("*.yml")):
        for row in rows(path):
            print(f"| {' | '.join(row)} |", flush=True)
