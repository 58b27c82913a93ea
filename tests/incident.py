"""Incidents: what happens to the API and the exporter, and which alerts must be firing from when to when.

`record` plays a script against the simulated API and the real polling, state and rendering under virtual time, and
scrapes each minute as Prometheus would. `promtool_test` makes of that what `promtool test rules` reads. Both clocks
begin at 0, so that timestamps in samples are those of promtool's world.
"""

import asyncio
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from programs import require_program
from pydantic import Field
from starlette.responses import JSONResponse
from virtual_time import START, VirtualClock, run
from world import Exporter, World, scenario

from exporter.config.effective import Shard
from exporter.config.fields import Duration, Strict
from exporter.config.problems import ConfigError, Problem
from exporter.config.settings import Settings
from exporter.config.validation import load_document
from exporter.runtime.reload import StaticLoader
from exporter.simulator.demo import demo_settings
from exporter.simulator.scenario import Moment

INCIDENTS = Path(__file__).parent / "rules" / "incidents"
RULES = Path(__file__).parents[1] / "config" / "prometheus" / "chatapp.rules.yml"
JOB = "chatapp-exporter"
MINUTE = 60
Series = dict[str, list[str]]
"""Values by series, in promtool's notation, one a minute."""
Watch = Callable[[int, Exporter], None]

_NAMES = ("acme", "globex", "umbrella")
"""Of three shards, each polls one of these."""
_ACCOUNT: Mapping[str, Any] = {"spaces": "3", "qps": "5", "poll_interval": "5m", "latency": "100ms"}
_IDENTITY = "alertname, account, space, phone_number, field, value"
FIRING = f'group by ({_IDENTITY}) (ALERTS{{alertstate="firing"}})'
"""What fires, by what makes it one alert and not another."""


class Outage(Strict):
    """The exporter does not run, or only this `shard` of it.

    Where it `moves`, it comes back as another instance and its old target is gone. From then on it polls the first
    `spaces`, where that is given. Meanwhile its state file may be damaged.
    """

    at: Moment
    down: Duration
    shard: int | None = None
    moves: bool = False
    spaces: int | None = None
    damages_state: bool = False


class Reload(Strict):
    """A reload of the same configuration, which is `bad` for a while, perhaps because of these `broken` space files. It
    has all spaces, also those that a start did not have."""

    at: Moment
    bad: bool = False
    broken: list[str] = Field([])


class EmptyAnswer(Strict):
    """The next answer for this space of the first account lists no number."""

    at: Moment
    space: int


class Competitor(Strict):
    """Someone else who uses the account's limit."""

    at: Moment
    lasts: Duration = Field(alias="for")
    qps: float


class Firing(Strict):
    """An alert that must be firing in a span of time, and nowhere else.

    `since` and `until` are what a person would expect if polls, scrapes and rules took no time; each may come up to
    `slack` later. Without it that is one poll interval, one scrape and one evaluation. Spaces and numbers are those of
    the account in `labels`, or of the first. With a `description`, the complete alert is compared, also its `instance`.
    """

    alert: str
    spaces: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    labels: dict[str, str] = Field({})
    since: Moment = Field(alias="from")
    until: Moment = Field(alias="to")
    slack: Duration | None = None
    description: str | None = None
    instance: str | None = None


