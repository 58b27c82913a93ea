"""Incidents: what happens to the API and the exporter, and which alerts must be firing from when to when.

`record` plays a script against the simulated API and the real polling, state and rendering under virtual time, and
scrapes each minute as Prometheus would. `promtool_test` makes of that what `promtool test rules` reads. Both clocks
begin at 0, so that timestamps in samples are those of promtool's world.
"""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from virtual_time import START, VirtualClock, run
from world import World, scenario

from exporter.config.settings import Duration
from exporter.config.validation import load_document
from exporter.simulator.scenario import Moment

INCIDENTS = Path(__file__).parent / "rules" / "incidents"
RULES = Path(__file__).parents[1] / "config" / "prometheus" / "chatapp.rules.yml"
MINUTE = 60
Series = dict[str, list[str]]
"""Values by series, in promtool's notation, one a minute."""

_ACCOUNT: Mapping[str, Any] = {"spaces": "3", "qps": "5", "poll_interval": "5m", "latency": "100ms"}
_IDENTITY = ("alertname", "account", "space", "phone_number", "field", "value")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Outage(_Strict):
    """The exporter does not run; where it moves, it comes back as another instance and its old target is gone."""

    at: Moment
    down: Duration
    moves: bool = False


class Firing(_Strict):
    """An alert that must be firing in a span of time, and nowhere else.

    `since` and `until` are what a person would expect if polls, scrapes and rules took no time; each may come up to
    `slack` later. Without it that is one poll interval, one scrape and one evaluation.
    """

    alert: str
    spaces: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    labels: dict[str, str] = {}
    since: Moment = Field(alias="from")
    until: Moment = Field(alias="to")
    slack: Duration | None = None
    description: str | None = None


class Incident(_Strict):
    """A script; times count from the exporter's first start. Events are those of a scenario, without their account."""

    incident: str
    lasts: Duration
    account: dict[str, str] = {}
    events: list[dict[str, Any]] = []
    exporter: list[Outage] = []
    firing: list[Firing] = []

    @property
    def minutes(self) -> range:
        return range(int(self.lasts // MINUTE) + 1)

    def outage(self, elapsed: float) -> Outage | None:
        return next((o for o in self.exporter if o.at <= elapsed < o.at + o.down), None)

    def instance(self, elapsed: float) -> str:
        moved = sum(outage.moves and outage.at + outage.down <= elapsed for outage in self.exporter)
        return f"exporter-{moved}:10144"


def load(path: Path) -> Incident:
    """An incident of the library."""
    return load_document(path, Incident)


def record(incident: Incident) -> tuple[World, Series]:
    """The series that Prometheus would have, and the world that they come from."""
    return run(_play(incident))


async def _play(incident: Incident) -> tuple[World, Series]:
    account = {**_ACCOUNT, **incident.account}
    world = World(scenario(events=tuple(incident.events), **account), clock=VirtualClock(offset=-START))
    running = False
    scrapes: list[Mapping[str, str]] = []
    for minute in incident.minutes:
        now = minute * MINUTE
        await asyncio.sleep(now - world.clock.monotonic())
        outage = incident.outage(now)
        if outage and running:
            await world.exporter.stop()
            running = False
        elif not outage and not running:
            if now:
                world.exporter = world.fresh_exporter()
            await world.exporter.start()
            running = True
        scrapes.append(_scrape(world, incident, now, running=running))
    if running:
        await world.exporter.stop()
    return world, _series(scrapes)


def _scrape(world: World, incident: Incident, now: float, *, running: bool) -> dict[str, str]:
    """The samples of a scrape by series, `up` among them as Prometheus adds it."""
    target = f'job="chatapp-exporter",instance="{incident.instance(now)}"'
    outage = incident.outage(now)
    if outage and outage.moves:
        return {}
    samples = {f"up{{{target}}}": str(int(running))}
    if running:
        for line in world.exporter.exposition(openmetrics=False).decode().splitlines():
            if line.startswith("chatapp_"):
                series, _, value = line.rpartition(" ")
                name, _, labels = series.partition("{")
                labels = labels.removesuffix("}").removesuffix(",")
                samples[f"{name}{{{labels}{labels and ','}{target}}}"] = value.removeprefix("+")
    return samples


def _series(scrapes: list[Mapping[str, str]]) -> Series:
    """Prometheus marks a series stale when a scrape no longer has it."""
    names = dict.fromkeys(name for scrape in scrapes for name in scrape)
    recorded: Series = {name: [] for name in names}
    for name, values in recorded.items():
        seen = False
        for scrape in scrapes:
            values.append(scrape.get(name) or ("stale" if seen else "_"))
            seen = name in scrape
    return recorded


def promtool_test(incident: Incident, world: World, series: Series, rules: Path = RULES) -> dict[str, Any]:
    """The document that `promtool test rules` judges: what fires in each minute, and nothing else."""
    expected = list(_expected(incident, world))
    return {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "group_eval_order": ["chatapp.recording", "chatapp.alerts"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": _compressed(values)} for name, values in series.items()],
                "promql_expr_test": [_at(minute, expected) for minute in incident.minutes],
            }
        ],
    }


def _compressed(values: list[str]) -> str:
    """Runs of equal values as `1+0x5`; what promtool cannot read so is written out."""
    parts: list[str] = []
    start = 0
    for end in range(1, len(values) + 1):
        if end < len(values) and values[end] == values[start]:
            continue
        length, value = end - start, values[start]
        if value == "_" or length == 1 or "Inf" in value or value == "stale":
            parts += [f"_x{length}"] if value == "_" else [value] * length
        else:
            parts.append(f"{value}+0x{length - 1}")
        start = end
    return " ".join(parts)


def _expected(incident: Incident, world: World) -> Iterator[tuple[str, float, float, float]]:
    """For each alert that is to fire: its identity, since, until, and by how much each may be late."""
    usual = world.settings.accounts[0].poll_interval + 2 * MINUTE
    for firing in incident.firing:
        slack = usual if firing.slack is None else firing.slack
        for labels in _labels(firing, world):
            identity = {"alertname": firing.alert, **labels, **firing.labels}
            written = ", ".join(f'{name}="{identity[name]}"' for name in _IDENTITY if name in identity)
            yield f"{{{written}}}", firing.since, firing.until, slack


def _labels(firing: Firing, world: World) -> Iterator[dict[str, str]]:
    if not firing.spaces:
        yield {}
    for position in firing.spaces:
        space = world.api.fleet.spaces["acme"][position - 1]
        labels = {"account": "acme", "space": space.id}
        for number in firing.numbers:
            yield {**labels, "phone_number": str(space.numbers[number - 1]["PhoneNumber"])}
        if not firing.numbers:
            yield labels


def _at(minute: int, expected: list[tuple[str, float, float, float]]) -> dict[str, Any]:
    now = minute * MINUTE
    firing = f'group by ({", ".join(_IDENTITY)}) (ALERTS{{alertstate="firing"}})'
    must = {labels for labels, since, until, slack in expected if since + slack <= now < until}
    may = {labels for labels, since, until, slack in expected if since <= now < until + slack} - must
    expression = firing
    if may:
        either = " or ".join(f"ALERTS{labels}" for labels in sorted(may))
        expression += f" unless on ({', '.join(_IDENTITY)}) ({either})"
    return {
        "expr": expression,
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": labels, "value": 1} for labels in sorted(must)],
    }