class Incident(Strict):
    """A script; times count from the exporter's first start. Events are those of a scenario, of the first account where
    they name none. There are so many `accounts`, each with the settings of `account`. Where it is to `discover`, no
    space is configured. The exporter starts with the first `spaces_at_start`, where that is given."""

    incident: str
    lasts: Duration
    accounts: int = 1
    account: dict[str, str] = Field({})
    discover: bool = False
    spaces_at_start: int | None = None
    events: list[dict[str, Any]] = Field([])
    exporter: list[Outage] = Field([])
    shards: int = 1
    state_file: bool = False
    reloads: list[Reload] = Field([])
    competitor: Competitor | None = None
    empty_answers: list[EmptyAnswer] = Field([])
    firing: list[Firing] = Field([])

    @property
    def minutes(self) -> range:
        return range(int(self.lasts // MINUTE) + 1)

    def outages(self, shard: Shard) -> list[Outage]:
        return [outage for outage in self.exporter if outage.shard in (None, shard.index)]

    def outage(self, shard: Shard, elapsed: float) -> Outage | None:
        return next((o for o in self.outages(shard) if o.at <= elapsed < o.at + o.down), None)

    def outages_before(self, shard: Shard, elapsed: float) -> list[Outage]:
        return [outage for outage in self.outages(shard) if outage.at + outage.down <= elapsed]

    def instance(self, shard: Shard, elapsed: float) -> str:
        moves = sum(outage.moves for outage in self.outages_before(shard, elapsed))
        return f"exporter-{shard.index}-{moves}:10144"


@dataclass(frozen=True)
class Span:
    """When an alert must be firing, in seconds from the start; each end may come up to `slack` later."""

    labels: Mapping[str, str]
    since: float
    until: float
    slack: float

    @property
    def selector(self) -> str:
        return "{" + ", ".join(f'{name}="{value}"' for name, value in self.labels.items()) + "}"


def load(path: Path) -> Incident:
    """An incident of the library."""
    return load_document(path, Incident)


def record(incident: Incident, watch: Watch = lambda _minute, _exporter: None) -> tuple[World, Series]:
    """The series that Prometheus would have, and the world that they come from. At each scrape, `watch` gets the minute
    and each exporter that runs."""
    with TemporaryDirectory() as directory:
        return run(_play(incident, Path(directory) / "state.db", watch))


async def _play(incident: Incident, state: Path, watch: Watch) -> tuple[World, Series]:
    accounts = _NAMES[: incident.accounts]
    fleet = scenario(accounts=accounts, events=tuple(incident.events), **{**_ACCOUNT, **incident.account})
    polled = demo_settings(fleet, "http://127.0.0.1:1").accounts
    discovering = [account.model_copy(update={"discover": True, "spaces": None}) for account in polled]
    world = World(
        fleet,
        accounts=discovering if incident.discover else polled,
        clock=VirtualClock(offset=-START),
        state_file=str(state) if incident.state_file else None,
    )
    await world.exporter.stop()  # each process is a fresh one
    competing = asyncio.create_task(_compete(world, incident.competitor))
    shards = [Shard(index, incident.shards) for index in range(1, incident.shards + 1)]
    running: dict[Shard, Exporter] = {}
    scrapes: list[Mapping[str, str]] = []
    for minute in incident.minutes:
        now = minute * MINUTE
        await asyncio.sleep(now - world.clock.monotonic())
        for shard in shards:
            await _start_or_stop(world, incident, shard, running, state)
        for empty in incident.empty_answers:
            if empty.at == now:
                world.api.next_responses[world.space_id(empty.space)] = [
                    JSONResponse({"Code": "OK", "PhoneNumbers": []})
                ]
        for reload in incident.reloads:
            if reload.at == now:
                await asyncio.gather(*(_reload(world, exporter, reload) for exporter in running.values()))
        of_shards = (_scrape(incident, shard, now, running.get(shard)) for shard in shards)
        scrapes.append({series: value for scrape in of_shards for series, value in scrape.items()})
        for exporter in running.values():
            watch(minute, exporter)
    await asyncio.gather(*(exporter.stop() for exporter in running.values()))
    competing.cancel()
    return world, _series(scrapes)


async def _start_or_stop(
    world: World, incident: Incident, shard: Shard, running: dict[Shard, Exporter], state: Path
) -> None:
    now = world.clock.monotonic()
    outage = incident.outage(shard, now)
    if outage and shard in running:
        await running.pop(shard).stop()
        if outage.damages_state:
            _damage(state)
    elif not outage and shard not in running:
        before = incident.outages_before(shard, now)
        running[shard] = world.fresh_exporter(before[-1].spaces if before else incident.spaces_at_start, shard)
        await running[shard].start()
        await asyncio.sleep(0.13 if incident.shards > 1 else 0)  # processes do not start at the same moment


def _damage(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


async def _reload(world: World, exporter: Exporter, reload: Reload) -> None:
    with suppress(ConfigError):
        await exporter.reloader(_Reloaded(world.settings, reload)).reload()


class _Reloaded(StaticLoader):
    def __init__(self, settings: Settings, reload: Reload) -> None:
        super().__init__(settings)
        self._reload = reload

    def load(self) -> Settings:
        if self._reload.bad:
            raise ConfigError([Problem(file, (), "is broken") for file in self._reload.broken])
        return super().load()

    def space_files(self) -> Mapping[str, bool]:
        return dict.fromkeys(self._reload.broken, False)


async def _compete(world: World, competitor: Competitor | None) -> None:
    if competitor is None:
        return
    await asyncio.sleep(competitor.at)
    while world.clock.monotonic() < competitor.at + competitor.lasts:
        world.send_competing_request()
        await asyncio.sleep(1 / competitor.qps)


def _scrape(incident: Incident, shard: Shard, now: float, running: Exporter | None) -> dict[str, str]:
    """The samples of a scrape by series, `up` among them as Prometheus adds it."""
    target = f'job="{JOB}",instance="{incident.instance(shard, now)}"'
    outage = incident.outage(shard, now)
    if outage and outage.moves:
        return {}
    samples = {f"up{{{target}}}": str(int(running is not None))}
    if running:
        for line in b"".join(running.exposition(openmetrics=False)).decode().splitlines():
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
    spans = expected(incident, world)
    return {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "group_eval_order": ["chatapp.recording", "chatapp.hourly", "chatapp.alerts"],
        "tests": [
            {
                "interval": "1m",
                "input_series": input_series(series),
                "promql_expr_test": [_at(minute, spans) for minute in incident.minutes],
                "alert_rule_test": [_described(alert, world, rules) for alert in incident.firing if alert.description],
            }
        ],
    }


def input_series(series: Series) -> list[dict[str, str]]:
    """The series as promtool reads them."""
    return [{"series": name, "values": _compressed(values)} for name, values in series.items()]


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


def expected(incident: Incident, world: World) -> list[Span]:
    """The alerts that are to fire, one span each."""
    usual = world.settings.accounts[0].poll_interval + 2 * MINUTE
    return [
        Span(labels, firing.since, firing.until, usual if firing.slack is None else firing.slack)
        for firing in incident.firing
        for labels in _labels(firing, world)
    ]


def _labels(firing: Firing, world: World) -> Iterator[dict[str, str]]:
    own = {"alertname": firing.alert, **firing.labels}
    if not firing.spaces:
        yield own
    for position in firing.spaces:
        account = firing.labels.get("account", _NAMES[0])
        space = world.api.fleet.spaces[account][position - 1]
        labels = {**own, "account": account, "space": space.id}
        for number in firing.numbers:
            yield {**labels, "phone_number": str(space.numbers[number - 1]["PhoneNumber"])}
        if not firing.numbers:
            yield labels


def _at(minute: int, spans: list[Span]) -> dict[str, Any]:
    now = minute * MINUTE
    must = {span.selector for span in spans if span.since + span.slack <= now < span.until}
    may = {span.selector for span in spans if span.since <= now < span.until + span.slack} - must
    expression = FIRING
    if may:
        expression += f" unless on ({_IDENTITY}) ({' or '.join(f'ALERTS{labels}' for labels in sorted(may))})"
    return {
        "expr": expression,
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": labels, "value": 1} for labels in sorted(must)],
    }


def _described(firing: Firing, world: World, rules: Path) -> dict[str, Any]:
    """The whole alert, with the names that people know, half way through its span."""
    groups = yaml.safe_load(rules.read_text())["groups"]
    rule = next(rule for group in groups for rule in group["rules"] if rule.get("alert") == firing.alert)
    labels = next(_labels(firing, world))
    del labels["alertname"]
    if firing.instance:
        labels["instance"] = firing.instance
    return {
        "eval_time": f"{int((firing.since + firing.until) / 2 // MINUTE)}m",
        "alertname": firing.alert,
        "exp_alerts": [
            {
                "exp_labels": {"job": JOB, **labels, **rule["labels"]},
                "exp_annotations": {**rule["annotations"], "description": firing.description},
            }
        ],
    }


def run_promtool(test: Mapping[str, Any], directory: Path) -> subprocess.CompletedProcess[str]:
    """promtool's verdict; exit status 0 where everything is as expected."""
    document = directory / "test.yml"
    document.write_text(yaml.dump(test, Dumper=yaml.CSafeDumper, sort_keys=False, width=100_000))
    promtool = require_program("promtool", package="prometheus")
    return subprocess.run([promtool, "test", "rules", document], capture_output=True, text=True, check=False)
